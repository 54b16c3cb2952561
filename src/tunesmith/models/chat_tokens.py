"""Whether the tokens that end an answer were ever trained: those that never were share one row of the head."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

_SAME = 0.95
"""Cosine above which two rows are called one: untrained rows of the embedded model reach 0.99, trained ones 0.4."""


@torch.no_grad()
def twins(weight_VH: Tensor, token: int, others: frozenset[int]) -> list[int]:
    """Tokens among ``others`` whose row points where ``token``'s does: the model cannot tell them apart.

    Args:
        weight_VH: the output head.
        token: id of the end-of-turn token.
        others: ids of the model's special tokens.
    """
    rivals = sorted(others - {token})
    if not rivals:
        return []
    row_1H = weight_VH[token : token + 1].float()
    cosine_S = F.cosine_similarity(row_1H, weight_VH[rivals].float())
    return [rival for rival, cosine in zip(rivals, cosine_S.tolist(), strict=True) if cosine > _SAME]


def untrained_note(weight_VH: Tensor, names: dict[int, str], ends: frozenset[int], pattern: str) -> str | None:
    """A sentence for runs that leave the head frozen while an end-of-turn token has no row of its own, else None.

    Args:
        weight_VH: the output head.
        names: special tokens by id.
        ends: ids that end an answer.
        pattern: what to put into ``adapter.also_train``.
    """
    for token in sorted(ends):
        same = twins(weight_VH, token, frozenset(names)) if token in names else []
        if same:
            return (
                f"{names[token]} ends an answer here but was never trained: its row equals that of "
                f"{', '.join(names[other] for other in same[:3])}, and this adapter leaves it so; the loss cannot reach zero and "
                f'answers may not end. `adapter.also_train: ["{pattern}"]` trains it'
            )
    return None
