"""How good a model is: scores with intervals, and the rows behind them. ``NAME.json`` and ``NAME.rows.jsonl``."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tunesmith.errors import DataError, RunError
from tunesmith.evaluation.statistics import Score
from tunesmith.evaluation.tasks import TaskResult
from tunesmith.files import read_json, write_sealed, write_text

Metrics = dict[str, Score]

PROBE_PREFIX = "probes."


@dataclass
class Scorecard:
    """Scores of one model.

    ``settings`` holds for each task (and, under ``probes.NAME``, each probe) all that must agree before two cards are
    compared: decoding, template, labels. ``rows`` name their task in ``task`` in the same way. ``tables`` and
    ``baselines`` exist for tasks with a closed set of labels. ``suite`` is what was asked for, as a recipe has it.
    """

    model: str
    tasks: dict[str, Metrics] = field(default_factory=dict)
    probes: dict[str, Metrics] = field(default_factory=dict)
    baselines: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    tables: dict[str, dict[str, Any]] = field(default_factory=dict)
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)
    seconds: float = 0.0
    suite: dict[str, Any] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)

    def add_task(self, name: str, result: TaskResult, **settings: Any) -> None:
        """Enter a task's result; ``settings`` adds what only the caller knows (``template``, ``data``, …).

        Raises:
            DataError: the name is taken, or is kept for probes.
        """
        if name.startswith(PROBE_PREFIX):
            raise DataError(
                f"a task's name may not begin with {PROBE_PREFIX!r}", where=name, hint="Give it another `name`."
            )
        self._enter(name, result, settings)
        self.tasks[name] = dict(result.metrics)

    def add_probe(self, name: str, result: TaskResult, **settings: Any) -> None:
        """Enter a probe's result, as ``add_task`` does; a probe without scores has rows alone."""
        self._enter(PROBE_PREFIX + name, result, settings)
        self.probes[name] = dict(result.metrics)

    def rows_of(self, task: str) -> list[dict[str, Any]]:
        """Rows of a task, or of a probe by ``probes.NAME``."""
        return [row for row in self.rows if row["task"] == task]

    def to_json(self) -> dict[str, Any]:
        """Return the card without its rows."""
        return {
            "model": self.model,
            "tasks": {name: _metrics_json(metrics) for name, metrics in self.tasks.items()},
            "probes": {name: _metrics_json(metrics) for name, metrics in self.probes.items()},
            "baselines": self.baselines,
            "tables": self.tables,
            "settings": self.settings,
            "seconds": self.seconds,
            "suite": self.suite,
        }

    def save(self, folder: Path, name: str) -> Path:
        """Write rows, then the card with their hash; return the card's path.

        The card is the last to be replaced, so that a crash in between is seen when it is loaded.
        """
        text = "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in self.rows)
        write_text(folder / f"{name}.rows.jsonl", text)
        path = folder / f"{name}.json"
        write_sealed(path, {**self.to_json(), "rows_sha256": hashlib.sha256(text.encode()).hexdigest()})
        return path

    @classmethod
    def load(cls, folder: Path, name: str) -> Scorecard:
        """Read a card and its rows.

        Raises:
            RunError: a file is missing, torn, of another shape, or the rows are not those of the card.
        """
        path = folder / f"{name}.json"
        value = read_json(path)
        rows_path = folder / f"{name}.rows.jsonl"
        try:
            payload = rows_path.read_bytes()
        except OSError as error:
            raise RunError("the rows of a scorecard cannot be read", where=str(rows_path), hint=_HINT) from error
        try:
            if value["rows_sha256"] != hashlib.sha256(payload).hexdigest():
                raise RunError("the rows are not those of the scorecard beside them", where=str(rows_path), hint=_HINT)
            # lines end in \n alone: texts may hold U+2028 and its kin, at which str.splitlines would cut
            rows = [json.loads(line) for line in payload.decode("utf-8").split("\n") if line]
            return cls(
                model=str(value["model"]),
                tasks={task: _metrics(metrics) for task, metrics in value["tasks"].items()},
                probes={probe: _metrics(metrics) for probe, metrics in value["probes"].items()},
                baselines=value["baselines"],
                tables=value["tables"],
                settings=value["settings"],
                seconds=float(value["seconds"]),
                suite=dict(value.get("suite", {})),
                rows=rows,
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise RunError(f"this is no scorecard: {error!r}", where=str(path), hint=_HINT) from error

    def _enter(self, name: str, result: TaskResult, settings: Mapping[str, Any]) -> None:
        if name in self.settings:
            raise DataError("two tasks have the same name", where=name, hint="Give each task its own `name`.")
        self.settings[name] = {**result.settings, **settings}
        self.rows.extend({"task": name, **row} for row in result.rows)
        if result.table is not None:
            self.tables[name] = result.table
        if result.baselines is not None:
            self.baselines[name] = result.baselines


_HINT = "Run `tunesmith eval` again."


def _metrics_json(metrics: Metrics) -> dict[str, dict[str, float | int]]:
    return {name: score.to_json() for name, score in metrics.items()}


def _metrics(value: Mapping[str, Any]) -> Metrics:
    return {name: Score.from_json(score) for name, score in value.items()}
