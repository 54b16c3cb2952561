"""A weighted sum of losses over next tokens, each the mean over the tokens of its own rows.

    L = Σ_i w_i · (Σ over the part's tokens of weight · loss_i) / (Σ over the part's tokens of weight)

Both sums run over the whole step: a part counts the same however its rows are packed, cut or shared out, and however few of
the step's tokens are its own. In a step without any of its rows a part is left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from tunesmith.objectives.next_token import NLL, NextToken
from tunesmith.types import Batch, LanguageModel, Loss, Mean

PARTS = "part_D"
"""Name among a batch's extras, as ``data.part_batches`` gives it: number of each document's part."""


class WeightedSum:
    """Next-token losses over documents that belong to one part each.

    Args:
        parts: name, weight and loss of each part, in the order of their numbers.
    """

    def __init__(self, parts: Sequence[tuple[str, float, NextToken]]) -> None:
        self.parts = nn.Module()
        self._parts = tuple(parts)

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """Total weight of each part's trained tokens."""
        return {name: self._weights(batch, number).sum() for number, (name, _, _) in enumerate(self._parts)}

    def survey(self, model: LanguageModel, batch: Batch) -> dict[str, Mean]:
        """Nothing is needed beforehand."""
        return {}

    def penalty(self, model: LanguageModel) -> Tensor | None:
        """None: the parts have no term beside the data's."""
        return None

    def __call__(self, model: LanguageModel, batch: Batch, seen: Mapping[str, Mean]) -> Loss:
        """Weighted sum of each part's losses over the pack, in nats; the plain loss of all tokens beside it, and of each part as ``nll_NAME``."""
        smoothed = any(loss.label_smoothing for _, _, loss in self._parts)
        outputs = model(batch, want=("logprob", "mean_logprob") if smoothed else ("logprob",))
        assert outputs.logprob_S is not None
        plain_S = -outputs.logprob_S.detach()
        totals: dict[str, Tensor] = {}
        metrics = {NLL: Mean((plain_S * batch.weights_S).sum(), batch.weights_S.sum())}
        for number, (name, factor, loss) in enumerate(self._parts):
            weights_S = self._weights(batch, number)
            totals[name] = factor * (loss.losses(outputs) * weights_S).sum()
            metrics[f"nll_{name}"] = Mean((plain_S * weights_S).sum(), weights_S.sum())
        return Loss(totals=totals, metrics=metrics)

    @staticmethod
    def _weights(batch: Batch, number: int) -> Tensor:
        """Weight of each scored position ``[S]``, 0 where its document belongs to another part."""
        return batch.weights_S * (batch.extras[PARTS][batch.document_S] == number)
