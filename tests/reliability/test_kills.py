"""SIGKILL at random moments, while background saves are on: the run ends as if nothing had happened."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.reliability.conftest import SEED, Tell

ROOT = Path(__file__).resolve().parents[2]


def kill(folder: Path, trainer: str, kills: int, short: int, tell: Tell) -> dict[str, Any]:
    """Run the loop in a process of its own, which forks before anything was computed."""
    command = [sys.executable, "-m", "tests.reliability.kill_loop", str(folder), "--trainer", trainer]
    command += ["--kills", str(kills), "--short", str(short), "--seed", str(SEED)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=3600, check=False, cwd=ROOT)
    assert done.stdout, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    for name in ("long", "short"):
        if name in found:
            tally = found[name]
            words = (
                f"survived ({tally['cold_kills']} cold) over {tally['runs']} {name} runs of {tally['steps']} steps, "
                f"{len(tally['unlike'])} files unlike, {tally['seconds']:.0f} s; {tally['phases']}"
            )
            tell(f"kills, {trainer}, seed {SEED}", tally["kills"], tally["kills"] - tally["failed"], words)
            assert tally["failures"] == []
            assert tally["unlike"] == []
    assert done.returncode == 0, done.stderr
    return found


@pytest.mark.slow
def test_fifty_kills_in_one_run_and_more_in_short_ones(tmp_path: Path, tell: Tell) -> None:
    found = kill(tmp_path, "lora", 54, 12, tell)
    assert found["long"]["runs"] == 1
    assert found["long"]["kills"] >= 50
    assert found["long"]["cold_kills"] >= 1


@pytest.mark.slow
def test_kills_where_all_weights_train(tmp_path: Path, tell: Tell) -> None:
    kill(tmp_path, "full", 8, 8, tell)


@pytest.mark.long
@pytest.mark.parametrize(("trainer", "kills", "short"), [("lora", 500, 200), ("full", 200, 100)])
def test_hundreds_of_kills(tmp_path: Path, trainer: str, kills: int, short: int, tell: Tell) -> None:
    kill(tmp_path, trainer, kills, short, tell)
