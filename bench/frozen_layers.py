"""Time saved by frozen layers: steps of the embedded 8 M model with all, the last k, the first k or every n-th layer trained,
and whole runs under each freezing schedule.

Usage: python bench/frozen_layers.py [--rows 16] [--steps 8] [--run-steps 40] [--rounds 3] [--threads 1]

Times are CPU seconds of the process, which other work on the machine moves little with one thread. Configurations take turns in
every round; a scope's time is the median of its steps, a schedule's the median of its runs. ``arithmetic`` is the plan's share of the FLOPs of full fine-tuning.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tunesmith.adapters import build
from tunesmith.adapters.depths import by_depth
from tunesmith.data.loader import PackedStream, StreamOptions
from tunesmith.data.tokenizer import Tokenizer
from tunesmith.embedded import HELPDESK, model_folder
from tunesmith.engine.checkpoint import CheckpointFolder
from tunesmith.engine.options import TrainerOptions
from tunesmith.engine.trainer import Trainer
from tunesmith.files import read_lines
from tunesmith.models import names
from tunesmith.models.loading import load_model
from tunesmith.objectives.next_token import NextToken
from tunesmith.planning.freezing import timetable
from tunesmith.planning.plan import Plan, make_plan
from tunesmith.planning.settings import Counts
from tunesmith.recipe.codec import parse

MODEL = "tunesmith-base-8m"
SCOPES: dict[str, dict[str, Any]] = {
    "full": {"type": "full"},
    "last_layers: 1": {"type": "partial", "last_layers": 1},
    "last_layers: 2": {"type": "partial", "last_layers": 2},
    "last_layers: 3": {"type": "partial", "last_layers": 3},
    "every_nth: 2": {"type": "partial", "every_nth": 2},
    "first_layers: 1": {"type": "partial", "first_layers": 1},
}
SCHEDULES: dict[str, dict[str, Any] | None] = {
    "none": None,
    "unfreeze_gradually": {"type": "unfreeze_gradually", "every": 4, "warmup": 2},
    "freezeout": {"type": "freezeout"},
    "autofreeze": {"type": "autofreeze"},
}


class Rows:
    """Tickets with their queue as the trained answer, as a token store in memory."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._rows = []
        for row in read_lines(HELPDESK / "train.jsonl"):
            prompt, answer = tokenizer.encode(row["ticket"] + "\n"), tokenizer.encode(row["queue"])
            trained = np.zeros(len(prompt) + len(answer), dtype=np.bool_)
            trained[len(prompt) :] = True
            self._rows.append((np.asarray(prompt + answer, dtype=np.uint32), trained))
        self.lengths = np.asarray([len(ids) for ids, _ in self._rows], dtype=np.int64)
        self.num_rows = len(self._rows)
        self.sources = np.zeros(self.num_rows, dtype=np.int16)
        self.weights = np.ones(self.num_rows, dtype=np.float32)

    def row(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Token ids and trained flags."""
        return self._rows[index]


class Clock:
    """A hook that keeps the CPU seconds between the ends of steps."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._last = 0.0

    def after_step(self, facts: Any) -> None:
        """One step."""
        now = time.process_time()
        if self._last:
            self.seconds.append(now - self._last)
        self._last = now

    def at_interval(self, step: int) -> str | None:
        """Nothing to do."""
        return None

    def rewind(self, step: int) -> None:
        """Nothing to do."""

    def state_dict(self) -> dict[str, Any]:
        """Nothing to keep."""
        return {}

    def load_state_dict(self, state: Any) -> None:
        """Nothing to restore."""


def planned(rows: Rows, adapter: dict[str, Any], freezing: dict[str, Any] | None, steps: int, batch: int) -> Plan:
    """The plan of a configuration; its data are never read."""
    tokens = int(rows.lengths.sum())
    counts = Counts(rows=rows.num_rows, tokens=tokens, trained_tokens=tokens // 10, attended=float(rows.lengths.mean()))
    training = {
        "max_steps": steps,
        "batch_size": batch,
        "freezing": freezing,
        "precision": "fp32",
        "learning_rate": 1e-3,
    }
    values = {"name": "bench", "model": MODEL, "data": {"train": ["none.jsonl"]}, "adapter": adapter}
    recipe = parse(values | {"training": training, "machine": {"device": "cpu"}})
    return make_plan(recipe, counts=counts)


def run(rows: Rows, plan: Plan) -> list[float]:
    """Train; the CPU seconds of each step but the first."""
    folder, recipe, settings = model_folder(MODEL), plan.source, plan.settings
    assert folder is not None
    assert recipe is not None
    model = load_model(folder, check=False)
    adapter = build(recipe.adapter, 0)
    adapter.attach(model.hf)
    layers = names.num_layers(name for name, _ in model.hf.named_parameters())
    depths = {names.depth(name, layers) for group in adapter.groups() for name, _ in group.parameters}
    table = timetable(recipe, settings, depths, layers)
    options = TrainerOptions(
        total_steps=settings.total_steps, learning_rate=1e-3, warmup_steps=settings.warmup_steps, schedule=settings.schedule,
        checkpoint_every=10**6, evaluate_every=10**6, save_in_background=False, timetable=table,
    )  # fmt: skip
    stream = PackedStream(
        rows,  # type: ignore[arg-type]
        StreamOptions(batch_size=settings.batch_size, total_steps=settings.total_steps, atom_tokens=4096, seed=0),
    )
    clock = Clock()
    with tempfile.TemporaryDirectory() as place:
        trainer = Trainer(
            model, NextToken(), adapter, stream, options, CheckpointFolder(Path(place), "bench"), hooks=[clock],
            arrange=(lambda groups: by_depth(groups, layers, None)) if table else list,
        )  # fmt: skip
        trainer.run()
    return clock.seconds


def main() -> None:
    """Take turns, and print a line for each configuration."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("rows", 16), ("steps", 8), ("run-steps", 40), ("rounds", 3), ("threads", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    folder = model_folder(MODEL)
    assert folder is not None
    rows = Rows(Tokenizer.from_folder(folder))
    scopes = {name: planned(rows, adapter, None, chosen.steps, chosen.rows) for name, adapter in SCOPES.items()}
    runs = {
        name: planned(rows, SCOPES["full"], freezing, chosen.run_steps, chosen.rows)
        for name, freezing in SCHEDULES.items()
    }
    steps: dict[str, list[float]] = {name: [] for name in scopes}
    totals: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(chosen.rounds):
        for name, plan in scopes.items():
            steps[name] += run(rows, plan)
        for name, plan in runs.items():
            totals[name].append(sum(run(rows, plan)))
    for title, unit, plans, seconds in (("scope", "ms a step", scopes, steps), ("schedule", "s a run", runs, totals)):
        first = next(iter(plans))
        whole, work = statistics.median(seconds[first]), plans[first].flops
        print(f"{title:20} {unit:>10} {'time':>7} {'arithmetic':>11}")
        for name, plan in plans.items():
            middle = statistics.median(seconds[name])
            shown = f"{middle * 1000:.0f}" if title == "scope" else f"{middle:.2f}"
            print(f"{name:20} {shown:>10} {middle / whole:>7.2f} {plan.flops / work:>11.2f}")


if __name__ == "__main__":
    main()
