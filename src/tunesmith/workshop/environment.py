"""Where a run happened: versions, machine, command; and how much memory it took."""

from __future__ import annotations

import os
import platform
import shlex
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from tunesmith.planning.machine import processor_name
from tunesmith.planning.settings import Settings
from tunesmith.recipe.fingerprint import differences

_MAY_CHANGE_BITS = (
    "platform", "processor", "instructions", "cuda", "device_name", "threads", "ranks", "precision",
    "deterministic",
)  # fmt: skip
_COMPUTE = ("tunesmith", "torch", "transformers", "tokenizers", "numpy")
PACKAGES = ("tunesmith", "torch", "transformers", "tokenizers", "safetensors", "numpy", "pydantic", "jinja2", "pyarrow")


def environment(folder: Path, settings: Settings, num_ranks: int = 1) -> dict[str, Any]:
    """Facts to write beside a run.

    Args:
        folder: where the recipe's relative paths start.
        settings: of the run.
        num_ranks: processes that train together.
    """
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": processor_name(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "versions": versions,
        "cuda": torch.version.cuda if torch.cuda.is_available() else None,
        "device_name": torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "ranks": num_ranks,
        "precision": settings.precision,
        "deterministic": settings.deterministic,
        "openmp_wait_policy": os.environ.get("OMP_WAIT_POLICY", "default"),
        "command": _command(),
        "recipe_folder": str(folder.resolve()),
    }


def environment_differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """What may change bits between two environments, as ``name: before -> after``."""
    one, other = ({key: found.get(key) for key in _MAY_CHANGE_BITS} for found in (before, after))
    for found, side in ((before, one), (after, other)):
        versions = found.get("versions")
        side["versions"] = {name: versions.get(name) for name in _COMPUTE} if isinstance(versions, Mapping) else {}
    return [line.replace("versions.", "", 1) for line in differences(one, other)]


def _command() -> str:
    name = Path(sys.argv[0]).name
    return shlex.join(["tunesmith" if name == "__main__.py" else name, *sys.argv[1:]])


class MemoryMeter:
    """Peak memory: of the device on CUDA; on Linux how far the process grew since construction.

    Construct it before the model is loaded and restart the peak when training begins: scoring does not count then.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._before = _process_bytes("VmRSS")
        self.restart_peak()

    def restart_peak(self) -> None:
        """Forget what was reached so far."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            _reset_high_water()

    def peak_bytes(self) -> int | None:
        """Bytes at the peak, or None where the system does not say."""
        if self.device.type == "cuda":
            return int(torch.cuda.max_memory_allocated(self.device))
        high = _process_bytes("VmHWM")
        return None if high is None or self._before is None else max(0, high - self._before)


def _reset_high_water() -> None:
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return


def _process_bytes(field: str) -> int | None:
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:")), None)
