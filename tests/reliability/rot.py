"""Ways in which a file rots: what they do to its bytes, and where."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path

Change = Callable[[bytes], bytes]


def flipped(at: int, bit: int) -> Change:
    """One bit turned."""

    def change(payload: bytes) -> bytes:
        rotten = bytearray(payload or b" ")
        rotten[at] ^= 1 << bit
        return bytes(rotten)

    return change


def zeroed(start: int, count: int = 512) -> Change:
    """A sector of nothing, as an unwritten block reads after a power cut."""
    return lambda payload: payload[:start] + bytes(len(payload[start : start + count])) + payload[start + count :]


def cut(length: int) -> Change:
    """The end is missing."""
    return lambda payload: payload[:length]


def flips(payload: bytes, every: int, choice: random.Random) -> Iterator[tuple[str, Change]]:
    """One bit of every k-th byte, from the first to the last."""
    places = [*range(choice.randrange(every), len(payload), every), len(payload) - 1]
    for at in places:
        bit = choice.randrange(8)
        yield f"bit {bit} of byte {at}", flipped(at, bit)


def cuts(payload: bytes, pieces: int) -> Iterator[tuple[str, Change]]:
    """The file ends early, at the start, between, and one byte before its end."""
    for length in sorted({len(payload) * part // pieces for part in range(pieces)} | {len(payload) - 1}):
        yield f"cut to {length} bytes", cut(length)


def sectors(payload: bytes, size: int = 512) -> Iterator[tuple[str, Change]]:
    """Each sector zeroed."""
    for start in range(0, len(payload), size):
        yield f"zeros from byte {start}", zeroed(start, size)


def other_texts() -> Iterator[tuple[str, Change]]:
    """Something else entirely in place of JSON."""
    for name, text in (
        ("null", b"null"), ("a list", b"[]"), ("an object", b"{}"), ("a number", b"1e999"), ("a string", b'"x"'),
        ("deep nesting", b"[" * 100_000), ("no UTF-8", b"\xff\xfe{}"), ("text", b"hello\n"), ("NaN", b"NaN"),
        ("a byte more", b""),
    ):  # fmt: skip
        yield name, (lambda payload: payload + b"}") if name == "a byte more" else (lambda _, text=text: text)


def write(path: Path, payload: bytes) -> None:
    """Replace a file's bytes, whatever the disk layer is."""
    path.write_bytes(payload)
