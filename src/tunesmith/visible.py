"""Text of strangers on a terminal: signs that would move the cursor, colour the screen or turn the words around are shown.

A terminal obeys what it is sent: an escape sequence in a row of data could clear the screen, retitle the window, or write
over the line that says what is wrong. Torch-free.
"""

from __future__ import annotations

import re
import shlex

_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
"""C0 but for the tab and the line's end, DEL, C1 (which holds escapes of one byte), and what sets the direction of text."""


def visible(text: str) -> str:
    r"""The text with its control characters written as escapes, ``\x1b`` for the escape itself."""
    return _CONTROLS.sub(_escape, text)


def _escape(match: re.Match[str]) -> str:
    number = ord(match.group())
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}"


def is_inert(command: str) -> bool:
    """Whether a line that claims to be a call of ``tunesmith`` is one, and nothing in it that a shell would obey.

    A run's folder names the command that made it; a stranger's may name another.
    """
    try:
        words = shlex.split(command)
    except ValueError:
        return False
    return words[:1] == ["tunesmith"] and shlex.join(words) == command and command.isprintable()
