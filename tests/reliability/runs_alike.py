"""Whether two run folders hold the same run: every file to the byte, but for times, and nothing that a crash left."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.reliability.crashes import leftovers

_TIMES = {"seconds", "total_seconds", "tokens_per_second", "time", "times", "peak_memory_bytes", "rows_sha256", "seal"}
_PAPERS = {"card.md", "report.html"}
"""They tell how long the run took: that they are there is all."""


def events(run: Path, kind: str) -> list[str]:
    """What the events of a kind say; none where there are no events."""
    path = run / "events.jsonl"
    lines = path.read_text(encoding="utf-8").split("\n") if path.exists() else []
    found = []
    for line in lines:
        try:
            event = json.loads(line)
        except ValueError:  # torn at the end, or empty
            continue
        if event["kind"] == kind:
            found.append(event["message"])
    return found


def differences(expected: Path, found: Path) -> list[str]:
    """Names of files that are not alike or not in both, and what a crash left."""
    names = {path.relative_to(place).as_posix() for place in (expected, found) for path in place.rglob("*")}
    names -= {"lease.json"}
    unlike = [name for name in sorted(names) if _content(expected / name) != _content(found / name)]
    return unlike + [f"leftover {name}" for name in leftovers(found)]


def _content(path: Path) -> Any:
    try:
        return _read(path)
    except (ValueError, KeyError, RecursionError, TypeError):
        return path.read_bytes()


def _read(path: Path) -> Any:
    if not path.exists():
        return "absent"
    if path.is_dir():
        return "folder"
    if path.name in _PAPERS or path.name == "events.jsonl":
        return "there"
    if path.name == "plan.json":
        return json.loads(path.read_bytes())["settings"]
    if path.name == "manifest.json":  # its hashes are of files that are compared themselves, times left out
        return set(json.loads(path.read_bytes())["files"])
    if path.name == "environment.json":  # but where it was, and by which command
        values = json.loads(path.read_bytes())
        return {key: value for key, value in values.items() if key not in ("recipe_folder", "command")}
    if path.suffix == ".json":
        return _without_times(json.loads(path.read_bytes()))
    if path.suffix == ".jsonl":
        return [_without_times(json.loads(line)) for line in path.read_bytes().split(b"\n") if line]
    return path.read_bytes()


def _without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_times(item) for key, item in value.items() if key not in _TIMES}
    return [_without_times(item) for item in value] if isinstance(value, list) else value
