"""What adapters of low rank on linear layers share: which layers, their starts, folding into weights."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import nn

from tunesmith.adapters import lora_layer, parameters, targets
from tunesmith.adapters.added import AddedAdapter
from tunesmith.adapters.lora_layer import LinearPart
from tunesmith.adapters.sites import Part
from tunesmith.adapters.starts import start_generator
from tunesmith.errors import RecipeError
from tunesmith.models.names import first_fit
from tunesmith.recipe.low_rank import LowRankSection
from tunesmith.types import CannotMerge

Ranks = Mapping[str, tuple[int, float]]
"""Layer -> (rank, alpha)."""


class LinearAdapter(AddedAdapter):
    """A part at each chosen linear layer. ``title`` is the method's name in sentences.

    Args:
        section: the recipe's.
        seed: with a layer's name it fixes that layer's start, whatever the order of layers.
        ranks: layer -> (rank, alpha), in place of the section's targets, rank and alpha; for adapters read from files.
        rows: embedding or head -> token ids, in place of the section's ``train_tokens``; for adapters read from files.
    """

    title: str

    def __init__(
        self,
        section: LowRankSection,
        seed: int,
        ranks: Ranks | None = None,
        rows: Mapping[str, Sequence[int]] | None = None,
    ) -> None:
        super().__init__(section, seed, rows)
        self.ranks: dict[str, tuple[int, float]] = dict(ranks or {})
        self._are_given = ranks is not None

    @abstractmethod
    def linear_part(self, generator: torch.Generator, layer: nn.Module, rank: int, alpha: float) -> LinearPart:
        """The part of one layer at its start."""

    def choose_sites(self, model: nn.Module) -> dict[str, nn.Module]:
        """Layers by the section's targets, or those that were given."""
        if not self._are_given:
            chosen = targets.resolve(model, self.section.targets)
            self.ranks = {name: (int(self._of(name, "rank")), self._of(name, "alpha")) for name in chosen}
            self._require_used("rank_pattern", chosen)
            self._require_used("alpha_pattern", chosen)
        return {name: model.get_submodule(name) for name in self.ranks}

    def new_part(self, name: str, site: nn.Module) -> Part:
        """The part of a layer, drawn from seed and name."""
        generator = start_generator(self.seed, name, "lora_A")
        return self.linear_part(generator, site, *self.ranks[name])

    def require_apart(self, chosen: Mapping[str, nn.Module], beside: Mapping[str, nn.Parameter]) -> None:
        """A weight that trains fully needs no low-rank part; PEFT cannot say both either."""
        fully = {id(parameter): name for name, parameter in beside.items()}
        for name, layer in chosen.items():
            if (weight := id(lora_layer.own_weight(layer))) in fully:
                raise RecipeError(
                    f"`{fully[weight]}` cannot train fully and carry {self.title} at once",
                    where="adapter.also_train",
                    hint=f"narrow `also_train`, or leave `{name}` out of `targets`",
                )

    def require_mergeable(self) -> None:
        """Refuse quantised weights, and ones that other layers share."""
        names = parameters.own_names(self.model)
        for name, layer in self._sites.items():
            weight = lora_layer.own_weight(layer)
            if weight is None or not weight.is_floating_point():
                raise CannotMerge(
                    f"the weight of `{name}` is quantised: unpack it first (`models.quantised.dequantise`)"
                )
            owners = {other.rpartition(".")[0] for other, part in names.items() if part is weight}
            if len({id(self.model.get_submodule(owner)) for owner in owners}) > 1:
                raise CannotMerge(f"the weight of `{name}` is shared by {', '.join(sorted(owners))}")

    def fold(self, site: nn.Module, part: Part) -> None:
        """Add the part's update to the weight."""
        lora_layer.fold(site, cast(LinearPart, part))

    def _of(self, name: str, key: str) -> float:
        patterns: Mapping[str, float] = getattr(self.section, f"{key}_pattern", {})
        pattern = first_fit(name, patterns)
        return patterns[pattern] if pattern is not None else float(getattr(self.section, key))

    def _require_used(self, key: str, chosen: Sequence[str]) -> None:
        for pattern in getattr(self.section, key, {}):
            if not any(first_fit(name, [pattern]) for name in chosen):
                raise RecipeError(
                    f"`{pattern}` fits none of the layers that the adapter goes on",
                    where=f"adapter.{key}",
                    hint=f"layers are named like {chosen[0]}; patterns are globs over names or their last parts",
                )
