"""The curve of a smoothed loss: beside validation stands the plain one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from synthetic_run import write_run

from tunesmith.reports.facts import read_facts
from tunesmith.reports.sections import _points, curves


@pytest.mark.parametrize("plain", [False, True])
def test_the_plain_loss_is_drawn_where_the_training_loss_is_another(tmp_path: Path, plain: bool) -> None:
    run = write_run(tmp_path / "run")
    path = run / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    for line in lines:
        if plain and "loss" in line:
            line["nll"] = line["loss"] / 2
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    expected = curves(read_facts(run))[0]
    for line in lines:
        if plain and "loss" in line:
            line["loss"] = 1000.0  # of no consequence
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    facts = read_facts(run)
    assert curves(facts)[0] == expected
    assert bool(_points(facts.metrics, "nll")) is plain
