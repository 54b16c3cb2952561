"""Headers of safetensors files, read by hand: names, shapes and types of all tensors without loading one.

A file is: 8 bytes little-endian length n, n bytes of JSON, then the tensors' bytes at the offsets that the JSON names.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from tunesmith.errors import ModelError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
ITEM_BYTES: Mapping[str, int] = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2,
    "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "C64": 8,
}  # fmt: skip
_MAX_HEADER_BYTES = 100_000_000
_COPY_AGAIN = "copy or download the file again"


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor of a file: shape, the format's type name (``BF16`` …) and its bytes on disk."""

    shape: tuple[int, ...]
    dtype: str
    num_bytes: int

    @property
    def num_elements(self) -> int:
        """Product of the shape."""
        return prod(self.shape)


def weight_files(folder: Path) -> list[Path]:
    """Weight files of a model folder, one or all shards of its index.

    Raises:
        ModelError: none, only pickled weights, or a shard is missing.
    """
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    if (folder / INDEX).is_file():
        names = sorted(set(_weight_map(folder / INDEX).values()))
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            shown = ", ".join(missing[:5]) + (" …" if len(missing) > 5 else "")
            raise ModelError(
                f"{len(missing)} of {len(names)} weight files that the index names are missing: {shown}",
                where=str(folder / INDEX),
                hint="copy or download the missing files into the folder",
            )
        return [folder / name for name in names]
    raise _no_weights(folder)


def read_tensors(folder: Path) -> dict[str, TensorInfo]:
    """All tensors of a model folder by name.

    Raises:
        ModelError: as ``weight_files`` and ``read_header``, or a shard lacks a tensor that the index places there.
    """
    files = weight_files(folder)
    tensors: dict[str, TensorInfo] = {}
    for path in files:
        tensors.update(read_header(path))
    if files[0].name != SINGLE:
        absent = sorted(name for name in _weight_map(folder / INDEX) if name not in tensors)
        if absent:
            raise ModelError(
                f"the index names {len(absent)} tensors that no weight file holds, the first is `{absent[0]}`",
                where=str(folder / INDEX),
                hint="index and weight files do not belong together: copy the whole folder again",
            )
    return tensors


def read_header(path: Path) -> dict[str, TensorInfo]:
    """Tensors of one safetensors file, checked against the size of the file.

    Raises:
        ModelError: torn or not a safetensors file; names the file, its size and the size that the header expects.
    """
    size = path.stat().st_size
    with path.open("rb") as stream:
        start = stream.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if len(start) < 8 or length > _MAX_HEADER_BYTES:
            raise ModelError(f"not a safetensors file ({size:,} bytes)", where=str(path), hint=_COPY_AGAIN)
        if 8 + length > size:
            raise _torn(path, size, f"its header alone ends at byte {8 + length:,}")
        payload = stream.read(length)
    try:
        header = json.loads(payload)
        tensors = {name: _tensor(name, item) for name, item in header.items() if name != "__metadata__"}
        end = max((item["data_offsets"][1] for name, item in header.items() if name != "__metadata__"), default=0)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise ModelError(
            f"the header of the weight file is broken: {error}", where=str(path), hint=_COPY_AGAIN
        ) from None
    if 8 + length + end != size:
        raise _torn(path, size, f"its header expects {8 + length + end:,} bytes")
    return tensors


def _tensor(name: str, item: Mapping[str, Any]) -> TensorInfo:
    shape = tuple(int(width) for width in item["shape"])
    begin, end = item["data_offsets"]
    dtype = item["dtype"]
    if min(shape, default=0) < 0 or not 0 <= begin <= end:
        raise ValueError(f"tensor `{name}` has a negative size")
    if dtype in ITEM_BYTES and prod(shape) * ITEM_BYTES[dtype] != end - begin:
        raise ValueError(f"tensor `{name}` of shape {list(shape)} and type {dtype} has {end - begin} bytes")
    return TensorInfo(shape, dtype, end - begin)


def _torn(path: Path, size: int, expected: str) -> ModelError:
    return ModelError(f"the weight file is torn: it has {size:,} bytes, {expected}", where=str(path), hint=_COPY_AGAIN)


def _weight_map(path: Path) -> dict[str, str]:
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        names = {str(tensor): str(file) for tensor, file in entries.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(
            f"the index of the weight files is broken: {error!r}", where=str(path), hint=_COPY_AGAIN
        ) from None
    outside = next(
        (name for name in names.values() if Path(name).name != name or not name.endswith(".safetensors")), None
    )
    if outside is not None or not names:
        raise ModelError(
            f"the index names `{outside}`, which is not a safetensors file of this folder"
            if outside
            else "the index is empty",
            where=str(path),
        )
    return names


def _no_weights(folder: Path) -> ModelError:
    names = sorted(item.name for item in folder.iterdir())
    pickled = [name for name in names if name.endswith(PICKLE_SUFFIXES)]
    others = [name for name in names if name.endswith((".safetensors", ".gguf"))]
    shown = ", ".join(names[:12]) + (" …" if len(names) > 12 else "") if names else "nothing"
    if pickled and not others:
        return ModelError(
            f"the weights are pickles ({', '.join(pickled[:3])}) and are refused: unpickling a file runs code that it carries",
            where=str(folder),
            hint="convert them once in a sandbox without network or secrets: load with "
            "`torch.load(file, weights_only=True)` and write with `safetensors.torch.save_file(state, 'model.safetensors')`",
        )
    hint = f"the weights must be named {SINGLE}, or be shards listed in {INDEX}"
    return ModelError(f"the model folder has no weights; it holds: {shown}", where=str(folder), hint=hint)
