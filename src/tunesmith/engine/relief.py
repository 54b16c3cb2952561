"""What to do when memory runs out: keep fewer activations, then cut passes at document borders. The step stays the step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from tunesmith.engine.checkpoint import Say
from tunesmith.engine.ranks import Ranks
from tunesmith.types import Batch, Step

_ANY = 1 << 62
_CPU_WORDS = ("can't allocate memory", "cannot allocate memory", "not enough memory", "out of memory")


class CannotRelieve(RuntimeError):
    """One document alone does not fit, and activations are recomputed already."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out, on the device or on the host."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error).lower() for word in _CPU_WORDS)


class MemoryRelief:
    """Takes one measure after another, each said aloud and kept for the rest of the run.

    Args:
        model: the facade; ``recompute_activations`` is asked for first where it has one.
        recomputes: whether activations are recomputed from the start.
        has_dropout: whether another cut draws other masks, which is then said.
        name_row: how a row is named to the user.
        say: where measures are told.
    """

    def __init__(
        self, model: Any, *, recomputes: bool, has_dropout: bool, name_row: Callable[[int], str], say: Say
    ) -> None:
        self.model = model
        self.recomputes = recomputes or not hasattr(model, "recompute_activations")
        self.has_dropout = has_dropout
        self.name_row = name_row
        self.say = say
        self.most_tokens: int | None = None
        """Largest pass allowed, in tokens; None for any."""

    def cut(self, step: Step) -> list[Batch]:
        """The same documents in passes of at most ``most_tokens``; a longer document is a pass of its own."""
        if self.most_tokens is None:
            return list(step)
        return [piece for batch in step for piece in _pieces(batch, self.most_tokens)]

    def relieve(self, step: int, batches: Sequence[Batch] | None, ranks: Ranks) -> None:
        """Take the next measure after memory ran out on some rank; all ranks take the same.

        Args:
            step: for words, from 1.
            batches: what did not fit here; None where it was another rank's memory.
            ranks: who else works on the step.

        Raises:
            CannotRelieve: there is none left; says which row is the longest.
        """
        stuck = None
        if batches is not None:
            try:
                self._take_measure(step, batches)
            except CannotRelieve as error:
                stuck = error
        mine = [int(stuck is not None), int(self.recomputes), -(self.most_tokens or _ANY)]
        any_stuck, recomputes, bound = ranks.largest(mine)
        if any_stuck:
            raise stuck or CannotRelieve("a row does not fit into the memory of another rank")
        before = self.state_dict()
        self.load_state_dict({"recomputes": bool(recomputes), "most_tokens": -bound if -bound < _ANY else None})
        if self.state_dict() != before:
            now = (
                f"passes hold at most {self.most_tokens:,} tokens" if self.most_tokens else "activations are recomputed"
            )
            self.say("passes_cut", f"step {step}: memory ran out on another rank; {now} from here on, on all ranks")

    def _take_measure(self, step: int, batches: Sequence[Batch]) -> None:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        largest = max(batches, key=lambda batch: batch.num_tokens)
        where = f"step {step}: a pass of {largest.num_tokens:,} tokens did not fit into memory"
        if not self.recomputes:
            self.model.recompute_activations()
            self.recomputes = True
            self.say("recompute_on", f"{where}; activations are recomputed from here on (slower, the same result)")
            return
        if len(largest.lengths) == 1:
            raise CannotRelieve(
                f"row {self.name_row(largest.rows[0])} with {largest.num_tokens:,} tokens does not fit into memory by itself"
            )
        longest = max(largest.lengths)
        self.most_tokens = max(longest, largest.num_tokens // 2)
        masks = "; dropout draws other masks than it would have" if self.has_dropout else ""
        self.say(
            "passes_cut",
            f"{where}; passes hold at most {self.most_tokens:,} tokens from here on, the step and its rows stay{masks}",
        )

    def state_dict(self) -> dict[str, Any]:
        """Measures taken."""
        return {"recomputes": self.recomputes, "most_tokens": self.most_tokens}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take the measures that ``state`` names; none taken here is taken back."""
        if state["recomputes"] and not self.recomputes:
            self.model.recompute_activations()
            self.recomputes = True
        bounds = [bound for bound in (self.most_tokens, state["most_tokens"]) if bound is not None]
        self.most_tokens = min(bounds, default=None)


def _pieces(batch: Batch, most_tokens: int) -> list[Batch]:
    """Cut a pack between documents, first come first served."""
    if batch.num_tokens <= most_tokens or len(batch.lengths) == 1:
        return [batch]
    pieces, first, tokens = [], 0, 0
    for index, length in enumerate(batch.lengths):
        if index > first and tokens + length > most_tokens:
            pieces.append(batch.part(first, index))
            first, tokens = index, 0
        tokens += length
    pieces.append(batch.part(first, len(batch.lengths)))
    return pieces
