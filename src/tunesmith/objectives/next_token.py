"""Next-token prediction, the loss of both supervised fine-tuning and continued pre-training.

The two differ only in which tokens the data marks as targets: answers for ``sft``, all text for ``clm``.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from tunesmith.types import Batch, LanguageModel, Loss, Mean


class NextToken:
    """Sum of weighted negative log-probabilities; the unit is the trained token."""

    def __init__(self) -> None:
        self.parts = nn.Module()

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """Total weight of the trained tokens."""
        return {"loss": batch.weights_S.sum()}

    def survey(self, model: LanguageModel, batch: Batch) -> dict[str, Mean]:
        """Nothing is needed beforehand."""
        return {}

    def __call__(self, model: LanguageModel, batch: Batch, seen: Mapping[str, Mean]) -> Loss:
        """Sum of ``-weight · log p(target)`` in nats over the pack."""
        outputs = model(batch, want=("logprob",))
        if outputs.logprob_S is None:
            raise AssertionError("the facade returns what was wanted")
        return Loss(totals={"loss": -(outputs.logprob_S * batch.weights_S).sum()})

    def penalty(self, model: LanguageModel) -> Tensor | None:
        """None: this loss has no term beside the data's."""
        return None
