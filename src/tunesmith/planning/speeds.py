"""Measured training speeds of this machine, in one small JSON file of the cache folder. Torch-free.

A speed is sustained FLOP/s as `cost` counts them. It is looked up for the same machine, device and precision; another model
shape or scope may stand in, with a wider interval. What was never measured is not known, and the plan says so.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median, stdev
from typing import Any

from tunesmith.data.cache_key import cache_root
from tunesmith.files import write_json

_FILE = "speeds.json"
_KEPT = 20
_SAME, _OTHER_SCOPE, _OTHER_SHAPE, _OTHER_BOTH = 1.1, 1.5, 2.0, 3.0
_SINGLE, _MOST = 1.5, 3.0
"""A single run may have shared the machine with others; beyond a factor of three a speed says little."""
_T_95 = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26)
"""Student's t at 95 % for 1 to 9 degrees of freedom; 2.2 above."""


@dataclass(frozen=True)
class SpeedKey:
    """What a speed belongs to: machine, device, precision, shape of the model, scope of parameters."""

    machine: str
    device: str
    precision: str
    shape: str
    scope: str


@dataclass(frozen=True)
class Speed:
    """FLOP/s; 95 % lie within a factor of ``spread`` either way. ``n`` measurements; ``basis`` in words."""

    flops_per_second: float
    spread: float
    n: int
    basis: str


def cache_file() -> Path:
    """Where speeds are kept: beside the token cache."""
    return cache_root() / _FILE


def record(key: SpeedKey, flops_per_second: float, path: Path | None = None) -> None:
    """Add a measurement; the newest twenty of a key are kept. A broken file is written anew.

    Raises:
        ValueError: the speed is not positive and finite.
        OSError: the cache cannot be written.
    """
    if not (math.isfinite(flops_per_second) and flops_per_second > 0):
        raise ValueError(f"a speed of {flops_per_second} FLOP/s is no measurement")
    path = path or cache_file()
    known = _load(path) or {}
    known[key] = [*known.get(key, []), flops_per_second][-_KEPT:]
    write_json(path, {"speeds": [{**asdict(item), "flops_per_second": values} for item, values in known.items()]})


def lookup(key: SpeedKey, path: Path | None = None) -> tuple[Speed | None, str | None]:
    """The speed to plan with, and a sentence to say aloud where the file is broken.

    Returns:
        None where this machine was never measured with this device and precision.
    """
    path = path or cache_file()
    known = _load(path)
    if known is None:
        return None, f"the file of measured speeds {path} is broken and was not used; the next training writes it anew"
    ranked = (
        (lambda item: item.shape == key.shape and item.scope == key.scope, _SAME, "this model and scope"),
        (lambda item: item.shape == key.shape, _OTHER_SCOPE, "this model with another scope of parameters"),
        (lambda item: item.scope == key.scope, _OTHER_SHAPE, "another model with this scope"),
        (lambda item: True, _OTHER_BOTH, "another model and scope"),
    )
    here = {item: values for item, values in known.items() if _place(item) == _place(key)}
    for matches, spread, words in ranked:
        values = [value for item, found in here.items() if matches(item) for value in found]
        if values:
            times = "once" if len(values) == 1 else f"{len(values)} times"
            basis = f"measured {times} on this machine with {words}"
            return Speed(median(values), max(spread, _observed_spread(values)), len(values), basis), None
    return None, None


def _place(key: SpeedKey) -> tuple[str, str, str]:
    return key.machine, key.device, key.precision


def _observed_spread(values: list[float]) -> float:
    """Factor that holds 95 % of runs, from the spread of the logarithms."""
    count = len(values)
    if count == 1:
        return _SINGLE
    quantile = _T_95[count - 2] if count - 2 < len(_T_95) else 2.2
    return min(_MOST, math.exp(quantile * stdev(math.log(value) for value in values)))


def _load(path: Path) -> dict[SpeedKey, list[float]] | None:
    """What the file holds; empty where there is none, None where it is broken."""
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))["speeds"]
        return {_key(entry): [float(value) for value in entry["flops_per_second"]] for entry in entries}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _key(entry: Mapping[str, Any]) -> SpeedKey:
    return SpeedKey(**{name: str(entry[name]) for name in ("machine", "device", "precision", "shape", "scope")})
