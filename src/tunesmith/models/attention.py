"""Attention over packs: documents that share one row of tokens and never see each other.

    q k v  [1 H T D] ── CUDA, 16 bit, no dropout ──> varlen kernel over cumulative lengths
                     └─ otherwise ──> documents of like length side by side, SDPA, back into the row

Causal, but for layers that say of themselves that they are not (``is_causal = False``), as those of encoders do.
Shapes: T tokens, H query heads, K key/value heads, D head width, N documents of a group, L longest of the group.
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


class PackLayout:
    """What attention needs to know of a pack; built once a batch and shared by all layers.

    Args:
        starts_D1: cumulative lengths, on the device.
        lengths: the same on the host.
    """

    def __init__(self, starts_D1: Tensor, lengths: Sequence[int]) -> None:
        self.starts_D1 = starts_D1
        self.lengths = lengths
        self.longest = max(lengths)

    @cached_property
    def _rectangles(self) -> tuple[tuple[Group, ...], Tensor | None]:
        """Groups and order, planned on the host at their first use: the variable-length kernel needs neither."""
        device = self.starts_D1.device
        lengths = np.asarray(self.lengths, dtype=np.int64)
        starts = np.cumsum(lengths) - lengths
        by_length = np.argsort(-lengths, kind="stable").tolist()
        groups: list[Group] = []
        order: list[npt.NDArray[np.int64]] = []
        while by_length:
            longest = int(lengths[by_length[0]])
            count = next(
                (place for place, index in enumerate(by_length) if 2 * lengths[index] <= longest and longest > 32),
                len(by_length),
            )
            members = np.asarray(sorted(by_length[:count]), dtype=np.int64)
            del by_length[:count]
            columns_NL = np.broadcast_to(np.arange(longest), (count, longest))
            real_NL = columns_NL < lengths[members, None]
            take_NL = starts[members, None] + np.minimum(columns_NL, lengths[members, None] - 1)
            own_N = None if real_NL.all() else _moved(lengths[members], device)
            groups.append(Group(_moved(take_NL, device), _moved(np.flatnonzero(real_NL), device), own_N))
            order.append(take_NL[real_NL])
        joined = np.concatenate(order)
        in_order = bool(np.all(joined == np.arange(len(joined))))
        return tuple(groups), None if in_order else _moved(np.argsort(joined), device)

    @property
    def groups(self) -> tuple[Group, ...]:
        """Documents by length, so that padding inside a group stays below a half."""
        return self._rectangles[0]

    @property
    def order_T(self) -> Tensor | None:
        """Where each token of the pack lies among the tokens of the groups; None where they are in order."""
        return self._rectangles[1]


def layout_of(starts_D1: Tensor, lengths: Sequence[int]) -> PackLayout:
    """The layout of a pack."""
    return PackLayout(starts_D1, lengths)


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
        unused: what other implementations take.

    Returns:
        ``[1, T, H, D]`` and None.

    Raises:
        ModelError: the model needs attention sinks, which are not built.
    """
    if unused.get("s_aux") is not None:
        raise ModelError(
            "this model uses attention sinks, which packed attention does not have",
            where=f"attention layer {type(module).__name__}",
            hint="take a model whose layers have none",
        )
    if pack is None:
        length = query.shape[2]
        pack = _whole_row(length, query.device)
    seen = _Sight(bool(getattr(module, "is_causal", True)), sliding_window)
    if _varlen_fits(query, dropout, softcap):
        return _varlen(query, key, value, pack, scaling, seen), None
    return _grouped(query, key, value, pack, scaling, dropout, seen, softcap), None


@dataclass(frozen=True)
class _Sight:
    """Which tokens of its document a token sees: those before it, or all, within a window or not."""

    causal: bool
    window: int | None

    def banded(self, length: int) -> bool:
        """Whether the window hides anything of a document of this length."""
        return self.window is not None and self.window < length


@cache
def _whole_row(length: int, device: torch.device) -> PackLayout:
    return layout_of(torch.tensor([0, length], dtype=torch.int32, device=device), (length,))


