"""What to measure after training."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from tunesmith.recipe.section import Section

SplitName = Literal["validation", "test"]
ProbeName = Literal["general", "completions", "instructions"]


def _default_probes() -> list[ProbeName]:
    return ["general", "completions"]


class _TaskSection(Section):
    name: str | None = Field(default=None, min_length=1)
    """Name in the scorecard, of one task only; unset is the type, with the split added when two tasks share it."""
    data: SplitName = "test"
    """Rows to score."""
    limit: int | None = Field(default=None, gt=0)
    """Score at most this many rows, the first by hash."""

    @field_validator("name")
    @classmethod
    def _is_no_probe(cls, name: str | None) -> str | None:
        if name is not None and name.startswith("probes."):
            raise ValueError("names that begin with `probes.` are those of probes")
        return name


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
    labels: list[str] | None = Field(default=None, min_length=2)
    """Labels to rank, different from each other; unset are the distinct answers of the training rows."""

    @field_validator("labels")
    @classmethod
    def _are_different(cls, labels: list[str] | None) -> list[str] | None:
        seen: set[str] = set()
        for label in (label.strip() for label in labels or ()):
            if not label:
                raise ValueError("a label is empty")
            if label in seen:
                raise ValueError(f"the label {label!r} stands twice; white space around a label does not tell it apart")
            seen.add(label)
        return labels


class ClassificationTaskSection(_TaskSection):
    """Labels that a head chooses, beside those that are right; of several labels a row, also which of them are hit."""

    type: Literal["classification"] = "classification"


class RegressionTaskSection(_TaskSection):
    """Numbers that a head says, beside those that are right: squared error and correlations."""

    type: Literal["regression"] = "regression"


class TaggingTaskSection(_TaskSection):
    """Tags that a head gives words, beside those that are right: words, and spans from border to border."""

    type: Literal["tagging"] = "tagging"


TaskField = Annotated[
    LossTaskSection
    | ExactMatchSection
    | LabelRankingSection
    | ClassificationTaskSection
    | RegressionTaskSection
    | TaggingTaskSection,
    Field(discriminator="type"),
]


HEAD_TASKS = (ClassificationTaskSection, RegressionTaskSection, TaggingTaskSection)
"""Tasks that only an objective with a head answers."""


class EvaluationSection(Section):
    """Tasks for the verdict and probes for what was kept."""

    tasks: list[TaskField] | None = None
    """Unset: loss, and for answers from a closed set of labels also exact match and label ranking."""
    preserve: list[ProbeName] = Field(default_factory=_default_probes)
    """Forgetting probes: ``general`` perplexity, simple ``completions``, ten kinds of ``instructions`` side by side."""
    batch_tokens: int = Field(default=8192, gt=0)
    """Tokens in one forward pass of scoring."""

    @field_validator("tasks")
    @classmethod
    def _have_names_of_their_own(cls, tasks: list[TaskField] | None) -> list[TaskField] | None:
        names = [task.name for task in tasks or () if task.name is not None]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two tasks have the name `{name}`")
        return tasks

    def suite(self) -> dict[str, Any]:
        """What is measured: the tasks and probes as plain values. How many tokens a pass holds is not part of it."""
        return self.model_dump(mode="json", include={"tasks", "preserve"})
