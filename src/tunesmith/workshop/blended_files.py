"""A blend on disk: as the settings and tensors of one LoRA adapter, and in words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn

from tunesmith.adapters import parameters
from tunesmith.adapters.peft_files import AdapterSettings
from tunesmith.adapters.trained_tokens import SUFFIX
from tunesmith.adapters.updates import Update
from tunesmith.models.locate import ModelFolder
from tunesmith.recipe.low_rank import LoraSection

LINEAGE = "blend.json"


@dataclass
class Changes:
    """What a blend changes: updates by layer, beside them whole parameters, and rows of matrices with their token ids."""

    layers: dict[str, Update] = field(default_factory=dict)
    whole: dict[str, Tensor] = field(default_factory=dict)
    rows: dict[str, tuple[tuple[int, ...], Tensor]] = field(default_factory=dict)


def as_lora(hf: nn.Module, made: Changes, source: str) -> tuple[AdapterSettings, dict[str, Tensor]]:
    """Settings and state of the LoRA adapter that makes these changes; alpha equals the rank, so that the scale is 1."""
    own = parameters.own_names(hf)
    state: dict[str, Tensor] = {}
    ranks: dict[str, tuple[int, float]] = {}
    for name, update in made.layers.items():
        A, B = update.factors()
        state |= {f"{name}.lora_A.weight": A.contiguous(), f"{name}.lora_B.weight": B.contiguous()}
        ranks[name] = (int(A.shape[0]), float(A.shape[0]))
    for key, change in made.whole.items():
        value = (own[key].detach().float() + change).to(own[key].dtype)
        state |= dict.fromkeys(parameters.aliases(hf, own[key]), value)
    for matrix, (ids, change) in made.rows.items():
        state[matrix + SUFFIX] = own[f"{matrix}.weight"].detach()[list(ids)].float() + change
    most = max(rank for rank, _ in ranks.values())
    tokens = sorted({token for ids, _ in made.rows.values() for token in ids})
    section = LoraSection(
        rank=most, alpha=float(most), targets=list(ranks), train_tokens=cast(Any, tokens or "none"),
        also_train=[key for key in state if not key.endswith((".lora_A.weight", ".lora_B.weight", SUFFIX))],
    )  # fmt: skip
    rows: Mapping[str, tuple[int, ...]] = {matrix: ids for matrix, (ids, _) in made.rows.items()}
    return AdapterSettings(section=section, ranks=ranks, source=source, rows=rows), state


def base_name(base: ModelFolder) -> str:
    """The base's name, where it leads to it from here; else its folder."""
    return base.name if base.embedded or Path(base.name).resolve() == base.path else str(base.path)


def card(lineage: Mapping[str, Any]) -> str:
    """A README for the folder."""
    what = "A model" if lineage["merged"] else "An adapter"
    lines = [f"# A blend of {len(lineage['sources'])} adapters", ""]
    lines += [f"{what} made by `tunesmith blend`, method {lineage['method']}, on {lineage['base']['name']}."]
    lines += ["It was measured against nothing but the blend itself: score it before you use it.", ""]
    lines += ["| adapter | factor | sha256 |", "|---|---|---|"]
    lines += [f"| {item['name']} | {item['factor']:g} | {item['sha256'][:16]} |" for item in lineage["sources"]]
    return "\n".join([*lines, "", f"The whole account is in {LINEAGE}.", ""])
