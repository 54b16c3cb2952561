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
from tunesmith.foreign import LARGE_BYTES, read_object

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
ITEM_BYTES: Mapping[str, int] = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2,
    "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "C64": 8,
}  # fmt: skip
MOST_HEADER_BYTES = 25_000_000
"""The format allows four times as much; 100,000 tensors take 12 MB, and JSON takes up to 30 times its size in memory."""

MOST_DIMENSIONS = 8
MOST_ELEMENTS = 1 << 60
_COPY_AGAIN = "copy or download the file again"


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor of a file: shape, the format's type name (``BF16`` …), its bytes on disk, and at which byte they start."""

    shape: tuple[int, ...]
    dtype: str
    num_bytes: int
    offset: int = 0

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
    payload = _header(path, size)
    try:
        header = json.loads(payload, object_pairs_hook=_once)
        entries = {name: _entry(name, item) for name, item in header.items() if name != "__metadata__"}
        end = _without_gaps(entries)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        what = "it nests too deeply" if isinstance(error, RecursionError) else str(error)
        raise ModelError(
            f"the header of the weight file is broken: {what}", where=str(path), hint=_COPY_AGAIN
        ) from None
    if 8 + len(payload) + end != size:
        raise _torn(path, size, f"its header expects {8 + len(payload) + end:,} bytes")
    start = 8 + len(payload)
    return {
        name: TensorInfo(shape, dtype, last - first, start + first)
        for name, (shape, dtype, first, last) in entries.items()
    }


def _header(path: Path, size: int) -> bytes:
    with path.open("rb") as stream:
        start = stream.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if len(start) == 8 and 8 + length > size:
            if length > MOST_HEADER_BYTES:
                raise ModelError(f"not a safetensors file ({size:,} bytes)", where=str(path), hint=_COPY_AGAIN)
            raise _torn(path, size, f"its header alone ends at byte {8 + length:,}")
        if len(start) < 8:
            raise ModelError(f"not a safetensors file ({size:,} bytes)", where=str(path), hint=_COPY_AGAIN)
        if length > MOST_HEADER_BYTES:
            raise ModelError(
                f"the header of the weight file has {length:,} bytes, at most {MOST_HEADER_BYTES:,} are read",
                where=str(path),
                hint="save the model in more, smaller files",
            )
        return stream.read(length)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object whose names are all different: with a name twice, two readers would see two files."""
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError("it names a tensor twice")
    return values


_Entry = tuple[tuple[int, ...], str, int, int]
"""Shape, type, first byte and one past the last."""


def _entry(name: str, item: Mapping[str, Any]) -> _Entry:
    shape, (begin, end), dtype = tuple(item["shape"]), item["data_offsets"], item["dtype"]
    if not all(type(number) is int for number in (*shape, begin, end)) or not isinstance(dtype, str):
        raise ValueError(f"tensor `{name}` has a size that is no whole number")
    if min(shape, default=0) < 0 or not 0 <= begin <= end:
        raise ValueError(f"tensor `{name}` has a negative size")
    if len(shape) > MOST_DIMENSIONS or max(*shape, end, 0) > MOST_ELEMENTS:
        raise ValueError(f"tensor `{name}` is larger than any")
    if dtype in ITEM_BYTES and prod(shape) * ITEM_BYTES[dtype] != end - begin:
        raise ValueError(f"tensor `{name}` of shape {list(shape)} and type {dtype} has {end - begin} bytes")
    if prod(shape) > MOST_ELEMENTS:
        raise ValueError(f"tensor `{name}` is larger than any")
    return shape, dtype, begin, end


def _without_gaps(entries: Mapping[str, _Entry]) -> int:
    """Where the last tensor ends. Raises ValueError where two share bytes, or bytes between two belong to none."""
    end = 0
    for name, (_, _, first, last) in sorted(entries.items(), key=lambda item: item[1][2:]):
        if first != end:
            raise ValueError(f"tensor `{name}` {'shares bytes with another' if first < end else 'leaves bytes unused'}")
        end = last
    return end


def _torn(path: Path, size: int, expected: str) -> ModelError:
    return ModelError(f"the weight file is torn: it has {size:,} bytes, {expected}", where=str(path), hint=_COPY_AGAIN)


def _weight_map(path: Path) -> dict[str, str]:
    values = read_object(path, LARGE_BYTES)
    try:
        names = {str(tensor): str(file) for tensor, file in values["weight_map"].items()}
    except (KeyError, AttributeError) as error:
        raise ModelError(
            f"the index of the weight files is broken: {error!r}", where=str(path), hint=_COPY_AGAIN
        ) from None
    outside = next(
        (name for name in names.values() if Path(name).name != name or not name.endswith(".safetensors")), None
    )
    if outside is not None or not names:
        raise ModelError(
            f"the index names `{outside}`, which is not a safetensors file of this folder"
            if outside is not None
            else "the index is empty",
            where=str(path),
            hint=_COPY_AGAIN,
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
