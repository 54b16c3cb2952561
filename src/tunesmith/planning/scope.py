"""Which parameters train, counted from names and shapes alone. Torch-free."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from math import gcd, prod
from typing import Any

from tunesmith.errors import RecipeError
from tunesmith.models import names
from tunesmith.models.blocks import bottleneck_parts
from tunesmith.models.facts import ModelFacts
from tunesmith.planning.low_rank import (
    keeps_dropped,
    kinds_of,
    lora_targets,
    ranks_of,
    require_room,
    require_used,
    widest_rank,
)
from tunesmith.planning.prompts import trained_numbers
from tunesmith.recipe.adapters import PARTIAL_CHOICES, AdapterSection, FullSection, HeadOnlySection, PartialSection
from tunesmith.recipe.bottleneck import BottleneckPart, BottleneckSection
from tunesmith.recipe.low_rank import AddedSection, AfloraSection, GraloraSection, LoraSection, LowRankSection
from tunesmith.recipe.prompts import VirtualSection, virtual_tokens_of

SMALLEST_PACKED = 4096
"""Numbers of the smallest tensor whose moments ``adamw_8bit`` packs."""


@dataclass(frozen=True)
class TrainableCount:
    """Parameters of the base, those that train, and ``share`` = trainable / total. An adapter's own come beside the base's."""

    total: int
    trainable: int
    share: float
    at_end: int | None = None
    """Those that still train at the end, where single matrices are frozen on the way."""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"total": self.total, "trainable": self.trainable, "share": self.share, "at_end": self.at_end}


@dataclass(frozen=True)
class Scope:
    """What trains.

    Attributes:
        kind: the type of the section.
        trained: parameters of the base that train -> elements.
        adapted: modules with an adapter -> elements of the adapter.
        rank: of adapters of low rank, 0 without.
        dropout: on the inputs of adapters of low rank that keep what they dropped; others draw it again (adapters/dropped.py).
        rows: matrices of which single rows train -> elements of those rows.
        first_layer: lowest layer that a gradient must pass; the number of layers when only what follows them trains.
        head: elements of a head that the objective puts on the model.
        virtual_tokens: positions that an adapter takes in front of every example.
        kept: sub-layers with a bottleneck -> numbers that it keeps per token for the backward pass.
        scored: elements of an adapter's matrices that train at first and are frozen on the way.
        fixed: elements of an adapter that never train.
        small: elements that train in tensors of fewer than 4,096 numbers, whose moments stay fp32 where others are packed.
    """

    kind: str
    trained: Mapping[str, int]
    adapted: Mapping[str, int]
    rank: int
    dropout: float
    first_layer: int
    rows: Mapping[str, int] = field(default_factory=dict)
    head: int = 0
    virtual_tokens: int = 0
    kept: Mapping[str, int] = field(default_factory=dict)
    scored: int = 0
    fixed: int = 0
    small: int = 0

    @property
    def num_trainable(self) -> int:
        """Elements that train at the first step, of base, adapters, single rows and head."""
        return sum(self.trained.values()) + self.num_adapter + sum(self.rows.values()) + self.head

    @property
    def num_adapter(self) -> int:
        """Elements of the adapters."""
        return sum(self.adapted.values())


def trainable_parameters(facts: ModelFacts, section: AdapterSection, head: int = 0) -> TrainableCount:
    """Count what trains; ``head`` are the elements of the objective's own head.

    Raises:
        RecipeError: a pattern matches nothing, or nothing trains.
    """
    scope = scope_of(facts, section, head)
    count = scope.num_trainable
    left = count - scope.scored if scope.scored else None
    return TrainableCount(facts.num_parameters, count, count / facts.num_parameters, left)


def scope_of(facts: ModelFacts, section: AdapterSection, head: int = 0) -> Scope:
    """Resolve the adapter section against the names of a model; ``head`` are the elements of the objective's own head.

    Raises:
        RecipeError: a pattern matches nothing (the message lists what there is), more layers than the model has, or
            nothing trains.
    """
    rank, dropout, kept = 0, 0.0, dict[str, int]()
    if isinstance(section, FullSection):
        chosen = set(facts.tensors)
        adapted: dict[str, int] = {}
    elif isinstance(section, PartialSection):
        chosen = _partial(facts, section)
        adapted = {}
    elif isinstance(section, HeadOnlySection):
        chosen, adapted = _nothing(head), {}
    elif isinstance(section, BottleneckSection):
        chosen = set(_matching(section.also_train, facts, "adapter.also_train"))
        parts = bottleneck_parts(facts.tensors, section, facts.hidden_size)
        adapted = {name: part.num_parameters(facts.hidden_size) for name, part in parts.items()}
        kept = {name: _kept(facts, part) for name, part in parts.items()}
    elif isinstance(section, VirtualSection):
        chosen = set(_matching(section.also_train, facts, "adapter.also_train"))
        adapted = {names.VIRTUAL: trained_numbers(facts, section)}
    else:
        chosen = set(_matching(section.also_train, facts, "adapter.also_train"))
        adapted = {name: _part_size(facts, section, name) for name in lora_targets(facts, section.targets)}
        require_used(section, adapted)
        require_room(facts, section, adapted)
        _require_apart(section.type, chosen, adapted)
        rank, dropout = widest_rank(section), section.dropout if keeps_dropped(section) else 0.0
    scored, fixed = _matrices(facts, section, adapted) if isinstance(section, AfloraSection) else (0, 0)
    if not chosen and not adapted and not isinstance(section, HeadOnlySection):
        raise RecipeError(
            "nothing would train",
            where="adapter",
            hint=f"set one of {PARTIAL_CHOICES}",
        )
    rows = _rows(facts, section, chosen) if isinstance(section, AddedSection) else {}
    trained = {name: prod(shape) for name, shape in facts.tensors.items() if name in chosen}
    tensors = [*trained.values(), *rows.values(), head, *_tensors(facts, section, adapted)]
    return Scope(
        kind=section.type,
        trained=trained,
        adapted=adapted,
        rank=rank,
        dropout=dropout,
        first_layer=first_layer(facts, [*chosen, *adapted, *rows]),
        rows=rows,
        head=head,
        virtual_tokens=virtual_tokens_of(section),
        kept=kept,
        scored=scored,
        fixed=fixed,
        small=sum(size for size in tensors if size < SMALLEST_PACKED),
    )


def _require_apart(kind: str, chosen: Collection[str], adapted: Iterable[str]) -> None:
    """Raise RecipeError where a weight would train fully and carry a low-rank part too."""
    both = next((layer for layer in adapted if f"{layer}.weight" in chosen), None)
    if both is not None:
        raise RecipeError(
            f"`{both}.weight` cannot train fully and carry `{kind}` at once",
            where="adapter.also_train",
            hint=f"narrow `also_train`, or leave `{both}` out of `targets`",
        )


def _nothing(head: int) -> set[str]:
    """What of the base trains under ``head``.

    Raises:
        RecipeError: the objective has no head.
    """
    if not head:
        raise RecipeError(
            "nothing would train: `adapter: {type: head}` trains the head of an objective, and this objective has none",
            where="adapter.type",
            hint="set `objective: {type: classify}`, or another adapter; the language head trains with "
            "`adapter: {type: partial, head: true}`",
        )
    return set()


def _part_size(facts: ModelFacts, section: LowRankSection, layer: str) -> int:
    """Elements of an adapter's part at a linear layer. Raises RecipeError where blocks do not divide its widths."""
    shape = facts.tensors[f"{layer}.weight"]
    if isinstance(section, GraloraSection):
        odd = next((side for side in shape if side % section.blocks), None)
        if odd is not None:
            raise RecipeError(
                f"`blocks` is {section.blocks}, which does not divide a side of `{layer}` ({shape[0]} × {shape[1]})",
                where="adapter.blocks",
                hint=f"take a divisor of {gcd(*shape, section.rank)}, which divides this layer and `rank`, or leave the layer out of `targets`",
            )
        return (section.rank + section.hybrid_rank) * int(sum(shape))
    if isinstance(section, AfloraSection):
        vectors = section.rank + shape[1 if facts.model_type == "gpt2" else 0]
        return vectors + (section.rank * sum(shape) if section.trains_matrices(names.in_feed_forward(layer)) else 0)
    rank = section.rank
    magnitudes: int = 0
    if isinstance(section, LoraSection):
        ((_, rank),) = ranks_of(section, layer)
        magnitudes = shape[1 if facts.model_type == "gpt2" else 0] if section.dora else 0
    return int(rank * sum(shape)) + magnitudes


