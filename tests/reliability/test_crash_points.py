"""A run, an export, a fork: broken off at operations of the disk, done again, and equal to the bit.

CI breaks at every operation that changes names and at some of the others, another choice each time; the tier ``long`` at all
of them, in every way.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.reliability.conftest import SEED, Tell
from tests.reliability.crashes import Point, Story, broken, points, some_points
from tests.reliability.stories import RUN, ExportStory, TrainStory, make_desk, one_thread_saves

NAMES = ("lora", "full", "fork", "adapter export", "merged export")
EVERY = {"lora": 12, "full": 40, "fork": 40, "adapter export": 6, "merged export": 6}
Stories = dict[str, TrainStory | ExportStory]


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread_saves(), pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUNESMITH_CACHE", os.environ.get("TUNESMITH_CACHE", ""))
        yield


@pytest.fixture(scope="module")
def stories(tmp_path_factory: pytest.TempPathFactory, _one_thread: None) -> Stories:
    """Each measured once, unbroken."""
    place = tmp_path_factory.mktemp("stories")
    lora = TrainStory(make_desk(place), place / "lora")
    lora.measure()
    run = lora.whole / RUN
    made: Stories = {
        "lora": lora,
        "full": TrainStory(make_desk(place, adapter={"type": "full"}, max_steps=2), place / "full"),
        "fork": TrainStory(make_desk(place, max_steps=4), place / "fork", fork=f"{run}@2"),
        "adapter export": ExportStory(run, place / "adapter", merge=False),
        "merged export": ExportStory(run, place / "merged", merge=True),
    }
    for name, story in made.items():
        if name != "lora":
            story.measure()
    return made


def _survives(story: Story, place: Path, chosen: list[Point], name: str, tell: Tell) -> None:
    started = time.perf_counter()
    lost = [f"{point}: {faults}" for point, faults in broken(story, place, chosen) if faults]
    seconds = time.perf_counter() - started
    tell(f"crash points, {name}", len(chosen), len(chosen) - len(lost), f"survived, {seconds:.0f} s")
    assert lost == []


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_broken_off_at_some_operations(tmp_path: Path, stories: Stories, name: str, tell: Tell) -> None:
    story = stories[name]
    chosen = some_points(story.log, EVERY[name], SEED)
    _survives(story, tmp_path / "place", chosen, f"{name}, seed {SEED}, of {len(points(story.log))}", tell)


@pytest.mark.long
@pytest.mark.parametrize("name", NAMES)
def test_broken_off_at_every_operation(tmp_path: Path, stories: Stories, name: str, tell: Tell) -> None:
    story = stories[name]
    _survives(story, tmp_path / "place", points(story.log), name, tell)
