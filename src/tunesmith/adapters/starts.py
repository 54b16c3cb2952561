"""Randomness for the start of what adapters add."""

from __future__ import annotations

import hashlib

import torch


def start_generator(seed: int, site: str, matrix: str) -> torch.Generator:
    """Randomness for the start of one matrix at one site, whatever the order in which sites are visited."""
    digest = hashlib.sha256(f"{seed}\n{site}\n{matrix}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
