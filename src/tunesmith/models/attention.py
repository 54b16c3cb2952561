"""Attention over packs: documents that share one row of tokens and never see each other.

    q k v  [1 H T D] ── CUDA, 16 bit, no dropout ──> varlen kernel over cumulative lengths
                     └─ otherwise ──> documents of like length side by side, causal SDPA, back into the row

Shapes: T tokens, H query heads, K key/value heads, D head width, N documents of a group, L longest of the group.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface

from tunesmith.errors import ModelError

NAME = "tunesmith_packed"


@dataclass(frozen=True)
class Group:
    """Documents of like length as a rectangle: where each cell comes from, and which cells are real, flattened."""

    take_NL: Tensor
    real_R: Tensor


@dataclass(frozen=True)
class PackLayout:
    """What attention needs to know of a pack; built once a batch and shared by all layers."""

    starts_D1: Tensor
    longest: int
    groups: tuple[Group, ...]
    order_T: Tensor | None


def layout_of(starts_D1: Tensor, lengths: Sequence[int]) -> PackLayout:
    """Plan a pack on the host. Documents are grouped so that padding inside a group stays below a half."""
    device = starts_D1.device
    starts = [0]
    for length in lengths:
        starts.append(starts[-1] + length)
    by_length = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    groups: list[Group] = []
    order: list[int] = []
    position = 0
    while position < len(by_length):
        longest = lengths[by_length[position]]
        members = [by_length[position]]
        position += 1
        while position < len(by_length) and (2 * lengths[by_length[position]] > longest or longest <= 32):
            members.append(by_length[position])
            position += 1
        members.sort()
        take = [[starts[index] + min(column, lengths[index] - 1) for column in range(longest)] for index in members]
        real = [row * longest + column for row, index in enumerate(members) for column in range(lengths[index])]
        order += [starts[index] + column for index in members for column in range(lengths[index])]
        groups.append(Group(torch.tensor(take, device=device), torch.tensor(real, device=device)))
    in_order = order == list(range(len(order)))
    inverse = None if in_order else torch.argsort(torch.tensor(order, device=device))
    return PackLayout(starts_D1, max(lengths), tuple(groups), inverse)


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
    """Causal attention within each document of a pack, as transformers calls it.

    Args:
        module: the attention layer, unused.
        query: ``[1, H, T, D]``.
        key: ``[1, K, T, D]``; H is a multiple of K.
        value: as ``key``.
        attention_mask: ignored: the pack's layout says what may be seen.
        pack: the layout; without it the whole row is one document.
        scaling: of the scores; None is 1/sqrt(D).
        dropout: on the attention weights.
        sliding_window: how far back a token sees, itself included.
        softcap: tanh bound on the scores (Gemma 2).
        unused: what other implementations take.

    Returns:
        ``[1, T, H, D]`` and None.

    Raises:
        ModelError: the model needs attention sinks, which are not built.
    """
    if unused.get("s_aux") is not None:
        raise ModelError("this model uses attention sinks, which packed attention does not have yet")
    if pack is None:
        length = query.shape[2]
        pack = _whole_row(length, query.device)
    if _varlen_fits(query, dropout, softcap):
        return _varlen(query, key, value, pack, scaling, sliding_window), None
    return _grouped(query, key, value, pack, scaling, dropout, sliding_window, softcap), None


@cache
def _whole_row(length: int, device: torch.device) -> PackLayout:
    return layout_of(torch.tensor([0, length], dtype=torch.int32, device=device), (length,))


def _varlen_fits(query: Tensor, dropout: float, softcap: float | None) -> bool:
    if not query.is_cuda or dropout > 0 or softcap is not None or torch.are_deterministic_algorithms_enabled():
        return False
    return query.dtype in (torch.bfloat16, torch.float16) and query.shape[-1] <= 256


def _varlen(
    query: Tensor, key: Tensor, value: Tensor, pack: PackLayout, scaling: float | None, sliding_window: int | None
) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    rows = [tensor[0].transpose(0, 1).to(query.dtype) for tensor in (query, key, value)]
    window = (sliding_window - 1, 0) if sliding_window else (-1, 0)
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
    sliding_window: int | None,
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
        out = _causal(q, k, v, scaling, dropout, sliding_window, softcap)
        pieces.append(out.transpose(1, 2).reshape(count * longest, num_heads, width).index_select(0, group.real_R))
    joined = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
    if pack.order_T is not None:
        joined = joined.index_select(0, pack.order_T)
    return joined.unsqueeze(0)


def _causal(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scaling: float | None,
    dropout: float,
    sliding_window: int | None,
    softcap: float | None,
) -> Tensor:
    """Causal attention over a rectangle ``[N, H, L, D]``; the cells behind a document's end are dropped by the caller."""
    length = q.shape[2]
    banded = sliding_window is not None and sliding_window < length
    if softcap is None and not banded:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling, dropout_p=dropout)
    place = torch.arange(length, device=q.device)
    distance = place[:, None] - place[None, :]
    seen = distance >= 0
    if banded and sliding_window is not None:
        seen &= distance < sliding_window
    if softcap is None:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=scaling, dropout_p=dropout)
    scores = q @ k.transpose(-1, -2) * (scaling if scaling is not None else 1 / math.sqrt(q.shape[-1]))
    scores = softcap * torch.tanh(scores / softcap)
    weights = scores.masked_fill(~seen, float("-inf")).softmax(-1, dtype=torch.float32).to(v.dtype)
    return F.dropout(weights, dropout) @ v if dropout > 0 else weights @ v


AttentionInterface.register(NAME, packed_attention)
