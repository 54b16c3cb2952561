"""Two ranks on one machine: the steps, losses and verdicts of one, whatever befalls one of them."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.resume.cutting import cut_run, go_on
from tests.resume.ranked import RESUMED, SCENARIOS, STEPS, Scenario, run
from tunesmith.engine.randomness import use_deterministic
from tunesmith.engine.ranks import Ranks

CUT_AT = 12


@pytest.fixture(autouse=True)
def _deterministic() -> Iterator[None]:
    use_deterministic(True)
    yield
    use_deterministic(False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where both ranks left what came of every scenario; one of the runs was begun by one process."""
    place = tmp_path_factory.mktemp("ranks")
    use_deterministic(True)
    cut_run(RESUMED, place / "cut-on-one", CUT_AT)
    command = [sys.executable, "-m", "tests.resume.ranked", str(place)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    where = Path(__file__).resolve().parents[2]
    started = [subprocess.Popen([*command, str(rank), "2"], cwd=where, env=environment) for rank in (0, 1)]
    codes = [process.wait(timeout=240) for process in started]
    assert codes == [0, 9]  # the last scenario ends rank 1, and rank 0 says so
    return place


def _found(folder: Path, name: str) -> list[dict[str, Any]]:
    files = [folder / f"{name}.{rank}.json" for rank in (0, 1)]
    return [json.loads(file.read_text(encoding="utf-8")) for file in files if file.exists()]


def _alone(tmp_path: Path, name: str) -> dict[str, Any]:
    scenario = SCENARIOS[name]
    return run(Scenario(scenario.case), tmp_path / name, Ranks())


def _both(folder: Path, name: str) -> dict[str, Any]:
    """What both ranks say; they have the same steps, verdicts and bits."""
    main, other = _found(folder, name)
    for key in ("rows", "weights", "step", "stopped", "relief"):
        assert main[key] == other[key], key
    assert json.dumps(main["facts"]) == json.dumps(other["facts"])  # as text: NaN equals NaN
    return main


def _agree(found: dict[str, Any], alone: dict[str, Any], rel: float = 1e-5) -> None:
    assert [item["step"] for item in found["facts"]] == [item["step"] for item in alone["facts"]]
    for one, other in zip(found["facts"], alone["facts"], strict=True):
        assert one["refused_by"] == other["refused_by"]
        assert one["tokens"] == other["tokens"]
        assert one["loss"] == pytest.approx(other["loss"], rel=rel, nan_ok=True)
        assert one["metrics"] == pytest.approx(other["metrics"], rel=rel, nan_ok=True)
    assert found["rows"] == alone["rows"]


@pytest.mark.parametrize("name", ["one-step-lora", "one-step-full"])
def test_one_step_is_that_of_one_process(folder: Path, tmp_path: Path, name: str) -> None:
    found, alone = _both(folder, name), _alone(tmp_path, name)
    _agree(found, alone, rel=1e-6)
    assert found["facts"][0]["grad_norm"] == pytest.approx(alone["facts"][0]["grad_norm"], rel=1e-5)


@pytest.mark.parametrize(
    "name",
    [
        "adamw", "sgd", "unfreezing", "freezing", "matrices-released", "matrices-paper", "one-pass", "dropout", "early-stopping", "smoothed", "focal", "neftune",
        "rdrop", "summed",
    ],
)  # fmt: skip
def test_twenty_steps_stay_with_those_of_one_process(folder: Path, tmp_path: Path, name: str) -> None:
    """With ``one-pass`` a rank has nothing to do and joins all the same; dropout's masks belong to passes, not to ranks."""
    found, alone = _both(folder, name), _alone(tmp_path, name)
    _agree(found, alone)
    assert found["stopped"] == alone["stopped"]
    assert len(found["facts"]) == (12 if name == "early-stopping" else STEPS)


@pytest.mark.parametrize("name", ["fp16", "skipped", "rolled-back"])
def test_verdicts_are_made_of_sums_and_so_the_same(folder: Path, tmp_path: Path, name: str) -> None:
    found, alone = _both(folder, name), _alone(tmp_path, name)
    _agree(found, alone, rel=1e-3 if name == "fp16" else 1e-5)
    refused = {item["step"]: item["refused_by"] for item in found["facts"] if item["refused_by"]}
    expected = {
        "fp16": {5: "overflow"}, "skipped": {5: "non_finite"},
        "rolled-back": {8: "left_out", 9: "left_out", 10: "left_out"},
    }  # fmt: skip
    assert refused == expected[name]


def test_memory_that_runs_out_on_one_rank_is_relieved_on_both(folder: Path, tmp_path: Path) -> None:
    found, alone = _both(folder, "memory"), _alone(tmp_path, "memory")
    _agree(found, alone)
    assert found["relief"]["recomputes"] is True
    assert found["relief"]["most_tokens"] <= 40
    main, other = _found(folder, "memory")
    assert all("memory ran out on another rank" in text for _, text in main["said"])
    assert "did not fit into memory" in str(other["said"])


def test_a_signal_to_one_rank_ends_both_at_the_same_step(folder: Path) -> None:
    found = _both(folder, "signal")
    assert found["step"] in (7, 8)
    for said in _found(folder, "signal"):
        assert said["error"].startswith(f"Interrupted: stopped by signal SIGTERM after step {found['step']} of {STEPS}")
    assert sorted(path.name for path in (folder / "signal").iterdir())[-1] == f"{found['step']:08d}"


def test_a_rank_that_is_gone_ends_the_other_in_words(folder: Path) -> None:
    (main,) = _found(folder, "gone")
    assert main["error"].startswith("GuardStopped: another rank of this run has ended (")
    assert "rank 0 of 2" in main["error"]
    assert "goes on from the newest checkpoint" in main["error"]


def test_cut_on_two_ranks_it_goes_on_on_one(folder: Path, tmp_path: Path) -> None:
    whole = run(Scenario(RESUMED), tmp_path / "whole", Ranks())
    assert "Cut" in _both(folder, "cut-on-two")["error"]
    again, since = go_on(RESUMED, folder / "cut-on-two")
    assert since == CUT_AT // 5 * 5
    _goes_on_as(whole, {str(step): rows for step, rows in again.objective.rows.items()}, again.recorder.facts, since)


def test_cut_on_one_process_it_goes_on_on_two(folder: Path, tmp_path: Path) -> None:
    whole = run(Scenario(RESUMED), tmp_path / "whole", Ranks())
    found = _both(folder, "from-one-to-two")
    _goes_on_as(whole, found["rows"], found["facts"], CUT_AT // 5 * 5)


def _goes_on_as(whole: dict[str, Any], rows: dict[str, Any], facts: Any, since: int) -> None:
    assert rows == {step: item for step, item in whole["rows"].items() if int(step) >= since}
    losses = [item["loss"] if isinstance(item, dict) else item.loss for item in facts]
    assert losses == pytest.approx([item["loss"] for item in whole["facts"] if item["step"] > since], rel=1e-5)


def test_a_world_of_one_sends_nothing() -> None:
    ranks = Ranks()
    assert (ranks.is_main, ranks.size) == (True, 1)
    assert ranks.largest([3, -1]) == [3, -1]
    assert ranks.told({"a": 1}) == {"a": 1}
    assert ranks.main_says(lambda: 5) == 5
    assert ranks.sum("kind", {"a": torch.tensor(math.pi)})["a"].item() == torch.tensor(math.pi).item()
