"""Randomness of the model: a function of (seed, step, atom), set anew for each forward pass, never carried."""

from __future__ import annotations

import hashlib

import torch


def seed_for(seed: int, *place: int | str) -> int:
    """A 63-bit seed for a place in the run; unlike places are unrelated."""
    text = "/".join(str(part) for part in (seed, *place))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def reseed(seed: int, step: int, atom: int) -> None:
    """Seed torch's default generators for one forward pass."""
    torch.manual_seed(seed_for(seed, "model", step, atom))


def use_deterministic(on: bool) -> None:
    """Ask torch for kernels that give the same bits twice; an operation without one raises RuntimeError."""
    torch.use_deterministic_algorithms(on)
    torch.backends.cudnn.benchmark = False
