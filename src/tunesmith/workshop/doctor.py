"""What this machine offers, what is missing, how to mend it. Reads metadata and files only: nothing heavy is imported."""

from __future__ import annotations

import platform
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from tunesmith import embedded
from tunesmith.data.cache_key import cache_root
from tunesmith.files import sha256_of
from tunesmith.planning.machine import Machine, detect
from tunesmith.recipe.machine import MachineSection

State = Literal["ok", "note", "bad"]

EMBEDDED_SHA256 = {
    "model.safetensors": "be0ddd7d6f5b70282b45308a6b78c65ff42be3ee37aee096a392577cede3e3a9",
    "tokenizer.json": "7a3b34b7ae1fb4d041eb3e67dcdcf3c4d5c28325ce35b802543bf71e7a3f331c",
    "config.json": "cb5b707bc35e852fb3984a9b4bd1939334e768bd791508456bd1494db16624fe",
    "chat_template.jinja": "019c64426a9595a27ce0fe5794a361de6090f2c2fa80f64a7e3ef00985311b99",
}
_DEV_EXTRA = "dev"
_OLDEST_PYTHON = (3, 11)
_LEAST_DISK_BYTES = 2 << 30
_LEAST_MEMORY_BYTES = 3 << 30


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Attributes:
        name: stable name.
        state: ``ok``; ``note``: works, something is worth knowing; ``bad``: training will fail.
        found: what is there, in words.
        hint: how to mend it; empty where nothing is to mend.
        facts: the same as values.
    """

    name: str
    state: State
    found: str
    hint: str = ""
    facts: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def examine(folder: Path = Path()) -> list[Check]:
    """Look at everything, in the order to read it.

    Args:
        folder: where runs would be written.
    """
    machine = detect(MachineSection())
    return [
        _python(),
        *_packages(),
        _torch(machine),
        _processor(machine),
        _gpu(machine),
        _memory(machine),
        _disk(folder),
        _cache(),
        _model(),
        *_extras(),
    ]


def _python() -> Check:
    version = platform.python_version()
    if sys.version_info[:2] < _OLDEST_PYTHON:
        return Check("python", "bad", version, "Tunesmith needs Python 3.11 or newer")
    return Check("python", "ok", f"{version} on {platform.system()} {platform.machine()}", facts={"version": version})


def _packages() -> Iterator[Check]:
    """The core's dependencies, in one line, or a line for each that is missing."""
    names = [name for name, extra in _requirements() if extra is None]
    missing = [name for name in names if _version(name) is None]
    for name in missing:
        yield Check(f"package {name}", "bad", "not installed", "pip install --upgrade --force-reinstall tunesmith")
    if not missing:
        versions = {name: _version(name) for name in names}
        yield Check("packages", "ok", f"all {len(names)} that the core needs are installed", facts=versions)


def _torch(machine: Machine) -> Check:
    version = _version("torch")
    if version is None:
        return Check("torch", "bad", "not installed", "pip install torch")
    build = version.partition("+")[2]
    has_cuda = build.startswith("cu") or (build == "" and _has_distribution("nvidia-cublas"))
    kind = "CUDA build" if has_cuda else "ROCm build" if build.startswith("rocm") else "CPU build"
    facts = {"version": version, "cuda_build": has_cuda}
    if machine.gpus and not has_cuda:
        hint = "there is a GPU, but this torch cannot use it: pip install --force-reinstall torch (see pytorch.org for its index)"
        return Check("torch", "note", f"{version}, {kind}", hint, facts)
    return Check("torch", "ok", f"{version}, {kind}", facts=facts)


def _processor(machine: Machine) -> Check:
    extensions = [name for name, is_there in (("AMX", machine.amx), ("AVX-512 bf16", machine.avx512_bf16)) if is_there]
    fast = f"with {' and '.join(extensions)}" if extensions else "without AMX"
    precision = "bf16 is fast here" if machine.amx else "fp32 is the fast precision on this CPU"
    name = _cpu_name(machine)
    found = f"{name}{machine.cores} core{'s' if machine.cores > 1 else ''} to use, {fast}: {precision}"
    return Check(
        "processor", "ok", found, facts={"cores": machine.cores, "amx": machine.amx, "avx512_bf16": machine.avx512_bf16}
    )


