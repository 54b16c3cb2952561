"""What this machine has: cores, memory, instructions and GPUs, found without torch."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tunesmith.errors import HardwareMissing
from tunesmith.recipe.machine import MachineSection

_SMI_QUERY = ("--query-gpu=index,uuid,name,memory.total,compute_cap", "--format=csv,noheader,nounits")
_SMI_SECONDS = 5.0
_GIB = 1 << 30
_MIB = 1 << 20
_CPU_SHARE = 0.9
_CUDA_SHARE = 0.95


@dataclass(frozen=True)
class Gpu:
    """One CUDA device: name, memory in bytes, compute capability."""

    name: str
    memory_bytes: int
    capability: tuple[int, int]


@dataclass(frozen=True)
class Machine:
    """The machine a plan is for.

    ``memory_bytes`` is that of the device trained on (the GPU, or the memory this process may use);
    ``available_bytes`` is the part of it that a plan may fill. ``bf16`` tells whether the device computes bf16 faster
    than fp32: AMX on a CPU, compute capability 8.0 on CUDA.
    """

    device: str
    name: str
    cores: int
    threads: int
    memory_bytes: int
    available_bytes: int
    host_memory_bytes: int
    bf16: bool
    amx: bool
    avx512_bf16: bool
    gpus: tuple[Gpu, ...] = ()

    @property
    def fingerprint(self) -> str:
        """What measured speeds belong to: device, name, and on a CPU the threads."""
        return f"cuda|{self.name}" if self.device == "cuda" else f"cpu|{self.name}|{self.threads} threads"

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Machine:
        """Inverse of ``to_json``."""
        gpus = tuple(Gpu(item["name"], item["memory_bytes"], tuple(item["capability"])) for item in values["gpus"])
        return cls(**{**values, "gpus": gpus})


def detect(section: MachineSection, root: Path = Path("/"), environment: Mapping[str, str] = os.environ) -> Machine:
    """Look at the machine, and let the recipe's section overrule what was found.

    Args:
        section: device, threads and memory, where stated.
        root: where ``proc`` and ``sys`` are; another one in tests.
        environment: CUDA_VISIBLE_DEVICES counts.

    Raises:
        HardwareMissing: the recipe asks for CUDA and there is none.
    """
    gpus = () if section.device == "cpu" else find_gpus(environment)
    if section.device == "cuda" and not gpus:
        raise HardwareMissing(
            "the recipe asks for a CUDA device and none was found",
            where="machine.device",
            hint="set `machine.device: auto` or `cpu`; `tunesmith doctor` shows what this machine has",
        )
    cpu_name, flags = _cpu(root)
    cores = usable_cores(root)
    host = _host_memory(root)
    device = "cuda" if gpus else "cpu"
    memory = gpus[0].memory_bytes if gpus else host
    available = int(memory * (_CUDA_SHARE if gpus else _CPU_SHARE))
    if section.memory_gib is not None:
        memory = available = int(section.memory_gib * _GIB)
    amx = "amx_tile" in flags and "amx_bf16" in flags
    return Machine(
        device=device,
        name=gpus[0].name if gpus else cpu_name,
        cores=cores,
        threads=section.threads or _asked_threads(environment) or cores,
        memory_bytes=memory,
        available_bytes=available,
        host_memory_bytes=host,
        bf16=gpus[0].capability >= (8, 0) if gpus else amx,
        amx=amx,
        avx512_bf16="avx512_bf16" in flags,
        gpus=gpus,
    )


def _asked_threads(environment: Mapping[str, str]) -> int | None:
    """What OMP_NUM_THREADS asks for, as every program on OpenMP would take it."""
    asked = environment.get("OMP_NUM_THREADS", "")
    return int(asked) if asked.isdigit() and int(asked) > 0 else None


def find_gpus(environment: Mapping[str, str] = os.environ) -> tuple[Gpu, ...]:
    """CUDA devices as nvidia-smi lists them, within CUDA_VISIBLE_DEVICES; none where it is absent or fails."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return ()
    try:
        done = subprocess.run([program, *_SMI_QUERY], capture_output=True, text=True, timeout=_SMI_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError):
        return ()
    return _visible(done.stdout, environment.get("CUDA_VISIBLE_DEVICES"))


