"""The commands of docs/results.md name recipes that are there and overrides that hold."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from tunesmith.recipe.codec import load

ROOT = Path(__file__).resolve().parents[2]
BLOCKS = re.findall(r"^```sh\n(.*?)^```$", (ROOT / "docs" / "results.md").read_text(encoding="utf-8"), re.M | re.S)
COMMANDS = [line for block in BLOCKS for line in block.splitlines() if "tunesmith" in line]


def _words(command: str) -> list[str]:
    words = shlex.split(command)
    return words[words.index("tunesmith") + 1 :]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_results_can_be_called(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    verb, recipe, *rest = _words(command)
    assert verb == "train"
    *overrides, option, folder = rest
    assert (option, Path(folder).parent) == ("--run", Path("runs"))
    load(recipe, *overrides)


def test_each_command_has_a_run_folder_of_its_own() -> None:
    folders = [_words(command)[-1] for command in COMMANDS]
    assert len(set(folders)) == len(folders) == 20
