"""What follows a refused step, on the host: stop with the likeliest cause, go on without it, or go back and around it.

Steps are named by their index from 0 inside, and by the count of finished steps (from 1) in words.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from tunesmith.engine.checkpoint import Say
from tunesmith.engine.level import LossLevel
from tunesmith.types import Refusal

_WORDS = {
    "non_finite": "loss or gradient was not finite",
    "spoilt": "the update left weights that are not finite",
    "spike": "loss or gradient norm stood out",
}


@dataclass(frozen=True)
class GuardOptions:
    """Policies for numbers that go wrong.

    ``rollback_window`` is how many steps before the offending one are left out with it (PaLM's rule, Chowdhery et al. 2022,
    section 5.1: the batches seen before and during the spike).
    """

    non_finite: Refusal = "stop"
    max_skipped: int = 10
    max_rollbacks: int = 3
    rollback_window: int = 2
    divergence: Literal["stop", "warn", "off"] = "stop"


class RollBack(Exception):
    """Training goes back to before ``index`` and leaves it out."""

    def __init__(self, index: int, why: str) -> None:
        super().__init__(why)
        self.index = index
        self.why = why


class GiveUp(Exception):
    """Training cannot go on after step ``index``; ``why`` is a sentence without its end."""

    def __init__(self, index: int, why: str, *, by: str) -> None:
        super().__init__(why)
        self.index = index
        self.why = why
        self.by = by


class Recovery:
    """Counts refusals in a row and rollbacks, remembers what is left out, and watches the level of the loss.

    Args:
        options: see there.
        say: where each act is told.
    """

    def __init__(self, options: GuardOptions, say: Say) -> None:
        self.options = options
        self.say = say
        self.left_out: set[int] = set()
        """Indices of steps that rollbacks go around."""
        self.rollbacks = 0
        self._in_a_row = 0
        self.level = LossLevel()
        self._warned = False

    def refused(self, index: int, by: str, policy: Refusal, what: str) -> None:
        """A step was refused.

        Args:
            index: of the step.
            by: the guard that refused it.
            policy: what that guard asks for.
            what: a clause on the numbers, such as ``loss nan``.

        Raises:
            GiveUp: the policy is to stop, or a bound was reached.
            RollBack: the policy is to go back.
        """
        why = f"{_WORDS.get(by, f'`{by}` refused a step')} at step {index + 1} ({what})"
        if policy == "stop":
            raise GiveUp(index, why, by=by)
        if policy == "rollback":
            if self.rollbacks >= self.options.max_rollbacks:
                raise GiveUp(index, f"{why} after {self.rollbacks} rollbacks", by=by)
            raise RollBack(index, why)
        self._in_a_row += 1
        if self._in_a_row > self.options.max_skipped:
            raise GiveUp(index, f"{why}, and {self._in_a_row - 1} steps before it were skipped", by=by)
        self.say("step_skipped", f"{why}; that step was not applied, training goes on")

    def applied(self, index: int, loss: float) -> None:
        """A step was applied; its loss tells whether training still works.

        Raises:
            GiveUp: the loss rose far above where it started, and stayed there.
        """
        self._in_a_row = 0
        risen = self.level.see(loss)
        if risen is None or self.options.divergence == "off" or self._warned:
            return
        if self.options.divergence == "stop":
            raise GiveUp(index, f"training diverged: {risen}", by="divergence")
        self._warned = True
        self.say("diverging", risen)

    def went_back(self, index: int, to_step: int, why: str) -> None:
        """Remember what to go around, and say it."""
        window = range(max(to_step, index - self.options.rollback_window), index + 1)
        self.left_out.update(window)
        self.rollbacks += 1
        self._in_a_row = 0
        named = f"steps {window[0] + 1} to {index + 1} are" if len(window) > 1 else f"step {index + 1} is"
        self.say("rolled_back", f"{why}; back to the checkpoint of step {to_step}, {named} left out")

    def state_dict(self) -> dict[str, Any]:
        """Counts, what is left out, and the level of the loss."""
        return {
            "left_out": sorted(self.left_out), "rollbacks": self.rollbacks, "in_a_row": self._in_a_row,
            "level": self.level.state_dict(), "warned": self._warned,
        }  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Inverse of ``state_dict``."""
        self.left_out, self.rollbacks = set(state["left_out"]), int(state["rollbacks"])
        self._in_a_row, self._warned = int(state["in_a_row"]), bool(state["warned"])
        self.level.load_state_dict(state["level"])
