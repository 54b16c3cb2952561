"""Many runs of one recipe, each a process of its own: its memory is its own, and a kill leaves the others."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tunesmith.disk import disk
from tunesmith.errors import Interrupted, RunError
from tunesmith.files import make_folders
from tunesmith.launcher import own_command
from tunesmith.progress import Progress
from tunesmith.registry.runs import RunFolder
from tunesmith.signals import ENDING, raise_if_asked

_LOOK_SECONDS = 0.05
_GUARD, _INTERRUPTED = 4, 130
_ASKED_TO_END = {-getattr(signal, name) for name in ENDING if hasattr(signal, name)}
_SAID_BYTES = 1 << 16


@dataclass(frozen=True)
class Trial:
    """One run: a strategy at a rate with a seed, and the recipe and overrides that make it."""

    strategy: str
    rate: float
    seed: int
    arguments: tuple[str, ...]

    @property
    def name(self) -> str:
        """Name of its folder."""
        return f"{self.strategy}--{self.rate:g}--{self.seed}"


@dataclass(frozen=True)
class Ended:
    """How a trial ended: ``done``, or ``stopped`` by a guard because its numbers went wrong, with the guard's words."""

    status: str
    why: str = ""


class Trials:
    """Runs trials under one folder, ``jobs`` at a time; finished ones are left as they are.

    Args:
        folder: gets ``runs/NAME`` of each and ``logs/NAME.txt``.
        jobs: processes at once.
        threads: CPU threads of each; None leaves the plan's.
        progress: hears how many are done.
    """

    def __init__(self, folder: Path, jobs: int, threads: int | None, progress: Progress) -> None:
        self.folder = Path(folder)
        self.jobs = jobs
        self.threads = threads
        self.progress = progress
        self.ended: dict[str, Ended] = {}
        self.total = 0

    def run_folder(self, trial: Trial) -> RunFolder:
        """Where the run of a trial lies."""
        return RunFolder(self.folder / "runs" / trial.name)

    def run(self, trials: Sequence[Trial]) -> dict[str, Ended]:
        """Run what is not done yet, and say how each ended, by name.

        Raises:
            RunError: a run was refused or broke; its log says why.
            Interrupted: a signal ended it; each process has saved its own checkpoint.
        """
        waiting = [trial for trial in trials if trial.name not in self.ended]
        self.total = max(self.total, len(self.ended) + len(waiting))
        working: dict[str, tuple[Trial, subprocess.Popen[bytes]]] = {}
        try:
            while waiting or working:
                while waiting and len(working) < self.jobs:
                    trial = waiting.pop(0)
                    if (known := self._stopped_before(trial)) is not None:
                        self._ends(trial, known)
                        continue
                    working[trial.name] = (trial, self._start(trial))
                for name in [name for name, (_, process) in working.items() if process.poll() is not None]:
                    trial, process = working.pop(name)
                    self._ends(trial, self._outcome(trial, process.returncode))
                raise_if_asked()
                if working:
                    time.sleep(_LOOK_SECONDS)
        finally:
            _end([process for _, process in working.values()])
        return {trial.name: self.ended[trial.name] for trial in trials}

    def _stopped_before(self, trial: Trial) -> Ended | None:
        """A run whose numbers went wrong is not tried again: it would stop at the same step. A full disk may be empty by then."""
        run = self.run_folder(trial)
        if not run.status_path.exists():
            return None
        status = run.status()
        diverged = status["status"] == "stopped" and status.get("diverged") is True
        return Ended("stopped", str(status.get("message") or "")) if diverged else None

    def _start(self, trial: Trial) -> subprocess.Popen[bytes]:
        threads = () if self.threads is None else (f"machine.threads={self.threads}",)
        words = ["train", *trial.arguments, *threads, "--run", str(self.run_folder(trial).path)]
        log_path = self._log(trial)
        try:
            make_folders(log_path.parent)
            with disk().open(log_path, "ab") as log:
                disk().write(log, f"{shlex.join(['tunesmith', *words])}\n".encode())
                # A session of its own keeps Ctrl-C from it: that would be the first signal and `_end` the second, which does not save.
                return subprocess.Popen(
                    own_command(words), stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
                )
        except OSError as error:
            raise RunError(
                f"the folder of the comparison cannot be written: {error.strerror or error}",
                where=str(log_path),
                hint="free some space, or name another folder with --out",
            ) from error

    def _log(self, trial: Trial) -> Path:
        return self.folder / "logs" / f"{trial.name}.txt"

    def _outcome(self, trial: Trial, code: int) -> Ended:
        if code == 0:
            return Ended("done")
        said = _last_said(self._log(trial), "error: ")
        if code == _GUARD and (stopped := self._stopped_before(trial)) is not None:
            return Ended("stopped", said or stopped.why)
        if code == _INTERRUPTED or code in _ASKED_TO_END:
            raise Interrupted(
                f"the run {trial.name} was interrupted",
                where=str(self.run_folder(trial).path),
                hint="the same command goes on from there",
            )
        if code < 0:
            raise RunError(
                f"the run {trial.name} was killed by {signal.Signals(-code).name}",
                where=str(self._log(trial)),
                hint="what kills a run is most often a system out of memory: free some, or give fewer --jobs; the same command goes on",
            )
        raise RunError(
            f"the run {trial.name} ended with exit code {code}: {said or 'it said no reason'}",
            where=str(self._log(trial)),
            hint=f"{_last_said(self._log(trial), 'hint: ') or 'its log says more'}; then the same command goes on with what is left, "
            "or leave the strategy out with --strategies",
        )

    def _ends(self, trial: Trial, how: Ended) -> None:
        self.ended[trial.name] = how
        self.total = max(self.total, len(self.ended))
        if how.status == "stopped":
            self.progress.note(f"{trial.name}: a guard stopped it ({how.why}); this rate is not chosen")
        self.progress.phase("runs", len(self.ended), self.total)


def _end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Ask every process to save and end, and wait for it; a signal meanwhile is passed on, and they leave at once."""
    _ask_to_end(processes)
    try:
        for process in processes:
            process.wait()
    except KeyboardInterrupt:
        _ask_to_end(processes)
        raise


def _ask_to_end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        if process.poll() is None:
            process.terminate()


def _last_said(log: Path, start: str) -> str:
    """What the last line says that starts so; nothing where none does."""
    return next((line.removeprefix(start) for line in _backwards(log) if line.startswith(start)), "")


def _backwards(log: Path) -> Iterator[str]:
    try:
        with log.open("rb") as stream:
            stream.seek(0, os.SEEK_END)
            stream.seek(max(0, stream.tell() - _SAID_BYTES))
            yield from reversed(stream.read().decode("utf-8", errors="replace").splitlines())
    except OSError:
        return
