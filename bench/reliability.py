"""One table of what was tried and what survived, and what safety costs.

Usage: python bench/reliability.py [--kills 500] [--short 200] [--quick] [--model ../shared/models/tunesmith-base-28m] [--skip PART ...]

Parts: crashes, kills, peer, rot, input, cost. Crash points, rot and bad inputs are counted by the tests that try them; kills by the loop that
tests use too; the peer is Hugging Face's Trainer under the same loop, saving as often; the cost of a checkpoint is measured here, in one process,
with and without the background.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from tunesmith.adapters import build
from tunesmith.data.loader import PackedStream, StreamOptions
from tunesmith.data.store import StoreWriter, TokenStore
from tunesmith.data.tokenizer import Tokenizer
from tunesmith.embedded import HELPDESK
from tunesmith.engine.checkpoint import CheckpointFolder
from tunesmith.engine.options import TrainerOptions
from tunesmith.engine.trainer import Trainer
from tunesmith.files import read_lines
from tunesmith.models.loading import load_model
from tunesmith.objectives.next_token import NextToken
from tunesmith.recipe.adapters import FullSection, LoraSection
from tunesmith.records import Origin, Row, Text

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("crashes", "kills", "peer", "rot", "input", "cost")
_TALLY = re.compile(r"reliability: (.+): (\d+) tried, (\d+) ")
_INPUT = re.compile(r"bad inputs: (\d+) tried, (\d+) with")
_INPUT_TESTS = ("tests/e2e/test_bad_input.py", "tests/e2e/test_bad_input_data.py", "tests/e2e/test_bad_input_models.py",
                "tests/e2e/test_bad_input_runs.py", "tests/e2e/test_bad_input_use.py", "tests/hostile")  # fmt: skip
_COST_STEPS, _COST_EVERY = 10, 2


def tests(*arguments: str) -> str:
    """Output of pytest. Raises RuntimeError where a test failed."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stdout[-3000:])
    return done.stdout


def tallies(output: str) -> tuple[int, int]:
    """Tried and kept, over all sentences that the reliability tests print."""
    found = [(int(tried), int(kept)) for _, tried, kept in _TALLY.findall(output)]
    return sum(tried for tried, _ in found), sum(kept for _, kept in found)


def kills(trainer: str, count: int, short: int) -> dict[str, Any]:
    """What the kill loop counted."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "tests.reliability.kill_loop", folder, "--trainer", trainer]
        command += ["--kills", str(count), "--short", str(short), "--seed", "1"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if not done.stdout:
        raise RuntimeError(done.stderr[-3000:])
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def store(folder: Path, model: Path) -> TokenStore:
    """The help desk's tickets as documents."""
    tokenizer = Tokenizer.from_folder(model)
    with StoreWriter(folder) as writer:
        for number, row in enumerate(read_lines(HELPDESK / "train.jsonl")):
            ids = tokenizer.encode(f"{row['ticket']}\n{row['reply']}")
            writer.add(Row(f"{number:016x}", Origin("train.jsonl", number + 1), 0, Text("")), ids, [True] * len(ids))
    return TokenStore(folder)


