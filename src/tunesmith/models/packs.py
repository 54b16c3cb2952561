"""Packs and rectangles of documents as the facades run them.

Shapes: T tokens of a pack, N documents of a group, L its longest, H width of a state.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from tunesmith.models.attention import PackLayout
from tunesmith.types import Batch


def pack_of(ids_T: Tensor, lengths: Sequence[int]) -> Batch:
    """Documents side by side, each token its own target: for states and logits, not for a loss."""
    device, total = ids_T.device, len(ids_T)
    starts = torch.tensor([0, *lengths], device=device).cumsum(0)
    positions = torch.cat([torch.arange(length, device=device) for length in lengths])
    every = torch.arange(total, device=device)
    documents = torch.repeat_interleave(torch.arange(len(lengths), device=device), torch.tensor(lengths, device=device))
    return Batch(
        input_ids_T=ids_T, positions_T=positions, starts_D1=starts.int(), lengths=tuple(lengths), scored_S=every,
        targets_S=ids_T, weights_S=torch.ones(total, device=device), document_S=documents, rows=tuple(range(len(lengths))),
    )  # fmt: skip


def in_rectangles(
    tokens: dict[str, Tensor], pack: PackLayout, run: Callable[[dict[str, Any]], Tensor], *, even: bool
) -> Tensor:
    """States of a pack ``[T, H]`` of a model that takes padded rows: its documents go through as rectangles of like length.

    Args:
        tokens: ``input_ids`` ``[1, T]`` or ``inputs_embeds`` ``[1, T, H]`` of the pack.
        pack: where its documents lie.
        run: rows ``[N, L, …]``, with ``attention_mask`` where they are padded behind their end, to states ``[N, L, H]``.
        even: only documents of one length share a rectangle.
    """
    layout = PackLayout(pack.starts_D1, pack.lengths, even=even)
    pieces = []
    for group in layout.groups:
        rows: dict[str, Any] = {name: item[0][group.take_NL] for name, item in tokens.items()}
        if group.lengths_N is not None:
            places_L = torch.arange(group.take_NL.shape[1], device=group.take_NL.device)
            rows["attention_mask"] = (places_L[None] < group.lengths_N[:, None]).long()
        pieces.append(run(rows).flatten(0, 1).index_select(0, group.real_R))
    joined = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
    return joined if layout.order_T is None else joined.index_select(0, layout.order_T)
