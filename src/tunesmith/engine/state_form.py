"""What ``state.json`` of a checkpoint holds, checked whole before any of it is used: a checkpoint may come from anybody.

A seal proves that bytes are those that were written, not by whom. Torch-free.
"""

from __future__ import annotations

from typing import Any

from tunesmith.engine import forms
from tunesmith.engine.forms import Form, anything, boolean, keyed, listed, mapped, maybe, number, text, whole
from tunesmith.engine.stopwatch import PARTS

_COUNT, _LOSS = whole(), number()
_LARGEST_SCALE = 2.0**24
_MOST_RECENT = 128

_LEVEL = keyed(
    {
        "first": listed(_LOSS, most=8),
        "recent": listed(_LOSS, most=_MOST_RECENT),
        "lowest": maybe(_LOSS),
        "taken": _COUNT,
    }
)
_STATE: Form = keyed(
    {
        "step": _COUNT, "updates": _COUNT, "tokens": _COUNT, "seconds": number(0.0), "loss": maybe(_LOSS),
        "times": keyed({name: number(0.0) for name in PARTS}),
        "stream": keyed({"next_step": _COUNT}, others=True),
        "precision": keyed({"scale": number(1.0, _LARGEST_SCALE), "good_steps": whole(0, 1000)}),
        "hooks": listed(mapped(anything)),
        "judge": keyed(
            {
                "clipping": forms.one_of(keyed({}), keyed({"state": listed(number(0.0), 3, 3)})),
                "controls": listed(mapped(anything)),
            }
        ),
        "pace": keyed(
            {
                "frozen": listed(_COUNT), "lowest": _COUNT, "interval": maybe(_COUNT),
                "norms": listed(listed(number(0.0), 2, 2)),
                "scores": maybe(keyed({"frozen": listed(text), "begun": maybe(_COUNT)})),
            }
        ),
        "recovery": keyed(
            {"left_out": listed(_COUNT), "rollbacks": _COUNT, "in_a_row": _COUNT, "level": _LEVEL, "warned": boolean}
        ),
        "relief": keyed({"recomputes": boolean, "most_tokens": maybe(whole(1))}),
        "evaluated_step": _COUNT, "stopped": maybe(text), "faulty_layers": mapped(text),
    }
)  # fmt: skip


def state_fault(state: Any, step: int) -> str | None:
    """Why a state cannot be one that the loop saved at the end of ``step``, or None."""
    fault = _STATE(state, "state.json")
    if fault is not None:
        return fault
    if state["step"] != step or state["stream"]["next_step"] != step:
        return f"state.json is not of step {step}"
    if max(state["updates"], state["evaluated_step"]) > step:
        return f"state.json has more updates or a later evaluation than {step} steps allow"
    level = state["recovery"]["level"]
    if len(level["recent"]) != min(level["taken"], _MOST_RECENT):
        return f"state.json.recovery.level has {len(level['recent'])} losses of {level['taken']}"
    for number_of, hook in enumerate(state["hooks"]):
        best = hook.get("best_step")
        if best is not None and (fault := whole(0, step)(best, f"state.json.hooks[{number_of}].best_step")):
            return fault
    return None