def _visible(listing: str, visible: str | None) -> tuple[Gpu, ...]:
    found: dict[str, Gpu] = {}
    uuids: dict[str, str] = {}
    for line in listing.splitlines():
        parts = [part.strip() for part in line.split(",")]
        if len(parts) != 5:
            continue
        index, uuid, name, memory, capability = parts
        try:
            major, minor = (int(part) for part in capability.split("."))
            found[index] = Gpu(name, int(float(memory)) * _MIB, (major, minor))
        except ValueError:
            continue
        uuids[uuid] = index
    if visible is None:
        return tuple(found.values())
    chosen: list[Gpu] = []
    for wanted in (part.strip() for part in visible.split(",")):
        index = next((uuids[uuid] for uuid in uuids if wanted.startswith("GPU-") and uuid.startswith(wanted)), wanted)
        if index not in found:
            break  # CUDA ignores everything from the first unknown device on
        chosen.append(found[index])
    return tuple(chosen)


def processor_name(root: Path = Path("/")) -> str:
    """The processor's name as its maker gives it."""
    return _cpu(root)[0]


def _cpu(root: Path) -> tuple[str, frozenset[str]]:
    """Name and instruction flags of the processor."""
    name, flags = "", frozenset[str]()
    try:
        text = (root / "proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    for line in text.split("\n\n", 1)[0].splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("model name", "Processor", "cpu model") and not name:
            name = value.strip()
        elif key.strip() in ("flags", "Features"):
            flags = frozenset(value.split())
    return name or _mac_name() or platform.processor() or platform.machine() or "unknown CPU", flags


def _mac_name() -> str:
    if platform.system() != "Darwin":
        return ""
    try:
        command = ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"]
        return subprocess.run(command, capture_output=True, text=True, timeout=2, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def threads_each(processes: int) -> int | None:
    """CPU threads for each of several processes that share the cores; None where one has them all."""
    return None if processes == 1 else max(1, usable_cores() // processes)


def usable_cores(root: Path = Path("/")) -> int:
    """Cores that this process may use: affinity, then the quota of its control group."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # macOS has no affinity
        cores = os.cpu_count() or 1
    quotas = [quota for folder in _groups(root, "cpu") if (quota := _cpu_quota(folder)) is not None]
    return max(1, min([cores, *quotas]))


def _cpu_quota(folder: Path) -> int | None:
    """Whole cores that a control group grants, None without a limit. Version 2 has one file, version 1 two."""
    words = _words(folder / "cpu.max") or _words(folder / "cpu.cfs_quota_us") + _words(folder / "cpu.cfs_period_us")
    if len(words) != 2 or not words[0].isdigit() or not words[1].isdigit() or int(words[1]) == 0:
        return None
    return max(1, int(words[0]) // int(words[1]))


def _host_memory(root: Path) -> int:
    """Bytes that this process may use: physical memory, then the limit of its control group."""
    total = 0
    for line in _lines(root / "proc/meminfo"):
        if line.startswith("MemTotal:"):
            total = int(line.split()[1]) * 1024
    if not total:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limits = [total]
    for folder in _groups(root, "memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):
            words = _words(folder / name)
            if words and words[0].isdigit():
                limits.append(int(words[0]))
    return min(limits)


def _groups(root: Path, controller: str) -> list[Path]:
    """Folders of this process's control group and its parents, version 2 and version 1."""
    folders: list[Path] = []
    for line in [*_lines(root / "proc/self/cgroup"), "0::/", f"0:{controller}:/"]:
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and controller not in controllers.split(","):
            continue
        mount = root / "sys/fs/cgroup"
        if controllers or number != "0":
            mount /= controller
        place = mount / path.lstrip("/")
        folders += [item for item in (place, *place.parents) if item == mount or mount in item.parents]
    return list(dict.fromkeys(folders))


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return []


def _words(path: Path) -> tuple[str, ...]:
    return tuple(word for line in _lines(path)[:1] for word in line.split())
