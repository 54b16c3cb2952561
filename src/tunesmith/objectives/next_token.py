"""Next-token prediction, the loss of both supervised fine-tuning and continued pre-training.

The two differ only in which tokens the data marks as targets: answers for ``sft``, all text for ``clm``.

For a token with log-probability ``l`` of its target and mean ``m`` of the log-probabilities of the whole vocabulary:

    plain             −l
    label smoothing   −(1 − ε) · l − ε · m          cross-entropy with the mix of target and uniform distribution
    focal             −(1 − exp(l))^γ · l           the gradient goes through the factor too

Sources: Szegedy et al. 2016 (arXiv 1512.00567) §7; Lin et al. 2017 (arXiv 1708.02002).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from tunesmith.types import Batch, LanguageModel, Loss, Mean, Outputs

NLL = "nll"
"""Metric: the plain negative log-probability, in nats per unit of weight, where the loss is another."""
_LEAST_DOUBT = 1e-12
"""Floor of 1 − p: a power of exactly 0 has no finite derivative below an exponent of 1."""


class NextToken:
    """Sum of weighted losses of the trained tokens; the unit is the trained token.

    Args:
        label_smoothing: share ε of the target distribution that is spread over the whole vocabulary.
        focal_gamma: exponent γ of the doubt ``1 − p``; 0 is the plain loss.
    """

    def __init__(self, *, label_smoothing: float = 0.0, focal_gamma: float = 0.0) -> None:
        self.parts = nn.Module()
        self.label_smoothing = label_smoothing
        self.focal_gamma = focal_gamma

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """Total weight of the trained tokens."""
        return {"loss": batch.weights_S.sum()}

    def survey(self, model: LanguageModel, batch: Batch) -> dict[str, Mean]:
        """Nothing is needed beforehand."""
        return {}

    def __call__(self, model: LanguageModel, batch: Batch, seen: Mapping[str, Mean]) -> Loss:
        """Sum of ``weight · loss`` in nats over the pack; the plain loss beside it as a metric where it is another."""
        want = ("logprob", "mean_logprob") if self.label_smoothing else ("logprob",)
        outputs = model(batch, want=want)
        total = (self.losses(outputs) * batch.weights_S).sum()
        if not self.label_smoothing and not self.focal_gamma:
            return Loss(totals={"loss": total})
        plain = -(_wanted(outputs.logprob_S).detach() * batch.weights_S).sum()
        return Loss(totals={"loss": total}, metrics={NLL: Mean(plain, batch.weights_S.sum())})

    def losses(self, outputs: Outputs) -> Tensor:
        """Loss of each scored position ``[S]`` in nats, without its weight."""
        loss_S = -_wanted(outputs.logprob_S)
        if self.label_smoothing:
            loss_S = (1 - self.label_smoothing) * loss_S - self.label_smoothing * _wanted(outputs.mean_logprob_S)
        if self.focal_gamma:
            doubt_S = -torch.expm1(_wanted(outputs.logprob_S))
            loss_S = doubt_S.clamp_min(_LEAST_DOUBT) ** self.focal_gamma * loss_S
        return loss_S

    def penalty(self, model: LanguageModel) -> Tensor | None:
        """None: this loss has no term beside the data's."""
        return None


def _wanted(value: Tensor | None) -> Tensor:
    if value is None:
        raise AssertionError("the facade returns what was wanted")
    return value