def _moved(values: npt.NDArray[np.int64], device: torch.device) -> Tensor:
    """On the device, without waiting for it: only pinned memory is copied while the host goes on."""
    tensor = torch.from_numpy(np.ascontiguousarray(values))
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def _varlen_fits(query: Tensor, dropout: float, softcap: float | None) -> bool:
    if not query.is_cuda or dropout > 0 or softcap is not None or torch.are_deterministic_algorithms_enabled():
        return False
    return query.dtype in (torch.bfloat16, torch.float16) and query.shape[-1] <= 256


def _varlen(
    query: Tensor, key: Tensor, value: Tensor, pack: PackLayout, scaling: float | None, sight: _Sight
) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    rows = [tensor[0].transpose(0, 1).to(query.dtype) for tensor in (query, key, value)]
    reach = sight.window - 1 if sight.window else -1
    window = (reach, 0 if sight.causal else reach)
    starts, longest = pack.starts_D1, pack.longest
    extra: dict[str, Any] = {} if rows[0].shape[1] == rows[1].shape[1] or _old_varlen() else {"enable_gqa": True}
    out: Any = varlen_attn(
        rows[0], rows[1], rows[2], starts, starts, longest, longest, scale=scaling, window_size=window, **extra
    )
    joined: Tensor = out.unsqueeze(0)
    return joined


@cache
def _old_varlen() -> bool:
    """Before torch 2.12 grouped heads are taken as they are and there is no flag for them."""
    major, minor = (int(part) for part in torch.__version__.split(".")[:2])
    return (major, minor) < (2, 12)


def _grouped(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    pack: PackLayout,
    scaling: float | None,
    dropout: float,
    sight: _Sight,
    softcap: float | None,
) -> Tensor:
    num_heads, width = query.shape[1], query.shape[3]
    rows = [tensor[0].transpose(0, 1) for tensor in (query, key, value)]
    pieces = []
    for group in pack.groups:
        count, longest = group.take_NL.shape
        flat = group.take_NL.reshape(-1)
        q, k, v = (
            row.index_select(0, flat).view(count, longest, row.shape[1], row.shape[2]).transpose(1, 2) for row in rows
        )
        if k.shape[1] != num_heads:
            k, v = (tensor.repeat_interleave(num_heads // tensor.shape[1], dim=1) for tensor in (k, v))
        lengths_N = None if sight.causal else group.lengths_N
        out = _attend(q, k, v, scaling, dropout, sight, softcap, lengths_N)
        pieces.append(out.transpose(1, 2).reshape(count * longest, num_heads, width).index_select(0, group.real_R))
    joined = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
    if pack.order_T is not None:
        joined = joined.index_select(0, pack.order_T)
    return joined.unsqueeze(0)


def _attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scaling: float | None,
    dropout: float,
    sight: _Sight,
    softcap: float | None,
    lengths_N: Tensor | None,
) -> Tensor:
    """Attention over a rectangle ``[N, H, L, D]``; what cells behind a document's end give is dropped by the caller.

    A causal layer never looks behind the end of a document; to one that is not causal ``lengths_N`` says where it is, or
    nothing where all documents are as long as the rectangle.
    """
    length = q.shape[2]
    banded = sight.banded(length)
    if softcap is None and not banded and lengths_N is None:
        return F.scaled_dot_product_attention(q, k, v, is_causal=sight.causal, scale=scaling, dropout_p=dropout)
    place = torch.arange(length, device=q.device)
    distance = place[:, None] - place[None, :]
    seen = distance >= 0 if sight.causal else torch.ones_like(distance, dtype=torch.bool)
    if banded and sight.window is not None:
        seen &= distance.abs() < sight.window
    if lengths_N is not None:  # a cell behind the end sees the first token, so that no row of the softmax is empty
        within_NL = place[None, :] < lengths_N[:, None]
        seen = (seen[None] & within_NL[:, None, :])[:, None]
        seen[..., 0] |= ~within_NL[:, None]
    if softcap is None:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=scaling, dropout_p=dropout)
    scores = q @ k.transpose(-1, -2) * (scaling if scaling is not None else 1 / math.sqrt(q.shape[-1]))
    scores = softcap * torch.tanh(scores / softcap)
    weights = scores.masked_fill(~seen, float("-inf")).softmax(-1, dtype=torch.float32).to(v.dtype)
    return F.dropout(weights, dropout) @ v if dropout > 0 else weights @ v


AttentionInterface.register(NAME, packed_attention)
