"""One process at a time: held, refused, lost, stale, raced for. Other processes are real ones."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tunesmith.errors import RunError
from tunesmith.registry import lease as lease_module
from tunesmith.registry.lease import NAME, STALE_SECONDS, LeaseLost, lease, named, owner, refuse_if_held

WORKER = """
import os, sys
from pathlib import Path
from tunesmith.errors import RunError
from tunesmith.registry.lease import lease
print(os.getpid(), flush=True)
for line in sys.stdin:
    try:
        with lease(Path(line.strip())):
            print("holds", flush=True)
            sys.stdin.readline()
    except RunError as error:
        print("refused", error.exit_code, error.what, "|", error.where, "|", error.hint, flush=True)
        sys.stdin.readline()
    print("left", flush=True)
"""


class Worker:
    """Another process: told a folder it holds its lease, or is refused, until it is told to leave."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.pid = int(self.answer())

    def say(self, text: object = "") -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{text}\n")
        self.process.stdin.flush()

    def answer(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def ask(self, text: object = "") -> str:
        self.say(text)
        return self.answer()

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


@pytest.fixture
def workers() -> Iterator[list[Worker]]:
    """Two of them."""
    with ExitStack() as stack:
        found = []
        for _ in range(2):
            process = subprocess.Popen(
                [sys.executable, "-c", WORKER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            stack.enter_context(process)
            stack.callback(process.kill)
            found.append(Worker(process))
        yield found


def _write_lease(folder: Path, **changes: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    values = {"pid": 4711, "host": "elsewhere", "since": time.time() - 500, "kernel": "another"} | changes
    (folder / NAME).write_text(json.dumps(values), encoding="utf-8")


def _age(folder: Path, seconds: float) -> None:
    moment = time.time() - seconds
    os.utime(folder / NAME, (moment, moment))


def test_it_names_its_owner_and_leaves_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "a"
    assert owner(folder) is None
    with lease(folder) as held:
        assert owner(folder) == held.owner == named(folder)
        assert held.owner.pid == os.getpid()
        assert held.predecessor is None
        held.check()
    assert list(tmp_path.iterdir()) == [], "folders made for it are gone where they stayed empty"


def test_a_folder_that_was_there_or_got_files_stays(tmp_path: Path) -> None:
    with lease(tmp_path / "a"):
        (tmp_path / "a" / "recipe.json").write_text("{}")
    (tmp_path / "b").mkdir()
    with lease(tmp_path / "b"):
        pass
    assert sorted(str(item.relative_to(tmp_path)) for item in tmp_path.rglob("*")) == ["a", "a/recipe.json", "b"]


def test_a_second_process_is_refused_while_the_first_lives_and_no_longer(tmp_path: Path, workers: list[Worker]) -> None:
    first, second = workers
    assert first.ask(tmp_path) == "holds"
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in tmp_path.iterdir()}
    said = second.ask(tmp_path)
    assert said.startswith(f"refused 2 another process works on this run: process {first.pid}, since 2")
    assert f"| {tmp_path} |" in said
    assert f"stop it with `kill {first.pid}` (it saves a checkpoint)" in said
    assert "--run" in said
    with pytest.raises(RunError, match=f"process {first.pid}"):
        refuse_if_held(tmp_path)
    assert before == {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in tmp_path.iterdir()}
    assert [first.ask(), second.ask()] == ["left", "left"]
    assert second.ask(tmp_path) == "holds"


def test_a_stopped_process_still_lives(tmp_path: Path, workers: list[Worker], monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-Z: no heartbeat for long, and the lock is still held."""
    first, second = workers
    assert first.ask(tmp_path) == "holds"
    first.process.send_signal(signal.SIGSTOP)
    _age(tmp_path, 10 * STALE_SECONDS)
    assert second.ask(tmp_path).startswith("refused")
    first.process.send_signal(signal.SIGCONT)


def test_the_run_of_a_killed_owner_is_free_at_once_and_names_it(tmp_path: Path, workers: list[Worker]) -> None:
    first, _ = workers
    assert first.ask(tmp_path) == "holds"
    first.kill()
    assert owner(tmp_path) is None
    refuse_if_held(tmp_path)
    left = named(tmp_path)
    assert left is not None
    assert left.pid == first.pid
    started = time.monotonic()
    with lease(tmp_path) as held:
        assert held.predecessor == left
    assert time.monotonic() - started < 1


def test_a_child_of_the_owner_does_not_keep_the_lock(tmp_path: Path) -> None:
    """A forked child inherits the open file: the lock must not outlive its owner in it."""
    script = (
        "import os, sys, time\n"
        "from pathlib import Path\n"
        "from tunesmith.registry.lease import lease\n"
        "with lease(Path(sys.argv[1])):\n"
        "    if os.fork() == 0:\n"
        "        print('child', flush=True)\n"
        "        time.sleep(60)\n"
        "        os._exit(0)\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "child\n"
            process.wait()
            left = named(tmp_path)
            assert left is not None
            assert left.pid == process.pid
            assert owner(tmp_path) is None
        finally:
            os.killpg(process.pid, signal.SIGKILL)


def test_a_forked_child_that_unwinds_leaves_the_lease_alone(tmp_path: Path) -> None:
    script = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from tunesmith.registry.lease import lease, owner\n"
        "folder = Path(sys.argv[1])\n"
        "with lease(folder):\n"
        "    child = os.fork()\n"
        "    if child == 0:\n"
        "        sys.exit(0)\n"
        "    os.waitpid(child, 0)\n"
        "    assert owner(folder).pid == os.getpid()\n"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True, timeout=30)


def test_two_starters_on_a_new_folder_one_wins(tmp_path: Path, workers: list[Worker]) -> None:
    for number in range(50):
        folder = tmp_path / "runs" / str(number)
        for worker in workers:
            worker.say(folder)
        answers = sorted(worker.answer() for worker in workers)
        assert [answer.split()[0] for answer in answers] == ["holds", "refused"], number
        holder = owner(folder)
        assert holder is not None
        assert f"process {holder.pid}," in answers[1]
        assert [worker.ask() for worker in workers] == ["left", "left"]
        assert [item for item in tmp_path.rglob("*") if item.is_file()] == []


def test_two_starters_that_come_and_go_are_refused_or_hold_and_nothing_else(
    tmp_path: Path, workers: list[Worker]
) -> None:
    """The folder is made and removed under each other's feet."""
    for number in range(50):
        for worker in workers:
            worker.say(tmp_path / "runs" / "a")
            worker.say()
        for worker in workers:
            said = worker.answer()
            assert said == "holds" or said.startswith("refused 2 another process"), (number, said)
            assert worker.answer() == "left"
    assert [item for item in tmp_path.rglob("*") if item.is_file()] == []


def test_a_folder_that_is_taken_back_under_a_slow_disk_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Making the folder takes longer than all patience, and another starter takes it back meanwhile."""
    monkeypatch.setattr(lease_module, "PATIENCE_SECONDS", 0.0)
    really, made = lease_module.make_folders, []

    def make_and_lose(folder: Path) -> None:
        really(folder)
        made.append(folder)
        if len(made) < 4:
            folder.rmdir()

    monkeypatch.setattr(lease_module, "make_folders", make_and_lose)
    with lease(tmp_path / "a") as held:
        assert owner(tmp_path / "a") == held.owner
    assert len(made) == 4


def test_a_file_that_loses_its_name_under_a_slow_disk_is_not_taken_for_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its owner gives it back between opening and locking, and all patience is over by then."""
    monkeypatch.setattr(lease_module, "PATIENCE_SECONDS", 0.0)
    really, locked = lease_module._lock, []

    def lock_and_lose(descriptor: int) -> bool:
        locked.append(descriptor)
        if len(locked) < 4:
            (tmp_path / NAME).unlink()
        return really(descriptor)

    monkeypatch.setattr(lease_module, "_lock", lock_and_lose)
    with lease(tmp_path) as held:
        assert owner(tmp_path) == held.owner
    assert len(locked) == 4


def test_a_folder_that_cannot_be_made_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease_module, "PATIENCE_SECONDS", 0.0)
    (tmp_path / "a").symlink_to(tmp_path / "nowhere")
    with pytest.raises(RunError, match="cannot be written: No such file or directory"), lease(tmp_path / "a"):
        pass


@pytest.mark.parametrize(("age", "is_free"), [(STALE_SECONDS + 5, True), (STALE_SECONDS - 20, False)])
def test_on_another_machine_the_heartbeat_decides(tmp_path: Path, age: float, is_free: bool) -> None:
    _write_lease(tmp_path)
    _age(tmp_path, age)
    if is_free:
        assert owner(tmp_path) is None
        with lease(tmp_path) as held:
            assert held.predecessor is not None
            assert held.predecessor.host == "elsewhere"
        return
    with pytest.raises(RunError, match="process 4711 on elsewhere, since") as caught, lease(tmp_path):
        pass
    assert "`kill 4711` on elsewhere" in caught.value.hint


def test_a_lock_that_is_seen_counts_whatever_the_clocks_say(tmp_path: Path, workers: list[Worker]) -> None:
    """Another machine whose locks this one sees: its heartbeat may look old where the clocks differ."""
    first, _ = workers
    assert first.ask(tmp_path) == "holds"
    _write_lease(tmp_path)
    _age(tmp_path, 10 * STALE_SECONDS)
    found = owner(tmp_path)
    assert found is not None
    assert found.host == "elsewhere"


def test_a_container_under_the_same_kernel_is_seen_to_be_dead_at_once(tmp_path: Path) -> None:
    with lease(tmp_path) as held:
        kernel = held.owner.kernel
    if not kernel:
        pytest.skip("this system does not name its boots")
    _write_lease(tmp_path, host="0a1b2c3d4e5f", kernel=kernel)
    assert owner(tmp_path) is None


def test_it_beats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease_module, "BEAT_SECONDS", 0.01)
    with lease(tmp_path):
        _age(tmp_path, 1000)
        limit = time.monotonic() + 10
        while time.time() - (tmp_path / NAME).stat().st_mtime > 500:
            assert time.monotonic() < limit
            time.sleep(0.01)


def test_a_lease_file_removed_under_us_is_put_back(tmp_path: Path, workers: list[Worker]) -> None:
    with lease(tmp_path) as held:
        (tmp_path / NAME).unlink()
        held.check()
        assert owner(tmp_path) == held.owner
        assert workers[0].ask(tmp_path).startswith("refused")
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_another_process_took_over_is_lost_and_left_alone(tmp_path: Path, workers: list[Worker]) -> None:
    first, _ = workers
    with lease(tmp_path) as held:
        (tmp_path / NAME).unlink()
        assert first.ask(tmp_path) == "holds"
        for _ in range(2):
            with pytest.raises(LeaseLost, match=f"another process took the run over: process {first.pid}") as caught:
                held.check()
        assert caught.value.hint
        assert caught.value.where == str(tmp_path)
    found = owner(tmp_path)
    assert found is not None
    assert found.pid == first.pid, "the lease that is not ours is not removed"


def test_a_run_folder_that_is_removed_is_not_made_again(tmp_path: Path) -> None:
    with lease(tmp_path / "a") as held:
        (tmp_path / "a" / NAME).unlink()
        (tmp_path / "a").rmdir()
        with pytest.raises(LeaseLost, match="the run folder was removed"):
            held.check()
    assert not (tmp_path / "a").exists()


def test_a_run_folder_that_is_made_anew_is_another(tmp_path: Path) -> None:
    with lease(tmp_path / "a") as held:
        (tmp_path / "a" / NAME).unlink()
        (tmp_path / "a").rmdir()
        (tmp_path / "a").mkdir()
        with pytest.raises(LeaseLost, match="the run folder was removed"):
            held.check()
    assert list((tmp_path / "a").iterdir()) == []


def test_a_read_only_folder_is_refused_with_three_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the system refuses it; a mode of 0555 does not stop root."""
    really = os.open

    def refuse(path: Any, flags: int, *mode: int) -> int:
        if flags & os.O_CREAT:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        return really(path, flags, *mode)

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(RunError, match="cannot be written: Read-only file system") as caught, lease(tmp_path / "a"):
        pass
    assert caught.value.where == str(tmp_path / "a")
    assert "--run" in caught.value.hint
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    "text",
    ["", "{", "[1]", '{"pid": 1}', '{"pid": -1, "host": "here", "since": 1}', '{"pid": 1, "host": "a\\u001b[2J", "since": 1}',
     '{"pid": 1, "host": "here", "since": 1e300}', '{"pid": 1, "host": "here", "since": NaN}', "[" * 4000],
)  # fmt: skip
def test_a_file_that_names_nobody_is_nobodys(tmp_path: Path, text: str) -> None:
    (tmp_path / NAME).write_text(text)
    assert named(tmp_path) is None
    assert owner(tmp_path) is None
    with lease(tmp_path) as held:
        assert held.predecessor is None


def test_an_owner_that_does_not_say_who_it_is_is_refused_and_not_waited_for(
    tmp_path: Path, workers: list[Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease_module, "PATIENCE_SECONDS", 0.1)
    assert workers[0].ask(tmp_path) == "holds"
    (tmp_path / NAME).write_text("scribbled over")
    with pytest.raises(RunError, match="it has not written who it is") as caught, lease(tmp_path):
        pass
    assert "--run" in caught.value.hint


@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_links_and_pipes_are_not_followed(tmp_path: Path, kind: str) -> None:
    target = tmp_path / "precious"
    target.write_text("mine")
    folder = tmp_path / "run"
    folder.mkdir()
    if kind == "link":
        (folder / NAME).symlink_to(target)
    else:
        os.mkfifo(folder / NAME)
    assert owner(folder) is None
    with pytest.raises(RunError, match="cannot be written"), lease(folder):
        pass
    assert target.read_text() == "mine"


def test_without_locks_the_heartbeat_and_the_last_name_decide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(descriptor: int, how: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(lease_module.fcntl, "flock", no_locks)
    monkeypatch.setattr(lease_module, "SETTLE_SECONDS", 0.01)
    with lease(tmp_path) as held:
        assert owner(tmp_path) == held.owner
        with pytest.raises(RunError, match="another process works"), lease(tmp_path):
            pass
        _age(tmp_path, STALE_SECONDS + 1)
        assert owner(tmp_path) is None
        held.check()

    def overtaken(seconds: float) -> None:
        _write_lease(tmp_path)

    monkeypatch.setattr(time, "sleep", overtaken)
    with pytest.raises(RunError, match="process 4711 on elsewhere"), lease(tmp_path):
        pass
