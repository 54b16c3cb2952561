"""Whether two runs said the same of each step: the first number that differs, to the last bit. Torch-free."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

_TIMES = {"seconds", "tokens_per_second"}
_ORDER = ("loss", "grad_norm", "learning_rate", "tokens", "trained_tokens", "refused_by")
_KINDS = ("step", "layers", "validation")
NOTHING = "nothing"


@dataclass(frozen=True)
class Difference:
    """One number of one step. ``recorded`` is the run's, ``found`` the repetition's; a missing one is ``nothing``."""

    step: int
    what: str
    recorded: Any
    found: Any

    def __str__(self) -> str:
        """Name both values with all their digits."""
        what = self.what.replace("_", " ") if self.what in _ORDER or "validation" in self.what else self.what
        return f"step {self.step}: {what} {self.recorded!r} -> {self.found!r}"

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def place_of(line: Mapping[str, Any]) -> tuple[int, str]:
    """Step and kind of a line of metrics: ``step``, ``layers`` or ``validation``."""
    kind = "validation" if "validation_loss" in line else "layers" if "layers" in line else "step"
    return int(line["step"]), kind


def difference_of(recorded: Mapping[str, Any] | None, found: Mapping[str, Any] | None) -> Difference | None:
    """The first value in which two lines of one place differ, times left out; one of them may be missing."""
    line = recorded if recorded is not None else found
    if line is None:
        return None
    step, kind = place_of(line)
    if recorded is None or found is None:
        sides = [NOTHING if side is None else "a line" for side in (recorded, found)]
        return Difference(
            step, {"step": "the line", "layers": "the line of layers"}.get(kind, "the validation"), *sides
        )
    values, others = (dict(_values(side)) for side in (recorded, found))
    names = [*values, *(name for name in others if name not in values)]
    for name in sorted(names, key=lambda name: (_ORDER.index(name) if name in _ORDER else len(_ORDER), name)):
        one, other = values.get(name, NOTHING), others.get(name, NOTHING)
        if one != other:
            return Difference(step, name, one, other)
    return None


def first_difference(recorded: Sequence[Mapping[str, Any]], found: Sequence[Mapping[str, Any]]) -> Difference | None:
    """The first place, in the order of the steps, in which two files of metrics differ."""
    sides = [{place_of(line): line for line in lines} for lines in (recorded, found)]
    places = sorted(sides[0].keys() | sides[1].keys(), key=lambda place: (place[0], _KINDS.index(place[1])))
    differences = (difference_of(sides[0].get(place), sides[1].get(place)) for place in places)
    return next((item for item in differences if item is not None), None)


def _values(line: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in line.items():
        if isinstance(value, Mapping):
            yield from _values(value, f"{path}{name}: ")
        elif path or name not in _TIMES:
            yield f"{path}{name}", value
