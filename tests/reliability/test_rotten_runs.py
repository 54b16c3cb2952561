"""A run that was interrupted, and one of its files rots: it goes on to the same end, or an error says what to do.

Never a traceback, never a worse run than before: put back what rotted, and it goes on.
"""

from __future__ import annotations

import json
import random
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.reliability.conftest import SEED, Tell
from tests.reliability.crashes import DEAD
from tests.reliability.rot import Change, cut, flipped, other_texts, write, zeroed
from tests.reliability.runs_alike import differences, events
from tests.reliability.stories import RUN, make_desk, one_thread_saves
from tunesmith.cli.main import run as run_cli
from tunesmith.registry.run_folder import RunFolder

SMALL = (
    "status.json", "plan.json", "recipe.json", "environment.json", "inputs.json", "ledger.json", "rejected.jsonl", "metrics.jsonl",
    "events.jsonl", "samples.jsonl", "scorecards/base.json", "scorecards/base.rows.jsonl", "lease.json",
)  # fmt: skip
"""What a resume finds in a run folder beside checkpoints."""

NOT_READ = {"lease.json", "status.json", "environment.json", "ledger.json", "inputs.json", "rejected.jsonl"}
"""Training does not read them: a run may end with them as they are."""

LINES = {"metrics.jsonl", "samples.jsonl", "events.jsonl"}
"""What is damaged is left out and kept beside; what is lost is said."""


