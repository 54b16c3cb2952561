"""What a bottleneck section comes to in a model, in words. Torch-free."""

from __future__ import annotations

from typing import Any

from tunesmith.models import names
from tunesmith.models.blocks import blocks
from tunesmith.models.facts import ModelFacts
from tunesmith.planning.settings import Derived
from tunesmith.recipe.bottleneck import BottleneckSection
from tunesmith.recipe.root import Recipe

_SOURCES = {"houlsby": "Houlsby et al. 2019", "pfeiffer": "Pfeiffer et al. 2021", "parallel": "He et al. 2022"}


def bottleneck_values(recipe: Recipe, facts: ModelFacts) -> dict[str, Derived[Any]]:
    """``adapter.attention`` and ``adapter.feed-forward``: settings of the adapters there, where they come from, and how many
    layers have such a sub-layer where not all have.
    """
    section = recipe.adapter
    if not isinstance(section, BottleneckSection):
        return {}
    values: dict[str, Derived[Any]] = {}
    for kind, part in section.parts(facts.hidden_size).items():
        layers = {names.layer_index(block.name) for block in blocks(facts.tensors, kind)}
        source = section.preset or ("pfeiffer" if part.placement == "sequential" else "parallel")
        reason = f"what the recipe leaves out is as in {_SOURCES[source]}"
        if len(layers) < facts.num_layers:
            reason += f"; in {len(layers)} of {facts.num_layers} layers, the others have no {kind} by the names of their parameters"
        shown = f"{part.placement}, width {part.width:,}, {part.activation}, scaling {part.scaling:g}"
        values[f"adapter.{kind}"] = Derived(shown, reason)
    return values
