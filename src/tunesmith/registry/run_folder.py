"""A run on disk: names of its files, its identity, its lines of metrics and events. Torch-free.

runs/NAME/  recipe.json  plan.json  inputs.json  lineage.json  environment.json  status.json  ledger.json  rejected.jsonl
            metrics.jsonl  events.jsonl  samples.jsonl  checkpoints/  adapter/ or model/  result.json
            scorecards/{base,tuned,comparison}.json  report.html  card.md
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tunesmith.disk import disk
from tunesmith.errors import RecipeError, RunError
from tunesmith.files import (
    is_leftover,
    iter_lines,
    make_folders,
    read_json,
    remove_folder,
    sweep,
    sync_appends,
    write_json,
)
from tunesmith.foreign import refuse_links_out
from tunesmith.recipe.codec import parse
from tunesmith.recipe.root import Recipe
from tunesmith.registry import lease
from tunesmith.registry.identity import other_recipe
from tunesmith.registry.line_files import LineFiles
from tunesmith.registry.shapes import DAMAGED, card_of, lines_of, status_of
from tunesmith.registry.standing import said_next, standing

STATUSES = ("running", "done", "interrupted", "stopped")
LINEAGE = "lineage.json"
LOG_NAME = "log.txt"
_NOT_OTHERS = (lease.NAME, LINEAGE, LOG_NAME)
"""What a start may leave in a folder before it is a run."""
_IDENTITY_KEYS = ("run_identity", "data_key", "base_sha256", "template")


class RunFolder:
    """A folder that holds one run, or will.

    Args:
        path: need not exist; ``create`` makes it, ``open`` asks that it is a run.

    Attributes:
        path, recipe_path, plan_path, …: the folder and every file in it by name, whether it exists yet or not.
    """

    def __init__(self, path: Path) -> None:
        self.path = path = Path(path)
        self.recipe_path = path / "recipe.json"
        self.plan_path = path / "plan.json"
        self.environment_path = path / "environment.json"
        self.inputs_path = path / "inputs.json"
        self.lineage_path = path / LINEAGE
        self.status_path = path / "status.json"
        self.ledger_path = path / "ledger.json"
        self.rejected_path = path / "rejected.jsonl"
        self.metrics_path = path / "metrics.jsonl"
        self.events_path = path / "events.jsonl"
        self.samples_path = path / "samples.jsonl"
        self.checkpoints_path = path / "checkpoints"
        self.adapter_path = path / "adapter"
        self.model_path = path / "model"
        self.scorecards_path = path / "scorecards"
        self.comparison_path = self.scorecards_path / "comparison.json"
        self.report_path = path / "report.html"
        self.card_path = path / "card.md"
        self.log_path = path / LOG_NAME
        self._lock = threading.RLock()
        self._lines = LineFiles(self.check_held, self._lock)
        self._lease: lease.Lease | None = None

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """The run in ``path``.

        Raises:
            RunError: there is no such folder, or it holds no run.
        """
        run = cls(path)
        if not run.path.is_dir():
            raise RunError(
                "there is no such run folder", where=str(path), hint="`tunesmith runs list` shows the runs there are"
            )
        if not run.exists:
            raise RunError(
                "this folder holds no run: recipe.json is missing",
                where=str(path),
                hint="`tunesmith runs list` shows the runs there are",
            )
        run._refuse_links()
        return run

    def _refuse_links(self) -> None:
        """Refuse a run with a file or folder that is a link out of it: writing would follow it."""
        own = [item.relative_to(self.path) for item in vars(self).values() if isinstance(item, Path)]
        refuse_links_out(self.path, map(str, own), "--run places a whole run on another disk", RunError)

    def create(self, recipe: Mapping[str, Any]) -> None:
        """Make the folder and write the resolved recipe into it, which makes it a run.

        Args:
            recipe: plain values with nothing unset.

        Raises:
            RunError: the folder holds a run or other files already, or cannot be written.
        """
        if self.exists:
            raise RunError(
                "this folder holds a run already", where=str(self.path), hint="name another folder with --run"
            )
        with self.creating(recipe):
            pass

    def check_free(self) -> None:
        """Refuse a folder that holds something else than a run, or links that lead out of it.

        Raises:
            RunError: it is a file, or holds other files or such links.
        """
        self._refuse_links()
        if not self.path.exists() or self.exists:
            return
        if not self.path.is_dir():
            raise RunError(
                "a run needs a folder, and this is a file",
                where=str(self.path),
                hint="name a folder with --run",
            )
        if self.environment_path.is_file():
            raise RunError("a file of the run is missing", where=str(self.recipe_path), hint=DAMAGED)
        if any(item.name not in _NOT_OTHERS and not is_leftover(item.name) for item in self.path.iterdir()):
            raise RunError(
                "a run needs a folder of its own, and this one holds other files",
                where=str(self.path),
                hint="name another folder with --run",
            )

    @contextmanager
    def held(self) -> Iterator[lease.Lease]:
        """Hold the lease of the folder, which is made where it is missing: within the context only this process works on it.

        Raises:
            RunError: another process works on it, or the folder cannot be written.
        """
        with lease.lease(self.path) as held:
            self._lease = held
            try:
                yield held
            finally:
                self._lease = None

    def check_held(self) -> None:
        """Make sure, where this process holds the lease, that it still does; every write of the run asks.

        Raises:
            LeaseLost: the folder was removed, or another process took it over.
        """
        if self._lease is not None:
            self._lease.check()

    @contextmanager
    def creating(self, recipe: Mapping[str, Any], lineage: Mapping[str, Any] | None = None) -> Iterator[None]:
        """Make the run, or complete one that was cut off at its creation; a failure within leaves nothing of a new one.

        Args:
            recipe: plain values with nothing unset.
            lineage: where a child comes from; written first, so that a child is never taken for a run of its own.

        Raises:
            RunError: the folder holds other files, or cannot be written.
        """
        self.check_free()
        is_new = not self.exists
        made = [folder for folder in (self.path, *self.path.parents) if not folder.exists()]
        try:
            if lineage is not None:
                write_json(self.lineage_path, dict(lineage))
            if is_new:
                write_json(self.recipe_path, dict(recipe))
            make_folders(self.scorecards_path)
            yield
        except BaseException as error:
            if is_new:
                _clear(self.path, made)
            if not isinstance(error, OSError):
                raise
            raise RunError(
                f"the run folder cannot be written: {error.strerror or error}",
                where=str(self.path),
                hint="free some space, or name a folder on another disk with --run",
            ) from error

    @property
    def exists(self) -> bool:
        """Whether the folder holds a run."""
        return self.recipe_path.is_file()

    @property
    def name(self) -> str:
        """Name of the folder."""
        return self.path.resolve().name

    def scorecard_path(self, name: str) -> Path:
        """Scorecard of ``base`` or ``tuned``."""
        return self.scorecards_path / f"{name}.json"

    def scorecard_rows_path(self, name: str) -> Path:
        """Rows beside the scorecard of ``base`` or ``tuned``, as JSON lines."""
        return self.scorecards_path / f"{name}.rows.jsonl"

    def recipe(self) -> Recipe:
        """The recipe this run was started with.

        Raises:
            RunError: recipe.json is missing, torn, or not a recipe of this version.
        """
        values = read_json(self.recipe_path)
        if not isinstance(values, dict):
            raise RunError("the recipe of the run is torn", where=str(self.recipe_path), hint=DAMAGED)
        try:
            return parse(values, source=str(self.recipe_path))
        except RecipeError as error:
            raise RunError(
                f"the recipe of the run is not valid here: {error.what}",
                where=error.where,
                hint="the run may be of another version of tunesmith; start a new one with --run",
            ) from error

    def check_identity(self, recipe: Recipe, derived: Mapping[str, str] | None = None) -> None:
        """Refuse a recipe that is not this run's.

        Args:
            recipe: resolved as the stored one; what may change on resume is not compared.
            derived: dotted key -> why, for values that the recipe leaves to the plan.

        Raises:
            RunError: lists the keys that differ.
        """
        error = other_recipe(self.path, self.recipe(), recipe, derived or {})
        if error is not None:
            raise error

    def environment(self) -> dict[str, Any]:
        """Where and from what the run was started.

        Raises:
            RunError: environment.json is missing, torn, or lacks what identifies the run.
        """
        values = read_json(self.environment_path)
        known = values if isinstance(values, dict) else {}
        lacking = [key for key in _IDENTITY_KEYS if not isinstance(known.get(key), str)]
        lacking += [] if isinstance(known.get("recipe_folder", ""), str) else ["recipe_folder"]
        if lacking:
            raise RunError(
                f"environment.json of the run lacks `{lacking[0]}`",
                where=str(self.environment_path),
                hint="the run may be of another version of tunesmith, or damaged: start a new one with --run",
            )
        return dict(values)

    def status(self) -> dict[str, Any]:
        """How far the run is: ``status``, ``step``, ``steps``, ``tokens``, ``loss``, ``seconds``, ``message``.

        A run whose process is gone is ``lost``, see ``registry/standing.py``.

        Raises:
            RunError: status.json is torn.
        """
        return standing(self.path, self.recorded_status())

    def recorded_status(self) -> dict[str, Any] | None:
        """What status.json holds, whoever is at work. Raises RunError where it is torn."""
        if not self.status_path.exists():
            return None
        return status_of(read_json(self.status_path), STATUSES, self.status_path)

    def set_status(self, status: str | None, **values: Any) -> None:
        """Replace the status, keeping earlier values that are not given anew.

        Args:
            status: ``running``, ``done``, ``interrupted`` or ``stopped``; None keeps it, and its message.
            values: any of ``step``, ``steps``, ``tokens``, ``loss``, ``seconds``, ``saved_step``, ``message``, ``diverged``.
        """
        if status not in (None, *STATUSES):
            raise ValueError(f"{status!r} is not one of {STATUSES}")
        with self._lock:
            self.check_held()
            try:
                before = self.recorded_status() or {}
            except RunError:
                before = {}
            sync_appends()
            write_json(self.status_path, said_next(before, status, values))

    def settle_lines(self) -> None:
        """Write the lines that wait, and make all of them durable. Raises OSError where the disk takes none."""
        self._lines.settle()

    def append_metric(self, line: Mapping[str, Any]) -> None:
        """Add a line with its ``step`` to metrics.jsonl."""
        self._lines.append(self.metrics_path, line)

    def append_event(self, kind: str, step: int, message: str) -> None:
        """Add a line to events.jsonl, stamped with seconds since 1970."""
        self._lines.append(self.events_path, {"time": time.time(), "step": step, "kind": kind, "message": message})

    def append_sample(self, line: Mapping[str, Any]) -> None:
        """Add a line with its ``step`` to samples.jsonl."""
        self._lines.append(self.samples_path, line)

    def metrics(self) -> list[dict[str, Any]]:
        """All that ``each_metric`` gives."""
        return list(self.each_metric())

    def each_metric(self) -> Iterator[dict[str, Any]]:
        """Lines of metrics.jsonl, one at a time; a torn last line is left out."""
        return lines_of(iter_lines(self.metrics_path), self.metrics_path)

    def events(self) -> list[dict[str, Any]]:
        """Lines of events.jsonl."""
        return list(lines_of(iter_lines(self.events_path), self.events_path))

    def samples(self) -> list[dict[str, Any]]:
        """Lines of samples.jsonl."""
        return list(lines_of(iter_lines(self.samples_path), self.samples_path))

    def rewind_metrics(self, step: int, *, evaluated: bool = True) -> int:
        """Drop metrics and samples after ``step``, so that a resumed run says each step once; events stay.

        Args:
            step: the last step that stays.
            evaluated: False drops what the evaluation at ``step`` itself said, which is about to be made again.

        Returns the number of lines dropped.
        """

        def stays(line: Mapping[str, Any]) -> bool:
            is_evaluation = "validation_loss" in line or "answer" in line
            return int(line["step"]) < step + (evaluated or not is_evaluation)

        return self._lines.keep((self.metrics_path, self.samples_path), stays)

    def mend_lines(self) -> list[str]:
        """Leave damaged lines out of metrics, samples and events; see ``LineFiles.mend``."""
        return self._lines.mend((self.metrics_path, self.samples_path, self.events_path))

    @contextmanager
    def patient(self) -> Iterator[None]:
        """Within the context a disk that takes no lines is waited for: they are kept in memory and written later.

        Raises:
            OSError: it still takes none at the end.
        """
        with self._lines.patient():
            yield

    def clean(self) -> list[str]:
        """Remove what a crash left half-written; returns the names. Only for the holder of the lease."""
        return sweep(self.path) + sweep(self.scorecards_path) + sweep(self.checkpoints_path)

    def scorecards(self) -> dict[str, dict[str, Any]]:
        """Scorecards by name (``base``, ``tuned`` …); the comparison is not one of them.

        Raises:
            RunError: one is torn.
        """
        if not self.scorecards_path.is_dir():
            return {}
        paths = sorted(self.scorecards_path.glob("*.json"))
        return {path.stem: card_of(read_json(path), path) for path in paths if path != self.comparison_path}

    def comparison(self) -> dict[str, Any] | None:
        """Base against tuned, or None before it was made. Raises RunError where it is torn."""
        path = self.comparison_path
        return card_of(read_json(path), path) if path.exists() else None


def _clear(folder: Path, made: Sequence[Path]) -> None:
    """Take back a folder that was being made: its files, then those of the folders made for it that are empty."""
    for item in folder.iterdir() if folder.is_dir() else ():
        if item.name in (lease.NAME, LOG_NAME):
            continue
        with suppress(OSError):
            if item.is_dir():
                remove_folder(item)
            else:
                disk().unlink(item)
    for empty in made:
        with suppress(OSError):
            disk().remove_folder(empty)