def _matrices(facts: ModelFacts, section: AfloraSection, layers: Iterable[str]) -> tuple[int, int]:
    """Elements of AFLoRA's matrices: those that train at first, and those that never do."""
    sizes = {True: 0, False: 0}
    for layer in layers:
        trains = section.trains_matrices(names.in_feed_forward(layer))
        sizes[trains] += section.rank * sum(facts.tensors[f"{layer}.weight"])
    return sizes[True], sizes[False]


def _tensors(facts: ModelFacts, section: AdapterSection, adapted: Mapping[str, int]) -> list[int]:
    """Elements of the tensors of an adapter's parts; where a part is not known to be two matrices it counts as one tensor."""
    if not isinstance(section, LowRankSection):
        return list(adapted.values())
    found: list[int] = []
    for layer, size in adapted.items():
        shape = facts.tensors[f"{layer}.weight"]
        rank = size // sum(shape)  # vectors beside the matrices are less than one rank more
        found += [rank * side for side in shape]
        found.append(size - rank * sum(shape))
    return found


def _kept(facts: ModelFacts, part: BottleneckPart) -> int:
    """Numbers that a bottleneck keeps per token: its input, inner values before and after the non-linearity and its dropout, and
    with a layer norm what that reads and gives.
    """
    inner = part.width * (2 + (part.dropout > 0))
    return facts.hidden_size * (1 if part.layer_norm == "none" else 3) + inner


