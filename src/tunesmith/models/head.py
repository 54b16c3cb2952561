"""The output head fused with the log-probability of the targets: no tensor of all logits.

Only scored positions reach the head, a chunk at a time. The derivative of a token's log-probability by its hidden
state is ``W[target] - softmax · W``, which does not depend on the loss; so with a frozen head it is computed in the
forward and the backward is one multiplication. A head that trains computes its softmax again in the backward. Where only
a few rows train, their columns of the derivative are kept from the forward: S × N numbers beside the frozen head's work.
The mean log-probability over the vocabulary, which label smoothing asks for, is a second output with a derivative of its
own, and costs nothing where it is not wanted.

Shapes: S scored positions, H hidden width, V vocabulary, N rows that train.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from tunesmith.models.token_rows import TokenRows

_CHUNK_LOGITS = 1 << 24
"""Logits alive at once: 64 MiB in fp32."""


@dataclass(frozen=True)
class Head:
    """The head's tensors and what the model does to logits: ``cap · tanh(scale · (h W^T + b) / cap)``.

    ``rows`` are those that train while the weight is frozen; the weight holds their values.
    """

    weight_VH: Tensor
    bias_V: Tensor | None = None
    scale: float = 1.0
    cap: float | None = None
    rows: TokenRows | None = None

    def logits(self, hidden_SH: Tensor, *, through_rows: bool = False) -> Tensor:
        """Logits in fp32 ``[S, V]``; with ``through_rows`` autograd reaches the rows that train by themselves."""
        logits_SV = (hidden_SH @ self.weight_VH.to(hidden_SH.dtype).T).float()
        if through_rows and self.rows is not None:
            change_NH = self.rows.rows - self.rows.rows.detach()
            logits_SV = logits_SV.index_add(1, self.rows.ids_N, hidden_SH.float() @ change_NH.T)
        if self.bias_V is not None:
            logits_SV = logits_SV + self.bias_V.float()
        if self.scale != 1.0:
            logits_SV = logits_SV * self.scale
        if self.cap is not None:
            logits_SV = self.cap * torch.tanh(logits_SV / self.cap)
        return logits_SV

    def slope(self, logits_SV: Tensor) -> Tensor | float:
        """Derivative of the final logits by the raw ones."""
        if self.cap is None:
            return self.scale
        return self.scale * (1 - (logits_SV / self.cap) ** 2)


class Scored(NamedTuple):
    """What the fused head tells of each scored position, in nats and fp32.

    ``logprob_S`` and ``mean_S``, the mean over the vocabulary, are differentiable; ``mean_S`` is zeros where it is not
    wanted, ``entropy_S`` and ``correct_S`` are zeros and false.
    """

    logprob_S: Tensor
    entropy_S: Tensor
    correct_S: Tensor
    mean_S: Tensor


class _TokenLogProb(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_SH: Tensor, weight_VH: Tensor, bias_V: Tensor | None, rows_NH: Tensor | None, targets_S: Tensor,
        given: tuple[Any, ...],
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
        scale, cap, want_more, want_mean, ids_N = given
        head = Head(weight_VH, bias_V, scale, cap)
        trains = weight_VH.requires_grad or (bias_V is not None and bias_V.requires_grad)
        ctx.trains, ctx.given = trains, given
        count = hidden_SH.shape[0]
        logprob_S = torch.empty(count, dtype=torch.float32, device=hidden_SH.device)
        entropy_S = torch.zeros_like(logprob_S)
        correct_S = torch.zeros(count, dtype=torch.bool, device=hidden_SH.device)
        slope_SH = None if trains or not hidden_SH.requires_grad else torch.empty_like(hidden_SH)
        slope_SN = None if trains or rows_NH is None else logprob_S.new_empty(count, len(ids_N))
        mean_S = torch.zeros_like(logprob_S)
        mean_slope_SH = torch.empty_like(slope_SH) if want_mean and slope_SH is not None else None
        mean_slope_SN = torch.empty_like(slope_SN) if want_mean and slope_SN is not None else None
        for part in chunks(count, weight_VH.shape[0]):
            logits_CV = head.logits(hidden_SH[part])
            target_C1 = targets_S[part, None]
            log_total_C = logits_CV.logsumexp(-1)
            logprob_S[part] = logits_CV.gather(1, target_C1)[:, 0] - log_total_C
            if want_more:
                share_CV = torch.exp(logits_CV - log_total_C[:, None])
                entropy_S[part] = log_total_C - (share_CV * logits_CV).sum(-1)
                correct_S[part] = logits_CV.argmax(-1) == target_C1[:, 0]
            if want_mean:
                mean_S[part] = logits_CV.mean(-1) - log_total_C
            if slope_SH is None and slope_SN is None:
                continue
            gradient_CV = _logit_gradient(head, logits_CV, log_total_C, target_C1)
            if slope_SN is not None:
                slope_SN[part] = gradient_CV.index_select(1, ids_N)
            if slope_SH is not None:
                slope_SH[part] = gradient_CV.to(hidden_SH.dtype) @ weight_VH.to(hidden_SH.dtype)
            if not want_mean:
                continue
            gradient_CV = _mean_gradient(head, logits_CV, log_total_C)
            if mean_slope_SN is not None:
                mean_slope_SN[part] = gradient_CV.index_select(1, ids_N)
            if mean_slope_SH is not None:
                mean_slope_SH[part] = gradient_CV.to(hidden_SH.dtype) @ weight_VH.to(hidden_SH.dtype)
        if trains:
            ctx.save_for_backward(hidden_SH, weight_VH, bias_V, targets_S)
        else:
            kept_SH = None if slope_SN is None else hidden_SH
            ctx.save_for_backward(slope_SH, slope_SN, kept_SH, mean_slope_SH, mean_slope_SN)
        ctx.mark_non_differentiable(entropy_S, correct_S, *([] if want_mean else [mean_S]))
        return logprob_S, entropy_S, correct_S, mean_S

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_S: Tensor, _entropy: Any, _correct: Any, grad_mean_S: Tensor
    ) -> tuple[Tensor | None, ...]:
        scale, cap, _want, want_mean, ids_N = ctx.given
        if not ctx.trains:
            slope_SH, slope_SN, hidden_SH, mean_slope_SH, mean_slope_SN = ctx.saved_tensors
            gradient = None if slope_SH is None else slope_SH * grad_S[:, None].to(slope_SH.dtype)
            if gradient is not None and want_mean:
                gradient = gradient + mean_slope_SH * grad_mean_S[:, None].to(gradient.dtype)
            gradient_NH = None if slope_SN is None else (slope_SN * grad_S[:, None]).T @ hidden_SH.float()
            if gradient_NH is not None and want_mean:
                gradient_NH = gradient_NH + (mean_slope_SN * grad_mean_S[:, None]).T @ hidden_SH.float()
            return gradient, None, None, gradient_NH, None, None
        hidden_SH, weight_VH, bias_V, targets_S = ctx.saved_tensors
        head = Head(weight_VH, bias_V, scale, cap)
        grad_hidden_SH = torch.empty_like(hidden_SH)
        grad_weight_VH = torch.zeros_like(weight_VH, dtype=torch.float32)
        grad_bias_V = None if bias_V is None else torch.zeros_like(bias_V, dtype=torch.float32)
        for part in chunks(hidden_SH.shape[0], weight_VH.shape[0]):
            logits_CV = head.logits(hidden_SH[part])
            log_total_C = logits_CV.logsumexp(-1)
            gradient_CV = _logit_gradient(head, logits_CV, log_total_C, targets_S[part, None])
            gradient_CV = gradient_CV * grad_S[part, None]
            if want_mean:
                gradient_CV = gradient_CV + _mean_gradient(head, logits_CV, log_total_C) * grad_mean_S[part, None]
            if grad_bias_V is not None:
                grad_bias_V += gradient_CV.sum(0)
            gradient_CV = gradient_CV.to(hidden_SH.dtype)
            grad_hidden_SH[part] = gradient_CV @ weight_VH.to(hidden_SH.dtype)
            grad_weight_VH += (gradient_CV.T @ hidden_SH[part]).float()
        weight_gradient = grad_weight_VH.to(weight_VH.dtype)
        bias_gradient = None if grad_bias_V is None or bias_V is None else grad_bias_V.to(bias_V.dtype)
        gradient_NH = None if ids_N is None else grad_weight_VH.index_select(0, ids_N)
        return grad_hidden_SH, weight_gradient, bias_gradient, gradient_NH, None, None


def _logit_gradient(head: Head, logits_CV: Tensor, log_total_C: Tensor, target_C1: Tensor) -> Tensor:
    """Derivative of each target's log-probability by the raw logits ``[C, V]``."""
    gradient_CV = -torch.exp(logits_CV - log_total_C[:, None])
    gradient_CV.scatter_add_(1, target_C1, torch.ones_like(gradient_CV[:, :1]))
    return gradient_CV * head.slope(logits_CV)


