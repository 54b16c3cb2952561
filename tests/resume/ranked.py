"""Runs of two ranks for ``test_ranks``: one process of each rank goes through all of them and writes down what came of each.

python -m tests.resume.ranked FOLDER RANK SIZE
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import signal
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from tests.loops import Cut
from tests.resume.cutting import Case, Made, build
from tunesmith.engine.randomness import use_deterministic
from tunesmith.engine.ranks import World
from tunesmith.engine.recovery import GuardOptions
from tunesmith.engine.spikes import SpikeOptions
from tunesmith.engine.windows import PrefixRule, ScoreRule, Timetable, Window
from tunesmith.errors import TunesmithError
from tunesmith.objectives.next_token import NextToken
from tunesmith.objectives.weighted_sum import PARTS, WeightedSum
from tunesmith.types import Batch

STEPS = 20


@dataclass(frozen=True)
class Scenario:
    """A case, and what befalls it: ``cut`` at a step; ``signal``, ``full`` memory or ``gone`` on rank 1 at a step."""

    case: Case
    cut: int | None = None
    signal: int | None = None
    full: int | None = None
    gone: int | None = None
    folder: str = ""


def _long(name: str, **settings: Any) -> Case:
    plain = {"total_steps": STEPS, "checkpoint_every": 5, "atom_tokens": 40}
    more = {
        key: settings.pop(key)
        for key in ("spoil", "patience", "bumps", "loss", "row_weights", "touch")
        if key in settings
    }
    return Case(name, {**plain, **settings}, **more)


def _noise(trainer: Any) -> None:
    trainer.model.add_embedding_noise(5.0)


def _summed(trainer: Any) -> None:
    """Rows of two kinds under a weighted sum, their packs such that a rank may have one kind alone."""
    parts = WeightedSum([("sft", 1.0, NextToken()), ("clm", 0.3, NextToken(label_smoothing=0.1))])
    trainer.objective = trainer.gradients.objective = trainer.reckoning.objective = parts
    plain = trainer.stream._plain

    def make(rows: Any, progress: float, epoch: int) -> Batch:
        return replace(plain(rows, progress, epoch), extras={PARTS: torch.tensor([int(row % 3 == 0) for row in rows])})

    trainer.stream._make = make


TABLES = {
    "unfreezing": Timetable({2: Window(first=4, warmup=3), 1: Window(first=9), 0: Window(first=14)}, num_layers=3),
    "freezing": Timetable(rule=PrefixRule(interval=4, percentile=90, top=4), num_layers=3),
}
RESUMED = _long("resumed", scope="full")
SCENARIOS: dict[str, Scenario] = {
    "one-step-lora": Scenario(_long("lora", total_steps=1)),
    "one-step-full": Scenario(_long("full", total_steps=1, scope="full")),
    "one-pass": Scenario(_long("one", atom_tokens=4096)),
    "adamw": Scenario(_long("adamw", scope="full")),
    "sgd": Scenario(_long("sgd", scope="full", optimiser="sgd")),
    **{name: Scenario(_long(name, scope="full", layers=3, timetable=table)) for name, table in TABLES.items()},
    **{
        f"matrices-{name}": Scenario(
            _long(
                name,
                scope="aflora",
                score_rule=ScoreRule(boundaries=((4, 0.3), (8, 0.6), (12, 1.0)), pooled=name == "released", window=2),
            )
        )
        for name in ("released", "paper")
    },
    "dropout": Scenario(_long("dropout", dropout=0.2)),
    "fp16": Scenario(_long("fp16", precision="fp16", spoil={4: math.inf})),
    "skipped": Scenario(_long("skipped", guards=GuardOptions(non_finite="skip"), spoil={4: math.nan})),
    "rolled-back": Scenario(
        _long("back", spikes=SpikeOptions(action="rollback", window=8, threshold=20.0), spoil={9: 100.0})
    ),
    "early-stopping": Scenario(_long("early", evaluate_every=4, patience=2, bumps={8: 30.0, 12: 30.0})),
    "rdrop": Scenario(_long("rdrop", dropout=0.2, loss={"rdrop_alpha": 1.0}, row_weights=True)),
    "neftune": Scenario(_long("neftune", touch=_noise)),
    "smoothed": Scenario(_long("smoothed", loss={"label_smoothing": 0.1}, row_weights=True)),
    "focal": Scenario(_long("focal", loss={"focal_gamma": 2.0}, row_weights=True)),
    "summed": Scenario(_long("summed", touch=_summed, row_weights=True)),
    "memory": Scenario(_long("memory", scope="full"), full=6),
    "signal": Scenario(_long("signal"), signal=7),
    "cut-on-two": Scenario(RESUMED, cut=12, folder="cut-on-two"),
    "from-one-to-two": Scenario(RESUMED, folder="cut-on-one"),
    "gone": Scenario(_long("gone"), gone=7),
}
"""The last one ends the processes."""


def _befall(made: Made, scenario: Scenario) -> None:
    """Do to this rank what the scenario says once a step is told."""
    listen = made.recorder.after_step

    def after_step(facts: Any) -> None:
        listen(facts)
        if facts.step == scenario.signal:
            os.kill(os.getpid(), signal.SIGTERM)
        if facts.step == scenario.gone:
            os._exit(9)

    made.recorder.after_step = after_step  # type: ignore[method-assign]


def run(scenario: Scenario, folder: Path, ranks: Any) -> dict[str, Any]:
    """One scenario; what came of it as plain values."""
    case = Case(**{**vars(scenario.case), "settings": {**scenario.case.settings, "ranks": ranks}})
    if scenario.full is not None and ranks.rank == 1:
        case = Case(**{**vars(case), "most_tokens": {scenario.full: 25}})
    made = build(case, folder, scenario.cut)
    if ranks.rank == 1:
        _befall(made, scenario)
    error = ""
    checkpoint = made.trainer.checkpoints.newest() if ranks.is_main else None
    step = ranks.told(checkpoint.step if checkpoint else None)
    if step is not None:
        found = made.trainer.checkpoints.look(step)
        assert not isinstance(found, str)
        made.trainer.restore(found)
    try:
        made.trainer.run()
    except (Cut, TunesmithError) as problem:
        made.trainer.saver.close()
        error = f"{type(problem).__name__}: {problem}"
    return told(made, error)


def told(made: Made, error: str = "") -> dict[str, Any]:
    """What a rank knows at the end."""
    digest = hashlib.sha256()
    for tensor in made.trainer.adapter.state().values():
        digest.update(tensor.numpy().tobytes())
    return {
        "facts": [
            {"step": item.step, "loss": item.loss, "grad_norm": item.grad_norm, "refused_by": item.refused_by,
             "tokens": item.tokens, "metrics": dict(item.metrics)}
            for item in made.recorder.facts
        ],
        "rows": {str(step): rows for step, rows in made.objective.rows.items()},
        "weights": digest.hexdigest(),
        "step": made.trainer.step,
        "stopped": made.trainer._stopped,
        "relief": made.trainer.relief.state_dict(),
        "said": made.said,
        "error": error,
    }  # fmt: skip


def main() -> None:
    """Go through all scenarios as one rank."""
    folder, rank, size = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(1)
    use_deterministic(True)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=size)
    for name, scenario in SCENARIOS.items():
        found = run(scenario, folder / (scenario.folder or name), World(torch.device("cpu")))
        (folder / f"{name}.{rank}.json").write_text(json.dumps(found), encoding="utf-8")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
