"""What `doctor` finds, says, and how it ends."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tunesmith import embedded
from tunesmith.files import sha256_of
from tunesmith.planning.machine import Gpu
from tunesmith.workshop import doctor

Call = Callable[..., Any]


def _checks(call: Call) -> dict[str, dict[str, Any]]:
    said = call("doctor", "--json")
    return {check["name"]: check for check in said.json["checks"]}


def test_this_machine_is_ready(call: Call) -> None:
    said = call("doctor")
    assert said.code == 0, said.out
    assert said.out.splitlines()[-1] == "ready to train"
    for name in ("python", "torch", "memory", "disk", "processor", "cache", "embedded model", "extra trackio"):
        assert name in said.out


def test_every_check_is_plain_data(call: Call) -> None:
    found = call("doctor", "--json").json
    assert found["ready"] is True
    assert all(set(check) == {"name", "state", "found", "hint", "facts"} for check in found["checks"])


def test_embedded_model_is_the_one_that_was_released() -> None:
    folder = embedded.ROOT / embedded.DEFAULT_MODEL
    assert {name: sha256_of(folder / name) for name in doctor.EMBEDDED_SHA256} == doctor.EMBEDDED_SHA256


def test_damaged_model_is_found(call: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    shutil.copytree(embedded.ROOT / embedded.DEFAULT_MODEL, tmp_path / embedded.DEFAULT_MODEL)
    with (tmp_path / embedded.DEFAULT_MODEL / "model.safetensors").open("r+b") as stream:
        stream.seek(-1, 2)
        stream.write(b"\x01")
    (tmp_path / embedded.DEFAULT_MODEL / "tokenizer.json").unlink()
    monkeypatch.setattr(embedded, "ROOT", tmp_path)
    said = call("doctor")
    assert said.code == 3
    assert "damaged: model.safetensors, tokenizer.json" in said.out.replace("\n                         ", " ")
    assert "something must be mended" in said.out


def test_missing_extras_name_the_command(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_version", lambda name: None if name == "trackio" else "1.0")
    check = _checks(call)["extra trackio"]
    assert (check["state"], check["hint"]) == ("note", 'pip install "tunesmith[trackio]"')
    assert _checks(call)["extra wandb"]["state"] == "ok"


def test_missing_dependency_is_bad(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_version", lambda name: None if name in ("torch", "rich") else "1.0")
    said = call("doctor", "--json")
    assert said.code == 3
    assert {check["name"] for check in said.json["checks"] if check["state"] == "bad"} == {
        "torch",
        "package torch",
        "package rich",
    }


def test_gpu_with_a_cpu_build_of_torch(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = doctor.detect(doctor.MachineSection())
    values = {
        **machine.__dict__,
        "gpus": (Gpu("NVIDIA H200", 141 << 30, (9, 0)),),
        "device": "cuda",
        "name": "NVIDIA H200",
    }
    monkeypatch.setattr(doctor, "detect", lambda section: type(machine)(**values))
    monkeypatch.setattr(doctor, "_version", lambda name: "2.13.0+cpu")
    checks = _checks(call)
    assert checks["torch"]["state"] == "note"
    assert "cannot use it" in checks["torch"]["hint"]
    assert "NVIDIA H200 (141.0 GiB)" in checks["gpu"]["found"]


def test_cache_says_how_to_clear_it(call: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    root = tmp_path / "cache"
    root.mkdir()
    (root / "x.bin").write_bytes(b"0" * 2048)
    monkeypatch.setenv("TUNESMITH_CACHE", str(root))
    check = _checks(call)["cache"]
    assert check["facts"] == {"folder": str(root), "bytes": 2048}
    assert f"rm -r {root}" in check["hint"]


def test_little_memory_and_disk_are_said(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_LEAST_MEMORY_BYTES", 1 << 60)
    monkeypatch.setattr(doctor, "_LEAST_DISK_BYTES", 1 << 60)
    checks = _checks(call)
    assert checks["memory"]["state"] == checks["disk"]["state"] == "note"
    assert checks["memory"]["hint"]
    assert checks["disk"]["hint"]


def test_nothing_heavy_is_imported() -> None:
    code = "import sys\nfrom tunesmith.cli.main import run\nassert run(['doctor']) == 0\nassert not {'torch', 'transformers'} & set(sys.modules)\n"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30, stdout=subprocess.DEVNULL)
