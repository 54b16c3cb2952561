"""Numbers as a person reads them. What is not known is a dash, never a zero."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import Any

DASH = "–"
MINUS = "−"
_YEAR_10000 = 253_402_300_800
"""First second, since 1970, whose year has five digits."""
_LARGEST = 1e300
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def as_number(value: Any) -> float | None:
    """A finite number, or None for anything else (JSON writes non-finite values as null).

    One beyond ``_LARGEST`` was measured by nobody, and sums of such are infinite.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not -_LARGEST < value < _LARGEST:
        return None
    return float(value)


def as_mapping(value: Any) -> dict[str, Any]:
    """A JSON object, or an empty one for anything else."""
    return value if isinstance(value, dict) else {}


def as_list(value: Any) -> list[Any]:
    """A JSON list, or an empty one for anything else."""
    return value if isinstance(value, list) else []


def count(value: float | None) -> str:
    """A whole number with thousands separated by commas."""
    return DASH if value is None else f"{value:,.0f}".replace("-", MINUS)


def number(value: float | None, digits: int = 3) -> str:
    """A number to ``digits`` significant places: 0.00118, 27.1, 1,240; powers of ten outside 1e-4 to 1e7."""
    if value is None:
        return DASH
    if value == 0:
        return "0"
    size = math.floor(math.log10(abs(value)))
    if size < -4 or size > 6:
        mantissa, exponent = f"{value:.{max(digits - 1, 0)}e}".split("e")
        return f"{mantissa.replace('-', MINUS)}e{int(exponent)}"
    return f"{value:,.{max(digits - 1 - size, 0)}f}".replace("-", MINUS)


def signed(value: float | None, digits: int = 3) -> str:
    """The same with a plus sign where it is positive."""
    return DASH if value is None else ("+" if value > 0 else "") + number(value, digits)


def percent(value: float | None, digits: int = 1) -> str:
    """A share from 0 to 1 as ``78.1 %``."""
    return DASH if value is None else f"{100 * value:.{digits}f} %".replace("-", MINUS)


def points(value: float | None, digits: int = 1) -> str:
    """A difference of shares as ``+46.9 points``."""
    return DASH if value is None else f"{100 * value:+.{digits}f} points".replace("-", MINUS)


def duration(seconds: float | None) -> str:
    """Seconds as ``0.42 s``, ``38 s``, ``2 min 11 s`` or ``3 h 05 min``."""
    if seconds is None:
        return DASH
    if seconds < 10:
        return f"{number(seconds, 2)} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min"


def clock(seconds: Any) -> str:
    """Seconds since 1970 as ``2026-11-22 12:50:21``, in UTC; a dash for what is no such time."""
    since = as_number(seconds)
    if since is None or not 0 <= since < _YEAR_10000:
        return DASH
    return datetime.fromtimestamp(since, UTC).strftime("%Y-%m-%d %H:%M:%S")


def size(num_bytes: float | None) -> str:
    """Bytes in binary units."""
    if num_bytes is None:
        return DASH
    value, unit = float(num_bytes), 0
    while abs(value) >= 1024 and unit < len(_UNITS) - 1:
        value, unit = value / 1024, unit + 1
    return f"{count(value) if unit == 0 else number(value)} {_UNITS[unit]}"


def chance(p_value: float | None) -> str:
    """A p-value as ``p = 0.012`` or ``p < 0.001``, as the comparison's sentence has it."""
    if p_value is None:
        return ""
    return "p < 0.001" if p_value < 0.001 else f"p = {p_value:.{2 if p_value >= 0.1 else 3}f}"


def plain(name: str) -> str:
    """A name of the program as words: ``label_ranking`` is ``label ranking``."""
    return name.replace("_", " ").strip()


def excerpt(text: Any, most: int) -> tuple[str, int]:
    """The first ``most`` characters of a text, and how many were left out."""
    whole = text if isinstance(text, str) else "" if text is None else str(text)
    return (whole, 0) if len(whole) <= most else (whole[:most].rstrip(), len(whole) - most)
