"""What was planned against what it took, and what the plan chose and why."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tunesmith.reports.facts import Facts
from tunesmith.reports.wording import (
    DASH,
    as_list,
    as_mapping,
    as_number,
    count,
    duration,
    number,
    percent,
    plain,
    size,
)

_OFF = 1.5
"""Beyond this factor a plan is called off the mark."""

_Show = Callable[[float | None], str]


@dataclass(frozen=True)
class Planned:
    """One line of the plan beside what was measured; ``ratio`` is measured over planned."""

    name: str
    planned: str
    measured: str
    ratio: str
    off: bool
    note: str = ""


@dataclass(frozen=True)
class PlanView:
    """What the plan says beyond the totals: what trains, memory by part, derived values with reasons, notes."""

    parameters: str
    memory: tuple[tuple[str, str], ...]
    values: tuple[tuple[str, str, str], ...]
    notes: tuple[str, ...]


def planned_against_measured(facts: Facts) -> tuple[Planned, ...]:
    """Time, memory, steps, tokens, disk, energy, money; lines that neither side knows are left out."""
    plan, status = facts.plan, facts.status
    last = facts.training[-1] if facts.training else {}
    time = as_mapping(plan.get("time"))
    disk = as_mapping(plan.get("disk"))
    kept = [value for name, one in disk.items() if name != "token_cache" and (value := as_number(one)) is not None]
    step, tokens = as_number(status.get("step")), as_number(status.get("tokens"))
    lines: list[tuple[str, float | None, float | None, _Show, str]] = [
        ("Training time", as_number(time.get("seconds")), facts.seconds, duration, _time_note(time)),
        ("Peak memory", as_number(plan.get("memory_bytes")), as_number(status.get("peak_memory_bytes")), size, ""),
        ("Steps", as_number(plan.get("steps")), step if step is not None else as_number(last.get("step")), count, ""),
        (
            "Tokens through the model",
            as_number(plan.get("tokens")),
            tokens if tokens is not None else as_number(last.get("tokens")),
            count,
            "",
        ),
        ("Disk: checkpoints and result", sum(kept) if kept else None, float(facts.disk_bytes) or None, size, ""),
        _trained_line(facts),
        (
            "Energy",
            as_number(plan.get("energy_wh")),
            as_number(status.get("energy_wh")),
            _watt_hours,
            "from the watts that the recipe states",
        ),
        (
            "Cost",
            as_number(plan.get("cost")),
            as_number(status.get("cost")),
            number,
            "from the price that the recipe states, in its currency",
        ),
    ]
    return tuple(_line(*line) for line in lines if line[1] is not None or line[2] is not None)


def trained_sizes(facts: Facts) -> tuple[float, float, float] | None:
    """Parameters that trained at the first step, on average over the steps, and at the last; None where that never changed."""
    sizes = [size for line in facts.training if (size := as_number(line.get("trained_parameters"))) is not None]
    if len(set(sizes)) < 2:
        return None
    return sizes[0], sum(sizes) / len(sizes), sizes[-1]


def _trained_line(facts: Facts) -> tuple[str, float | None, float | None, _Show, str]:
    sizes = trained_sizes(facts)
    note = "" if sizes is None else f"{count(sizes[0])} at the first step, {count(sizes[2])} at the last"
    return "Trained parameters, average over the steps", None, None if sizes is None else sizes[1], count, note


def _time_note(time: Mapping[str, Any]) -> str:
    low, high = as_number(time.get("low")), as_number(time.get("high"))
    ranged = f"planned between {duration(low)} and {duration(high)}" if low is not None and high is not None else ""
    return "; ".join(filter(None, (ranged, str(time.get("basis") or ""))))


def _watt_hours(value: float | None) -> str:
    return DASH if value is None else f"{number(value)} Wh"


def _line(name: str, planned: float | None, measured: float | None, show: _Show, note: str) -> Planned:
    ratio = measured / planned if planned and measured is not None else None
    return Planned(
        name=name,
        planned=show(planned) if planned is not None else "not known",
        measured=show(measured) if measured is not None else "not measured",
        ratio=f"× {ratio:.2f}" if ratio is not None else DASH,
        off=ratio is not None and not 1 / _OFF <= ratio <= _OFF,
        note=note,
    )


def plan_view(facts: Facts) -> PlanView:
    """The plan's own account; empty where there is no plan."""
    plan = facts.plan
    parameters = as_mapping(plan.get("parameters"))
    trainable, total = as_number(parameters.get("trainable")), as_number(parameters.get("total"))
    share = as_number(parameters.get("share"))
    beside = "of" if as_mapping(facts.recipe.get("adapter")).get("type") in ("full", "partial") else "beside the base’s"
    return PlanView(
        parameters="" if trainable is None else f"{count(trainable)} {beside} {count(total)} ({percent(share, 2)})",
        memory=tuple(
            (plain(str(name)), size(as_number(value)))
            for name, value in as_mapping(as_mapping(plan.get("memory")).get("parts")).items()
        ),
        values=tuple(_value(str(key), as_mapping(one)) for key, one in as_mapping(plan.get("values")).items()),
        notes=tuple(str(note) for note in as_list(plan.get("notes"))),
    )


def _value(key: str, fields: Mapping[str, Any]) -> tuple[str, str, str]:
    value = fields.get("value")
    shown = number(as_number(value)) if isinstance(value, float) else str(value)
    return key, shown, str(fields.get("reason") or "")
