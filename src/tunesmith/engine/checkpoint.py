"""Checkpoints that are whole or absent: safetensors and JSON under a manifest of sizes and sha256.

    checkpoints/STEP/  trained.safetensors  optimiser.safetensors  state.json  manifest.json (last)

A folder is filled under a temporary name, fsynced and renamed; loading verifies; a bad one is set aside.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from tunesmith.disk import disk
from tunesmith.engine.ranks import Ranks
from tunesmith.engine.tensor_file import Written, tensor_bytes, write_tensors
from tunesmith.errors import GuardStopped
from tunesmith.files import new_folder, remove_folder, sha256_of, sync_appends
from tunesmith.json_values import loads_ours
from tunesmith.types import Adapter

FORMAT_VERSION = 1
NAMES = ("trained.safetensors", "optimiser.safetensors", "state.json")
MANIFEST = "manifest.json"
_STEP = re.compile(r"[0-9]{8}")
_BAD = re.compile(r"[0-9]{8}\.bad-[0-9]+")
_MOST_MANIFEST_BYTES = 1 << 20
_MOST_STATE_BYTES = 4 << 20
_MOST_HEADER_BYTES = 25_000_000
_SMALL_FILES_BYTES = 1 << 16
Say = Callable[[str, str], None]
"""Takes the kind of an event and a sentence."""


@dataclass(frozen=True)
class Checkpoint:
    """What was saved at the end of a step."""

    step: int
    trained: Mapping[str, Tensor]
    optimiser: Mapping[str, Tensor]
    state: Mapping[str, Any]

    @property
    def num_bytes(self) -> int:
        """What it takes on disk, but for a few kilobytes of state and headers."""
        return tensor_bytes(self.trained) + tensor_bytes(self.optimiser) + _SMALL_FILES_BYTES


def trained_of(adapter: Adapter, parts: nn.Module) -> dict[str, Tensor]:
    """What trains, as a checkpoint names it: ``adapter/NAME`` and, for parts of the objective, ``parts/NAME``."""
    trained = {f"adapter/{name}": tensor for name, tensor in adapter.state().items()}
    return trained | {f"parts/{name}": tensor for name, tensor in parts.state_dict().items()}


def load_trained(tensors: Mapping[str, Tensor], adapter: Adapter, parts: nn.Module) -> None:
    """Inverse of ``trained_of``."""
    split: dict[str, dict[str, Tensor]] = {"adapter": {}, "parts": {}}
    for path, tensor in tensors.items():
        part, _, name = path.partition("/")
        split[part][name] = tensor
    adapter.load_state(split["adapter"])
    parts.load_state_dict(split["parts"])


def shared(ranks: Ranks, checkpoint: Checkpoint | None, folder: CheckpointFolder) -> Checkpoint | None:
    """The main rank's checkpoint on every rank, read from the same folder; None where the main rank has none.

    Raises:
        GuardStopped: another rank cannot read it.
    """
    step = ranks.told(checkpoint.step if checkpoint is not None else None)
    if ranks.is_main or step is None:
        return checkpoint
    return read_as(ranks, step, folder)


def read_as(ranks: Ranks, step: int, folder: CheckpointFolder) -> Checkpoint:
    """What the main rank saved, on another rank. Raises GuardStopped where it cannot be used."""
    found = folder.look(step)
    if isinstance(found, str):
        raise GuardStopped(
            f"rank {ranks.rank} cannot use the checkpoint of step {step}: {found}",
            where=str(folder.path),
            hint="all ranks must see the same run folder: put it on a disk that they share",
        )
    return found


class CheckpointFolder:
    """The checkpoints of one run.

    Args:
        path: the run's ``checkpoints`` folder.
        identity: fingerprint of the run; a checkpoint of another run is set aside.
        keep: good checkpoints kept, at least two.
        say: where set-asides are told.
        check: called before a checkpoint is written and before it gets its name; raises where this process may not write.
        settle: makes durable what was said before a checkpoint, which must not be younger than what it stands for.
        saved: told the step of each checkpoint once it is whole.
        fits: why a checkpoint that was read cannot be used, or None; its bytes are known to be those that were written, which
            does not tell by whom.
    """

    def __init__(
        self,
        path: Path,
        identity: str,
        *,
        keep: int = 2,
        say: Say = lambda kind, text: None,
        check: Callable[[], None] = lambda: None,
        settle: Callable[[], None] = sync_appends,
        saved: Callable[[int], None] = lambda step: None,
        fits: Callable[[Checkpoint], str | None] = lambda checkpoint: None,
    ) -> None:
        self.path = path
        self.identity = identity
        self.keep = max(2, keep)
        self.say = say
        self.check = check
        self.settle = settle
        self.saved = saved
        self.fits = fits

    def steps(self) -> list[int]:
        """Steps that have a checkpoint folder, oldest first."""
        return sorted(int(name) for name in self._names(_STEP))

    def save(self, checkpoint: Checkpoint, *, protect: frozenset[int] = frozenset()) -> Path:
        """Write a checkpoint and drop the oldest beyond ``keep``, but none in ``protect``.

        Metrics and events written so far are made durable with it. One of the same step is replaced.

        Raises:
            OSError: the disk did not take it; nothing half-written stays, and no other checkpoint is touched.
        """
        self.check()
        target = self._folder(checkpoint.step)
        with new_folder(target, replace=True) as folder:
            files = {
                "trained.safetensors": write_tensors(folder / "trained.safetensors", checkpoint.trained),
                "optimiser.safetensors": write_tensors(folder / "optimiser.safetensors", checkpoint.optimiser),
                "state.json": _write_json(folder / "state.json", checkpoint.state),
            }
            manifest = {
                "format": FORMAT_VERSION, "step": checkpoint.step, "identity": self.identity,
                "files": {name: {"bytes": item.bytes, "sha256": item.sha256} for name, item in files.items()},
            }  # fmt: skip
            _write_json(folder / MANIFEST, manifest)
            self.settle()
            self.check()
        with suppress(OSError):  # the checkpoint is there, whoever could not be told
            self.saved(checkpoint.step)
        self.retire(protect | {checkpoint.step})
        return target

    def newest(self, below: int | None = None) -> Checkpoint | None:
        """The newest checkpoint that verifies; bad ones are set aside under another name, and that is said.

        Args:
            below: only those of earlier steps.

        Raises:
            GuardStopped: there were checkpoints, and none is good.
        """
        for step in reversed(self.steps()):
            if below is None or step < below:
                checkpoint = self.load(step)
                if checkpoint is not None:
                    return checkpoint
        if below is None and (bad := sorted(self._names(_BAD))):
            raise GuardStopped(
                f"no checkpoint of this run is good: {', '.join(bad)} {'was' if len(bad) == 1 else 'were'} set aside",
                where=str(self.path),
                hint="put a whole checkpoint folder back from a copy, or train from the first step again with --restart",
            )
        return None

    def load(self, step: int) -> Checkpoint | None:
        """One checkpoint; None where there is none, or after setting a bad one aside."""
        folder = self._folder(step)
        if not folder.is_dir():
            return None
        found = self.look(step)
        if isinstance(found, Checkpoint):
            return found
        self._set_aside(folder, found)
        return None

    def look(self, step: int) -> Checkpoint | str:
        """One checkpoint, or why it cannot be used. The folder stays as it is: it may be another run's."""
        folder = self._folder(step)
        fault = self.fault(folder)
        if fault is not None:
            return fault
        try:
            state = _read_state(folder / "state.json")
            trained, optimiser = (_read_tensors(folder / name) for name in NAMES[:2])
        except (OSError, ValueError, SafetensorError) as error:
            return f"it cannot be read: {error}"
        checkpoint = Checkpoint(step=step, trained=trained, optimiser=optimiser, state=state)
        return self.fits(checkpoint) or checkpoint

    def manifest_sha256(self, step: int) -> str:
        """Hex sha256 of a checkpoint's manifest, and by it of every file."""
        return sha256_of(self._folder(step) / MANIFEST)

    def fault(self, folder: Path) -> str | None:
        """Why a checkpoint cannot be trusted, or None."""
        manifest, fault = _read_manifest(folder)
        if fault is not None:
            return fault
        if manifest["identity"] != self.identity:
            return "it belongs to another run"
        if manifest["step"] != int(folder.name):
            return f"its manifest is of step {manifest['step']}"
        for name in NAMES:
            path, expected = folder / name, manifest["files"][name]
            if path.is_symlink() or not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != expected["bytes"]:
                return f"{name} has {path.stat().st_size} bytes, {expected['bytes']} were written"
            if sha256_of(path) != expected["sha256"]:
                return f"the bytes of {name} are not those that were written"
        return None

    def drop_after(self, step: int) -> None:
        """Remove checkpoints of later steps: a rollback took another way from here."""
        for later in self.steps():
            if later > step:
                remove_folder(self._folder(later))

    def _folder(self, step: int) -> Path:
        return self.path / f"{step:08d}"

    def _names(self, pattern: re.Pattern[str]) -> list[str]:
        if not self.path.is_dir():
            return []
        return [
            item.name
            for item in self.path.iterdir()
            if pattern.fullmatch(item.name) and item.is_dir() and not item.is_symlink()
        ]

    def _set_aside(self, folder: Path, fault: str) -> None:
        number = 0
        while (target := folder.with_name(f"{folder.name}.bad-{number}")).exists():
            number += 1
        disk().rename(folder, target)
        self.say("checkpoint_set_aside", f"checkpoint {folder.name} is set aside as {target.name}: {fault}")

    def retire(self, protect: frozenset[int]) -> None:
        """Remove the oldest checkpoints beyond ``keep``, but none in ``protect``."""
        good = [step for step in self.steps() if step not in protect]
        surplus = max(0, len(self.steps()) - max(self.keep, len(protect)))
        for step in good[:surplus]:
            remove_folder(self._folder(step))


