"""The table of objectives: recipe section to builder. Adding one is a section, a file and a line here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tunesmith.models.head_shape import HeadShape
from tunesmith.objectives.headed import Headed
from tunesmith.objectives.label_losses import LabelLoss
from tunesmith.objectives.next_token import NextToken
from tunesmith.objectives.weighted_sum import WeightedSum
from tunesmith.recipe.heads import ClassifySection, HeadedSection, RegressSection, TagSection
from tunesmith.recipe.objectives import ClmSection, MlmSection, NextTokenSection, SftSection, SumSection
from tunesmith.recipe.section import Section
from tunesmith.types import Objective


def _next_token(section: NextTokenSection) -> Objective:
    return NextToken(
        label_smoothing=section.label_smoothing, focal_gamma=section.focal_gamma, rdrop_alpha=section.rdrop_alpha
    )


def _weighted_sum(section: SumSection) -> Objective:
    losses = [NextToken(label_smoothing=part.label_smoothing, focal_gamma=part.focal_gamma) for part in section.parts]
    pairs = zip(section.parts, losses, strict=True)
    return WeightedSum([(part.type, part.weight, loss) for part, loss in pairs])


OBJECTIVES: dict[type[Section], Callable[[Any], Any]] = {
    SftSection: _next_token,
    ClmSection: _next_token,
    MlmSection: lambda section: NextToken(),
    SumSection: _weighted_sum,
    ClassifySection: lambda section: Headed,
    RegressSection: lambda section: Headed,
    TagSection: lambda section: Headed,
}
"""Section type -> objective; of a headed section the class that takes the head's shape."""


def build(section: Section, shape: HeadShape | None = None, seed: int = 0, loss: LabelLoss | None = None) -> Objective:
    """Build the objective that a recipe's section names.

    Args:
        section: of the recipe.
        shape: of the head, for sections that have one.
        seed: of the head's random start.
        loss: what changes the loss of a head that answers with labels.
    """
    built: Any = OBJECTIVES[type(section)](section)
    if not isinstance(section, HeadedSection):
        return built  # type: ignore[no-any-return]
    if shape is None:
        raise AssertionError("a headed objective needs the shape of its head")
    return built(shape, seed, section.rate_factor or 1.0, loss)  # type: ignore[no-any-return]
