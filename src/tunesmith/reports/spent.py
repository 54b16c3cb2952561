"""Where the wall time of a run went, how fast it computed, and what to change about the largest waste. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass

from tunesmith.planning.ceilings import ceiling_tflops
from tunesmith.reports.facts import Facts
from tunesmith.reports.figures import Part, stacked
from tunesmith.reports.wording import as_mapping, as_number, duration, number, percent

_PARTS = {
    "starting": "starting",
    "scoring": "scoring base and result",
    "input": "waiting for input",
    "computing": "computing",
    "communication": "summing over ranks",
    "evaluation": "evaluating on the way",
    "saving": "saving",
    "writing": "writing the result",
}
"""Part of the time -> its words, in the order of the bar."""

_HINTS = {
    "starting": "starting takes the same in a longer run: it is Python, the libraries, the data and the weights",
    "scoring": "score fewer rows (limit of a task in evaluation.tasks), or fewer tasks; the base's scores are kept for the next run",
    "input": "the loop waits for its rows: give the process more cores, or put the cache on a faster disk (TUNESMITH_CACHE)",
    "communication": "ranks wait for each other: a larger training.batch_size, or fewer ranks",
    "evaluation": "evaluate less often (training.evaluate_every), with fewer samples (training.samples) or validation rows",
    "saving": "save less often (training.checkpoint_every), or to a faster disk",
    "writing": "writing the result waits for the disk",
}
_WORTH_SAYING = 0.1
_TERA = 1e12


@dataclass(frozen=True)
class Spent:
    """Parts of the wall time with their share, the speed of computing in words, and one hint."""

    parts: tuple[Part, ...]
    lines: tuple[tuple[str, str, str, str], ...]
    whole: str
    speed: str
    hint: str


def spent(facts: Facts) -> Spent | None:
    """Where the time went; None of a run that did not say, or is not done."""
    said = as_mapping(facts.status.get("times"))
    seconds = {name: value for name in _PARTS if (value := as_number(said.get(name))) is not None and value > 0}
    total = sum(seconds.values())
    if total <= 0 or "computing" not in seconds:
        return None
    milliseconds = [(_PARTS[name], name, max(1, round(1000 * value))) for name, value in seconds.items()]
    return Spent(
        parts=stacked(milliseconds),
        lines=tuple((name, _PARTS[name], duration(value), percent(value / total)) for name, value in seconds.items()),
        whole=duration(total),
        speed=_speed(facts, seconds["computing"]),
        hint=_hint(seconds, total),
    )


def _hint(seconds: dict[str, float], total: float) -> str:
    """What to change about the largest part that is not computing, where it is worth it."""
    name = max((name for name in seconds if name != "computing"), key=lambda name: seconds[name], default="computing")
    if name == "computing" or seconds[name] < _WORTH_SAYING * total:
        return "Nearly all of it is computing."
    return f"The largest part beside computing is {_PARTS[name]} ({percent(seconds[name] / total, 0)}): {_HINTS[name]}."


def _speed(facts: Facts, seconds: float) -> str:
    """Planned arithmetic over the time of computing, beside what the device's maker states."""
    flops, planned = as_number(facts.plan.get("flops")), as_number(facts.plan.get("steps"))
    steps = as_number(facts.status.get("step"))
    if not flops or not planned or not steps or seconds <= 0:
        return ""
    reached = flops * min(1.0, steps / planned) / seconds / _TERA
    words = f"Computing ran at {number(reached)} TFLOP/s of planned arithmetic"
    ceiling = ceiling_tflops(str(as_mapping(facts.plan.get("machine")).get("name") or ""))
    if ceiling is None:
        return f"{words}."
    return f"{words}, {percent(reached / ceiling)} of the {number(ceiling)} that the maker states for 16-bit matrices."
