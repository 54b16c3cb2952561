"""Work that is broken off at one operation of the disk, and done again on a disk that works."""

from __future__ import annotations

import os
import random
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tests.faults import Crash, FaultyDisk, PowerCut
from tunesmith.disk import use_disk
from tunesmith.files import is_leftover, sync_appends

DEAD = 1 << 22
"""More than any process can have for a number."""

Make = Callable[[Path, int], FaultyDisk]
MODES: dict[str, Make] = {
    "crash": lambda root, at: FaultyDisk(at, "crash"),
    "torn": lambda root, at: FaultyDisk(at, "torn"),
    "after": lambda root, at: FaultyDisk(at, "after"),
    "power": lambda root, at: PowerCut(root, at=at, how="torn"),
    "power, names survive": lambda root, at: PowerCut(root, at=at, how="torn", names_survive=True),
}
"""Ways to end at an operation: before, in the middle, or after it; with what the page cache held, or without."""

_CHANGES_NAMES = ("rename", "unlink", "remove_folder", "truncate")


class Story(Protocol):
    """What is broken off."""

    def act(self, root: Path) -> None:
        """Do it in a folder of its own, which holds nothing else; done again, it goes on where it was."""
        ...

    def faults(self, root: Path, at: int, left: list[str]) -> list[str]:
        """Do it again and say what is not as it would be had nothing happened.

        ``left`` names what the crash at operation ``at`` left half-written, relative to ``root``.
        """
        ...


@dataclass(frozen=True)
class Point:
    """An operation and how it ends."""

    at: int
    mode: str
    operation: str


def points(log: list[str]) -> list[Point]:
    """Every way to end at every operation; only a write has a middle."""
    return [
        Point(at, mode, line)
        for at, line in enumerate(log, 1)
        for mode in MODES
        if mode != "torn" or line.startswith("write ")
    ]


def some_points(log: list[str], every: int, seed: int) -> list[Point]:
    """One way each to end at every operation that changes names, and at every k-th of the others."""
    choice = random.Random(seed)
    offset, chosen = choice.randrange(every), []
    for at, line in enumerate(log, 1):
        if line.startswith(_CHANGES_NAMES) or (at + offset) % every == 0:
            modes = [mode for mode in MODES if mode != "torn" or line.startswith("write ")]
            chosen.append(Point(at, choice.choice(modes), line))
    return chosen


def counted(story: Story, root: Path, disk: FaultyDisk | None = None) -> list[str]:
    """The operations of a story that ends well, with names relative to its root."""
    root.mkdir(parents=True)
    disk = disk or FaultyDisk()
    forget_appends()
    with use_disk(disk):
        story.act(root)
    return [line.replace(f"{root}/", "") for line in disk.log]


def broken(story: Story, place: Path, chosen: list[Point]) -> Iterator[tuple[Point, list[str]]]:
    """Break a story at each point, in ``place``, and yield the faults of its being done again."""
    for point in chosen:
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        yield point, _broken_at(story, place, point)
    shutil.rmtree(place, ignore_errors=True)


def _broken_at(story: Story, root: Path, point: Point) -> list[str]:
    forget_appends()
    with use_disk(MODES[point.mode](root, point.at)):
        try:
            story.act(root)
        except Crash:
            pass
        else:
            return ["it ended before that"]
    forget_appends()
    _bury(root)
    try:
        return story.faults(root, point.at, leftovers(root))
    except Exception as error:
        return [f"{type(error).__name__}: {error}"]


def forget_appends() -> None:
    """Nothing of another folder, or of a process that is gone, is waiting to be made durable."""
    with suppress(OSError):
        sync_appends()


def leftovers(folder: Path) -> list[str]:
    """What a crash left half-written or half-removed, topmost alone; names relative to ``folder``."""
    found = [path.relative_to(folder) for path in folder.rglob("*") if is_leftover(path.name)]
    return sorted(path.as_posix() for path in found if not any(is_leftover(part) for part in path.parts[:-1]))


def _bury(root: Path) -> None:
    """Give what is left half-written the number of another process, as it would have if this one had died."""
    for path in sorted(root.rglob("*"), reverse=True):
        if is_leftover(path.name):
            path.rename(path.with_name(re.sub(rf"\.{os.getpid()}-", f".{DEAD}-", path.name)))
