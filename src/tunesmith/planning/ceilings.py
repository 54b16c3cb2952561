"""What devices can compute at most, for saying how far a run is from it. Torch-free."""

from __future__ import annotations

_BF16_TFLOPS = (
    ("H200", 989.0), ("H100 PCIe", 756.0), ("H100", 989.0), ("A100", 312.0), ("L40S", 362.0), ("L4", 121.0), ("A10", 125.0),
    ("RTX 4090", 165.0), ("RTX 3090", 71.0), ("V100", 125.0), ("T4", 65.0),
)  # fmt: skip
"""Part of a device's name -> dense tensor operations as its maker states them, bf16, or fp16 where it has no bf16; the first that fits."""


def ceiling_tflops(name: str) -> float | None:
    """TFLOP/s that a device's maker states for 16-bit matrices; None for one that is not in the table, and for CPUs."""
    return next((ceiling for part, ceiling in _BF16_TFLOPS if part in name), None)
