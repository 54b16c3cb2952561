"""The first guide and the course do what they say: every ``sh`` block, in order, in one folder."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
DOCS = REPOSITORY / "docs"
LESSONS = sorted((DOCS / "course").glob("[0-9]-*.md"))
_BLOCK = re.compile(r"^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: Path) -> list[str]:
    """The commands of a page, block by block."""
    return _BLOCK.findall(page.read_text(encoding="utf-8"))


def _run(page: Path, folder: Path) -> None:
    """Run all blocks of a page in one shell that stops at the first command that fails."""
    scripts = Path(sys.executable).parent
    surroundings = {**os.environ, "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}", "OMP_NUM_THREADS": "2"}
    script = "set -euo pipefail\n" + "\n".join(blocks(page))
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("needs bash")
    done = subprocess.run(
        [bash, "-c", script], cwd=folder, env=surroundings, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, f"{page.name}: exit {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"


@pytest.mark.slow
def test_the_first_guide(tmp_path: Path) -> None:
    _run(DOCS / "guides" / "first-run.md", tmp_path)
    desk = tmp_path / "first"
    assert (desk / "runs" / "library-desk" / "report.html").is_file()
    assert (desk / "adapter-only" / "adapter_model.safetensors").is_file()
    assert (desk / "library-model" / "model.safetensors").is_file()


@pytest.mark.slow
def test_the_course(tmp_path: Path) -> None:
    for page in LESSONS:
        _run(page, tmp_path)
    runs = {path.name for path in (tmp_path / "runs").iterdir()}
    assert runs == {"desk", "full", "partial", "chat-tokens", "frozen-embedding", "slow"}
    assert (tmp_path / "desk-model" / "model.safetensors").is_file()


def test_pages_have_commands() -> None:
    assert len(LESSONS) == 6
    for page in (*LESSONS, DOCS / "guides" / "first-run.md"):
        assert any("tunesmith " in block for block in blocks(page)), page


@pytest.mark.parametrize("page", LESSONS, ids=lambda page: page.stem)
def test_lessons_have_their_parts(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for part in ("**Goal.**", "## Commands", "## What to look for", "## Exercises", "<details><summary>Answers"):
        assert text.count(part) == 1, part
    asked = text.split("## Exercises")[1].split("<details>")[0]
    answered = text.split("<details>")[1]
    numbers = [re.findall(r"^(\d+)\. ", part, re.MULTILINE) for part in (asked, answered)]
    assert numbers[0] == numbers[1]