def _mean_gradient(head: Head, logits_CV: Tensor, log_total_C: Tensor) -> Tensor:
    """Derivative of the mean log-probability over the vocabulary by the raw logits ``[C, V]``."""
    gradient_CV = 1.0 / logits_CV.shape[1] - torch.exp(logits_CV - log_total_C[:, None])
    return gradient_CV * head.slope(logits_CV)


def chunks(count: int, vocabulary: int) -> list[slice]:
    """Slices of ``count`` positions whose logits may be alive at once."""
    size = max(1, _CHUNK_LOGITS // vocabulary)
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def token_logprob(
    hidden_SH: Tensor, head: Head, targets_S: Tensor, *, want_more: bool = False, want_mean: bool = False
) -> Scored:
    """Log-probability in nats of each target after its hidden state.

    Args:
        hidden_SH: hidden states at scored positions.
        head: the output head.
        targets_S: token ids.
        want_more: also fill entropy and correctness (zeros otherwise).
        want_mean: also fill the mean log-probability over the vocabulary, every row of the head counted.
    """
    rows = head.rows if torch.is_grad_enabled() else None
    given = (head.scale, head.cap, want_more, want_mean, None if rows is None else rows.ids_N)
    return Scored(
        *_TokenLogProb.apply(  # type: ignore[no-untyped-call]
            hidden_SH, head.weight_VH, head.bias_V, None if rows is None else rows.rows, targets_S, given
        )
    )
