"""Which run a run was forked from, and what it took from it: ``lineage.json``. Torch-free.

parent      path, name, run_identity, step, manifest_sha256 of the checkpoint
ancestors   the same for the parent's parent and so on, nearest first
starts_at   step of the child's first checkpoint
carried     what was taken over, by name
said        the sentences that were said aloud
differences of ``recipe`` and ``inputs``, parent -> child
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tunesmith.errors import RunError
from tunesmith.files import read_json
from tunesmith.registry.run_folder import RunFolder

_PARENT_KEYS = {"path", "name", "run_identity", "step", "manifest_sha256"}


def parse_fork(text: str) -> tuple[Path, int | None]:
    """``RUN[@STEP]`` as a folder and a step.

    Raises:
        RunError: what stands behind the last ``@`` of a folder that is there is no number.
    """
    head, at, tail = text.rpartition("@")
    if not at or Path(text).is_dir():
        return Path(text), None
    if tail.isdecimal():
        return Path(head), int(tail)
    if Path(head).is_dir():
        raise RunError(f"`{tail}` is not a step", where=f"--fork {text}", hint=f"write it as --fork {head}@40")
    return Path(text), None


def read_lineage(run: RunFolder) -> dict[str, Any] | None:
    """The lineage of a forked run, or None for a run that starts from its base.

    Raises:
        RunError: lineage.json is torn.
    """
    if not run.lineage_path.exists():
        return None
    values = read_json(run.lineage_path)
    parent = values.get("parent") if isinstance(values, dict) else None
    if not isinstance(parent, dict) or not parent.keys() >= _PARENT_KEYS or not isinstance(values.get("carried"), dict):
        raise RunError(
            "the lineage of the run is damaged",
            where=str(run.lineage_path),
            hint="put the file back from a copy, or fork into another folder with --run",
        )
    return dict(values)


def lineage_line(lineage: Mapping[str, Any]) -> str:
    """``a@40, forked from base-run@20``: the parent, and its own parents behind it."""
    chain = [lineage["parent"], *lineage.get("ancestors", [])]
    return ", forked from ".join(parent_of({"parent": item}) for item in chain)


def parent_of(lineage: Mapping[str, Any] | None) -> str:
    """``a@40``; empty for a run that starts from its base."""
    return f"{lineage['parent']['name']}@{lineage['parent']['step']}" if lineage else ""
