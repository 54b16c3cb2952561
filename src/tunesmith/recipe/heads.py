"""Objectives that put a head on the model: what it answers, what it reads, and how it is shaped."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from tunesmith.recipe.section import Section

PoolingName = Literal["auto", "last", "first", "mean"]
HeadKind = Literal["auto", "linear", "mlp"]
LARGEST_WEIGHT = 1e6
"""Of a class."""


class HeadedSection(Section):
    """What every head has."""

    head: HeadKind = "auto"
    """``linear``, or ``mlp``: a layer, a non-linearity and a linear layer. ``auto``: ``linear``; ``mlp`` on the first token of an
    encoder and on ModernBERT, as transformers has it."""
    width: int | None = Field(default=None, gt=0)
    """Inner width of ``mlp``; unset is the model's own width."""
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Dropout on what the head reads."""
    layer: int | None = Field(default=None, ge=0)
    """Layer whose output the head reads, counted from 1; 0 is the embedding. Unset: the last, after its final norm."""
    rate_factor: float | None = Field(default=None, gt=0.0)
    """The head's learning rate over that of the rest. Unset: 1 on a decoder; on an encoder what makes it 5e-3, at least 1."""


class LabelledSection(HeadedSection):
    """What every head has that answers with labels."""

    class_weights: Literal["balanced"] | dict[str, float] | None = None
    """What each label counts in the loss: a number a label, 1 where none is given, or ``balanced``, which lets rare labels weigh as
    much in all as common ones. Under ``multi_label`` it is what having the label counts against not having it."""
    label_smoothing: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Share of the target that is spread evenly over the labels, against over-confidence; 0.1 is usual, 0 is none."""
    focal_gamma: float = Field(default=0.0, ge=0.0, le=10.0)
    """Weigh each answer by ``(1 - p)`` to this power, so that what is known counts less; 2 is usual, 0 is none."""
    rdrop_alpha: float = Field(default=0.0, ge=0.0)
    """R-Drop: run every pass twice and hold the two draws of dropout together by this weight; 0.1 to 2.5 are usual, 0 is none.
    Needs dropout, doubles time and activations."""

    @field_validator("class_weights")
    @classmethod
    def _are_weights(cls, given: Any) -> Any:
        for label, weight in given.items() if isinstance(given, dict) else ():
            if not 0.0 < weight <= LARGEST_WEIGHT:
                raise ValueError(f"the weight of {label!r} is {weight:g}: above 0, at most {LARGEST_WEIGHT:,.0f}")
        return given

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if self.label_smoothing and self.focal_gamma:
            raise ValueError(
                "`label_smoothing` and `focal_gamma` pull against each other (one holds sure answers back, the other lets them "
                "go): give one of them"
            )
        return self


class PooledSection(HeadedSection):
    """What a head has that reads one vector of each row."""

    pooling: PoolingName = "auto"
    """Which hidden state stands for the row: of the ``last`` token, of the ``first``, or the ``mean`` of all.
    ``auto``: the last for decoders; for encoders the first where their files hold a trained pooler, else the mean."""


class ClassifySection(LabelledSection, PooledSection):
    """Sort each text into one of some labels, or say which of them it has."""

    type: Literal["classify"] = "classify"
    labels: list[str] | None = Field(default=None, min_length=2)
    """The labels in their order; unset are the distinct labels of the training rows, sorted."""
    multi_label: bool = False
    """Whether a row may have several labels, or none: each is then decided by itself."""
    separator: str = Field(default=",", min_length=1)
    """What stands between the labels of a row that writes several in one text; lists need none."""

    @field_validator("labels")
    @classmethod
    def _are_different(cls, labels: list[str] | None) -> list[str] | None:
        return checked_labels(labels)


class RegressSection(PooledSection):
    """Give each text a number."""

    type: Literal["regress"] = "regress"


class TagSection(LabelledSection):
    """Give each word of a text a label, such as the names and numbers that stand in it."""

    type: Literal["tag"] = "tag"
    labels: list[str] | None = Field(default=None, min_length=2)
    """The labels in their order; unset are the distinct labels of the training rows, sorted. Tags that are numbers in the data
    are places in this list, from 0."""
    outside: str = Field(default="O", min_length=1)
    """The label of words that are nothing in particular; ``O`` always is one."""
    pieces: Literal["auto", "first", "last", "all"] = "auto"
    """Which token answers for a word of several: the ``first`` or the ``last``; ``all`` trains every one and asks the first.
    ``auto``: the first for encoders, the last for decoders, whose first has not read the rest of the word."""
    scheme: Literal["auto", "bio", "none"] = "auto"
    """``bio``: labels mark spans (``B-TYPE``, ``I-TYPE``), and a row that breaks the scheme is rejected. ``none``: each word's
    label stands by itself. ``auto``: spans where all labels have such prefixes; rows that break the scheme are said."""

    @field_validator("labels")
    @classmethod
    def _are_different(cls, labels: list[str] | None) -> list[str] | None:
        return checked_labels(labels)


def checked_labels(labels: list[str] | None) -> list[str] | None:
    """The labels, trimmed.

    Raises:
        ValueError: one is empty, or two are alike.
    """
    if labels is None:
        return None
    trimmed = [label.strip() for label in labels]
    for label in trimmed:
        if not label:
            raise ValueError("a label is empty")
        if trimmed.count(label) > 1:
            raise ValueError(f"the label {label!r} stands twice; white space around a label does not tell it apart")
    return trimmed
