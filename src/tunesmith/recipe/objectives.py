"""What to minimise: a tagged union whose defaults are the vetted setting."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from tunesmith.recipe.heads import ClassifySection, RegressSection, TagSection
from tunesmith.recipe.section import Section


class NextTokenSection(Section):
    """What every loss over next tokens can have."""

    label_smoothing: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Share of the target that is spread evenly over the vocabulary, against over-confidence; 0.1 is usual, 0 is none."""
    focal_gamma: float = Field(default=0.0, ge=0.0, le=10.0)
    """Weigh each token by ``(1 - p)`` to this power, so that what is known counts less; 2 is usual, 0 is none."""
    rdrop_alpha: float = Field(default=0.0, ge=0.0)
    """R-Drop: run every pass twice and hold the two draws of dropout together by this weight; 0.1 to 2.5 are usual, 0 is none.
    Needs dropout, doubles time and activations."""

    def masking(self) -> dict[str, Any]:
        """Type and keys that decide which tokens are trained; the others decide what a trained one counts."""
        return self.model_dump(mode="json", exclude={*NextTokenSection.model_fields, "weight"})

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if self.label_smoothing and self.focal_gamma:
            raise ValueError(
                "`label_smoothing` and `focal_gamma` pull against each other (one holds sure tokens back, the other lets them "
                "go): give one of them"
            )
        return self


class SftSection(NextTokenSection):
    """Supervised fine-tuning: next token of the answers in conversations."""

    type: Literal["sft"] = "sft"
    loss_on: Literal["responses", "last_response", "all_turns", "everything"] = "responses"
    """Trained tokens: assistant answers; only the last; contents of all turns; or every token.
    A message's own ``train`` flag overrides the first three."""


class ClmSection(NextTokenSection):
    """Continued pre-training: next token of raw text; long documents become windows without loss of text."""

    type: Literal["clm"] = "clm"
    add_end_token: bool = True
    """Close each document with the end-of-text token."""


class MlmSection(Section):
    """Masked language modelling: an encoder is asked for tokens that are hidden from it; long documents become windows."""

    type: Literal["mlm"] = "mlm"
    mask_share: float = Field(default=0.15, gt=0.0, lt=1.0)
    """Share of a row's tokens that are hidden, at least one; drawn anew in each epoch."""
    replacement: Literal["80/10/10", "mask"] = "80/10/10"
    """What is shown in place of a hidden token: of ten, eight times the mask, once a random token, once the token itself;
    or always the ``mask``."""


class SftPart(SftSection):
    """The conversations and labelled texts among the rows."""

    weight: float = Field(default=1.0, ge=0.0, le=1e6)
    """What the mean loss of its tokens counts in the sum."""


class ClmPart(ClmSection):
    """The plain documents among the rows."""

    weight: float = Field(default=1.0, ge=0.0, le=1e6)
    """What the mean loss of its tokens counts in the sum."""


def _usual_parts() -> list[SftPart | ClmPart]:
    return [SftPart(), ClmPart(weight=0.1)]


class SumSection(Section):
    """A weighted sum of two losses over next tokens: answers in conversations, and all of plain documents."""

    type: Literal["sum"] = "sum"
    parts: list[Annotated[SftPart | ClmPart, Field(discriminator="type")]] = Field(
        default_factory=_usual_parts, min_length=1
    )
    """What is summed up: ``sft`` and ``clm`` with their keys and a ``weight``. Rows belong to the part of their kind."""

    @model_validator(mode="after")
    def _can_be_summed(self) -> Self:
        for part in self.parts:
            if sum(part.type == other.type for other in self.parts) > 1:
                raise ValueError(f"two parts are `{part.type}`: a row would belong to both; give each type once")
            if part.rdrop_alpha:
                raise ValueError(
                    f"`rdrop_alpha` of the part `{part.type}` would run the rows of the other twice too: leave it out"
                )
        if not any(part.weight for part in self.parts):
            raise ValueError(
                "the weights of the parts sum to 0: nothing would be learnt; give one of them a weight above 0"
            )
        return self

    def part(self, kind: str) -> SftPart | ClmPart | None:
        """The part of a type; None where there is none."""
        return next((part for part in self.parts if part.type == kind), None)


def trains_answers(section: Section) -> bool:
    """Whether an objective trains answers in conversations, by itself or as a part of a sum."""
    return isinstance(section, SftSection) or (isinstance(section, SumSection) and section.part("sft") is not None)


def _default_type(value: Any) -> Any:
    return {"type": "sft", **value} if isinstance(value, dict) and "type" not in value else value


ObjectiveSection = SftSection | ClmSection | MlmSection | ClassifySection | RegressSection | TagSection | SumSection
"""Any objective."""

ObjectiveField = Annotated[
    ObjectiveSection,
    Field(discriminator="type"),
    BeforeValidator(_default_type),
]
