"""The machine is read from files of a made-up root, never from this one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tunesmith.errors import HardwareMissing
from tunesmith.planning import machine
from tunesmith.planning.machine import Machine, detect, find_gpus
from tunesmith.recipe.machine import MachineSection

GIB = 1 << 30
LISTING = (
    "0, GPU-aaaa, NVIDIA H200, 143771, 9.0\n"
    "1, GPU-bbbb, Tesla T4, 15360, 7.5\n"
    "2, GPU-cccc, Broken, [N/A], [N/A]\n"
)  # fmt: skip


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Eight cores and 16 GiB, no control group, no GPU."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/cpuinfo").write_text(
        "processor : 0\nmodel name : Test CPU 9\nflags : fpu avx512_bf16\n\nprocessor : 1\n"
    )
    (tmp_path / "proc/meminfo").write_text(f"MemTotal: {16 * GIB // 1024} kB\nMemFree: 1 kB\n")
    (tmp_path / "proc/self/cgroup").write_text("0::/jobs/mine\n")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    return tmp_path


def write(root: Path, path: str, text: str) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text)


def test_cpu_without_limits(root: Path) -> None:
    found = detect(MachineSection(), root)
    assert (found.device, found.name, found.cores, found.threads) == ("cpu", "Test CPU 9", 8, 8)
    assert found.memory_bytes == found.host_memory_bytes == 16 * GIB
    assert found.available_bytes == int(0.9 * 16 * GIB)
    assert (found.bf16, found.amx, found.avx512_bf16) == (False, False, True)
    assert "8 threads" in found.fingerprint


def test_amx_is_what_makes_bf16_fast(root: Path) -> None:
    write(root, "proc/cpuinfo", "model name : X\nflags : avx512_bf16 amx_tile amx_bf16\n")
    found = detect(MachineSection(), root)
    assert found.amx
    assert found.bf16


def test_limits_of_control_groups_of_both_versions(root: Path) -> None:
    write(root, "sys/fs/cgroup/jobs/mine/cpu.max", "250000 100000\n")
    write(root, "sys/fs/cgroup/jobs/mine/memory.max", "max\n")
    write(root, "sys/fs/cgroup/jobs/memory.max", f"{4 * GIB}\n")
    found = detect(MachineSection(), root)
    assert (found.cores, found.memory_bytes) == (2, 4 * GIB)
    write(root, "proc/self/cgroup", "3:cpu,cpuacct:/a\n2:memory:/a\n")
    write(root, "sys/fs/cgroup/cpu/a/cpu.cfs_quota_us", "-1\n")
    write(root, "sys/fs/cgroup/cpu/a/cpu.cfs_period_us", "100000\n")
    write(root, "sys/fs/cgroup/memory/a/memory.limit_in_bytes", f"{2 * GIB}\n")
    found = detect(MachineSection(), root)
    assert (found.cores, found.memory_bytes) == (8, 2 * GIB)
    write(root, "sys/fs/cgroup/cpu/a/cpu.cfs_quota_us", "50000\n")
    assert detect(MachineSection(), root).cores == 1


def test_recipe_overrules_threads_and_memory(root: Path) -> None:
    found = detect(MachineSection(threads=3, memory_gib=1.5), root)
    assert (found.cores, found.threads) == (8, 3)
    assert found.memory_bytes == found.available_bytes == int(1.5 * GIB)


def test_without_proc_the_system_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on macOS: neither /proc nor affinity."""
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 5)
    monkeypatch.setattr(os, "sysconf", {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 1000}.__getitem__)
    monkeypatch.setenv("PATH", str(tmp_path))
    found = detect(MachineSection(), tmp_path)
    assert (found.cores, found.memory_bytes) == (5, 4_096_000)
    assert found.name


def smi(root: Path, script: str) -> None:
    write(root, "bin/nvidia-smi", f"#!/bin/sh\n{script}\n")
    (root / "bin/nvidia-smi").chmod(0o755)


def listed(root: Path) -> None:
    lines = "\n".join(f"echo '{line}'" for line in LISTING.splitlines())
    smi(root, lines)


def test_gpu_comes_first_and_its_memory_counts(root: Path) -> None:
    listed(root)
    found = detect(MachineSection(), root, {})
    assert (found.device, found.name, found.bf16) == ("cuda", "NVIDIA H200", True)
    assert found.memory_bytes == 143771 << 20
    assert found.available_bytes == int(0.95 * (143771 << 20))
    assert [gpu.capability for gpu in found.gpus] == [(9, 0), (7, 5)]
    assert Machine.from_json(found.to_json()) == found
    assert detect(MachineSection(device="cpu"), root, {}).device == "cpu"


@pytest.mark.parametrize(
    ("visible", "names"),
    [
        ("1", ["Tesla T4"]),
        ("1,0", ["Tesla T4", "NVIDIA H200"]),
        ("GPU-bb", ["Tesla T4"]),
        ("", []),
        ("-1", []),
        ("0,9,1", ["NVIDIA H200"]),
    ],
)
def test_visible_devices(root: Path, visible: str, names: list[str]) -> None:
    listed(root)
    assert [gpu.name for gpu in find_gpus({"CUDA_VISIBLE_DEVICES": visible})] == names


@pytest.mark.parametrize("script", ["exit 9", "echo nonsense", "exec /bin/sleep 5"])
def test_failing_nvidia_smi_means_no_gpu(root: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_SMI_SECONDS", 0.2)
    smi(root, script)
    assert find_gpus({}) == ()
    assert detect(MachineSection(), root, {}).device == "cpu"


def test_cuda_that_is_asked_for_and_missing(root: Path) -> None:
    with pytest.raises(HardwareMissing, match="asks for a CUDA device") as caught:
        detect(MachineSection(device="cuda"), root, {})
    assert caught.value.exit_code == 3
    assert caught.value.where == "machine.device"


def test_omp_num_threads_is_heeded_and_the_recipe_wins(root: Path) -> None:
    asked = {"OMP_NUM_THREADS": "1"}
    assert detect(MachineSection(), root, asked).threads == 1
    assert detect(MachineSection(threads=3), root, asked).threads == 3
    assert detect(MachineSection(), root, {"OMP_NUM_THREADS": "many"}).threads == 8
