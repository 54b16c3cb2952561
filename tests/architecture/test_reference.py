"""The reference and the pictures on disk are what the code says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("name", ["write_reference.py", "draw_layers.py", "tag_helpdesk.py"])
def test_what_is_made_of_the_code_is_fresh(name: str) -> None:
    tool = REPOSITORY / "tools" / name
    done = subprocess.run(
        [sys.executable, str(tool), "--check"], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", ["recipe.md", "cli.md", "errors.md", "reasons.md"])
def test_tables_are_whole(name: str) -> None:
    """Every row of a table has as many cells as its head."""
    width = 0
    for line in (REPOSITORY / "docs" / "reference" / name).read_text(encoding="utf-8").splitlines():
        if not line.startswith("|"):
            width = 0
            continue
        cells = line.replace("\\|", "").count("|")
        width = width or cells
        assert cells == width, line
