"""Layers that adapters of low rank go on, the rank that each has, and ranks that are too large for them. Torch-free."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping

from tunesmith.errors import RecipeError
from tunesmith.models import names
from tunesmith.models.facts import ModelFacts
from tunesmith.recipe.adapters import AdapterSection
from tunesmith.recipe.low_rank import GraloraSection, LoraSection, LowRankSection

_KEYWORDS: Mapping[str, Callable[[str], bool]] = {
    "all-linear": lambda name: True,
    "attention": names.in_attention,
    "feed-forward": names.in_feed_forward,
}


def lora_targets(facts: ModelFacts, targets: Iterable[str]) -> list[str]:
    """Modules that the targets name, in the model's order.

    Raises:
        RecipeError: a target matches no linear layer.
    """
    linear = [name.removesuffix(".weight") for name, shape in facts.tensors.items() if names.is_linear(name, shape)]
    found: set[str] = set()
    for target in targets:
        keyword = _KEYWORDS.get(target)
        matched = [name for name in linear if (keyword(name) if keyword else names.matches(name, target))]
        if not matched:
            raise RecipeError(
                f"the target `{target}` matches no linear layer of the model",
                where="adapter.targets",
                hint=f"linear layers there are: {kinds_of(linear)}; or {', '.join(_KEYWORDS)}",
            )
        found.update(matched)
    return [name for name in linear if name in found]


def ranks_of(section: LowRankSection, layer: str) -> list[tuple[str, int]]:
    """Keys of the recipe and the ranks that they give a layer."""
    if isinstance(section, GraloraSection):
        return [("rank", section.rank), ("hybrid_rank", section.hybrid_rank)]
    patterns = section.rank_pattern if isinstance(section, LoraSection) else {}
    pattern = names.first_fit(layer, patterns)
    return [("rank", section.rank) if pattern is None else ("rank_pattern", patterns[pattern])]


def widest_rank(section: LowRankSection) -> int:
    """The most numbers that a part keeps per token between its two products."""
    if isinstance(section, GraloraSection):
        return section.rank * section.blocks + section.hybrid_rank
    patterns = section.rank_pattern.values() if isinstance(section, LoraSection) else ()
    return int(max([section.rank, *patterns]))


def keeps_dropped(section: LowRankSection) -> bool:
    """Whether the adapter keeps its dropped inputs for the backward pass; others draw them again (adapters/dropped.py)."""
    return isinstance(section, GraloraSection) or (isinstance(section, LoraSection) and section.dora)


def require_room(facts: ModelFacts, section: LowRankSection, layers: Collection[str]) -> None:
    """Raise RecipeError where a rank exceeds the smaller side of every layer: full fine-tuning trains less, and can do more."""
    most = max((min(facts.tensors[f"{name}.weight"]) for name in layers), default=section.rank)
    if section.rank > most:
        raise RecipeError(
            f"`rank` is {section.rank}, more than the smaller side of every layer that the adapter goes on, {most} at most",
            where="adapter.rank",
            hint=f"give at most {most}, usual are 8 to 64; or `type: full`, which trains the weights themselves",
        )


def require_used(section: LowRankSection, layers: Collection[str]) -> None:
    """Raise RecipeError where a pattern for ranks or alphas fits no layer of the adapter."""
    for key in ("rank_pattern", "alpha_pattern"):
        for pattern in getattr(section, key, {}):
            if not any(names.matches(layer, pattern) for layer in layers):
                raise RecipeError(
                    f"the pattern `{pattern}` fits none of the layers that the adapter goes on",
                    where=f"adapter.{key}",
                    hint=f"layers it goes on: {kinds_of(layers)}; patterns are globs over names or their last parts",
                )


def wide_rank_notes(facts: ModelFacts, section: AdapterSection) -> list[str]:
    """A sentence on the kinds of layers whose smaller side a rank exceeds, in which no update has that rank.

    GraLoRA's blocks have rank r / k on sides of 1 / k of the layer's: what counts is r, although the whole update has up to k times it.
    """
    wide: dict[tuple[str, int], dict[tuple[str, int], int]] = {}
    if not isinstance(section, LowRankSection):
        return []
    for name in lora_targets(facts, section.targets):
        narrow = min(facts.tensors[f"{name}.weight"])
        kind = (name.rpartition(".")[2], narrow)
        for key, rank in ranks_of(section, name):
            if rank > narrow:
                kinds = wide.setdefault((key, rank), {})
                kinds[kind] = kinds.get(kind, 0) + 1
    return [
        f"`adapter.{key}` is {rank}, more than the smaller side of "
        f"{', '.join(f'{name} ({count} of width {width})' for (name, width), count in kinds.items())}: an update there has at most "
        "that rank, and the rest of the parameters trains for nothing"
        for (key, rank), kinds in wide.items()
    ]


def kinds_of(known: Iterable[str]) -> str:
    """Names with the numbers of layers folded into a star, each once."""
    folded = dict.fromkeys(".".join("*" if part.isdigit() else part for part in name.split(".")) for name in known)
    shown = list(folded)[:24]
    return ", ".join(shown) + (" …" if len(folded) > len(shown) else "")
