"""The built wheel in an empty environment runs the demo from an empty folder, without a network."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy of the checkout's tracked parts."""
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    shutil.copytree(ROOT / "src", source / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(source)]
    subprocess.run(command, check=True, capture_output=True)
    (found,) = out.glob("*.whl")
    return found


def test_the_wheel_holds_model_data_and_templates(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for name in (
        "tunesmith/embedded/tunesmith-base-8m/model.safetensors",
        "tunesmith/embedded/tunesmith-base-8m/tokenizer.json",
        "tunesmith/embedded/tunesmith-base-8m/chat_template.jinja",
        "tunesmith/embedded/helpdesk/test.jsonl",
        "tunesmith/embedded/probes/general.jsonl",
        "tunesmith/py.typed",
    ):
        assert name in names
    assert any(name.startswith("tunesmith/reports/templates/") for name in names)
    assert wheel.stat().st_size < 25 << 20


def test_installed_into_an_empty_environment_the_demo_runs_offline(wheel: Path, tmp_path: Path) -> None:
    environment = tmp_path / "environment"
    venv.create(environment, with_pip=True)
    python = environment / "bin" / "python"
    torch_version = subprocess.run(
        [sys.executable, "-c", "from importlib.metadata import version; print(version('torch').split('+')[0])"],
        check=True, capture_output=True, text=True,
    ).stdout.strip()  # fmt: skip
    constraints = ["--constraint", str(ROOT / "requirements" / "constraints.txt")]
    for package in ([f"torch=={torch_version}"], [*constraints, str(wheel)]):
        done = subprocess.run(
            [str(python), "-m", "pip", "install", "--quiet", *package], capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            pytest.skip(f"no package index can be reached: {done.stderr.strip().splitlines()[-1:]}")
    empty = tmp_path / "empty"
    empty.mkdir()
    command = [str(environment / "bin" / "tunesmith"), "demo", "--json"]
    if shutil.which("unshare") and os.geteuid() == 0:
        command = ["unshare", "--net", *command]
    clean = {
        "PATH": os.environ["PATH"], "HOME": str(tmp_path), "LANG": "C.UTF-8",
        "http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9",
    }  # fmt: skip
    done = subprocess.run(command, cwd=empty, env=clean, capture_output=True, text=True, check=False, timeout=900)
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads(done.stdout)
    report = empty / result["report"]
    assert report.is_file()
    print(f"demo took {result['seconds']:.0f} s")
    cards = report.parent / "scorecards"
    tuned = json.loads((cards / "tuned.json").read_text())["tasks"]
    base = json.loads((cards / "base.json").read_text())["tasks"]
    assert tuned["label_ranking"]["accuracy"]["low"] > base["label_ranking"]["accuracy"]["high"]
    assert tuned["exact_match"]["exact_match"]["value"] < 1.0
    assert json.loads((cards / "comparison.json").read_text())["verdict"] == "better"
