"""What the end-to-end tests share: what a call said, a small recipe, what was left behind."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ANSWERS = ("delivery", "billing", "repair")
ROWS = [{"text": f"case number {number}: please look at it", "label": ANSWERS[number % 3]} for number in range(24)]
SOURCE = {"format": "prompt-completion", "columns": {"prompt": "text", "completion": "label"}}


@dataclass(frozen=True)
class Said:
    """What a call of the command line came to."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one object on stdout."""
        assert self.out.count("\n") == 1, self.out
        return json.loads(self.out)

    def refuses(self, code: int, *needles: str) -> Said:
        """Assert a three-part error of this exit code whose words hold all the needles."""
        assert self.code == code, f"exit {self.code}, not {code}\n{self.out}\n{self.err}"
        assert "Traceback" not in self.err
        lines = self.err.splitlines()
        starts = [position for position, line in enumerate(lines) if line.startswith("error: ")]
        assert len(starts) == 1, self.err
        error = lines[starts[0] :]
        assert any(line.startswith("  at ") for line in error), self.err
        assert any(line.startswith("hint: ") for line in error), self.err
        said = "\n".join(error)
        for needle in needles:
            assert needle in said, f"`{needle}` is not in:\n{said}"
        return self


Call = Callable[..., Said]
Write = Callable[..., str]


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def source(path: str) -> list[dict[str, Any]]:
    """``data.train`` of one file with the columns of ``rows.jsonl``."""
    return [{"path": path, **SOURCE}]


def recipe_values() -> dict[str, Any]:
    """A recipe that trains two steps and scores little."""
    return {
        "name": "desk",
        "model": "tiny",
        "data": {"train": source("rows.jsonl"), "validation": 0.2, "test": 0},
        "adapter": {"type": "lora", "rank": 2},
        "training": {"max_steps": 2, "batch_size": 4, "samples": 0, "learning_rate": 1e-3},
        "evaluation": {"preserve": [], "tasks": [{"type": "loss", "data": "validation"}]},
        "machine": {"threads": 1},
    }


def remains(folder: Path) -> list[str]:
    """What a failed call must not leave: runs, exports, prepared data, temporary files."""
    unwanted = [item.name for item in folder.iterdir() if item.name in ("runs", "out")]
    cached = folder / "cache"
    whole = [item.name for item in cached.iterdir() if len(item.name) == 64] if cached.is_dir() else []
    return unwanted + whole + torn(folder)


def torn(folder: Path) -> list[str]:
    """Half-written files and folders."""
    return [str(path.relative_to(folder)) for path in folder.rglob("*.tmp")]
