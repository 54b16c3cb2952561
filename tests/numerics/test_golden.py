"""Losses of five steps stay what they were: every objective with every adapter, relative 1e-5, since processors differ."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.numerics.golden_runs import FILE, STEPS, cases, golden_losses, name_of
from tunesmith.recipe.section import Section

HOW = "if the change is meant, write the numbers anew with `python tools/write_golden.py` and say why in the change"


@pytest.mark.parametrize(("objective", "adapter"), cases(), ids=[name_of(*case) for case in cases()])
def test_losses_are_the_golden_ones(objective: type[Section], adapter: type[Section]) -> None:
    name = name_of(objective, adapter)
    golden = json.loads(FILE.read_text(encoding="utf-8"))
    assert name in golden, f"golden.json has no `{name}`; {HOW}"
    assert golden_losses(objective, adapter) == pytest.approx(golden[name], rel=1e-5), HOW


def test_the_golden_file_has_these_runs_and_their_losses_move() -> None:
    golden: dict[str, list[float]] = json.loads(FILE.read_text(encoding="utf-8"))
    assert sorted(golden) == sorted(name_of(*case) for case in cases()), HOW
    assert all(len(losses) == STEPS for losses in golden.values())
    for name, losses in golden.items():
        assert max(losses) - min(losses) > 1e-3 * losses[0], f"{name} does not train"
    assert len({tuple(losses) for losses in golden.values()}) == len(golden)


def test_the_tool_writes_what_the_test_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tools.write_golden as tool

    monkeypatch.setattr(tool, "FILE", tmp_path / "golden.json")
    tool.main()
    written = json.loads((tmp_path / "golden.json").read_text(encoding="utf-8"))
    golden = json.loads(FILE.read_text(encoding="utf-8"))
    assert {name: pytest.approx(losses, rel=1e-5) for name, losses in golden.items()} == written