class Bench:
    """A finished run, and one of the same recipe that was killed in its third step of five."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        values = make_desk(folder, max_steps=5)
        values["evaluation"]["tasks"] = [
            {"type": "loss", "data": "validation"},
            {"type": "exact_match", "data": "validation"},
        ]
        (folder / "recipe.json").write_text(json.dumps(values))
        self.whole, self.broken = folder / "whole", folder / "broken"
        self.train(self.whole)
        append = RunFolder.append_metric

        def killed(run: RunFolder, line: dict[str, Any]) -> None:
            if line["step"] == 4:
                raise KeyboardInterrupt
            append(run, line)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(RunFolder, "append_metric", killed)
            assert self.train(self.broken) == 130

    def train(self, place: Path, *more: str) -> int:
        return run_cli(["train", str(self.folder / "recipe.json"), "--run", str(place / RUN), *more])


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    folder = tmp_path_factory.mktemp("rot")
    with one_thread_saves(), pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUNESMITH_CACHE", str(folder / "cache"))
        yield Bench(folder)


@pytest.fixture
def place(bench: Bench, tmp_path: Path) -> Path:
    shutil.copytree(bench.broken, tmp_path / "place")
    return tmp_path / "place"


def three_parts(err: str) -> bool:
    """Whether the words end in one error of three parts, and hold no traceback."""
    lines = err.splitlines()
    starts = [number for number, line in enumerate(lines) if line.startswith("error: ")]
    if "Traceback" in err or "sorry, something broke" in err or len(starts) != 1:
        return False
    error = lines[starts[0] :]
    return any(line.startswith("  at ") for line in error) and any(line.startswith("hint: ") for line in error)


def changes(payload: bytes) -> Iterator[tuple[str, Change | None]]:
    """Ways in which a file rots; None where it is not there."""
    yield "missing", None
    yield "a bit at the end", flipped(max(0, len(payload) - 3), 0)
    middle = len(payload) // 2
    yield from other_texts()
    yield "empty", cut(0)
    yield "half", cut(middle)
    yield "zeros", zeroed(0, len(payload))
    yield "zeros in the middle", zeroed(middle, 16)
    yield "a high bit", flipped(middle, 7)
    yield "another digit", _another_digit
    yield "a line that is none in the middle", _line_in_the_middle
    yield "a bracket at the start", flipped(0, 0)


def _another_digit(payload: bytes) -> bytes:
    """The last digit is another one: still JSON, and plausible."""
    at = max(payload.rfind(b"%d" % digit) for digit in range(10))
    return payload if at < 0 else payload[:at] + b"%d" % ((payload[at] - ord("0") + 1) % 10) + payload[at + 1 :]


def _line_in_the_middle(payload: bytes) -> bytes:
    lines = payload.split(b"\n")
    return b"\n".join([*lines[: len(lines) // 2], b"torn", *lines[len(lines) // 2 :]])


TIERS = [pytest.param(5, marks=pytest.mark.slow), pytest.param(None, marks=pytest.mark.long)]
"""CI tries five ways of each, others each time; the tier ``long`` all."""


def _some(ways: Iterator[tuple[str, Change | None]], count: int | None) -> list[tuple[str, Change | None]]:
    found = list(ways)
    return found if count is None else random.Random(SEED).sample(found, count)


@pytest.mark.parametrize("count", TIERS)
@pytest.mark.parametrize("name", SMALL)
def test_a_rotten_file_is_mended_or_named(
    bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, count: int | None, tell: Tell
) -> None:
    place, mended, named, wrong = tmp_path / "place", 0, 0, []
    kept = bench.broken / RUN / name
    gone = {"pid": DEAD, "host": socket.gethostname(), "since": 1.0}
    payload = kept.read_bytes() if kept.exists() else json.dumps(gone).encode()
    for what, change in _some(changes(payload), count):
        if name in LINES and what == "another digit":  # lines have no hash: a plausible number is believed
            continue
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(bench.broken, place)
        path = place / RUN / name
        if change is None:
            path.unlink(missing_ok=True)
        else:
            write(path, change(payload))
        capsys.readouterr()
        code = bench.train(place)
        said = capsys.readouterr().err
        if code == 0:
            mended += 1
            wrong += [f"{what}: {fault}" for fault in _faults(bench, place / RUN, name)]
            continue
        named += 1
        is_named = name.rpartition("/")[2] in said or (name == "recipe.json" and "run of another recipe" in said)
        if code not in (2, 4) or not three_parts(said) or not is_named:
            wrong.append(f"{what}: exit {code}: {said[-600:]}")
        write(path, payload)
        if bench.train(place) != 0 or _faults(bench, place / RUN, name):
            wrong.append(f"{what}: put back, it does not go on: {capsys.readouterr().err[-600:]}")
    bad = len({item.split(":")[0] for item in wrong})
    tell(
        f"rot, {name} of a run",
        mended + named,
        mended + named - bad,
        f"handled: {named} named, {mended} mended or not used",
    )
    assert wrong == []


def _faults(bench: Bench, run: Path, name: str) -> list[str]:
    """In what a run that was mended is not the whole one, but for what may be."""
    unlike = [item for item in differences(bench.whole / RUN, run) if item not in NOT_READ]
    if name not in LINES:
        return unlike
    found = [item for item in unlike if item not in (name, f"{name}.bad-0")]
    if name == "metrics.jsonl" and name in unlike and not events(run, "lines_lost"):
        found.append("lost lines are not told")
    if (run / f"{name}.bad-0").exists() != bool(events(run, "lines_damaged")):
        found.append("what was set aside is not told")
    return found


@pytest.mark.parametrize("name", ["trained.safetensors", "optimiser.safetensors", "state.json", "manifest.json"])
def test_a_rotten_checkpoint_costs_its_steps_alone(bench: Bench, place: Path, name: str) -> None:
    path = place / RUN / "checkpoints" / "00000003" / name
    write(path, flipped(len(path.read_bytes()) // 2, 3)(path.read_bytes()))
    assert bench.train(place) == 0
    assert len(events(place / RUN, "checkpoint_set_aside")) == 1
    assert "step 2 of 5" in events(place / RUN, "resumed")[-1]
    shutil.rmtree(place / RUN / "checkpoints" / "00000003.bad-0")
    assert differences(bench.whole / RUN, place / RUN) == []


def test_no_good_checkpoint_stops_with_4_and_restart_starts_again(
    bench: Bench, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoints = place / RUN / "checkpoints"
    for folder in checkpoints.iterdir():
        (folder / "manifest.json").unlink()
    for _ in range(2):
        capsys.readouterr()
        assert bench.train(place) == 4
        said = capsys.readouterr().err
        assert three_parts(said)
        assert "--restart" in said
    assert bench.train(place, "--restart") == 0
    for bad in checkpoints.glob("*.bad-*"):
        shutil.rmtree(bad)
    assert differences(bench.whole / RUN, place / RUN) == []


def test_damaged_lines_and_scores_cost_nothing_but_themselves(bench: Bench, place: Path) -> None:
    path = place / RUN / "metrics.jsonl"
    lines = path.read_bytes().split(b"\n")
    first = next(at for at, line in enumerate(lines) if b"learning_rate" in line)
    path.write_bytes(b"\n".join([*lines[:first], b"{", *lines[first + 1 :]]))
    card = place / RUN / "scorecards" / "base.json"
    write(card, _another_digit(card.read_bytes()))
    assert bench.train(place) == 0
    assert differences(bench.whole / RUN, place / RUN) == ["metrics.jsonl", "metrics.jsonl.bad-0"]
    assert "as it was, it is kept as metrics.jsonl.bad-0" in events(place / RUN, "lines_damaged")[0]
    assert "no line of 1 of the steps up to 3, the first of which is 1" in events(place / RUN, "lines_lost")[0]
    assert "seal does not fit" in events(place / RUN, "scored_again")[0]


RESULT = ("adapter_model.safetensors", "adapter_config.json")


def _use(bench: Bench, run: Path, out: Path) -> dict[str, list[str]]:
    return {
        "generate": ["generate", str(run), "--prompt", "hello", "--max-new-tokens", "2"],
        "export": ["export", str(run), str(out)],
        "eval": ["eval", str(run), str(bench.folder / "recipe.json")],
    }


@pytest.mark.parametrize("count", TIERS)
@pytest.mark.parametrize("name", RESULT)
def test_a_rotten_result_is_not_used(
    bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, count: int | None, tell: Tell
) -> None:
    """A verb that reads the result names the file; export, which reads the checkpoint, writes what was trained."""
    place = tmp_path / "place"
    payload = (bench.whole / RUN / "adapter" / name).read_bytes()
    export(bench, bench.whole / RUN, tmp_path / "expected")
    wrong, tried = [], 0
    for what, change in _some(changes(payload), count):
        tried += 1
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(bench.whole, place)
        path = place / RUN / "adapter" / name
        if change is None:
            path.unlink()
        else:
            write(path, change(payload))
        for verb, arguments in _use(bench, place / RUN, tmp_path / f"out-{tried}").items():
            capsys.readouterr()
            code = run_cli(arguments)
            said = capsys.readouterr().err
            if verb == "export" and code == 0:
                wrong += [
                    f"{what}, export: {item}" for item in differences(tmp_path / "expected", tmp_path / f"out-{tried}")
                ]
            elif code != 2 or not three_parts(said) or name not in said:
                wrong.append(f"{what}, {verb}: exit {code}: {said[-400:]}")
    tell(f"rot, {name} of a result", tried, tried - len({item.split(",")[0] for item in wrong}), "found")
    assert wrong == []


def export(bench: Bench, run: Path, out: Path) -> None:
    assert run_cli(["export", str(run), str(out)]) == 0


def test_the_rotten_checkpoint_of_a_result_is_not_exported(
    bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(bench.whole, tmp_path / "place")
    run = tmp_path / "place" / RUN
    path = run / "checkpoints" / "00000005" / "trained.safetensors"
    write(path, flipped(len(path.read_bytes()) - 1, 0)(path.read_bytes()))
    capsys.readouterr()
    assert run_cli(["export", str(run), str(tmp_path / "out")]) == 2
    assert three_parts(capsys.readouterr().err)
    assert not (tmp_path / "out").exists()
