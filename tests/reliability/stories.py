"""What is broken off, and how it must be when it was done again."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.desk import ROWS, recipe_values, write_rows
from tests.faults import FaultyDisk
from tests.reliability.crashes import counted, leftovers
from tests.reliability.runs_alike import differences, events
from tests.tiny import desk_model
from tunesmith import embedded
from tunesmith.engine.checkpoint import Checkpoint, CheckpointFolder
from tunesmith.recipe.codec import parse
from tunesmith.workshop import fitting
from tunesmith.workshop.export import export
from tunesmith.workshop.planning import plan_recipe
from tunesmith.workshop.train import train

RUN = Path("runs/desk")


@contextmanager
def one_thread_saves() -> Iterator[None]:
    """Within the context checkpoints are saved by the loop itself: the n-th operation is always the same one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fitting, "saves_in_background", lambda settings, num_trainable: False)
        yield


def make_desk(folder: Path, adapter: dict[str, Any] | None = None, **training: Any) -> dict[str, Any]:
    """A model and data in a folder, and a recipe of three steps with a checkpoint each that may run anywhere.

    LoRA with dropout on one layer unless ``adapter`` says otherwise; validation, samples and scores.
    """
    if not (folder / "tiny").exists():
        like = embedded.model_folder("tunesmith-base-8m")
        assert like is not None
        desk_model(folder / "tiny", like)
        write_rows(folder / "rows.jsonl", ROWS)
        # a young file's hash is not remembered, and its saving would be one operation more for an older one
        os.utime(folder / "rows.jsonl", (0, 0))
    values = recipe_values()
    values["model"] = str(folder / "tiny")
    values["data"]["train"][0]["path"] = str(folder / "rows.jsonl")
    values["training"] |= {"max_steps": 3, "checkpoint_every": 1, "evaluate_every": 2, "samples": 1, **training}
    values["adapter"] = adapter or {"type": "lora", "rank": 2, "dropout": 0.1, "targets": ["*.0.*q_proj"]}
    return values


@dataclass
class TrainStory:
    """A whole run, from an empty cache to the report."""

    values: dict[str, Any]
    whole: Path
    fork: str | None = None
    promised: list[tuple[int, int]] = field(default_factory=list)
    """After how many operations which step was safe."""
    log: list[str] = field(default_factory=list)

    def act(self, root: Path) -> None:
        os.environ["TUNESMITH_CACHE"] = str(root / "cache")
        train(plan_recipe(parse(self.values)), root / RUN, fork=self.fork)

    def measure(self) -> None:
        """Run it unbroken, and count."""
        counting = FaultyDisk()
        save = CheckpointFolder.save

        def watched(folder: CheckpointFolder, checkpoint: Checkpoint, **how: Any) -> Path:
            done = save(folder, checkpoint, **how)
            self.promised.append((counting.count, checkpoint.step))
            return done

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(CheckpointFolder, "save", watched)
            self.log = counted(self, self.whole, counting)

    def faults(self, root: Path, at: int, left: list[str]) -> list[str]:
        self.act(root)
        run = root / RUN
        found = differences(self.whole / RUN, run) + [f"left: {name}" for name in leftovers(root)]
        told = " ".join(events(run, "swept"))
        in_run = [Path(name) for name in left if name.startswith(RUN.as_posix())]
        found += [f"not told: {path}" for path in in_run if path.name not in told]
        safe = max((step for count, step in self.promised if count < at), default=0)
        resumed = [int(message.split("step ")[1].split()[0]) for message in events(run, "resumed")]
        if events(run, "continued") and (resumed[-1] if resumed else 0) < safe:
            found.append(f"resumed from {resumed}, step {safe} was safe")
        return found


@dataclass
class ExportStory:
    """A finished run, written as others read it."""

    run: Path
    whole: Path
    merge: bool
    log: list[str] = field(default_factory=list)

    def act(self, root: Path) -> None:
        export(self.run, root / "out", merge=self.merge)

    def measure(self) -> None:
        """Export it unbroken, and count."""
        self.log = counted(self, self.whole)

    def faults(self, root: Path, at: int, left: list[str]) -> list[str]:
        out = root / "out"
        found = []
        if out.exists():
            found = differences(self.whole / "out", out)
            shutil.rmtree(out)
        told = " ".join(export(self.run, out, merge=self.merge).notes)
        found += [f"not told: {name}" for name in left if name not in told]
        return found + differences(self.whole, root)


@dataclass
class PlainStory:
    """Anything small: ``check`` does it again and says what is wrong."""

    work: Callable[[Path], object]
    check: Callable[[Path], list[str]]
    log: list[str] = field(default_factory=list)

    def act(self, root: Path) -> None:
        self.work(root)

    def measure(self, place: Path) -> None:
        """Do it unbroken, and count."""
        self.log = counted(self, place)
        assert self.check(place) == []

    def faults(self, root: Path, at: int, left: list[str]) -> list[str]:
        return self.check(root)
