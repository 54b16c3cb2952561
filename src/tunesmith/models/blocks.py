"""Where the sub-layers of a transformer layer end, by the names of its parameters. Torch-free.

Most families have a module for attention and one for the feed-forward, whose outputs are added to the stream:
``model.layers.7.self_attn``, ``transformer.h.7.mlp``; experts of a mixture share one. Where such a module adds and normalises
too (BERT), or where there is none (OPT, BART), the sub-layer ends with a linear layer, whose input is not the sub-layer's.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from tunesmith.errors import RecipeError
from tunesmith.models import names
from tunesmith.recipe.bottleneck import BottleneckPart, BottleneckSection

Kind = Literal["attention", "feed-forward"]
KINDS: tuple[Kind, ...] = ("attention", "feed-forward")
_FEED_FORWARD = frozenset(
    ["mlp", "ffn", "feed_forward", "feedforward", "ff", "block_sparse_moe", "DenseReluDense", "moe"]
)
_LAST_LINEAR = frozenset(["fc2"])
"""Last linear layer of a feed-forward that lies in the layer itself."""


@dataclass(frozen=True)
class Block:
    """The end of a sub-layer.

    ``name`` is the module whose output the sub-layer gives to the stream; ``is_whole`` where its input is the sub-layer's too.
    """

    name: str
    kind: Kind
    is_whole: bool


def blocks(parameters: Iterable[str], kind: Kind) -> list[Block]:
    """The sub-layers of a kind, in the order of the parameters; none where the layout is not known.

    Args:
        parameters: names of the model's own parameters.
        kind: of sub-layer.
    """
    known = list(parameters)
    layers = {name: inside for name in known if (inside := _inside(name))}
    norms_behind = {name.rpartition(".LayerNorm.")[0] for name in layers if ".output.LayerNorm." in name}
    find = _attention if kind == "attention" else _feed_forward
    found: dict[str, Block] = {}
    for layer, components in layers.values():
        block = find(layer, components, norms_behind)
        if block is not None:
            found.setdefault(block.name, block)
    return list(found.values())


def bottleneck_parts(parameters: Iterable[str], section: BottleneckSection, hidden: int) -> dict[str, BottleneckPart]:
    """Module -> the bottleneck adapter that it gets, by kind of sub-layer and in the order of the parameters.

    Args:
        parameters: names of the model's own parameters.
        section: the recipe's.
        hidden: width of the model.

    Raises:
        RecipeError: the layout of the layers is not known, or a parallel adapter would have to span several modules.
    """
    known = list(parameters)
    chosen: dict[str, BottleneckPart] = {}
    for kind, part in section.parts(hidden).items():
        found = blocks(known, kind)
        if not found:
            raise RecipeError(
                f"the {kind} of this model's layers is not known by the names of its parameters",
                where="adapter.targets",
                hint=f"a layer has: {', '.join(_layer(known)) or 'no parameters'}; leave `{kind}` out of `targets`, "
                "or take `adapter: {type: lora}`",
            )
        cut = next((block for block in found if not block.is_whole), None)
        if cut is not None and part.placement == "parallel":
            raise RecipeError(
                f"the {kind} of this model is no module of its own (it ends with `{cut.name}`), so nothing runs beside it",
                where="adapter.placement",
                hint="take `placement: sequential`",
            )
        chosen |= dict.fromkeys((block.name for block in found), part)
    return chosen


def _layer(known: list[str]) -> list[str]:
    """Modules of the first layer, relative to it."""
    inside = [found for name in known if (found := _inside(name))]
    return list(dict.fromkeys(".".join(components) for layer, components in inside if layer == inside[0][0]))


def _inside(parameter: str) -> tuple[str, list[str]] | None:
    """The layer's name, and the components of the module within it that the parameter belongs to."""
    components = parameter.split(".")
    for place, component in enumerate(components):
        if component.isdigit() and names.layer_index(".".join(components[: place + 1])) is not None:
            return ".".join(components[: place + 1]), components[place + 1 : -1]
    return None


def _attention(layer: str, components: list[str], norms_behind: set[str]) -> Block | None:
    for place, component in enumerate(components):
        if "attn" in component.lower() or "attention" in component.lower():
            if names.is_norm(f"{component}.weight"):
                return None
            block = ".".join([layer, *components[: place + 1]])
            if f"{block}.output" in norms_behind:
                return Block(f"{block}.output.dense", "attention", is_whole=False)
            return Block(block, "attention", is_whole=True)
    return None


def _feed_forward(layer: str, components: list[str], norms_behind: set[str]) -> Block | None:
    if components[:1] == ["output"] and f"{layer}.output" in norms_behind:
        return Block(f"{layer}.output.dense", "feed-forward", is_whole=False)
    if len(components) == 1 and components[0] in _LAST_LINEAR:
        return Block(f"{layer}.{components[0]}", "feed-forward", is_whole=False)
    for place, component in enumerate(components):
        if component in _FEED_FORWARD:
            return Block(".".join([layer, *components[: place + 1]]), "feed-forward", is_whole=True)
    return None