def _cpu_name(machine: Machine) -> str:
    return f"{machine.name}, " if machine.device == "cpu" and machine.name else ""


def _gpu(machine: Machine) -> Check:
    if not machine.gpus:
        return Check("gpu", "ok", "none that CUDA can use: training runs on the CPU", facts={"gpus": []})
    names = ", ".join(f"{gpu.name} ({_gib(gpu.memory_bytes)})" for gpu in machine.gpus)
    precision = "bf16" if machine.bf16 else "fp16, bf16 would be emulated"
    return Check("gpu", "ok", f"{names}; {precision}", facts={"gpus": [asdict(gpu) for gpu in machine.gpus]})


def _memory(machine: Machine) -> Check:
    amount = machine.host_memory_bytes
    facts = {"bytes": amount}
    if amount < _LEAST_MEMORY_BYTES:
        return Check("memory", "note", _gib(amount), "little: keep to small models and a small micro_batch_size", facts)
    return Check("memory", "ok", _gib(amount), facts=facts)


def _disk(folder: Path) -> Check:
    place = folder.resolve()
    free = shutil.disk_usage(place).free
    facts = {"folder": str(place), "free_bytes": free}
    if free < _LEAST_DISK_BYTES:
        return Check("disk", "note", f"{_gib(free)} free in {place}", "free some space: checkpoints need it", facts)
    return Check("disk", "ok", f"{_gib(free)} free in {place}", facts=facts)


def _cache() -> Check:
    root = cache_root()
    if not root.is_dir():
        return Check("cache", "ok", f"{root}, empty", facts={"folder": str(root), "bytes": 0})
    num_bytes = sum(path.stat().st_size for path in root.rglob("*") if path.is_file())
    facts = {"folder": str(root), "bytes": num_bytes}
    hint = f"safe to delete, data is prepared again when it is needed: rm -r {root}" if num_bytes else ""
    return Check("cache", "ok", f"{root}, {_mib(num_bytes)}", hint, facts)


def _model() -> Check:
    """The embedded model, byte for byte."""
    folder = embedded.ROOT / embedded.DEFAULT_MODEL
    changed = [name for name, digest in EMBEDDED_SHA256.items() if not _is_intact(folder / name, digest)]
    facts = {"folder": str(folder), "changed": changed}
    if changed:
        found = f"{embedded.DEFAULT_MODEL} is damaged: {', '.join(changed)}"
        return Check(
            "embedded model", "bad", found, "install the package again: pip install --force-reinstall tunesmith", facts
        )
    return Check("embedded model", "ok", f"{embedded.DEFAULT_MODEL} is intact (sha256)", facts=facts)


def _is_intact(path: Path, digest: str) -> bool:
    return path.is_file() and sha256_of(path) == digest


def _extras() -> Iterator[Check]:
    """Every extra of the package except the developers' own."""
    needed: dict[str, list[str]] = {}
    for name, extra in _requirements():
        if extra is not None and extra != _DEV_EXTRA:
            needed.setdefault(extra, []).append(name)
    for extra, names in needed.items():
        missing = [name for name in names if _version(name) is None]
        facts = {"extra": extra, "missing": missing}
        if missing:
            yield Check(f"extra {extra}", "note", "not installed", f'pip install "tunesmith[{extra}]"', facts)
        else:
            versions = ", ".join(f"{name} {_version(name)}" for name in names)
            yield Check(f"extra {extra}", "ok", versions, facts=facts)


def _requirements() -> list[tuple[str, str | None]]:
    """Packages that the installed metadata names, each with its extra or None."""
    try:
        lines = metadata.requires("tunesmith") or []
    except metadata.PackageNotFoundError:
        return []
    found = []
    for line in lines:
        name = re.match(r"[A-Za-z0-9._-]+", line)
        extra = re.search(r"""extra\s*==\s*['"]([^'"]+)['"]""", line)
        if name:
            found.append((name.group(), extra.group(1) if extra else None))
    return found


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _has_distribution(prefix: str) -> bool:
    return any((item.metadata["Name"] or "").startswith(prefix) for item in metadata.distributions())


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / (1 << 30):.1f} GiB"


def _mib(num_bytes: int) -> str:
    return f"{num_bytes / (1 << 20):.1f} MiB"