def _partial(facts: ModelFacts, section: PartialSection) -> set[str]:
    layers = set(section.chosen_layers(facts.num_layers))
    chosen = {name for name in facts.tensors if names.layer_index(name) in layers}
    chosen.update(_matching(section.patterns, facts, "adapter.patterns"))
    kinds = {
        "norms": [name for name in facts.tensors if names.is_norm(name)],
        "biases": [name for name in facts.tensors if names.is_bias(name)],
        "embeddings": [name for name in facts.tensors if names.is_embedding(name)],
        "head": [name for name in facts.tensors if names.is_head(name) or (facts.tied and names.is_embedding(name))],
    }
    for kind, matched in kinds.items():
        if not getattr(section, kind):
            continue
        if not matched:
            raise RecipeError(
                f"`{kind}: true`, but the model has none",
                where=f"adapter.{kind}",
                hint=f"parameters there are: {kinds_of(facts.tensors)}",
            )
        chosen.update(matched)
    return chosen


def _matching(patterns: Iterable[str], facts: ModelFacts, where: str) -> list[str]:
    """Parameters that any glob fits; a tied head answers to its own name too."""
    found: list[str] = []
    for pattern in patterns:
        matched = [
            name
            for name in facts.tensors
            if names.matches(name, pattern)
            or (facts.tied and names.is_embedding(name) and names.matches("lm_head.weight", pattern))
        ]
        if not matched:
            raise RecipeError(
                f"the pattern `{pattern}` matches no parameter of the model",
                where=where,
                hint=f"parameters there are: {kinds_of(facts.tensors)}; "
                "patterns are globs over names or their last parts, such as `*.mlp.*`",
            )
        found += matched
    return found


def _rows(facts: ModelFacts, section: AddedSection, chosen: Collection[str]) -> dict[str, int]:
    """Elements of the rows of ``train_tokens``, per matrix that does not train whole; ``auto`` unsettled is none."""
    tokens = section.train_tokens
    if isinstance(tokens, str):
        return {}
    matrices = [
        name
        for name, shape in facts.tensors.items()
        if len(shape) == 2 and (names.is_embedding(name) or names.is_head(name)) and name not in chosen
    ]
    if not matrices:
        raise RecipeError(
            "the embedding and the head train fully already",
            where="adapter.train_tokens",
            hint="leave `train_tokens` out, or narrow `also_train`",
        )
    return {name: len(set(tokens)) * facts.tensors[name][1] for name in matrices}


def first_layer(facts: ModelFacts, chosen: Iterable[str]) -> int:
    """Lowest layer that a gradient must pass to reach what is chosen."""
    lowest = facts.num_layers
    for name in chosen:
        index = names.layer_index(name)
        is_start = names.is_position_embedding(name) or (names.is_embedding(name) and not names.is_head(name))
        if index is not None:
            lowest = min(lowest, index)
        elif is_start or names.is_virtual(name):
            lowest = 0
    return lowest
