"""Tunesmith as further processes: the command that starts one, and what the environment of a launcher such as torchrun says. Torch-free."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


def num_ranks() -> int:
    """Processes of the run: 1 without a launcher."""
    size = os.environ.get("WORLD_SIZE", "1")
    return int(size) if size.isdecimal() and int(size) > 0 else 1


def is_follower() -> bool:
    """Whether another process evaluates, saves and speaks for the run."""
    return num_ranks() > 1 and os.environ.get("RANK", "0") != "0"


def own_command(arguments: Sequence[str]) -> list[str]:
    """The command that starts this same Tunesmith with these arguments."""
    # Without -P a module in the current folder could take the place of one of Python's own.
    safe = [] if Path(__file__).resolve().parents[1] == Path.cwd() else ["-P"]
    return [sys.executable, *safe, "-m", "tunesmith", *arguments]
