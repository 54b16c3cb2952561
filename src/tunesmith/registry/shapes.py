"""What the files of a run must look like before anything is made of them: a run may come from anybody. Torch-free."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tunesmith.errors import RunError

_NUMBERS = ("step", "steps", "tokens", "loss", "seconds", "result_step", "saved_step")
DAMAGED = "the run folder is damaged: put the file back from a copy, or start a new run with --run"


def is_number(value: Any) -> bool:
    """Whether a JSON value is a number."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def status_of(values: Any, statuses: Sequence[str], path: Path) -> dict[str, Any]:
    """A status, whole.

    Raises:
        RunError: it is no mapping, of an unknown status, or a number of it is none.
    """
    whole = isinstance(values, dict) and values.get("status") in statuses
    if whole:
        whole = all(values.get(key) is None or is_number(values[key]) for key in _NUMBERS)
        whole = whole and isinstance(values.get("message") or "", str)
    if not whole:
        raise RunError("the status of the run is torn", where=str(path), hint=DAMAGED)
    return dict(values)


def lines_of(values: Iterable[Any], path: Path) -> Iterator[dict[str, Any]]:
    """Lines of metrics, events or samples, whole, one at a time.

    Raises:
        RunError: one is no mapping, has no whole number as ``step``, or a number of it is none; names the line.
    """
    for number, line in enumerate(values, 1):
        if not is_line(line):
            raise RunError("a line of the run is torn", where=f"{path}:{number}", hint=DAMAGED)
        yield line


def is_line(value: Any) -> bool:
    """Whether a JSON value can be a line of metrics, events or samples."""
    if not isinstance(value, dict) or not isinstance(value.get("step"), int) or isinstance(value["step"], bool):
        return False
    return all(value.get(key) is None or is_number(value[key]) for key in ("loss", "validation_loss"))


def card_of(values: Any, path: Path) -> dict[str, Any]:
    """A scorecard or comparison: a mapping, whose tasks and probes are mappings of mappings.

    Raises:
        RunError: it is something else.
    """
    parts = [values.get(name, {}) for name in ("tasks", "probes")] if isinstance(values, dict) else [None]
    if not all(
        isinstance(part, Mapping) and all(isinstance(item, Mapping) for item in part.values()) for part in parts
    ):
        raise RunError("a scorecard of the run is torn", where=str(path), hint=DAMAGED)
    return dict(values)
