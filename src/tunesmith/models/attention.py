"""Attention over packs: documents that share one row of tokens and never see each other.

    q k v  [1 H T D] ── CUDA, 16 bit, no dropout ──> varlen kernel over cumulative lengths
                     └─ otherwise ──> documents of like length side by side, SDPA, back into the row

Causal, but for layers that say of themselves that they are not (``is_causal = False``), as those of encoders do.

A pack may have keys and values that stand in front of each of its documents (prefix tuning). Then a document has more keys than
queries, and the causal mask is aligned at the bottom right: its last token sees all. SDPA's ``is_causal`` aligns at the top
left, so the mask is written out; the varlen kernel aligns as needed.

Shapes: T tokens, H query heads, K key/value heads, D head width, N documents of a group, L longest of the group, V keys in front
of a document.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface

from tunesmith.errors import ModelError

NAME = "tunesmith_packed"


@dataclass(frozen=True)
class Group:
    """Documents of like length as a rectangle: where each cell comes from, and which cells are real, flattened.

    ``lengths_N`` is None where all are equally long.
    """

    take_NL: Tensor
    real_R: Tensor
    lengths_N: Tensor | None = None


class Cached:
    """Keys and values in front of every document, by layer ``[V, K, D]``; remembers which layers asked for theirs."""

    def __init__(self, layers: Sequence[tuple[Tensor, Tensor]]) -> None:
        self.layers = layers
        self.num_tokens = len(layers[0][0])
        self._asked: set[int] = set()

    @classmethod
    def joined(cls, parts: Sequence[Sequence[tuple[Tensor, Tensor]]]) -> Cached:
        """Those of several sources, one behind the other."""
        if len(parts) == 1:
            return cls(parts[0])
        layers = [[torch.cat(side) for side in zip(*layer, strict=True)] for layer in zip(*parts, strict=True)]
        return cls([(keys, values) for keys, values in layers])

    def of(self, module: nn.Module) -> tuple[Tensor, Tensor]:
        """Those of an attention layer."""
        index = getattr(module, "layer_idx", None)
        if not isinstance(index, int) or not 0 <= index < len(self.layers):
            raise _no_prefix(module)
        self._asked.add(index)
        return self.layers[index]

    def require_all_asked(self, model: nn.Module) -> None:
        """Raise ModelError where a forward pass went by the keys and values of some layer."""
        if len(self._asked) < len(self.layers):
            raise _no_prefix(model)


def _no_prefix(module: nn.Module) -> ModelError:
    return ModelError(
        "this model class cannot take keys and values in front of a document: not every layer asks for them",
        where=type(module).__name__,
        hint="use `adapter.type: prompt`, which puts its tokens into the input only",
    )


class PackLayout:
    """What attention needs to know of a pack; built once a batch and shared by all layers.

    Args:
        starts_D1: cumulative lengths, on the device.
        lengths: the same on the host.
        cached: keys and values in front of each document.
        even: only documents of one length are grouped.
    """

    def __init__(
        self, starts_D1: Tensor, lengths: Sequence[int], cached: Cached | None = None, *, even: bool = False
    ) -> None:
        self.starts_D1 = starts_D1
        self.lengths = lengths
        self.even = even
        self.longest = max(lengths)
        self.cached = cached

    @cached_property
    def _rectangles(self) -> tuple[tuple[Group, ...], Tensor | None]:
        """Groups and order, planned on the host at their first use: the variable-length kernel needs neither."""
        device = self.starts_D1.device
        lengths = np.asarray(self.lengths, dtype=np.int64)
        starts = np.cumsum(lengths) - lengths
        groups: list[Group] = []
        order: list[npt.NDArray[np.int64]] = []
        for members in like_lengths(lengths, even=self.even):
            count, longest = len(members), int(lengths[members].max())
            columns_NL = np.broadcast_to(np.arange(longest), (count, longest))
            real_NL = columns_NL < lengths[members, None]
            take_NL = starts[members, None] + np.minimum(columns_NL, lengths[members, None] - 1)
            own_N = None if real_NL.all() else moved(lengths[members], device)
            groups.append(Group(moved(take_NL, device), moved(np.flatnonzero(real_NL), device), own_N))
            order.append(take_NL[real_NL])
        joined = np.concatenate(order)
        in_order = bool(np.all(joined == np.arange(len(joined))))
        return tuple(groups), None if in_order else moved(np.argsort(joined), device)

    @property
    def groups(self) -> tuple[Group, ...]:
        """Documents by length, so that padding inside a group stays below a half."""
        return self._rectangles[0]

    @property
    def order_T(self) -> Tensor | None:
        """Where each token of the pack lies among the tokens of the groups; None where they are in order."""
        return self._rectangles[1]


def like_lengths(lengths: npt.NDArray[np.int64], *, even: bool = False) -> list[npt.NDArray[np.int64]]:
    """Documents by length, longest first: those of a group are longer than half its longest, or all are short.

    Args:
        lengths: of each document.
        even: those of a group are of one length.

    Returns:
        indices of each group's documents, in order.
    """
    by_length = np.argsort(-lengths, kind="stable").tolist()
    groups: list[npt.NDArray[np.int64]] = []
    while by_length:
        longest = int(lengths[by_length[0]])
        apart = longest - 1 if even else longest / 2 if longest > 32 else 0
        count = next((place for place, index in enumerate(by_length) if lengths[index] <= apart), len(by_length))
        groups.append(np.asarray(sorted(by_length[:count]), dtype=np.int64))
        del by_length[:count]
    return groups


def layout_of(starts_D1: Tensor, lengths: Sequence[int], cached: Cached | None = None) -> PackLayout:
    """The layout of a pack."""
    return PackLayout(starts_D1, lengths, cached)


def interleaved(front: Tensor, rows: Tensor, lengths: Sequence[int]) -> Tensor:
    """``front`` ``[V, …]`` before each document of ``rows`` ``[T, …]``, in the type of the rows.

    It is repeated before it is cast, so that its gradient is summed over documents in fp32.
    """
    count, num_documents = len(front), len(lengths)
    repeated = front[None].expand(num_documents, *front.shape).to(rows.dtype).flatten(0, 1)
    ends = np.cumsum(lengths)
    places: list[npt.NDArray[np.int64]] = []
    for index, (length, end) in enumerate(zip(lengths, ends.tolist(), strict=True)):
        places += [np.arange(count) + index * count, np.arange(end - length, end) + num_documents * count]
    return torch.cat([repeated, rows]).index_select(0, moved(np.concatenate(places), rows.device))


def packed_attention(  # noqa: PLR0913 - the signature is that of transformers' attention functions
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    pack: PackLayout | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **unused: Any,
) -> tuple[Tensor, None]:
    """Attention within each document of a pack, as transformers calls it.

    Args:
        module: the attention layer; says whether it is causal.
        query: ``[1, H, T, D]``.
        key: ``[1, K, T, D]``; H is a multiple of K.
        value: as ``key``.
        attention_mask: ignored: the pack's layout says what may be seen.
        pack: the layout; without it the whole row is one document.
        scaling: of the scores; None is 1/sqrt(D).
        dropout: on the attention weights.
        sliding_window: how far back a token sees, itself included; as far ahead where the layer is not causal.
        softcap: tanh bound on the scores (Gemma 2).
        s_aux: by head ``[H]`` the score of a sink, which takes its share of each softmax and gives nothing (gpt-oss).
        unused: what other implementations take.

    Returns:
        ``[1, T, H, D]`` and None.
    """
    if pack is None:
        length = query.shape[2]
        pack = _whole_row(length, query.device)
    sight = _Sight(bool(getattr(module, "is_causal", True)), sliding_window)
    rows = _Rows(query, key, value, pack.cached.of(module) if pack.cached is not None else None)
    scores = _Scores(scaling, softcap, s_aux)
    if scores.are_plain and query.shape[-1] == value.shape[-1] and _varlen_fits(query, dropout):
        return _varlen(rows, pack, scaling, sight), None
    return _grouped(rows, pack, scores, dropout, sight), None


@dataclass(frozen=True)
class _Scores:
    """What a layer does to the products of queries and keys: scale, tanh bound, and by head the score of a sink ``[H]``."""

    scaling: float | None
    cap: float | None = None
    sinks_H: Tensor | None = None

    @property
    def are_plain(self) -> bool:
        """Whether fused kernels know them."""
        return self.cap is None and self.sinks_H is None

    def weights(self, q: Tensor, k: Tensor, seen: Tensor) -> Tensor:
        """Attention weights ``[N, H, L, V + L]`` in fp32; a sink takes its share and is left out."""
        scores = q @ k.transpose(-1, -2) * (self.scaling if self.scaling is not None else 1 / math.sqrt(q.shape[-1]))
        if self.cap is not None:
            scores = self.cap * torch.tanh(scores / self.cap)
        scores = scores.masked_fill(~seen, float("-inf"))
        if self.sinks_H is None:
            return scores.softmax(-1, dtype=torch.float32)
        sinks = self.sinks_H.to(scores.dtype).view(1, -1, 1, 1).expand(*scores.shape[:-1], 1)
        return torch.cat([scores, sinks], dim=-1).softmax(-1, dtype=torch.float32)[..., :-1]


@dataclass(frozen=True)
class _Sight:
    """Which tokens of its document a token sees: those before it, or all, within a window or not."""

    causal: bool
    window: int | None

    def banded(self, length: int) -> bool:
        """Whether the window hides anything of a document of this length."""
        return self.window is not None and self.window < length


class _Rows:
    """Queries, keys and values of a pack by token ``[T, heads, D]``, and the keys and values in front of each document."""

    def __init__(self, query: Tensor, key: Tensor, value: Tensor, front: tuple[Tensor, Tensor] | None) -> None:
        self.query, self.key, self.value = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
        self.front = front


@cache
def _whole_row(length: int, device: torch.device) -> PackLayout:
    return layout_of(torch.tensor([0, length], dtype=torch.int32, device=device), (length,))


def moved(values: npt.NDArray[np.int64], device: torch.device) -> Tensor:
    """On the device, without waiting for it: only pinned memory is copied while the host goes on."""
    tensor = torch.from_numpy(np.ascontiguousarray(values))
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def _varlen_fits(query: Tensor, dropout: float) -> bool:
    if not query.is_cuda or dropout > 0 or torch.are_deterministic_algorithms_enabled():
        return False
    return query.dtype in (torch.bfloat16, torch.float16) and query.shape[-1] <= 256


def _varlen(rows: _Rows, pack: PackLayout, scaling: float | None, sight: _Sight) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    key, value, starts, longest = rows.key, rows.value, pack.starts_D1, pack.longest
    if rows.front is not None:
        count = len(rows.front[0])
        key, value = (
            interleaved(front, own, pack.lengths) for front, own in zip(rows.front, (key, value), strict=True)
        )
        starts = starts + torch.arange(len(starts), dtype=starts.dtype, device=starts.device) * count
        longest += count
    query, key, value = (tensor.to(rows.query.dtype) for tensor in (rows.query, key, value))
    reach = sight.window - 1 if sight.window else -1
    window = (reach, 0 if sight.causal else reach)
    extra: dict[str, Any] = {} if query.shape[1] == key.shape[1] or _old_varlen() else {"enable_gqa": True}
    out: Any = varlen_attn(
        query, key, value, pack.starts_D1, starts, pack.longest, longest, scale=scaling, window_size=window, **extra
    )
    joined: Tensor = out.unsqueeze(0)
    return joined


@cache
def _old_varlen() -> bool:
    """Before torch 2.12 grouped heads are taken as they are and there is no flag for them."""
    major, minor = (int(part) for part in torch.__version__.split(".")[:2])
    return (major, minor) < (2, 12)


def _grouped(rows: _Rows, pack: PackLayout, scores: _Scores, dropout: float, sight: _Sight) -> Tensor:
    num_heads, width = rows.query.shape[1], rows.value.shape[2]
    pieces = []
    for group in pack.groups:
        count, longest = group.take_NL.shape
        flat = group.take_NL.reshape(-1)
        q, k, v = (
            row.index_select(0, flat).view(count, longest, row.shape[1], row.shape[2]).transpose(1, 2)
            for row in (rows.query, rows.key, rows.value)
        )
        if rows.front is not None:
            fronts = (item.transpose(0, 1)[None].expand(count, -1, -1, -1).to(k.dtype) for item in rows.front)
            k, v = (torch.cat([front, own], dim=2) for front, own in zip(fronts, (k, v), strict=True))
        if k.shape[1] != num_heads:
            k, v = (tensor.repeat_interleave(num_heads // tensor.shape[1], dim=1) for tensor in (k, v))
        lengths_N = None if sight.causal else group.lengths_N
        out = _attend((q, k, v), scores, dropout, sight, lengths_N)
        pieces.append(out.transpose(1, 2).reshape(count * longest, num_heads, width).index_select(0, group.real_R))
    joined = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
    if pack.order_T is not None:
        joined = joined.index_select(0, pack.order_T)
    return joined.unsqueeze(0)


def _attend(
    qkv: tuple[Tensor, Tensor, Tensor], scores: _Scores, dropout: float, sight: _Sight, lengths_N: Tensor | None
) -> Tensor:
    """Attention over a rectangle; what cells behind a document's end give is dropped by the caller.

    Queries are ``[N, H, L, D]``, keys and values ``[N, H, V + L, D]``: a query of a causal layer sees keys up to V behind its own
    place. Such a layer never looks behind the end of a document; to one that is not causal ``lengths_N`` says where it is,
    or nothing where all documents are as long as the rectangle.
    """
    q, k, v = qkv
    length = k.shape[2]
    front = length - q.shape[2]
    banded = sight.banded(length)
    if scores.are_plain and not banded and lengths_N is None and not (front and sight.causal):
        return F.scaled_dot_product_attention(q, k, v, is_causal=sight.causal, scale=scores.scaling, dropout_p=dropout)
    place = torch.arange(length, device=q.device)
    distance = place[front:, None] - place[None, :]
    seen = distance >= 0 if sight.causal else torch.ones_like(distance, dtype=torch.bool)
    if banded and sight.window is not None:
        seen &= distance.abs() < sight.window
    if lengths_N is not None:  # a cell behind the end sees the first key, so that no row of the softmax is empty
        within_NL = place[None, :] < (lengths_N + front)[:, None]
        seen = (seen[None] & within_NL[:, None, :])[:, None]
        seen[..., 0] |= ~within_NL[:, None, front:]
    if scores.are_plain:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=scores.scaling, dropout_p=dropout)
    weights = scores.weights(q, k, seen).to(v.dtype)
    return F.dropout(weights, dropout) @ v if dropout > 0 else weights @ v


AttentionInterface.register(NAME, packed_attention)
