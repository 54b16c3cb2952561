"""Next-token prediction, the loss of both supervised fine-tuning and continued pre-training.

The two differ only in which tokens the data marks as targets: answers for ``sft``, all text for ``clm``.

For a token with log-probability ``l`` of its target and mean ``m`` of the log-probabilities of the whole vocabulary:

    plain             −l
    label smoothing   −(1 − ε) · l − ε · m          cross-entropy with the mix of target and uniform distribution
    focal             −(1 − exp(l))^γ · l           the gradient goes through the factor too

R-Drop runs each pack twice, under two draws of dropout: the mean of both losses, plus α times the symmetric divergence J of
the two distributions, ½ KL(p ‖ q) + ½ KL(q ‖ p).

Sources: Szegedy et al. 2016 (arXiv 1512.00567) §7; Lin et al. 2017 (arXiv 1708.02002); Liang et al. 2021 (arXiv 2106.14448).
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
        rdrop_alpha: weight α of the divergence between two passes; 0 is one pass.
    """

    def __init__(self, *, label_smoothing: float = 0.0, focal_gamma: float = 0.0, rdrop_alpha: float = 0.0) -> None:
        self.parts = nn.Module()
        self.label_smoothing = label_smoothing
        self.focal_gamma = focal_gamma
        self.rdrop_alpha = rdrop_alpha

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """Total weight of the trained tokens."""
        return {"loss": batch.weights_S.sum()}

    def survey(self, model: LanguageModel, batch: Batch) -> dict[str, Mean]:
        """Nothing is needed beforehand."""
        return {}

    def __call__(self, model: LanguageModel, batch: Batch, seen: Mapping[str, Mean]) -> Loss:
        """Sum of ``weight · loss`` in nats over the pack; the plain loss beside it as a metric where it is another."""
        want = ("logprob", "mean_logprob") if self.label_smoothing else ("logprob",)
        if self.rdrop_alpha:
            return self._of_two_passes(model, batch, want)
        outputs = model(batch, want=want)
        total = (self.losses(outputs) * batch.weights_S).sum()
        if not self.label_smoothing and not self.focal_gamma:
            return Loss(totals={"loss": total})
        return Loss(totals={"loss": total}, metrics={NLL: _plain(batch, outputs)})

    def _of_two_passes(self, model: LanguageModel, batch: Batch, want: tuple[str, ...]) -> Loss:
        """R-Drop; the metric ``divergence`` is J in nats per unit of weight."""
        one = model(batch, want=(*want, "hidden"))
        other = model(batch, want=(*want, "divergence"), against=one.hidden_TH)
        divergence_S = _wanted(other.divergence_S)
        loss_S = 0.5 * (self.losses(one) + self.losses(other)) + self.rdrop_alpha * divergence_S
        apart = (divergence_S.detach() * batch.weights_S).sum()
        metrics = {NLL: _plain(batch, one, other), "divergence": Mean(apart, batch.weights_S.sum())}
        return Loss(totals={"loss": (loss_S * batch.weights_S).sum()}, metrics=metrics)

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


def _plain(batch: Batch, *passes: Outputs) -> Mean:
    """The plain loss of the passes, on average."""
    logprob_S = sum(_wanted(outputs.logprob_S).detach() for outputs in passes) / len(passes)
    return Mean(-(logprob_S * batch.weights_S).sum(), batch.weights_S.sum())


def _wanted(value: Tensor | None) -> Tensor:
    if value is None:
        raise AssertionError("the facade returns what was wanted")
    return value
