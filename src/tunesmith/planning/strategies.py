"""Strategies: ways to tune that one recipe is tried with, each a name for values of the recipe. Torch-free."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tunesmith.errors import RecipeError, UserError
from tunesmith.recipe import codec

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9+._]*(?:-[A-Za-z0-9+._]+)*")
_LONGEST_NAME = 32

SET_BY_THE_COMPARISON = ("adapter", "seed", "training.learning_rate", "evaluation.tasks")
"""What strategies, rates, seeds and the shared measure decide; an override of them would be lost."""
_OWN_KEYS = ("seed", "training.learning_rate", "evaluation.tasks")


@dataclass(frozen=True)
class Strategy:
    """A way to tune.

    Attributes:
        name: how tables call it.
        does: what trains, in a few words.
        values: dotted key of the recipe -> value, in place of what the recipe says there.
    """

    name: str
    does: str
    values: Mapping[str, Any] = field(default_factory=dict)

    def overrides(self) -> list[str]:
        """The values as overrides of a recipe."""
        return [f"{key}={json.dumps(value)}" for key, value in self.values.items()]


def _adapter(name: str, does: str, **settings: Any) -> Strategy:
    return Strategy(name, does, {"adapter": settings})


_BUILT_IN = (
    _adapter("full", "every parameter", type="full"),
    _adapter("partial", "the last two layers", type="partial", last_layers=2),
    _adapter("norms", "normalisation weights", type="partial", norms=True),
    Strategy(
        "unfreezing",
        "every parameter, unfrozen from the top down",
        {"adapter": {"type": "full"}, "training.freezing": {"type": "unfreeze_gradually"}},
    ),
    _adapter("lora", "LoRA, rank 16", type="lora"),
    _adapter("lora-32", "LoRA, rank 32", type="lora", rank=32, alpha=64),
    _adapter("rslora", "LoRA, rank 64, scaled by its root", type="lora", rslora=True, rank=64, alpha=16),
    _adapter("dora", "LoRA, rank 16, with row lengths of its own", type="lora", dora=True),
    _adapter("lora+", "LoRA, rank 16, B sixteen times as fast as A", type="lora", rate_ratio=16),
    _adapter("pissa", "LoRA, rank 16, from the principal directions", type="lora", init="pissa"),
    _adapter("gralora", "GraLoRA, rank 32, 2 × 2 blocks", type="gralora"),
    _adapter("aflora", "AFLoRA, rank 4, matrices frozen on the way", type="aflora"),
    Strategy("qlora", "LoRA, rank 16, on an NF4 base", {"adapter": {"type": "lora"}, "model.quantise": "nf4"}),
    _adapter("bottleneck", "parallel adapters beside the feed-forward", type="bottleneck"),
    _adapter("prompt", "a prompt of virtual tokens", type="prompt"),
    _adapter("p-tuning", "virtual tokens from a small network", type="p-tuning"),
    _adapter("prefix", "keys and values before each layer", type="prefix"),
    Strategy(
        "head", "a head alone, the model frozen", {"objective": {"type": "classify"}, "adapter": {"type": "head"}}
    ),
    Strategy("head-lora", "a head and LoRA", {"objective": {"type": "classify"}, "adapter": {"type": "lora"}}),
    Strategy("scratch", "the same shape from random weights", {"adapter": {"type": "full"}, "model.init": "random"}),
)

STRATEGIES: dict[str, Strategy] = {
    strategy.name: strategy for strategy in (*_BUILT_IN, Strategy("recipe", "as the recipe says"))
}
"""What a comparison knows by name; ``recipe`` is the recipe's own adapter, which only a person who asks for it gets."""

USUAL = tuple(strategy.name for strategy in _BUILT_IN)
"""What is compared where nobody chooses."""


def read_strategies(path: Path) -> dict[str, Strategy]:
    """Strategies of one's own: a YAML or JSON file, ``name: {section.key: value}``, beside the built-in ones.

    Raises:
        RecipeError: the file is no such mapping, or a name is no name.
    """
    values, _ = codec.read(path)
    found: dict[str, Strategy] = {}
    for name, settings in values.items():
        place = f"{path} [{name}]"
        if not isinstance(settings, dict) or not settings:
            raise RecipeError(
                f"the strategy `{name}` is no mapping of recipe keys to values",
                where=place,
                hint="write for example `lora-64: {adapter: {type: lora, rank: 64, alpha: 128}}`",
            )
        if not _NAME.fullmatch(str(name)) or len(str(name)) > _LONGEST_NAME:
            raise RecipeError(
                f"`{name}` names no strategy",
                where=place,
                hint=f"letters, digits, `+`, `.`, `_` and single dashes, {_LONGEST_NAME} characters at most",
            )
        for key in settings:
            _refuse_own(str(key), _OWN_KEYS, place)
        found[str(name)] = Strategy(
            str(name), f"as {path.name} says", {str(key): item for key, item in settings.items()}
        )
    return found


def choose(names: Sequence[str], own: Mapping[str, Strategy]) -> list[Strategy]:
    """The strategies of these names, in order; without names the usual ones and all of one's own.

    Raises:
        UserError: a name that nothing has, or one given twice.
    """
    known = {**STRATEGIES, **own}
    for name in names:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            raise UserError(
                f"there is no strategy `{name}`",
                where="command line: --strategies",
                hint=f"did you mean `{close[0]}`?"
                if close
                else f"one of {', '.join(known)}; or write one in a file (--own)",
            )
        if names.count(name) > 1:
            raise UserError(
                f"the strategy `{name}` is given twice", where="command line: --strategies", hint="name it once"
            )
    chosen = list(names) or [*USUAL, *(name for name in own if name not in USUAL)]
    return [known[name] for name in chosen]


def refuse_lost_overrides(overrides: Sequence[str]) -> None:
    """Refuse an override of what the comparison itself decides.

    Raises:
        UserError: there is one.
    """
    for item in overrides:
        _refuse_own(item.partition("=")[0], SET_BY_THE_COMPARISON, f"override {item.partition('=')[0]}")


def _refuse_own(key: str, decided: Sequence[str], where: str) -> None:
    for own in decided:
        if key == own or key.startswith(f"{own}."):
            raise UserError(
                f"`{own}` is decided by the comparison: it tries several",
                where=where,
                hint={
                    "adapter": "write a strategy of your own in a file and give it with --own",
                    "seed": "give --seeds",
                    "training.learning_rate": "give --factors, which multiply the rate of the rule",
                    "evaluation.tasks": "give --score",
                }[own],
            )


def rates_around(rate: float, factors: Sequence[float]) -> list[float]:
    """Learning rates to try, rising, of three significant digits."""
    return sorted({float(f"{rate * factor:.3g}") for factor in factors})


def beyond(rates: Sequence[float], best: float) -> float | None:
    """The rate to try next where the best lies at an edge of those tried, as far off as its neighbour; None within."""
    ordered = sorted(rates)
    if len(ordered) < 2 or best not in (ordered[0], ordered[-1]):
        return None
    if best == ordered[0]:
        return float(f"{ordered[0] * ordered[0] / ordered[1]:.3g}")
    return float(f"{ordered[-1] * ordered[-1] / ordered[-2]:.3g}")
