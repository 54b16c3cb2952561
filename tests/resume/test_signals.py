"""A signal at any place of the loop: what was begun is dropped, what is saved is whole, and the rest has the same bits."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.loops import Recorder, make_trainer
from tunesmith.disk import Disk, use_disk
from tunesmith.engine.randomness import use_deterministic
from tunesmith.engine.stopping import EarlyStopping
from tunesmith.engine.trainer import Trainer
from tunesmith.errors import Interrupted
from tunesmith.objectives.next_token import NextToken

SETTINGS: dict[str, Any] = {
    "total_steps": 8, "checkpoint_every": 3, "evaluate_every": 2, "micro_batch_size": 2, "dropout": 0.1,
}  # fmt: skip
"""Four atoms a step."""


@pytest.fixture(autouse=True)
def _deterministic() -> Iterator[None]:
    use_deterministic(True)
    yield
    use_deterministic(False)


class Validation:
    """Sees a loss made of the weights and stops early on it; ``within`` is called at its parts."""

    def __init__(self, trainer: Trainer, within: Callable[[int, str], None] = lambda step, part: None) -> None:
        self.trainer = trainer
        self.stopping = EarlyStopping(patience=3)
        self.within = within
        self.lines: list[tuple[int, float]] = []

    def after_step(self, facts: Any) -> None:
        self.within(facts.step, "step")

    def at_interval(self, step: int) -> str | None:
        assert not self.trainer.model.training
        self.within(step, "before")
        loss = sum(float(tensor.double().abs().sum()) for tensor in self.trainer.adapter.state().values())
        self.lines.append((step, loss))
        self.within(step, "between")
        reason = self.stopping.see(step, loss)
        self.within(step, "after")
        return reason

    def rewind(self, step: int) -> None:
        self.lines = [line for line in self.lines if line[0] <= step]

    def state_dict(self) -> dict[str, Any]:
        return self.stopping.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.stopping.load_state_dict(state)


class Counting(NextToken):
    """Calls back before each atom, by its number in the whole run."""

    def __init__(self, at: Callable[[int], None]) -> None:
        super().__init__()
        self.at, self.number = at, 0

    def __call__(self, model: Any, batch: Any, seen: Any) -> Any:
        self.number += 1
        self.at(self.number)
        return super().__call__(model, batch, seen)


def _begin(folder: Path, at: Callable[[int], None] = lambda number: None) -> tuple[Trainer, Recorder, Validation]:
    trainer, recorder = make_trainer(folder, objective=Counting(at), **SETTINGS)
    validation = Validation(trainer)
    trainer.hooks.append(validation)
    return trainer, recorder, validation


def _go_on(folder: Path) -> tuple[Trainer, Recorder, Validation]:
    trainer, recorder, validation = _begin(folder)
    checkpoint = trainer.checkpoints.newest()
    assert checkpoint is not None
    trainer.restore(checkpoint)
    trainer.run()
    return trainer, recorder, validation


def _raise_at(wanted: object, number: signal.Signals = signal.SIGTERM) -> Callable[..., None]:
    """Raise a signal where the arguments are these, once."""
    done: list[object] = []

    def at(*found: object) -> None:
        if found == wanted and not done:
            done.append(found)
            signal.raise_signal(number)

    return at


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Trainer, Recorder, Validation]:
    use_deterministic(True)
    trainer, recorder, validation = _begin(tmp_path_factory.mktemp("whole"))
    trainer.run()
    return trainer, recorder, validation


def _assert_equal(
    whole: tuple[Trainer, Recorder, Validation],
    cut: tuple[Trainer, Recorder, Validation],
    again: tuple[Trainer, Recorder, Validation],
) -> None:
    def told(*recorders: Recorder) -> list[tuple[int, float, float]]:
        return [(facts.step, facts.loss, facts.grad_norm) for one in recorders for facts in one.facts]

    resumed = again[0].checkpoints  # only for its folder
    assert resumed.path == cut[0].checkpoints.path
    before = [line for line in told(cut[1]) if line[0] < told(again[1])[0][0]] if again[1].facts else told(cut[1])
    assert before + told(again[1]) == told(whole[1])
    assert again[2].stopping.state_dict() == whole[2].stopping.state_dict()
    for name, tensor in whole[0].adapter.state().items():
        assert torch.equal(tensor, again[0].adapter.state()[name]), name
    state = again[0].optimiser.state()
    for name, tensor in whole[0].optimiser.state().items():
        assert torch.equal(tensor, state[name]), name


@pytest.mark.usefixtures("hears_hangups")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP], ids=lambda number: number.name)
def test_a_step_is_abandoned_between_two_atoms(
    tmp_path: Path, whole: tuple[Trainer, Recorder, Validation], number: signal.Signals
) -> None:
    """One atom of the rehearsal, then four a step: the 15th is the second of the fourth step."""
    before = signal.getsignal(number)
    cut = _begin(tmp_path, _raise_at((15,), number))
    with pytest.raises(Interrupted) as caught:
        cut[0].run()
    assert cut[0].objective.number == 15, "the atom it came in is the last"
    assert caught.value.exit_code == 130
    assert f"stopped by signal {number.name} after step 3 of 8; a checkpoint is saved" in caught.value.what
    assert "same command" in caught.value.hint
    assert signal.getsignal(number) == before
    assert all(parameter.grad is None for parameter in cut[0].optimiser.parameters)
    _assert_equal(whole, cut, _go_on(tmp_path))


@pytest.mark.parametrize("step", [4, 6, 8])
@pytest.mark.parametrize("part", ["before", "between", "after"])
def test_an_evaluation_ends_at_once_and_is_made_again_as_if_it_had_not_begun(
    tmp_path: Path, whole: tuple[Trainer, Recorder, Validation], step: int, part: str
) -> None:
    cut = _begin(tmp_path)
    cut[2].within = _raise_at((step, part))
    with pytest.raises(Interrupted, match=f"after step {step} of 8; a checkpoint is saved"):
        cut[0].run()
    assert len(cut[2].lines) == step // 2 - (part == "before")
    checkpoint = cut[0].checkpoints.newest()
    assert checkpoint is not None
    assert checkpoint.state["hooks"][1]["waited"] + (checkpoint.state["hooks"][1]["best_step"] != 0) <= step // 2 - 1
    again = _go_on(tmp_path)
    assert again[2].lines == [line for line in whole[2].lines if line[0] >= step]
    _assert_equal(whole, cut, again)


@pytest.mark.parametrize("step", [1, 3, 4, 8])
def test_a_signal_between_two_steps(tmp_path: Path, whole: tuple[Trainer, Recorder, Validation], step: int) -> None:
    """Between, in an interval that is about to begin, and after the last step: it is never forgotten."""
    cut = _begin(tmp_path)
    cut[2].within = _raise_at((step, "step"))
    with pytest.raises(Interrupted, match=f"after step {step} of 8; a checkpoint is saved"):
        cut[0].run()
    _assert_equal(whole, cut, _go_on(tmp_path))


class SlowDisk(Disk):
    """Takes ``seconds`` for each file that it opens, and tells when it begins."""

    def __init__(self, seconds: float, only: str) -> None:
        self.seconds, self.only = seconds, only
        self.begun = threading.Event()

    def open(self, path: Path, mode: str) -> Any:
        if self.only in str(path):
            self.begun.set()
            time.sleep(self.seconds)
        return super().open(path, mode)


@pytest.mark.parametrize("background", [True, False])
def test_a_second_signal_does_not_wait_for_a_slow_disk(
    tmp_path: Path, whole: tuple[Trainer, Recorder, Validation], background: bool
) -> None:
    """The first one comes in step 5; its save takes ten seconds; the checkpoint of step 3 is what stays."""
    disk = SlowDisk(10.0, "00000004")
    cut = _begin(tmp_path, _raise_at((20,)))
    cut[0].saver.background = background

    def second() -> None:
        disk.begun.wait(30)
        time.sleep(0.05)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    threading.Thread(target=second).start()
    started = time.monotonic()
    with use_disk(disk), pytest.raises(KeyboardInterrupt):
        cut[0].run()
    assert time.monotonic() - started < 8
    again = _begin(tmp_path)[0].checkpoints.newest()
    assert again is not None
    assert again.step == 3
    disk.seconds = 0
    _assert_equal(whole, cut, _go_on(tmp_path))


def test_a_signal_while_the_checkpoint_of_this_step_is_written_does_not_write_it_twice(tmp_path: Path) -> None:
    disk = SlowDisk(0.2, "00000002")
    cut = _begin(tmp_path)
    writes: list[int] = []
    save = cut[0].checkpoints.save
    cut[0].checkpoints.save = lambda checkpoint, **more: writes.append(checkpoint.step) or save(checkpoint, **more)  # type: ignore[method-assign]
    begin = cut[0].saver.save

    def saving(*arguments: Any, **more: Any) -> None:
        begin(*arguments, **more)
        signal.raise_signal(signal.SIGTERM)

    cut[0].saver.save = saving  # type: ignore[method-assign]
    with use_disk(disk), pytest.raises(Interrupted, match="after step 2 of 8; a checkpoint is saved"):
        cut[0].run()
    assert writes == [2], "early stopping wants that step back"


def test_a_signal_during_the_last_save_is_not_forgotten(
    tmp_path: Path, whole: tuple[Trainer, Recorder, Validation]
) -> None:
    disk = SlowDisk(0.3, "00000008")
    cut = _begin(tmp_path)

    def late() -> None:
        disk.begun.wait(30)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)

    threading.Thread(target=late).start()
    with use_disk(disk), pytest.raises(Interrupted, match="after step 8 of 8; a checkpoint is saved"):
        cut[0].run()
    _assert_equal(whole, cut, _go_on(tmp_path))


def test_signals_that_the_process_was_told_to_ignore_stay_ignored(tmp_path: Path) -> None:
    """As ``nohup``, ``--detach`` or a shell in the background leave them. SIGTERM is always heard."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGHUP)}
    try:
        trainer, _, validation = _begin(tmp_path)

        def both(step: int, part: str) -> None:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGHUP)
            if step == 5:
                signal.raise_signal(signal.SIGTERM)

        validation.within = both
        with pytest.raises(Interrupted, match="signal SIGTERM after step 5"):
            trainer.run()
        assert all(signal.getsignal(number) == signal.SIG_IGN for number in before)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
