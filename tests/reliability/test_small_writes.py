"""What a run is made of, broken off at every operation in every way: whole or absent, old or new, and it goes on."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.reliability.conftest import SEED, Tell
from tests.reliability.crashes import broken, leftovers, points
from tests.reliability.stories import RUN, PlainStory, TrainStory, make_desk, one_thread_saves
from tunesmith.data.cache_key import cache_root
from tunesmith.data.prepare import prepare
from tunesmith.data.rendering import make_renderer
from tunesmith.engine.checkpoint import Checkpoint, CheckpointFolder
from tunesmith.files import read_json, sync_appends, write_text
from tunesmith.planning.speeds import SpeedKey, lookup, record
from tunesmith.recipe.codec import parse
from tunesmith.registry.lease import lease
from tunesmith.registry.runs import RunFolder
from tunesmith.workshop.report import report


def survives(story: PlainStory, place: Path, name: str, tell: Tell, every: int = 1) -> list[str]:
    """Every way to end at every operation, or every k-th of them from a random one on; returns the operations."""
    story.measure(place / "whole")
    started, chosen = time.perf_counter(), points(story.log)[SEED % every :: every]
    lost = [f"{point}: {faults}" for point, faults in broken(story, place / "place", chosen) if faults]
    seconds = time.perf_counter() - started
    tell(f"crash points, {name}", len(chosen), len(chosen) - len(lost), f"survived, {seconds:.0f} s")
    assert lost == []
    return story.log


def checkpoint(step: int) -> Checkpoint:
    return Checkpoint(step, {"a": torch.arange(6.0) + step}, {"a/exp_avg": torch.ones(2)}, {"step": step})


def save(*steps: int) -> Callable[[Path], None]:
    def work(root: Path) -> None:
        folder = CheckpointFolder(root / "checkpoints", "run")
        for step in steps:
            folder.save(checkpoint(step))

    return work


def newest_is(*allowed: int) -> Callable[[Path], list[str]]:
    """The newest is whole and one of these, nothing was set aside, and one more can be saved."""

    def check(root: Path) -> list[str]:
        said: list[str] = []
        RunFolder(root).clean()
        folder = CheckpointFolder(root / "checkpoints", "run", say=lambda kind, text: said.append(text))
        faults = [f"{item}: {why}" for item in folder.steps() if (why := folder.fault(folder.path / f"{item:08d}"))]
        found = folder.newest()
        step = 0 if found is None else found.step
        faults += [] if step in allowed else [f"the newest is {step}"]
        if found is not None and not torch.equal(found.trained["a"], checkpoint(step).trained["a"]):
            faults.append("other weights")
        folder.save(checkpoint(9))
        kept = folder.steps()
        if kept[-1] != 9 or len(kept) > 2:
            faults.append(f"kept {kept}")
        return faults + said + leftovers(root)

    return check


def test_a_first_save(tmp_path: Path, tell: Tell) -> None:
    survives(PlainStory(save(1), newest_is(0, 1)), tmp_path, "a first checkpoint", tell)


def test_a_save_that_retires_the_oldest(tmp_path: Path, tell: Tell) -> None:
    log = survives(PlainStory(save(1, 2, 3), newest_is(0, 1, 2, 3)), tmp_path, "three checkpoints, two kept", tell)
    assert sum(line.startswith("unlink") for line in log) == 4


def test_a_save_over_one_of_the_same_step(tmp_path: Path, tell: Tell) -> None:
    survives(PlainStory(save(1, 2, 2), newest_is(0, 1, 2)), tmp_path, "a checkpoint replaced", tell)


def test_what_was_saved_before_is_there_at_every_point_of_the_next_save(tmp_path: Path) -> None:
    """The same with the first save behind it: 0 is not allowed."""
    for number, (point, faults) in enumerate(_second_saves(tmp_path)):
        assert faults == [], f"{number}: {point}"


def _second_saves(tmp_path: Path) -> list[tuple[object, list[str]]]:
    story = PlainStory(save(1, 2), newest_is(1, 2))
    story.measure(tmp_path / "whole")
    first = PlainStory(save(1), newest_is(1))
    first.measure(tmp_path / "first")
    later = [point for point in points(story.log) if point.at > len(first.log)]
    assert len(later) > 60
    return list(broken(story, tmp_path / "place", later))


def lines(root: Path) -> None:
    run = RunFolder(root)
    for step in range(1, 4):
        run.append_metric({"step": step, "loss": 1.0 / step})
        run.append_sample({"step": step, "answer": "ä" * step})
        run.append_event("note", step, "said")
    sync_appends()


def lines_go_on(root: Path) -> list[str]:
    run = RunFolder(root)
    run.append_metric({"step": 4, "loss": 0.25})
    run.append_sample({"step": 4, "answer": "last"})
    run.append_event("note", 4, "said")
    found = []
    for name, read in (("metrics", run.metrics), ("samples", run.samples), ("events", run.events)):
        steps = [int(line["step"]) for line in read()]
        if steps != [*range(1, len(steps)), 4]:
            found.append(f"{name}: {steps}")
    return found + leftovers(root)


def test_appended_lines(tmp_path: Path, tell: Tell) -> None:
    survives(PlainStory(lines, lines_go_on), tmp_path, "metrics, samples and events", tell)


def a_step_and_its_checkpoint(root: Path) -> None:
    run = RunFolder(root)
    folder = CheckpointFolder(run.checkpoints_path, "run")
    for step in (1, 2):
        run.append_metric({"step": step})
        folder.save(checkpoint(step))


def lines_up_to_the_checkpoint(root: Path) -> list[str]:
    run = RunFolder(root)
    found = CheckpointFolder(run.checkpoints_path, "run").newest()
    steps = {int(line["step"]) for line in run.metrics()}
    run.clean()
    return [] if found is None or steps >= set(range(1, found.step + 1)) else [f"{steps}, checkpoint {found.step}"]


def test_no_checkpoint_outlives_the_lines_before_it(tmp_path: Path, tell: Tell) -> None:
    story = PlainStory(a_step_and_its_checkpoint, lines_up_to_the_checkpoint)
    survives(story, tmp_path, "lines and checkpoints", tell)


def rewound(root: Path) -> None:
    lines(root)
    RunFolder(root).rewind_metrics(2)


def rewound_or_not(root: Path) -> list[str]:
    run = RunFolder(root)
    run.clean()
    run.rewind_metrics(1)
    found = [int(line["step"]) for line in [*run.metrics(), *run.samples()]]
    return [f"{found}"] * (max(found, default=1) > 1) + leftovers(root)


def test_lines_taken_back(tmp_path: Path, tell: Tell) -> None:
    survives(PlainStory(rewound, rewound_or_not), tmp_path, "metrics taken back", tell)


RECIPE = {"name": "x"}


def create(root: Path) -> None:
    run = RunFolder(root / "runs" / "x")
    with lease(run.path):
        run.clean()
        with run.creating(RECIPE):
            write_text(run.plan_path, "{}")
            run.append_event("started", 0, "started")
            write_text(run.environment_path, "{}")
        run.set_status("running", steps=3)
        run.set_status("done", step=3)


def created(root: Path) -> list[str]:
    run = RunFolder(root / "runs" / "x")
    run.check_free()
    if run.exists and read_json(run.recipe_path) != RECIPE:
        return ["another recipe"]
    status = run.status()["status"]
    create(root)
    found = [] if status in ("interrupted", "running", "lost", "done") else [status]
    found += [] if read_json(run.status_path)["step"] == 3 else ["no last status"]
    found += [] if run.events() else ["no events"]
    return found + leftovers(root)


def test_the_making_of_a_run(tmp_path: Path, tell: Tell) -> None:
    survives(PlainStory(create, created), tmp_path, "recipe, plan and status of a run", tell)


SPEED = SpeedKey("machine", "cpu", "fp32", "shape", "scope")


def speeds(root: Path) -> None:
    record(SPEED, 1e9, root / "cache" / "speeds.json")
    record(SPEED, 3e9, root / "cache" / "speeds.json")


def speeds_known(root: Path) -> list[str]:
    speed, said = lookup(SPEED, root / "cache" / "speeds.json")
    known = None if speed is None else (speed.flops_per_second, speed.n)
    speeds(root)
    return [f"{known}"] * (known not in (None, (1e9, 1), (2e9, 2))) + ([said] if said else [])


def test_the_speeds_of_the_machine(tmp_path: Path, tell: Tell) -> None:
    survives(PlainStory(speeds, speeds_known), tmp_path, "measured speeds", tell)


@pytest.mark.parametrize("every", [5, pytest.param(1, marks=pytest.mark.long)])
def test_the_token_cache(tmp_path: Path, tell: Tell, every: int) -> None:
    recipe = parse(make_desk(tmp_path))
    renderer, _ = make_renderer(tmp_path / "tiny", recipe.model, recipe.objective, tmp_path)

    def fill(root: Path) -> None:
        prepare(recipe, renderer, 128, root / "cache")

    def filled(root: Path) -> list[str]:
        said: list[str] = []
        before = leftovers(root)
        found = prepare(recipe, renderer, 128, root / "cache", said.append)
        faults = [] if found.ledger.trained + found.ledger.held_out == 24 else ["rows are missing"]
        faults += [f"torn: {text}" for text in said if "torn" in text]
        faults += [f"not told: {name}" for name in before if Path(name).name not in " ".join(said)]
        return faults + leftovers(root)

    survives(PlainStory(fill, filled), tmp_path, "token cache", tell, every)


def test_a_report_that_is_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tell: Tell) -> None:
    monkeypatch.setenv("TUNESMITH_CACHE", str(cache_root()))  # put back afterwards
    with one_thread_saves():
        story = TrainStory(make_desk(tmp_path, max_steps=1), tmp_path / "run")
        story.measure()
    run = story.whole / RUN

    def write(root: Path) -> None:
        write_text(root / "runs" / "copy" / "recipe.json", (run / "recipe.json").read_text())
        for name in ("status.json", "metrics.jsonl"):
            write_text(root / "runs" / "copy" / name, (run / name).read_text())
        report(root / "runs" / "copy")

    def written(root: Path) -> list[str]:
        page = root / "runs" / "copy" / "report.html"
        torn = page.exists() and not page.read_text().rstrip().endswith("</html>")
        write(root)
        return ["torn"] * torn

    survives(PlainStory(write, written), tmp_path / "again", "a report", tell)
