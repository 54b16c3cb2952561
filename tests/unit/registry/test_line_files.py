"""Lines from several threads, from under a signal, and into a folder that is another's."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.faults import FaultyDisk
from tests.unit.registry.test_run_folder import make_run
from tunesmith.disk import use_disk
from tunesmith.registry import line_files
from tunesmith.registry.lease import NAME, LeaseLost


def test_lines_of_several_threads_are_whole_and_each_is_there_once(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a")

    def write(writer: int) -> None:
        for number in range(100):
            run.append_event("slow_step", number, f"{writer} " + "x" * (17 * writer + number))

    threads = [threading.Thread(target=write, args=(writer,)) for writer in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = [json.loads(line) for line in run.events_path.read_bytes().splitlines()]
    assert len(found) == 800
    assert {(line["message"].split()[0], line["step"]) for line in found} == {
        (str(writer), number) for writer in range(8) for number in range(100)
    }


def test_status_is_whole_when_two_threads_set_it(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a")

    def write(status: str) -> None:
        for step in range(50):
            run.set_status(status, step=step)

    threads = [threading.Thread(target=write, args=(status,)) for status in ("stopped", "interrupted")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert run.status()["step"] == 49


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_signal_in_the_middle_of_a_line_never_doubles_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """A signal that raises where the program stands: the line is there once or not at all, and the next one follows."""
    run = make_run(tmp_path / "a")
    append = line_files.append_line

    def signalled(path: Path, line: Any) -> None:
        if when == "after":
            append(path, line)
        raise KeyboardInterrupt

    run.append_metric({"step": 1})
    with monkeypatch.context() as patch:
        patch.setattr(line_files, "append_line", signalled)
        with pytest.raises(KeyboardInterrupt):
            run.append_metric({"step": 2})
    run.append_metric({"step": 3})
    assert [line["step"] for line in run.metrics()] == ([1, 2, 3] if when == "after" else [1, 3])


def test_a_patient_run_keeps_lines_for_a_disk_that_comes_back(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a")
    with run.patient():
        with use_disk(FaultyDisk(1, "full")):
            for step in (1, 2, 3):
                run.append_metric({"step": step})
        assert run.metrics() == []
        run.append_metric({"step": 4})
        assert [line["step"] for line in run.metrics()] == [1, 2, 3, 4]
    with use_disk(FaultyDisk(1, "full")), pytest.raises(OSError, match="No space"):
        run.append_metric({"step": 5})
    run.append_metric({"step": 6})
    assert [line["step"] for line in run.metrics()] == [1, 2, 3, 4, 6]


def test_nothing_is_written_into_a_run_that_is_another_process_s(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a")
    run.append_metric({"step": 1})
    with run.held():
        run.append_metric({"step": 2})
        (run.path / NAME).unlink()
        (run.path / NAME).write_text("another's")
        before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
        writes: list[Any] = [
            lambda: run.append_metric({"step": 3}), lambda: run.append_event("note", 0, ""), lambda: run.rewind_metrics(0),
            lambda: run.set_status("stopped"),
        ]  # fmt: skip
        for write in writes:
            with pytest.raises(LeaseLost):
                write()
    assert before == {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
