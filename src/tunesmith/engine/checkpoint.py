"""Checkpoints that are whole or absent: safetensors and JSON under a manifest of sizes and sha256.

    checkpoints/STEP/  trained.safetensors  optimiser.safetensors  state.json  manifest.json (last)

A folder is filled under a temporary name, fsynced and renamed; loading verifies; a bad one is set aside.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from tunesmith.errors import GuardStopped
from tunesmith.files import disk_trouble, new_folder, sha256_of, write_json

FORMAT_VERSION = 1
Say = Callable[[str, str], None]
"""Takes the kind of an event and a sentence."""


@dataclass(frozen=True)
class Checkpoint:
    """What was saved at the end of a step."""

    step: int
    trained: dict[str, Tensor]
    optimiser: dict[str, Tensor]
    state: dict[str, Any]


class CheckpointFolder:
    """The checkpoints of one run.

    Args:
        path: the run's ``checkpoints`` folder.
        identity: fingerprint of the run; a checkpoint of another run is set aside.
        keep: good checkpoints kept, at least two.
        say: where set-asides and deletions are told.
    """

    def __init__(self, path: Path, identity: str, *, keep: int = 2, say: Say = lambda kind, text: None) -> None:
        self.path = path
        self.identity = identity
        self.keep = max(2, keep)
        self.say = say

    def steps(self) -> list[int]:
        """Steps that have a checkpoint folder, oldest first."""
        if not self.path.is_dir():
            return []
        return sorted(int(item.name) for item in self.path.iterdir() if item.is_dir() and item.name.isdigit())

    def save(self, checkpoint: Checkpoint, *, protect: frozenset[int] = frozenset()) -> Path:
        """Write a checkpoint and drop the oldest beyond ``keep``, but none in ``protect``.

        Raises:
            GuardStopped: the disk is full or read-only; nothing half-written stays.
        """
        target = self.path / f"{checkpoint.step:08d}"
        if target.exists():
            shutil.rmtree(target)
        try:
            with new_folder(target) as folder:
                _save_tensors(checkpoint.trained, folder / "trained.safetensors")
                _save_tensors(checkpoint.optimiser, folder / "optimiser.safetensors")
                write_json(folder / "state.json", checkpoint.state)
                names = ("trained.safetensors", "optimiser.safetensors", "state.json")
                files = {
                    name: {"bytes": (folder / name).stat().st_size, "sha256": sha256_of(folder / name)}
                    for name in names
                }
                manifest = {
                    "format": FORMAT_VERSION, "step": checkpoint.step, "identity": self.identity, "files": files
                }  # fmt: skip
                write_json(folder / "manifest.json", manifest)
        except Exception as error:
            trouble = disk_trouble(error)
            if trouble is None:
                raise
            raise GuardStopped(
                f"the checkpoint of step {checkpoint.step} could not be written: {trouble.strerror}",
                where=str(self.path),
                hint="free some space or choose another folder with --run, then start the same command again",
            ) from error
        self._retire(protect | {checkpoint.step})
        return target

    def newest(self) -> Checkpoint | None:
        """The newest checkpoint that verifies; bad ones are set aside under another name, and that is said."""
        for step in reversed(self.steps()):
            checkpoint = self.load(step)
            if checkpoint is not None:
                return checkpoint
        return None

    def load(self, step: int) -> Checkpoint | None:
        """One checkpoint; None where there is none, or after setting a bad one aside."""
        folder = self.path / f"{step:08d}"
        if not folder.is_dir():
            return None
        fault = self.fault(folder)
        if fault:
            self._set_aside(folder, fault)
            return None
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        return Checkpoint(
            step=step,
            trained=load_file(folder / "trained.safetensors"),
            optimiser=load_file(folder / "optimiser.safetensors"),
            state=state,
        )

    def fault(self, folder: Path) -> str | None:
        """Why a checkpoint cannot be trusted, or None."""
        try:
            manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return "its manifest is missing or torn"
        if not isinstance(manifest, Mapping) or manifest.get("format") != FORMAT_VERSION:
            return "its manifest has another format"
        if manifest.get("identity") != self.identity:
            return "it belongs to another run"
        for name, expected in manifest["files"].items():
            path = folder / name
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != expected["bytes"]:
                return f"{name} has {path.stat().st_size} bytes, {expected['bytes']} were written"
            if sha256_of(path) != expected["sha256"]:
                return f"the bytes of {name} are not those that were written"
        return None

    def _set_aside(self, folder: Path, fault: str) -> None:
        number = 0
        while (target := folder.with_name(f"{folder.name}.bad-{number}")).exists():
            number += 1
        folder.rename(target)
        self.say("checkpoint_set_aside", f"checkpoint {folder.name} is set aside as {target.name}: {fault}")

    def _retire(self, protect: frozenset[int]) -> None:
        good = [step for step in self.steps() if step not in protect]
        surplus = max(0, len(self.steps()) - max(self.keep, len(protect)))
        for step in good[:surplus]:
            shutil.rmtree(self.path / f"{step:08d}", ignore_errors=True)


def _save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    save_file({name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}, path)
