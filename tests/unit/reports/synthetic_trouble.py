"""Adds to a synthetic run what guards would have said: events, and steps that were not applied."""

from __future__ import annotations

import json
from pathlib import Path

from synthetic_run import BEGAN

EVENTS = [
    (9, "step_skipped", "loss or gradient norm stood out at step 9 (loss 11.2, gradient norm 48.1); that step was not applied, training goes on"),
    (10, "step_skipped", "loss or gradient norm stood out at step 10 (loss 9.8, gradient norm 51); that step was not applied, training goes on"),
    (12, "step_skipped", "loss or gradient norm stood out at step 12 (loss 12, gradient norm 40); that step was not applied, training goes on"),
    (13, "step_skipped", "loss or gradient norm stood out at step 13 (loss 12.1, gradient norm 44); that step was not applied, training goes on"),
    (20, "checkpoint_failed", "the checkpoint of step 20 could not be written: No space left on device; training goes on, the next interval tries again"),
    (30, "checkpoint_saved_again", "the checkpoint of step 30 is written: the disk takes it again"),
    (36, "rolled_back", "loss or gradient was not finite at step 36 (loss nan); back to the checkpoint of step 30, steps 34 to 36 are left out"),
    (36, "layer_fault", "layer model.layers.5 at step 36 is dead: no gradient reaches it <b>"),
    (40, "interrupted", "stopped by a signal"),
    (40, "resumed", "resumed from the checkpoint of step 40 of 60"),
]  # fmt: skip
REFUSED = {9: "spike", 10: "spike", 12: "spike", 13: "spike", 34: "left_out", 35: "left_out", 36: "left_out"}


def add_trouble(folder: Path) -> Path:
    """Put the troubles between the run's own events; the steps that were refused say so."""
    path = folder / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
        if "loss" in line and line["step"] in REFUSED:
            line["refused_by"] = REFUSED[line["step"]]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    path = folder / "events.jsonl"
    said = [json.loads(line) for line in path.read_text().splitlines()]
    said += [
        {"time": BEGAN + 0.46 * step + 4, "step": step, "kind": kind, "message": message}
        for step, kind, message in EVENTS
    ]
    said.sort(key=lambda line: line["time"])
    path.write_text("".join(json.dumps(line) + "\n" for line in said))
    return folder
