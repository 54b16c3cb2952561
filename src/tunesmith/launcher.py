"""How many processes a launcher such as torchrun started, and which of them this one is: from its environment. Torch-free."""

from __future__ import annotations

import os

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


def num_ranks() -> int:
    """Processes of the run: 1 without a launcher."""
    size = os.environ.get("WORLD_SIZE", "1")
    return int(size) if size.isdecimal() and int(size) > 0 else 1


def is_follower() -> bool:
    """Whether another process evaluates, saves and speaks for the run."""
    return num_ranks() > 1 and os.environ.get("RANK", "0") != "0"
