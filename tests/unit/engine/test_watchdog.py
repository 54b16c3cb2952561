"""Slow steps, stalls, sleep: real threads and small limits; the process ends in a process of its own."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tunesmith.engine.interrupts import Asked, Interrupts
from tunesmith.engine.watchdog import Watchdog, WatchdogOptions

LOOK = 0.005


@dataclass
class Watched:
    """A watchdog and what it did."""

    folder: Path
    options: WatchdogOptions
    clock: Callable[[], float] = time.monotonic
    said: list[tuple[str, str]] = field(default_factory=list)
    words: list[str] = field(default_factory=list)
    codes: list[int] = field(default_factory=list)
    interrupts: Interrupts = field(default_factory=Interrupts)

    def __post_init__(self) -> None:
        self.dog = Watchdog(
            self.folder, self.options, self.interrupts, lambda kind, text: self.said.append((kind, text)),
            self.words.append, end=self.codes.append, clock=self.clock,
        )  # fmt: skip

    def steps(self, last: int, first: int = 1) -> None:
        """Quick steps."""
        for step in range(first, last + 1):
            time.sleep(0.001)
            self.dog.beat(step)

    def slow_step_that_is_named(self, until: Callable[[], object]) -> None:
        """Hang in a frame of this name."""
        _wait(until)


def _wait(until: Callable[[], object], seconds: float = 20) -> None:
    limit = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < limit, "nothing came"
        time.sleep(0.002)


def _watched(folder: Path, **options: Any) -> Watched:
    return Watched(
        folder, WatchdogOptions(**{"floor_seconds": 0.2, "look_every_seconds": LOOK, "grace_seconds": 0.05, **options})
    )


def test_a_slow_step_is_said_once_and_its_stacks_name_the_frame_that_hangs(tmp_path: Path) -> None:
    watched = _watched(tmp_path)
    with watched.dog.watching():
        watched.steps(6)
        watched.slow_step_that_is_named(lambda: watched.said)
        time.sleep(20 * LOOK)
        watched.dog.beat(7)
    ((kind, text),) = watched.said
    assert kind == "slow_step"
    assert text.startswith("step 7 has taken 0 s, expected were at most 0 s; where every thread stands: stacks-7.txt")
    stacks = (tmp_path / "stacks-7.txt").read_text()
    assert "in slow_step_that_is_named" in stacks
    assert stacks.count("most recent call first") >= 2, "every thread"
    assert [path.name for path in tmp_path.iterdir()] == ["stacks-7.txt"]


def test_at_most_five_are_told(tmp_path: Path) -> None:
    watched = _watched(tmp_path)
    with watched.dog.watching():
        watched.steps(20)
        for step in range(21, 26):
            _wait(lambda told=step - 20: len(watched.said) == told)
            watched.dog.beat(step)
        for step in (26, 27):
            time.sleep(0.3)
            watched.dog.beat(step)
    assert [text.split(" has")[0] for _, text in watched.said] == [f"step {step}" for step in range(21, 26)]


def test_nothing_is_said_before_five_steps_are_known(tmp_path: Path) -> None:
    watched = _watched(tmp_path, floor_seconds=0.01)
    with watched.dog.watching():
        for step in range(1, 6):
            time.sleep(10 * LOOK)
            assert watched.dog.slow_after_seconds() is None
            watched.dog.beat(step)
    assert watched.said == []


def test_the_limit_is_ten_medians_and_at_least_the_floor(tmp_path: Path) -> None:
    now = [0.0]
    watched = Watched(tmp_path, WatchdogOptions(), clock=lambda: now[0])
    for step, seconds in enumerate([400.0, 4, 4, 4, 4, 4], 1):  # the first one compiles
        now[0] += seconds
        watched.dog.beat(step)
    assert watched.dog.slow_after_seconds() == 40
    for step in range(7, 30):
        now[0] += 0.5
        watched.dog.beat(step)
    assert watched.dog.slow_after_seconds() == 30


def test_an_evaluation_may_take_as_long_as_it_does(tmp_path: Path) -> None:
    watched = _watched(tmp_path)
    with watched.dog.watching():
        watched.steps(6)
        with watched.dog.other_work():
            time.sleep(0.4)
        watched.steps(12, first=7)
    assert watched.said == []
    assert max(watched.dog._seconds) < 0.3, "nor does it count as a step's time"


def test_a_stall_asks_the_loop_to_stop_and_is_content_with_its_answer(tmp_path: Path) -> None:
    watched = _watched(tmp_path, floor_seconds=9, stop_after_seconds=0.1, grace_seconds=0.05)
    with watched.dog.watching():
        watched.steps(6)
        _wait(lambda: watched.interrupts.asked)
        with watched.dog.other_work():  # saving on a disk that takes longer than the grace
            time.sleep(0.3)
        _wait(lambda: watched.said)
    assert watched.interrupts.asked == signal.SIGTERM
    assert watched.interrupts.why == "no progress for 0 s"
    ((kind, text),) = watched.said
    assert kind == "stalled"
    assert text == "no progress for 0 s in step 7; where every thread stands: stacks-7.txt"
    assert (tmp_path / "stacks-7.txt").exists()
    assert (watched.codes, watched.words) == ([], [])


def test_a_loop_that_does_not_answer_is_ended_with_last_words(tmp_path: Path) -> None:
    watched = _watched(tmp_path, floor_seconds=9, stop_after_seconds=0.05)
    with watched.dog.watching():
        watched.steps(6)
        _wait(lambda: watched.codes)
    assert watched.codes[0] == 4
    assert watched.words[0].startswith("no progress for 0 s in step 7, and the loop did not answer")


def test_an_answer_that_takes_for_ever_is_ended_too(tmp_path: Path) -> None:
    watched = _watched(tmp_path, floor_seconds=9, stop_after_seconds=0.03, patience=5.0)
    with watched.dog.watching():
        watched.steps(6)
        _wait(lambda: watched.interrupts.asked)
        with watched.dog.other_work():
            started = time.monotonic()
            _wait(lambda: watched.codes)
            assert time.monotonic() - started > 0.1
    assert watched.words[0].startswith("no progress for 0 s in the work after step 6")


@pytest.mark.parametrize("first", [True, False], ids=["first-step", "evaluation"])
def test_a_first_step_that_compiles_and_a_long_evaluation_have_longer(tmp_path: Path, first: bool) -> None:
    watched = _watched(tmp_path, stop_after_seconds=0.1, patience=100.0)
    with watched.dog.watching():
        if first:
            time.sleep(0.4)
        else:
            watched.steps(6)
            with watched.dog.other_work():
                time.sleep(0.4)
        watched.steps(12, first=7)
    assert watched.interrupts.asked is None
    assert watched.said == []


@pytest.mark.parametrize("sleeper", ["clock", "watcher"])
def test_a_machine_that_slept_is_no_stall(tmp_path: Path, sleeper: str) -> None:
    """The clock jumps by an hour between two looks: closed lid, Ctrl-Z, a virtual machine that was held."""
    now = [0.0]
    jumped = threading.Event()

    def clock() -> float:
        now[0] += LOOK
        if jumped.is_set() and now[0] < 3600:
            now[0] += 3600
        return now[0]

    options = WatchdogOptions(floor_seconds=30, stop_after_seconds=60, look_every_seconds=LOOK)
    watched = Watched(tmp_path, options, clock=clock)
    with watched.dog.watching():
        watched.steps(6)
        jumped.set()
        _wait(lambda: now[0] > 3600)
        time.sleep(20 * LOOK)
        if sleeper == "watcher":
            watched.dog.beat(7)
        time.sleep(20 * LOOK)
    assert watched.said == []
    assert watched.interrupts.asked is None


def test_a_disk_that_hangs_does_not_keep_the_process_alive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tunesmith.engine.watchdog._SAYING_SECONDS", 0.05)
    for_ever = threading.Event()
    watched = _watched(tmp_path, stop_after_seconds=0.05)
    watched.dog.say = lambda kind, text: for_ever.wait()
    watched.dog.last_words = lambda text: for_ever.wait()
    with watched.dog.watching():
        watched.steps(6)
        _wait(lambda: watched.codes)
    for_ever.set()
    assert watched.codes[0] == 4


def test_words_that_fail_do_not_end_the_watch(tmp_path: Path) -> None:
    watched = _watched(tmp_path / "gone", stop_after_seconds=0.05)

    def fail(*_: object) -> None:
        raise RuntimeError

    watched.dog.say = watched.dog.last_words = fail
    with watched.dog.watching():
        watched.steps(6)
        _wait(lambda: watched.codes)


def test_ask_wakes_what_waits_and_leaves_a_person_s_signal_its_name(tmp_path: Path) -> None:
    interrupts = Interrupts()
    with interrupts.watching():
        threading.Timer(0.05, interrupts.ask, ["no progress"]).start()
        with pytest.raises(Asked), interrupts.at_once():
            time.sleep(20)
    assert interrupts.why == "no progress"
    interrupts = Interrupts()
    with interrupts.watching():
        signal.raise_signal(signal.SIGINT)
        interrupts.ask("no progress")
    assert (interrupts.asked, interrupts.why) == (signal.SIGINT, None)
    assert interrupts.ending(3, 9, 3, "there").exit_code == 130
    interrupts = Interrupts()
    interrupts.ask("no progress")  # where nobody watches signals, none is sent
    assert (interrupts.asked, interrupts.why) == (signal.SIGTERM, "no progress")
    assert interrupts.ending(3, 9, 2, "there").exit_code == 4


BLOCKED = """
import ctypes, sys, time
from pathlib import Path
from tunesmith.engine.interrupts import Interrupts
from tunesmith.engine.watchdog import Watchdog, WatchdogOptions
folder = Path(sys.argv[1])
options = WatchdogOptions(stop_after_seconds=0.1, grace_seconds=0.2, look_every_seconds=0.01)
interrupts = Interrupts()
dog = Watchdog(folder, options, interrupts, print, lambda text: (folder / "words.txt").write_text(text))
mutex, libc = ctypes.create_string_buffer(256), ctypes.CDLL(None)
with interrupts.watching(), dog.watching():
    for step in range(1, 7):
        time.sleep(0.001)
        dog.beat(step)
    for _ in range(2):
        libc.pthread_mutex_lock(mutex)
print("came back")
"""


def test_a_step_blocked_in_a_call_of_c_ends_the_process(tmp_path: Path) -> None:
    command = [sys.executable, "-c", BLOCKED, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 4, done.stderr
    assert "came back" not in done.stdout
    assert "in step 7, and the loop did not answer" in (tmp_path / "words.txt").read_text()
    assert 'File "<string>", line 16 in <module>' in (tmp_path / "stacks-7.txt").read_text()