def _write_json(path: Path, value: Mapping[str, Any]) -> Written:
    payload = (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode("utf-8")
    with disk().open(path, "xb") as stream:
        disk().write(stream, payload)
    return Written(len(payload), hashlib.sha256(payload).hexdigest())


def _read_state(path: Path) -> dict[str, Any]:
    if path.stat().st_size > _MOST_STATE_BYTES:
        raise ValueError(f"{path.name} is larger than {_MOST_STATE_BYTES >> 20} MiB")
    state = loads_ours(path.read_text(encoding="utf-8"))
    if not isinstance(state, dict):
        raise ValueError(f"{path.name} is no object")
    return state


def _read_tensors(path: Path) -> dict[str, Tensor]:
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
    if length > _MOST_HEADER_BYTES:
        raise ValueError(f"the header of {path.name} is larger than {_MOST_HEADER_BYTES // 1_000_000} MB")
    tensors: dict[str, Tensor] = load_file(path)
    return tensors


def _read_manifest(folder: Path) -> tuple[dict[str, Any], str | None]:
    """The manifest, and what is wrong with it; its text is not trusted."""
    path = folder / MANIFEST
    try:
        if path.is_symlink() or path.stat().st_size > _MOST_MANIFEST_BYTES:
            return {}, "its manifest is not a manifest"
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}, "its manifest is missing or torn"
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT_VERSION:
        return {}, "its manifest has another format"
    files = manifest.get("files")
    if not isinstance(files, dict) or set(files) != set(NAMES) or not {"step", "identity"} <= manifest.keys():
        return {}, "its manifest lacks a part"
    if not all(isinstance(item, dict) and {"bytes", "sha256"} <= item.keys() for item in files.values()):
        return {}, "its manifest lacks a part"
    return manifest, None
