"""Groups of parameters told apart by their place in the model, for rates by layer and for freezing layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import nn

from tunesmith.models import names
from tunesmith.recipe.layers import LayerRatesSection
from tunesmith.types import ParamGroup


def by_depth(groups: Sequence[ParamGroup], num_layers: int, rates: LayerRatesSection | None) -> list[ParamGroup]:
    """Split each group by the depth of its parameters, from the input up; names of parameters and choices of decay stay.

    A head that is tied to the embedding is the embedding: it has one gradient and one rate.

    Args:
        groups: as an adapter gives them.
        num_layers: of the model.
        rates: how they fall from layer to layer; None leaves them as they are.
    """
    split: list[ParamGroup] = []
    for group in groups:
        members: dict[int, list[tuple[str, nn.Parameter]]] = {}
        for name, parameter in group.parameters:
            members.setdefault(names.depth(name, num_layers), []).append((name, parameter))
        for depth, chosen in sorted(members.items()):
            split.append(
                replace(
                    group,
                    name=f"{group.name}, depth {depth}",
                    parameters=tuple(chosen),
                    depth=depth,
                    depth_factor=1.0 if rates is None else rates.share(depth, num_layers),
                )
            )
    return split
