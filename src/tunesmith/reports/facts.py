"""What a run folder says about itself. Only the recipe must be there; what else is missing or torn is kept as a sentence."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tunesmith.errors import RunError
from tunesmith.files import iter_lines, read_json
from tunesmith.registry.run_folder import LINEAGE
from tunesmith.registry.runs import RunFolder
from tunesmith.reports.wording import DASH, as_list, as_mapping, as_number, clock

Json = dict[str, Any]
_HEAVY = ("checkpoints", "adapter", "model")


@dataclass(frozen=True)
class Facts:
    """The files of a run, parsed. An absent file is empty here and named in ``missing``."""

    folder: Path
    recipe: Json
    status: Json = field(default_factory=dict)
    plan: Json = field(default_factory=dict)
    environment: Json = field(default_factory=dict)
    lineage: Json = field(default_factory=dict)
    ledger: Json = field(default_factory=dict)
    metrics: list[Json] = field(default_factory=list)
    events: list[Json] = field(default_factory=list)
    samples: list[Json] = field(default_factory=list)
    base: Json = field(default_factory=dict)
    tuned: Json = field(default_factory=dict)
    comparison: Json = field(default_factory=dict)
    base_rows: list[Json] = field(default_factory=list)
    tuned_rows: list[Json] = field(default_factory=list)
    disk_bytes: int = 0
    missing: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Name of the run."""
        return str(self.recipe.get("name") or self.folder.name)

    @property
    def training(self) -> list[Json]:
        """Lines of metrics that belong to optimiser steps."""
        return [line for line in self.metrics if "loss" in line]

    @property
    def seconds(self) -> float | None:
        """Time in training, from the status, else the sum of the steps' own."""
        said = as_number(self.status.get("seconds"))
        steps = [seconds for line in self.training if (seconds := as_number(line.get("seconds"))) is not None]
        return said if said is not None else sum(steps) if steps else None

    @property
    def date(self) -> str:
        """Day on which the run began (UTC), as its first event has it; empty where no event tells."""
        return clock(self.events[0].get("time"))[:10].strip(DASH) if self.events else ""

    @property
    def from_scratch(self) -> bool:
        """Whether training started from random weights in the shape of the base."""
        return as_mapping(self.recipe.get("model")).get("init") == "random"

    @property
    def optimistic(self) -> bool:
        """Whether every scored row also stopped or selected: no test rows stood behind the verdict."""
        if isinstance(self.comparison.get("optimistic"), bool):
            return bool(self.comparison["optimistic"])
        splits = self._splits()
        if splits:
            return "test" not in splits
        return bool(self.tuned) and self.ledger.get("test_rows") == 0

    def _splits(self) -> set[str]:
        settings = as_mapping((self.tuned or self.base).get("settings"))
        said = {str(as_mapping(one)["data"]) for one in settings.values() if as_mapping(one).get("data")}
        if said:
            return said
        tasks = as_list(as_mapping(self.recipe.get("evaluation")).get("tasks"))
        return {str(as_mapping(task).get("data", "test")) for task in tasks} if self.tuned else set()


def read_facts(folder: Path) -> Facts:
    """Read a run folder.

    Raises:
        RunError: the folder or its recipe is missing or torn.
    """
    if not folder.is_dir():
        raise RunError(
            "there is no such run folder", where=str(folder), hint="`tunesmith runs list` shows the runs there are"
        )
    try:
        recipe = read_json(folder / "recipe.json")
    except RunError as error:
        raise RunError(
            "this is not a run folder, or its recipe is torn",
            where=error.where,
            hint="name a folder that `tunesmith train` wrote",
        ) from error
    if not isinstance(recipe, dict):
        raise RunError(
            "the recipe of this run is not a mapping",
            where=str(folder / "recipe.json"),
            hint="the run folder is damaged: put the file back from a copy",
        )
    missing: list[str] = []
    cards = folder / "scorecards"
    return Facts(
        folder=folder,
        recipe=recipe,
        status=_status(folder, missing),
        plan=_mapping(folder / "plan.json", folder, missing),
        environment=_mapping(folder / "environment.json", folder, missing),
        lineage=_mapping(folder / LINEAGE, folder, missing) if (folder / LINEAGE).is_file() else {},
        ledger=_mapping(folder / "ledger.json", folder, missing),
        metrics=_lines(folder / "metrics.jsonl", folder, missing),
        events=_lines(folder / "events.jsonl", folder, missing),
        samples=_lines(folder / "samples.jsonl", folder, missing),
        base=_mapping(cards / "base.json", folder, missing),
        tuned=_mapping(cards / "tuned.json", folder, missing),
        comparison=_mapping(cards / "comparison.json", folder, missing),
        base_rows=_lines(cards / "base.rows.jsonl", folder, missing),
        tuned_rows=_lines(cards / "tuned.rows.jsonl", folder, missing),
        disk_bytes=_disk_bytes(folder),
        missing=tuple(missing),
    )


def _status(folder: Path, missing: list[str]) -> Json:
    """The status as the registry reads it: a run whose process is gone is lost, whatever it last said of itself."""
    said = _mapping(folder / "status.json", folder, missing)
    if not said:
        return {}
    try:
        return RunFolder(folder).status()
    except RunError as error:
        missing.append(f"status.json cannot be read ({error.what})")
        return {}


def _mapping(path: Path, folder: Path, missing: list[str]) -> Json:
    shown = str(path.relative_to(folder))
    if not path.is_file():
        missing.append(f"{shown} is not there")
        return {}
    try:
        value = read_json(path)
    except (RunError, OSError) as error:
        missing.append(f"{shown} cannot be read ({error if isinstance(error, OSError) else error.what})")
        return {}
    if not isinstance(value, dict):
        missing.append(f"{shown} does not hold a mapping")
        return {}
    return value


def _lines(path: Path, folder: Path, missing: list[str]) -> list[Json]:
    shown = str(path.relative_to(folder))
    if not path.is_file():
        missing.append(f"{shown} is not there")
        return []
    try:
        values = list(iter_lines(path))
    except (RunError, OSError, UnicodeDecodeError) as error:
        missing.append(f"{shown} cannot be read ({error.what if isinstance(error, RunError) else error})")
        return []
    rows = [value for value in values if isinstance(value, dict)]
    if len(rows) < len(values):
        missing.append(f"{shown} has {len(values) - len(rows)} lines that are not mappings")
    return rows


def _disk_bytes(folder: Path) -> int:
    """Bytes of checkpoints and result now."""
    return sum(path.stat().st_size for name in _HEAVY for path in (folder / name).rglob("*") if path.is_file())
