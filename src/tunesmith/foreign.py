"""Files that strangers wrote, read within limits: a size, a kind of file, a depth of nesting. Torch-free.

A model folder, an adapter or a run may come from anybody. What is read of it whole is read through this module, so that
no link to a device, no endless pipe and no deep nesting hangs a verb or fills the memory.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tunesmith.errors import ModelError, TunesmithError
from tunesmith.json_values import TooDeep, refuse_deep

SMALL_BYTES = 16 << 20
"""Configurations and templates: the largest known is below 2 MB. JSON takes up to 30 times its size in memory."""

LARGE_BYTES = 64 << 20
"""Tokenizers and indices of weight files: the largest known is below 35 MB."""

_COPY_AGAIN = "copy the file again from where it came from"


def read_bytes(path: Path, most: int = SMALL_BYTES, kind: type[TunesmithError] = ModelError) -> bytes:
    """All bytes of a regular file of at most ``most`` bytes.

    Raises:
        FileNotFoundError: there is none.
        kind: it cannot be read, is larger, or is no regular file (a device, a pipe, a folder).
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise kind(
                "this is not a regular file", where=str(path), hint="a folder, a pipe or a device is never read here"
            )
        with path.open("rb") as stream:
            payload = stream.read(most + 1)
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:  # a name with a null character is a ValueError
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise kind(f"{path.name} cannot be read: {reason}", where=str(path), hint="check its permissions") from error
    if len(payload) > most:
        raise kind(
            f"{path.name} is larger than {most >> 20} MiB, the most that is read of its kind",
            where=str(path),
            hint=_COPY_AGAIN,
        )
    return payload


def read_text(path: Path, most: int = SMALL_BYTES, kind: type[TunesmithError] = ModelError) -> str:
    """The same as UTF-8 text.

    Raises:
        FileNotFoundError: there is none.
        kind: as ``read_bytes``, or it is not UTF-8.
    """
    payload = read_bytes(path, most, kind)
    try:
        return payload.decode("utf-8")
    except UnicodeDecodeError as error:
        raise kind(f"{path.name} is not UTF-8 text (byte {error.start})", where=str(path), hint=_COPY_AGAIN) from None


def read_json(path: Path, most: int = SMALL_BYTES, kind: type[TunesmithError] = ModelError) -> Any:
    """The value of a JSON file.

    Raises:
        FileNotFoundError: there is none.
        kind: as ``read_text``, or it is not JSON or nests too deeply.
    """
    text = read_text(path, most, kind)
    try:
        value = json.loads(text)
        refuse_deep(value)
    except (ValueError, RecursionError) as error:
        why = TooDeep() if isinstance(error, RecursionError) else error
        raise kind(f"{path.name} is not valid JSON: {why}", where=str(path), hint=_COPY_AGAIN) from None
    return value


def read_object(path: Path, most: int = SMALL_BYTES, kind: type[TunesmithError] = ModelError) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        FileNotFoundError: there is none.
        kind: as ``read_json``, or it holds something else than an object.
    """
    value = read_json(path, most, kind)
    if not isinstance(value, dict):
        raise kind(f"{path.name} is not a JSON object", where=str(path), hint=_COPY_AGAIN)
    return value


def refuse_links_out(
    folder: Path, names: Iterable[str], hint: str, kind: type[TunesmithError] = ModelError, also: Iterable[Path] = ()
) -> None:
    """Refuse names in a folder that are links, or lie behind links, which end outside of it and of the folders ``also``.

    Raises:
        kind: names the first of them.
    """
    if folder.is_symlink() and not folder.exists():
        raise kind(
            "the folder is a link that leads nowhere",
            where=str(folder),
            hint="make the folder that it names, or name another one",
        )
    homes = [os.path.realpath(home) for home in (folder, *also)]
    for name in names:
        end = Path(os.path.realpath(folder / name))
        if not any(end.is_relative_to(home) for home in homes):
            raise kind(f"{name} is a link that leads out of the folder", where=str(folder / name), hint=hint)
