"""Saving beside training: the step waits for a copy in memory alone, a thread writes it out.

A disk that does not take a checkpoint does not end the run: it is said, training goes on, and the next interval tries
again; after a few failures in a row the run stops.
"""

from __future__ import annotations

import copy
import math
import os
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tunesmith.engine.checkpoint import Checkpoint, CheckpointFolder, Say
from tunesmith.errors import GuardStopped
from tunesmith.files import disk_trouble, make_folders

_HEADROOM = 1.2
"""Free space asked for, as a multiple of the checkpoint: the disk is shared, and files have overhead."""
_INODES = 6
"""Of a checkpoint: its folder, four files, and the status that names it."""
_SLOW_SECONDS = 10.0


class Saver:
    """Writes checkpoints, one at a time.

    Args:
        folder: where they go.
        background: whether a thread writes while training goes on.
        max_failures: failures in a row that stop the run.
        say: where failures are told; called by the thread that calls ``save`` and ``poll``.
    """

    def __init__(
        self,
        folder: CheckpointFolder,
        *,
        background: bool = True,
        max_failures: int = 3,
        say: Say = lambda kind, text: None,
    ) -> None:
        self.folder = folder
        self.background = background
        self.max_failures = max_failures
        self.say = say
        self.saved_step: int | None = None
        """Step of the newest checkpoint written here."""
        self.blocked_seconds = 0.0
        """Time that training waited for saving, in all."""
        self._failures = 0
        self._thread: threading.Thread | None = None
        self._step = 0
        self._error: BaseException | None = None
        self._buffers: dict[str, Tensor] = {}

    def save(self, checkpoint: Checkpoint, *, protect: frozenset[int] = frozenset()) -> None:
        """Save, or say why not. An earlier one that is still being written is waited for.

        Raises:
            GuardStopped: it failed too often in a row.
        """
        self.wait()
        self.folder.check()
        started = time.perf_counter()
        self._step, self._error = checkpoint.step, None
        short = self._lack_of_room(checkpoint.num_bytes)
        if short is not None:
            self._failed(short)
            return
        if self.background:
            copied, ready = self._copied(checkpoint)
            # A daemon: a second signal must not wait for it, and what it leaves half-written is swept away later.
            self._thread = threading.Thread(
                target=self._write, args=(copied, protect, ready), daemon=True, name="saver"
            )
            self._thread.start()
        else:
            self._write(checkpoint, protect, None)
            self._settle()
        self.blocked_seconds += time.perf_counter() - started

    def poll(self) -> None:
        """Tell the outcome of a save that has ended meanwhile. Raises GuardStopped after too many failures."""
        if self._thread is not None and not self._thread.is_alive():
            self._settle()

    def wait(self) -> None:
        """Wait until nothing is being written. Raises GuardStopped after too many failures in a row."""
        if self._thread is None:
            return
        started = time.perf_counter()
        self._thread.join()
        waited = time.perf_counter() - started
        self.blocked_seconds += waited
        if waited > _SLOW_SECONDS:
            self.say(
                "slow_disk", f"training waited {waited:.0f} s until the checkpoint of step {self._step} was written"
            )
        self._settle()

    def close(self) -> None:
        """Wait without a word: training ends for another reason already."""
        if self._thread is not None:
            self._thread.join()

    def _write(self, checkpoint: Checkpoint, protect: frozenset[int], ready: Any) -> None:
        try:
            if ready is not None:
                ready.synchronize()
            self.folder.save(checkpoint, protect=protect)
        except BaseException as error:
            self._error = error

    def _settle(self) -> None:
        self._thread = None
        error, self._error = self._error, None
        if error is None:
            if self._failures:
                self.say(
                    "checkpoint_saved_again", f"the checkpoint of step {self._step} is written: the disk takes it again"
                )
            self.saved_step, self._failures = self._step, 0
            return
        trouble = disk_trouble(error)
        if trouble is None:
            raise error
        self._failed(trouble.strerror or str(trouble))

    def _failed(self, why: str) -> None:
        self._failures += 1
        what = f"the checkpoint of step {self._step} could not be written: {why}"
        if self._failures >= self.max_failures:
            raise GuardStopped(
                f"{what}; that was the {_ordinal(self._failures)} failure in a row",
                where=str(self.folder.path),
                hint="free some space or mend the disk, then start the same command again: it goes on from the newest checkpoint",
            )
        self.say("checkpoint_failed", f"{what}; training goes on, the next interval tries again")

    def _lack_of_room(self, num_bytes: int) -> str | None:
        """Why the disk cannot take that much, or None. Where the system does not say, the write itself will tell."""
        try:
            make_folders(self.folder.path)
            return lack_of_room(self.folder.path, num_bytes)
        except OSError as error:
            return error.strerror or str(error)

    def _copied(self, checkpoint: Checkpoint) -> tuple[Checkpoint, Any]:
        """A copy in memory that later steps do not change; on CUDA it is made while the device goes on."""
        tensors = {f"t/{name}": value for name, value in checkpoint.trained.items()}
        tensors |= {f"o/{name}": value for name, value in checkpoint.optimiser.items()}
        on_cuda = any(tensor.is_cuda for tensor in tensors.values())
        copies = {name: self._copy(name, tensor) for name, tensor in tensors.items()}
        self._buffers = copies
        ready = torch.cuda.Event() if on_cuda else None  # type: ignore[no-untyped-call]
        if ready is not None:
            ready.record()
        trained, optimiser = (_part(copies, prefix) for prefix in ("t/", "o/"))
        return Checkpoint(checkpoint.step, trained, optimiser, copy.deepcopy(checkpoint.state)), ready

    def _copy(self, name: str, tensor: Tensor) -> Tensor:
        buffer = self._buffers.get(name)
        if buffer is None or buffer.shape != tensor.shape or buffer.dtype != tensor.dtype:
            buffer = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
        return buffer.copy_(tensor.detach(), non_blocking=True)


class Bystander(Saver):
    """Saves nothing: another rank does, and what it saved is what this one would have."""

    def save(self, checkpoint: Checkpoint, *, protect: frozenset[int] = frozenset()) -> None:
        """Take it for saved."""
        self.saved_step = checkpoint.step


def lack_of_room(folder: Path, num_bytes: int) -> str | None:
    """Say why ``folder`` cannot take ``num_bytes`` with a fifth to spare, or None."""
    found = os.statvfs(folder)
    free = found.f_bavail * found.f_frsize
    if free < num_bytes * _HEADROOM:
        needed = math.ceil(num_bytes * _HEADROOM)
        if f"{needed / 1e6:,.1f}" == f"{free / 1e6:,.1f}":
            return f"{needed:,} bytes are needed, {free:,} bytes are free"
        return f"{needed / 1e6:,.1f} MB are needed, {free / 1e6:,.1f} MB are free"
    if found.f_files and found.f_favail < _INODES:
        return f"{_INODES} files are needed, the file system has room for {found.f_favail}"
    return None


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _ordinal(number: int) -> str:
    return {1: "first", 2: "second", 3: "third"}.get(number, f"{number}th")
