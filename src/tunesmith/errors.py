"""The one exception tree. An error says what is wrong, where, and how to mend it.

TunesmithError
├── UserError            exit 2   the input is wrong
│   ├── RecipeError               a recipe file, key or value
│   ├── DataError                 a data file or too many bad rows
│   ├── ModelError                a model folder, its weights or tokenizer
│   └── RunError                  a run folder: another recipe's, unreadable, unfinished
├── GateRefused          exit 3   a check that can refuse did: memory, parity, promotion
│   └── HardwareMissing           the recipe asks for hardware that is not here
├── GuardStopped         exit 4   training was stopped: non-finite, diverged, disk full
└── Interrupted          exit 130 stopped by a signal, a checkpoint is saved
"""

from __future__ import annotations


class TunesmithError(Exception):
    """Base of every error a user may see.

    Args:
        what: one sentence, what is wrong.
        where: file, line or row, key; empty when the whole command is meant.
        hint: one sentence, how to mend it.
    """

    exit_code = 2

    def __init__(self, what: str, *, where: str = "", hint: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.hint = hint

    def __str__(self) -> str:
        """Render the three parts, one a line."""
        lines = [self.what]
        if self.where:
            lines.append(f"  at {self.where}")
        if self.hint:
            lines.append(f"hint: {self.hint}")
        return "\n".join(lines)

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        """Stay picklable for worker processes, keyword arguments included."""
        return (_rebuild, (type(self), self.what, self.where, self.hint))


def _rebuild(kind: type[TunesmithError], what: str, where: str, hint: str) -> TunesmithError:
    return kind(what, where=where, hint=hint)


class UserError(TunesmithError):
    """The user's input is wrong."""


class RecipeError(UserError):
    """A recipe file, key or value is wrong."""


class DataError(UserError):
    """A data file is wrong, or too many of its rows are."""


class ModelError(UserError):
    """A model folder, its weights, tokenizer or template are wrong."""


class RunError(UserError):
    """A run folder is another recipe's, unreadable, or lacks what the verb needs."""


class GateRefused(TunesmithError):
    """A gate refused: does not fit, parity failed."""

    exit_code = 3


class HardwareMissing(GateRefused):
    """The recipe asks for hardware that this machine does not have."""


class GuardStopped(TunesmithError):
    """A guard stopped training; the last good checkpoint stays."""

    exit_code = 4


class Diverged(GuardStopped):
    """The numbers of training went wrong: the same recipe on the same rows would do so again."""


class Interrupted(TunesmithError):
    """A signal stopped training; a checkpoint is saved."""

    exit_code = 130