def cost(model_path: Path, scope: str, background: bool) -> dict[str, float]:
    """Seconds of a step, and seconds that training waited for one checkpoint."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = load_model(model_path)
        adapter = build(FullSection() if scope == "full" else LoraSection(), 0)
        adapter.attach(model.hf)
        options = TrainerOptions(
            total_steps=_COST_STEPS, learning_rate=1e-4, warmup_steps=1, checkpoint_every=_COST_EVERY, evaluate_every=10**6,
            save_in_background=background,
        )  # fmt: skip
        stream = PackedStream(store(folder / "rows", model_path), StreamOptions(8, _COST_STEPS, 4096, 0))
        checkpoints = CheckpointFolder(folder / "checkpoints", "bench")
        trainer = Trainer(model, NextToken(), adapter, stream, replace(options, evaluate_every=10**6), checkpoints)
        steps: list[float] = []
        one_step = trainer._one_step

        def timed(step: Any) -> Any:
            started = time.perf_counter()
            found = one_step(step)
            steps.append(time.perf_counter() - started)
            return found

        trainer._one_step = timed  # type: ignore[method-assign]
        trainer.run()
        size = sum(path.stat().st_size for path in (folder / "checkpoints").rglob("*") if path.is_file())
        saves = _COST_STEPS // _COST_EVERY
        return {
            "step": statistics.median(steps), "blocked": trainer.saver.blocked_seconds / saves, "bytes": size / len(checkpoints.steps()),
        }  # fmt: skip


def cost_lines(model: Path, interval: int) -> list[str]:
    """What a checkpoint costs, with the default interval of a run of ten times ``interval`` steps."""
    lines = []
    for scope in ("lora", "full"):
        for background in (False, True):
            found = cost(model, scope, background)
            share = found["blocked"] / (interval * found["step"])
            how = "in the background" if background else "in the step"
            lines.append(
                f"| checkpoint of {found['bytes'] / 1e6:.1f} MB, {model.name}, {scope}, {how} | step {found['step'] * 1e3:.0f} ms "
                f"| blocked {found['blocked'] * 1e3:.0f} ms | {share:.2%} of the time at one in {interval} steps |"
            )
    return lines


def _killed(name: str, found: dict[str, Any]) -> list[str]:
    lines = []
    for kind in ("long", "short"):
        if kind in found:
            tally = found[kind]
            lines.append(
                f"| kill -9, {name}, {kind} runs | {tally['kills']} ({tally['cold_kills']} cold) | {tally['kills'] - tally['failed']} "
                f"| {len(tally['unlike'])} files unlike, {tally['lost_seconds']} s lost a resume, {tally['runs']} runs |"
            )
    return lines


def main() -> None:
    """Print the table, part by part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=500)
    parser.add_argument("--short", type=int, default=200)
    parser.add_argument("--quick", action="store_true", help="what CI tries: some of the crash points, few kills")
    parser.add_argument("--model", type=Path, default=ROOT.parent / "shared/models/tunesmith-base-28m")
    parser.add_argument("--interval", type=int, default=90, help="steps between checkpoints: a tenth of a run of 900")
    parser.add_argument("--skip", nargs="*", default=[], choices=PARTS)
    given = parser.parse_args()
    count, short = (54, 12) if given.quick else (given.kills, given.short)
    tier = "slow and not long" if given.quick else "slow or long"
    wanted = [part for part in PARTS if part not in given.skip]
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads\n\n| what | tried | survived, found or clear | more |\n|---|---|---|---|"
    )
    for part in wanted:
        started = time.perf_counter()
        if part == "crashes":
            tried, kept = tallies(
                tests(
                    "tests/reliability/test_crash_points.py",
                    "tests/reliability/test_small_writes.py",
                    "-m",
                    f"{tier} or not slow",
                )
            )
            lines = [f"| crash points | {tried} | {kept} | |"]
        elif part == "kills":
            lines = _killed("Tunesmith", kills("lora", count, short))
        elif part == "peer":
            lines = _killed("Hugging Face Trainer", kills("hf", min(count, 100), min(short, 60)))
        elif part == "rot":
            tried, kept = tallies(
                tests(
                    "tests/reliability/test_rot.py",
                    "tests/reliability/test_rotten_runs.py",
                    "-m",
                    f"{tier} or not slow",
                )
            )
            lines = [f"| corruptions | {tried} | {kept} | |"]
        elif part == "input":
            found = _INPUT.search(tests("-p", "tests.reliability.counting", "-m", "not slow", *_INPUT_TESTS))
            lines = [f"| bad inputs | {found[1]} | {found[2]} | |"] if found else ["| bad inputs | none counted | | |"]
        else:
            lines = cost_lines(given.model, given.interval)
        for line in lines:
            print(line, flush=True)
        print(f"{part}: {time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
