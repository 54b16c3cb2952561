"""Writes safetensors files piece by piece through the durable disk, hashing on the way: no second copy in memory.

The bytes are those that ``safetensors.torch.save`` gives (format: 8 bytes of header length, JSON header, tensors).
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from tunesmith.disk import disk

_CHUNK_BYTES = 16 << 20
_ALIGNMENT = 8
TYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
    torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2",
}  # fmt: skip
"""Types that can be written, by their names in the format."""
_RANK = ("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "I16", "F16", "BF16", "I32", "F32", "F64", "I64")
"""Order of types in the file, last first: wider types come first, so that each tensor is aligned."""


@dataclass(frozen=True)
class Written:
    """What a file holds: its size and the hex sha256 of its bytes."""

    bytes: int
    sha256: str


def tensor_bytes(tensors: Mapping[str, Tensor]) -> int:
    """Bytes of the tensors themselves."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> Written:
    """Write a new file; the folder it lies in is made durable as a whole.

    Args:
        path: must not exist.
        tensors: on the CPU; anything else is copied there one at a time.

    Raises:
        OSError: the disk did not take it.
    """
    order = sorted(tensors, key=lambda name: (-_RANK.index(TYPES[tensors[name].dtype]), name))
    digest, total = hashlib.sha256(), 0
    with disk().open(path, "xb") as stream:
        for name in ("", *order):
            payload = _payload(tensors[name]) if name else _header({name: tensors[name] for name in order})
            for start in range(0, len(payload), _CHUNK_BYTES):
                chunk = payload[start : start + _CHUNK_BYTES]
                digest.update(chunk)
                disk().write(stream, chunk)
                total += len(chunk)
    return Written(total, digest.hexdigest())


def _header(tensors: Mapping[str, Tensor]) -> memoryview:
    entries, start = {}, 0
    for name, tensor in tensors.items():
        end = start + tensor.numel() * tensor.element_size()
        entries[name] = {"dtype": TYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    text += b" " * (-len(text) % _ALIGNMENT)
    return memoryview(struct.pack("<Q", len(text)) + text)


def _payload(tensor: Tensor) -> memoryview:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data if flat.numel() else memoryview(b"")
