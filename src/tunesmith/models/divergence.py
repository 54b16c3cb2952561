"""How far two next-token distributions are apart, a chunk of positions at a time: no tensor of all logits.

    J(p, q) = ½ KL(p ‖ q) + ½ KL(q ‖ p) = ½ Σ_v (p_v − q_v) (log p_v − log q_v)          in nats, at least 0

Each chunk is computed again in the backward pass. Shapes: S scored positions, H hidden width, V vocabulary, C positions of a chunk.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from tunesmith.models.head import Head, chunks


def symmetric_divergence(one_SH: Tensor, other_SH: Tensor, head: Head) -> Tensor:
    """J of the distributions after two sets of hidden states ``[S]``, in fp32; differentiable by both and by the head.

    Args:
        one_SH: hidden states at scored positions.
        other_SH: those of the other pass, at the same positions.
        head: the output head.
    """

    def of_chunk(one_CH: Tensor, other_CH: Tensor) -> Tensor:
        one_CV, other_CV = (head.logits(part, through_rows=True).log_softmax(-1) for part in (one_CH, other_CH))
        return 0.5 * ((one_CV.exp() - other_CV.exp()) * (one_CV - other_CV)).sum(-1)

    parts = chunks(one_SH.shape[0], head.weight_VH.shape[0])
    if not torch.is_grad_enabled():
        return torch.cat([of_chunk(one_SH[part], other_SH[part]) for part in parts] or [one_SH.new_empty(0)])
    found = [
        checkpoint(of_chunk, one_SH[part], other_SH[part], use_reentrant=False, preserve_rng_state=False)
        for part in parts
    ]
    return torch.cat(found or [one_SH.float().sum(-1)])
