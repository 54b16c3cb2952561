"""What to measure after training."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from tunesmith.recipe.section import Section

SplitName = Literal["validation", "test"]
ProbeName = Literal["general", "completions", "instructions"]


def _default_probes() -> list[ProbeName]:
    return ["general", "completions"]


class _TaskSection(Section):
    name: str | None = None
    """Name in the scorecard; unset is the type, with the split added when two tasks share it."""
    data: SplitName = "test"
    """Rows to score."""
    limit: int | None = Field(default=None, gt=0)
    """Score at most this many rows, the first by hash."""


class LossTaskSection(_TaskSection):
    """Mean loss in nats per trained token, and perplexity."""

    type: Literal["loss"] = "loss"


class ExactMatchSection(_TaskSection):
    """Generate greedily and compare with the reference after trimming; accuracy and macro-F1 over the labels."""

    type: Literal["exact_match"] = "exact_match"
    max_new_tokens: int | None = Field(default=None, gt=0)
    """Longest answer; unset is the longest reference plus a few tokens."""
    ignore_case: bool = False
    """Compare without regard to case."""


class LabelRankingSection(_TaskSection):
    """Choose the label with the highest log-probability; also normalised by the label's own probability."""

    type: Literal["label_ranking"] = "label_ranking"
    labels: list[str] | None = None
    """Labels to rank; unset are the distinct answers of the training rows."""


TaskField = Annotated[LossTaskSection | ExactMatchSection | LabelRankingSection, Field(discriminator="type")]


class EvaluationSection(Section):
    """Tasks for the verdict and probes for what was kept."""

    tasks: list[TaskField] | None = None
    """Unset: loss, and for answers from a closed set of labels also exact match and label ranking."""
    preserve: list[ProbeName] = Field(default_factory=_default_probes)
    """Forgetting probes: ``general`` perplexity, simple ``completions``, ten kinds of ``instructions`` side by side."""
    batch_tokens: int = Field(default=8192, gt=0)
    """Tokens in one forward pass of scoring."""

    def suite(self) -> dict[str, Any]:
        """What is measured: the tasks and probes as plain values. How many tokens a pass holds is not part of it."""
        return self.model_dump(mode="json", include={"tasks", "preserve"})
