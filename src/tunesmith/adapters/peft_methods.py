"""The methods of PEFT that adapter folders may hold: which keys and tensors each has, and the section they make.

One table; a method is a line here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from tunesmith.adapters.gralora import GraloraAdapter
from tunesmith.adapters.linear import LinearAdapter
from tunesmith.adapters.lora import LoraAdapter
from tunesmith.recipe.low_rank import GraloraSection, LoraSection, LowRankSection

Shape = tuple[int, ...]


@dataclass(frozen=True)
class PeftMethod:
    """What a folder of one method holds.

    Attributes:
        peft_type: PEFT's name.
        title: in sentences.
        keys: of the configuration that have effect and are obeyed.
        mark: what the names of its tensors have in common.
        pairs: endings that each layer must have all of; the first one tells the layer.
        more: further endings -> whether a configuration asks for them.
        dimensions: ending -> number of dimensions.
        rank: of a layer, from the tensor of the first ending.
        alpha: key and value where there is none, and the same for dropout.
        section: settings from the configuration; rank and alpha, targets and what is beside come after.
        shapes: ending -> shape, from section, rank, inputs and outputs.
        adapter: class to build.
    """

    peft_type: str
    title: str
    keys: frozenset[str]
    mark: str
    pairs: tuple[str, ...]
    more: Mapping[str, Callable[[Mapping[str, Any]], bool]]
    dimensions: Mapping[str, int]
    rank: Callable[[Tensor], int]
    alpha: str
    dropout: str
    section: Callable[[Mapping[str, Any]], dict[str, Any]]
    shapes: Callable[[Any, int, int, int], dict[str, Shape]]
    section_type: type[LowRankSection]
    adapter: type[LinearAdapter]

    def endings(self, configuration: Mapping[str, Any]) -> tuple[str, ...]:
        """Endings that every layer has, given the configuration."""
        return self.pairs + tuple(ending for ending, asked in self.more.items() if asked(configuration))

    def build(
        self, section: LowRankSection, ranks: Mapping[str, tuple[int, float]], rows: Mapping[str, Sequence[int]]
    ) -> LinearAdapter:
        """The adapter of a read folder, to be attached and loaded."""
        return self.adapter(section, 0, ranks=ranks, rows=rows)


def _lora_shapes(section: LoraSection, rank: int, num_in: int, num_out: int) -> dict[str, Shape]:
    shapes: dict[str, Shape] = {".lora_A.weight": (rank, num_in), ".lora_B.weight": (num_out, rank)}
    return shapes | ({".lora_magnitude_vector": (num_out,)} if section.dora else {})


def _gralora_shapes(section: GraloraSection, rank: int, num_in: int, num_out: int) -> dict[str, Shape]:
    k, hybrid = section.blocks, section.hybrid_rank
    shapes: dict[str, Shape] = {".gralora_A": (k, num_in // k, rank), ".gralora_B": (k, rank, num_out // k)}
    if hybrid:
        shapes |= {".gralora_A_general.weight": (hybrid, num_in), ".gralora_B_general.weight": (num_out, hybrid)}
    return shapes


def _has_hybrid(configuration: Mapping[str, Any]) -> bool:
    return bool(configuration.get("hybrid_r"))


METHODS: dict[str, PeftMethod] = {
    "LORA": PeftMethod(
        peft_type="LORA",
        title="LoRA",
        keys=frozenset(["r", "lora_alpha", "lora_dropout", "use_rslora", "use_dora", "rank_pattern", "alpha_pattern"]),
        mark="lora_",
        pairs=(".lora_A.weight", ".lora_B.weight"),
        more={".lora_magnitude_vector": lambda configuration: bool(configuration.get("use_dora"))},
        dimensions={".lora_A.weight": 2, ".lora_B.weight": 2, ".lora_magnitude_vector": 1},
        rank=lambda A: int(A.shape[0]),
        alpha="lora_alpha",
        dropout="lora_dropout",
        section=lambda configuration: {
            "rslora": bool(configuration.get("use_rslora")),
            "dora": bool(configuration.get("use_dora")),
        },
        shapes=_lora_shapes,
        section_type=LoraSection,
        adapter=LoraAdapter,
    ),
    "GRALORA": PeftMethod(
        peft_type="GRALORA",
        title="GraLoRA",
        keys=frozenset(["r", "alpha", "gralora_dropout", "gralora_k", "hybrid_r", "init_weights"]),
        mark="gralora_",
        pairs=(".gralora_A", ".gralora_B"),
        more={".gralora_A_general.weight": _has_hybrid, ".gralora_B_general.weight": _has_hybrid},
        dimensions={
            ".gralora_A": 3,
            ".gralora_B": 3,
            ".gralora_A_general.weight": 2,
            ".gralora_B_general.weight": 2,
        },
        rank=lambda A: int(A.shape[2]),
        alpha="alpha",
        dropout="gralora_dropout",
        section=lambda configuration: {
            "blocks": configuration.get("gralora_k", 2),
            "hybrid_rank": configuration.get("hybrid_r") or 0,
        },
        shapes=_gralora_shapes,
        section_type=GraloraSection,
        adapter=GraloraAdapter,
    ),
}
"""PEFT's name of a method -> what its folders hold."""
