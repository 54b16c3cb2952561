"""The table of objectives: recipe section to builder. Adding one is a section, a file and a line here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tunesmith.objectives.next_token import NextToken
from tunesmith.recipe.objectives import ClmSection, NextTokenSection, SftSection
from tunesmith.recipe.section import Section
from tunesmith.types import Objective


def _next_token(section: NextTokenSection) -> Objective:
    return NextToken(
        label_smoothing=section.label_smoothing, focal_gamma=section.focal_gamma, rdrop_alpha=section.rdrop_alpha
    )


OBJECTIVES: dict[type[Section], Callable[[Any], Objective]] = {SftSection: _next_token, ClmSection: _next_token}


def build(section: Section) -> Objective:
    """Build the objective that a recipe's section names."""
    return OBJECTIVES[type(section)](section)
