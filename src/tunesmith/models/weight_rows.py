"""Single rows of a stored matrix, read by hand. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tunesmith.errors import ModelError
from tunesmith.models.weights import ITEM_BYTES, read_header, weight_files

_FLOATS: Mapping[str, str] = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
_COPY_AGAIN = "copy or download the file again"


def read_rows(folder: Path, name: str, rows: Sequence[int]) -> NDArray[np.float32]:
    """Some rows of a stored matrix in fp32 ``[len(rows), columns]``; nothing else of it is read.

    Args:
        folder: of the model.
        name: of the matrix, as it is stored.
        rows: their numbers.

    Raises:
        ModelError: no file holds it, it has no such row, or its numbers are of another type than 16, 32 or 64 bit floats.
    """
    for path in weight_files(folder):
        info = read_header(path).get(name)
        if info is not None:
            break
    else:
        raise ModelError(f"no weight file holds `{name}`", where=str(folder), hint=_COPY_AGAIN)
    if info.dtype not in _FLOATS or len(info.shape) != 2 or not all(0 <= row < info.shape[0] for row in rows):
        raise ModelError(
            f"rows {min(rows)} to {max(rows)} of `{name}` cannot be read: it has shape {list(info.shape)} and type {info.dtype}",
            where=str(path),
            hint=_COPY_AGAIN,
        )
    num_bytes = info.shape[1] * ITEM_BYTES[info.dtype]
    parts = []
    with path.open("rb") as stream:
        for row in rows:
            stream.seek(info.offset + row * num_bytes)
            parts.append(stream.read(num_bytes))
    numbers = np.frombuffer(b"".join(parts), dtype=_FLOATS[info.dtype]).reshape(len(rows), info.shape[1])
    if info.dtype == "BF16":  # the upper half of an fp32
        return (numbers.astype(np.uint32) << 16).view(np.float32)
    return numbers.astype(np.float32)
