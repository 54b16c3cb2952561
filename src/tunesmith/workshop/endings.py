"""How a run may end before its time: what is written into its folder, and what the user is told."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Protocol

from tunesmith.errors import Diverged, GuardStopped, Interrupted, RunError, TunesmithError
from tunesmith.files import disk_trouble
from tunesmith.registry.lease import LeaseLost
from tunesmith.registry.runs import RunFolder
from tunesmith.signals import signals_interrupt

_GO_ON = "start the same command again to go on from there"


class Working(Protocol):
    """What the words name: how far it is, and at what."""

    step: int
    doing: str
    has_begun: bool


@contextmanager
def recorded(run: RunFolder, work: Working) -> Iterator[None]:
    """Within the context a signal, a guard, a full disk and any error leave a status that says so.

    Raises:
        Interrupted: by a signal outside the training loop; what was finished before is kept.
        LeaseLost: the folder is not this process's any more; nothing is written.
        GuardStopped: the disk is full or read-only in training or after it.
        RunError: the same before the first step.
    """
    try:
        with signals_interrupt():
            yield
    except KeyboardInterrupt as error:
        stop = Interrupted(
            f"stopped by a signal while {work.doing}; all that was finished before is kept",
            where=str(run.path),
            hint=_GO_ON,
        )
        _record(run, "interrupted", work.step, stop.what)
        raise stop from error
    except LeaseLost:  # what is in the folder is another's
        raise
    except TunesmithError as error:
        error.where = error.where or str(run.path)
        status = "interrupted" if isinstance(error, Interrupted) else "stopped"
        _record(run, status, work.step, error.what, diverged=isinstance(error, Diverged))
        raise
    except Exception as error:
        trouble = disk_trouble(error)
        what = f"the run folder cannot be written while {work.doing}: {trouble.strerror}" if trouble else str(error)
        _record(run, "stopped", work.step, what)
        if trouble is None:
            raise
        kind = GuardStopped if work.has_begun else RunError
        raise kind(what, where=str(trouble.filename or run.path), hint=f"free some space, then {_GO_ON}") from error


def _record(run: RunFolder, status: str, step: int, what: str, *, diverged: bool = False) -> None:
    """Write the ending down, where the disk lets it: the error that led here is the one to tell."""
    with suppress(OSError, LeaseLost):  # a line needs no new file: it may be taken where the status is not
        run.append_event(status, step, what)
    with suppress(OSError, LeaseLost):
        run.set_status(status, message=what, **({"diverged": True} if diverged else {}))
