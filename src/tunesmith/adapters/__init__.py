"""Which parameters train. One explicit table from a recipe's section to what builds it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tunesmith.adapters.aflora import AfloraAdapter
from tunesmith.adapters.bottleneck import BottleneckAdapter
from tunesmith.adapters.gralora import GraloraAdapter
from tunesmith.adapters.head_only import HeadOnly
from tunesmith.adapters.lora import LoraAdapter
from tunesmith.adapters.prefixes import PrefixAdapter
from tunesmith.adapters.prompts import PromptAdapter, PTuningAdapter
from tunesmith.adapters.scope import FullScope, PartialScope
from tunesmith.recipe.adapters import FullSection, HeadOnlySection, PartialSection
from tunesmith.recipe.bottleneck import BottleneckSection
from tunesmith.recipe.low_rank import AfloraSection, GraloraSection, LoraSection
from tunesmith.recipe.prompts import PrefixSection, PromptSection, PTuningSection
from tunesmith.recipe.section import Section
from tunesmith.types import Adapter

ADAPTERS: dict[type[Section], Callable[[Any, int], Adapter]] = {
    FullSection: FullScope,
    PartialSection: PartialScope,
    HeadOnlySection: HeadOnly,
    LoraSection: LoraAdapter,
    GraloraSection: GraloraAdapter,
    AfloraSection: AfloraAdapter,
    BottleneckSection: BottleneckAdapter,
    PromptSection: PromptAdapter,
    PTuningSection: PTuningAdapter,
    PrefixSection: PrefixAdapter,
}
"""Section type -> builder taking (section, seed)."""


def build(section: Section, seed: int) -> Adapter:
    """Build the adapter of a recipe's ``adapter`` section; ``seed`` fixes its random start."""
    return ADAPTERS[type(section)](section, seed)
