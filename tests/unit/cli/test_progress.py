"""Progress on a terminal and off it."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from tunesmith.cli.progress import BarProgress, LineProgress, describe, open_progress
from tunesmith.progress import Progress, SilentProgress


def _exercise(progress: Progress) -> None:
    progress.note("a sentence [with brackets]")
    progress.start(4, 1)
    for step in (2, 3, 4):
        progress.step(step, 2.5 / step, 1234.5, 60.0 - step)
        progress.phase("scoring", step, 4)
    progress.close()
    progress.close()


@pytest.mark.parametrize("kind", [SilentProgress, LineProgress, BarProgress])
def test_they_are_listeners(kind: type) -> None:
    assert isinstance(kind(), Progress)


def test_silence_keeps_the_sentences(capsys: pytest.CaptureFixture[str]) -> None:
    progress = SilentProgress()
    _exercise(progress)
    assert progress.notes == ["a sentence [with brackets]"]
    assert capsys.readouterr() == ("", "")


def test_lines_go_to_stderr_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    _exercise(LineProgress(seconds_between=3600.0))
    said = capsys.readouterr()
    assert said.out == ""
    lines = said.err.splitlines()
    assert lines[:3] == [
        "a sentence [with brackets]",
        "training: step 1 of 4",
        "training: step 2 of 4  loss 1.250  1,234 tokens/s  58 s left",
    ]
    assert lines[-2:] == ["training: step 4 of 4  loss 0.6250  1,234 tokens/s  56 s left", "scoring: 4 of 4"]
    assert not any("step 3" in line for line in lines)


def test_every_line_where_no_time_is_kept(capsys: pytest.CaptureFixture[str]) -> None:
    _exercise(LineProgress(seconds_between=0.0))
    assert "step 3 of 4" in capsys.readouterr().err


def test_bar_shows_loss_speed_and_time() -> None:
    stream = io.StringIO()
    _exercise(BarProgress(Console(file=stream, force_terminal=True, width=100)))
    shown = stream.getvalue()
    assert "a sentence [with brackets]" in shown
    for words in ("training", "4/4", "loss 0.6250", "1,234 tokens/s", "56 s left"):
        assert words in shown


def test_time_that_is_not_known_is_not_shown() -> None:
    assert describe(1.0, 10.0, None) == "loss 1.000  10 tokens/s"


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_the_loss_of_a_step_that_was_left_out_is_a_dash(loss: float) -> None:
    assert describe(loss, 10.0, None) == "loss –  10 tokens/s"


def test_lines_off_a_terminal() -> None:
    assert isinstance(open_progress(), LineProgress)
