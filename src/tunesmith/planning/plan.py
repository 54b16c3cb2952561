"""The plan: what this machine will do with a recipe, nothing unset, every derived value with its reason. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tunesmith.data.renderers import make_renderer
from tunesmith.data.rendering import Renderer
from tunesmith.errors import RunError
from tunesmith.files import read_json
from tunesmith.models.facts import ModelFacts
from tunesmith.models.locate import ModelFolder
from tunesmith.planning import defaults, memory, speeds
from tunesmith.planning.base import asked_tokens, num_head, open_base, settled_objective
from tunesmith.planning.bottleneck import bottleneck_values
from tunesmith.planning.cost import Time, disk_bytes, energy, passes, price, run_time
from tunesmith.planning.freezing import freezing_values, frozen_flops
from tunesmith.planning.losses import passes_of_a_step
from tunesmith.planning.low_rank import wide_rank_notes
from tunesmith.planning.machine import Machine, detect
from tunesmith.planning.memory import Memory
from tunesmith.planning.prompts import settle_text
from tunesmith.planning.sampling import estimate_counts
from tunesmith.planning.scope import TrainableCount, scope_of, trainable_parameters
from tunesmith.planning.scoring import scoring_values
from tunesmith.planning.sentences import recipe_notes
from tunesmith.planning.settings import GIVEN, Counts, Derived, Settings, typed
from tunesmith.planning.settle import resolve_recipe, settle
from tunesmith.planning.sizing import fit_to_memory
from tunesmith.planning.speeds import Speed, SpeedKey
from tunesmith.planning.tokens import asks_tokenizer, settle_tokens
from tunesmith.recipe.codec import parse
from tunesmith.recipe.fingerprint import identity
from tunesmith.recipe.root import Recipe

_UNKNOWN_TIME = (
    "The time is not known yet: no training was measured on this machine. Train twenty steps "
    "(`tunesmith train RECIPE training.epochs=null training.max_steps=20 --run runs/speed`) and plan again, or state `machine.tflops`."
)


@dataclass(frozen=True)
class Plan:
    """What will be done. Everything in it is plain data; ``to_json`` and ``from_json`` are inverse.

    Attributes:
        recipe: the resolved recipe, derived values filled in; ``recipe.codec.parse`` reads it back.
        identity: what a resume must share.
        model: name, folder, architecture, shape and sizes of the base.
        machine: what was found.
        values: dotted key -> value and reason.
        parameters: of the base, and those that train.
        memory: bytes by part at the peak of a step.
        disk: bytes on disk by part.
        data: an epoch's rows and tokens.
        settings: what the trainer needs.
        flops: floating-point operations of the whole run.
        time: seconds with an interval, None where no speed is known.
        energy: watt-hours, where power is stated.
        price: money, where an hour's price is stated.
        speed_key: where to record the measured speed of this run.
        notes: sentences to say aloud.
        run_tokens: tokens of all steps, counted in their order; None where they are estimated.
        source: the recipe as it was written; not part of the JSON.
    """

    recipe: dict[str, Any]
    identity: dict[str, Any]
    model: dict[str, Any]
    machine: Machine
    values: dict[str, Derived[Any]]
    parameters: TrainableCount
    memory: Memory
    disk: dict[str, int]
    data: Counts
    settings: Settings
    flops: float
    time: Time | None
    energy: dict[str, float] | None
    price: dict[str, float] | None
    speed_key: SpeedKey
    notes: list[str] = field(default_factory=list)
    run_tokens: int | None = None
    source: Recipe | None = field(default=None, compare=False, repr=False)

    @property
    def resolved(self) -> Recipe:
        """The resolved recipe, with paths relative to where the written one stood."""
        folder = self.source.folder if self.source is not None else Path()
        return parse(self.recipe, source="plan").placed(folder)

    @property
    def total_tokens(self) -> int:
        """Tokens that pass the model in training, all epochs."""
        if self.run_tokens is not None:
            return self.run_tokens
        return round(self.data.tokens * passes(self.settings))

    def to_json(self) -> dict[str, Any]:
        """Plain values; the last line repeats what a report sets beside what was measured."""
        return {
            "recipe": self.recipe, "identity": self.identity, "model": self.model, "machine": self.machine.to_json(),
            "values": {key: {"value": item.value, "reason": item.reason} for key, item in self.values.items()},
            "parameters": self.parameters.to_json(), "memory": self.memory.to_json(), "disk": self.disk,
            "disk_bytes": sum(self.disk.values()), "data": self.data.to_json(), "settings": self.settings.to_json(),
            "flops": self.flops, "time": self.time.to_json() if self.time else None, "energy": self.energy,
            "price": self.price, "speed_key": vars(self.speed_key), "notes": list(self.notes),
            "steps": self.settings.total_steps, "tokens": self.total_tokens, "run_tokens": self.run_tokens,
            "memory_bytes": self.memory.tensor_bytes(self.settings.device),
            "energy_wh": self.energy["watt_hours"] if self.energy else None,
            "cost": self.price["amount"] if self.price else None,
        }  # fmt: skip

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Plan:
        """Inverse of ``to_json``."""
        return cls(
            recipe=values["recipe"],
            identity=values["identity"],
            model=values["model"],
            machine=Machine.from_json(values["machine"]),
            values={key: Derived(item["value"], item["reason"]) for key, item in values["values"].items()},
            parameters=typed(TrainableCount, values["parameters"]),
            memory=Memory.from_json(values["memory"]),
            disk=dict(values["disk"]),
            data=Counts.from_json(values["data"]),
            settings=Settings.from_json(values["settings"]),
            flops=values["flops"],
            time=typed(Time, values["time"]) if values["time"] else None,
            energy=values["energy"],
            price=values["price"],
            speed_key=typed(SpeedKey, values["speed_key"]),
            notes=typed(list[str], values["notes"]),
            run_tokens=values["run_tokens"],
        )

    @classmethod
    def read(cls, path: Path) -> Plan:
        """The plan of a run.

        Raises:
            RunError: it is missing, torn or of another version.
        """
        try:
            return cls.from_json(read_json(path))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise RunError(
                f"the plan of the run cannot be used: {str(error).splitlines()[0]}",
                where=str(path),
                hint="the run may be of another version of tunesmith, or damaged: start a new one with --run",
            ) from error


def make_plan(
    recipe: Recipe,
    machine: Machine | None = None,
    counts: Counts | None = None,
    *,
    renderer: Renderer | None = None,
    speeds_file: Path | None = None,
) -> Plan:
    """Plan a recipe; reads the model's config and headers, and a sample of the data where ``counts`` is not given.

    Args:
        recipe: what to do.
        machine: where; None looks at this one.
        counts: an epoch's rows and tokens, from a token cache; None estimates them.
        renderer: of the recipe, where it is made already and its notes were said.
        speeds_file: measured speeds; None is the one in the cache folder.

    Raises:
        RecipeError: a value that the model cannot have, or a pattern that matches nothing.
        ModelError: the base is missing, torn, pickled or no causal language model.
        DataError: a data file is wrong.
        HardwareMissing: the recipe asks for hardware that is not here.
    """
    folder, facts = open_base(recipe)
    machine = machine or detect(recipe.machine)
    context = defaults.derive_context(recipe, facts)
    settled, tokens, counts, said = _read_sources(recipe, facts, folder, context, renderer, counts)
    scope, num_passes = scope_of(facts, settled.adapter, num_head(recipe, facts, counts)), passes_of_a_step(recipe)
    notes = [*_model_notes(facts), *said, *_count_notes(counts), *wide_rank_notes(facts, settled.adapter)]
    settings, values = settle(recipe, facts, machine, counts, context)
    values |= tokens | bottleneck_values(recipe, facts) | freezing_values(recipe, facts, scope, settings)
    values |= scoring_values(recipe, scope, settings)
    notes += recipe_notes(recipe, facts, scope, settings)
    settings, needed, values["training.atom_tokens"], values["training.recompute"] = fit_to_memory(
        facts, scope, settings, counts, machine.available_bytes, recipe.training.recompute, num_passes=num_passes
    )
    notes += [] if needed.fits else [_does_not_fit(needed, settings)]
    flops = num_passes * frozen_flops(recipe, facts, scope, settings, counts)
    key = SpeedKey(machine.fingerprint, machine.device, settings.precision, facts.shape_name, scope.kind)
    time = _time(recipe, key, flops, counts, notes, speeds_file)
    resolved = resolve_recipe(settled, settings)
    return Plan(
        recipe=resolved.model_dump(mode="json"),
        identity=identity(resolved),
        model=_model(facts, folder),
        machine=machine,
        values=values,
        parameters=trainable_parameters(facts, settled.adapter, scope.head),
        memory=needed,
        disk=dict(disk_bytes(facts, scope, settings, counts, recipe.training.early_stopping is not None)),
        data=counts,
        settings=settings,
        flops=flops,
        time=time,
        energy=energy(time, recipe.machine),
        price=price(time, recipe.machine),
        speed_key=key,
        notes=notes,
        source=recipe,
    )


def derived_values(plan: Plan) -> dict[str, str]:
    """Dotted key -> why, for values that the recipe does not state."""
    return {key: item.reason for key, item in plan.values.items() if item.reason != GIVEN}


def _read_sources(
    recipe: Recipe,
    facts: ModelFacts,
    folder: ModelFolder,
    context: Derived[int],
    renderer: Renderer | None,
    counts: Counts | None,
) -> tuple[Recipe, dict[str, Derived[Any]], Counts, list[str]]:
    """What tokenizer, chat template and data say: the recipe with its tokens settled and their reason, counts, sentences."""
    said: list[str] = []
    if renderer is None and (counts is None or asks_tokenizer(recipe)):
        renderer, said = make_renderer(folder.path, recipe.model, settled_objective(recipe, facts), recipe.folder)
    settled, values = settle_text(recipe, renderer)
    settled, tokens = settle_tokens(settled, facts, folder.path, renderer)
    values |= {} if tokens is None else {"adapter.train_tokens": tokens}
    if counts is not None:
        return settled, values, asked_tokens(recipe, counts), []
    assert renderer is not None
    return settled, values, asked_tokens(recipe, estimate_counts(recipe, renderer, context.value)), said


def require_fit(plan: Plan) -> None:
    """Refuse a plan that does not fit into memory. Raises GateRefused."""
    memory.require_fit(plan.memory, plan.settings)


def plan_rows(plan: Plan) -> list[tuple[str, str, str, str]]:
    """The plan for a terminal: section, key, value, reason; rows of a section stand together."""
    rows = [(*_split(key), _shown(item.value), item.reason) for key, item in plan.values.items()]
    count = plan.parameters
    rows += [
        ("parameters", "total", f"{count.total:,}", "of the base, from the headers of its weight files"),
        ("parameters", "trained", f"{count.trainable:,}", f"{count.share:.2%} of the base's number"),
    ]
    if count.at_end is not None:
        rows.append(("parameters", "trained at the end", f"{count.at_end:,}", "the rest of them is frozen on the way"))
    rows += [("memory", part, _size(size), "") for part, size in plan.memory.parts.items()]
    fits = "fits" if plan.memory.fits else "does not fit"
    there = f"{fits}: {_size(plan.memory.available_bytes)} are available"
    rows.append(("memory", "total", _size(plan.memory.total_bytes), there))
    rows += [("disk", part, _size(size), "") for part, size in plan.disk.items()]
    rows += _cost_rows(plan)
    sections = list(dict.fromkeys(row[0] for row in rows))
    return sorted(rows, key=lambda row: sections.index(row[0]))


def _split(key: str) -> tuple[str, str]:
    section, _, name = key.partition(".")
    return section, name


def _cost_rows(plan: Plan) -> list[tuple[str, str, str, str]]:
    data = plan.data
    how = "counted" if data.exact else f"estimated from {data.sampled:,} rows"
    interval = (
        "" if data.exact else f"; 95 % interval {data.low:,} to {data.high:,}; `tunesmith data check` makes it exact"
    )
    rows = [
        ("data", "rows an epoch", f"{data.rows:,}", how),
        ("data", "tokens an epoch", f"{data.tokens:,}", how + interval),
        (
            "data",
            "trained tokens",
            f"{data.trained_tokens:,}",
            f"{data.trained_tokens / max(1, data.tokens):.0%} of the tokens",
        ),
        ("cost", "tokens of the run", f"{plan.total_tokens:,}", ""),
        ("cost", "arithmetic", f"{plan.flops:.3g} FLOP", ""),
    ]
    if plan.time is None:
        rows.append(("cost", "time", "not known yet", _UNKNOWN_TIME))
    else:
        span = f"{_duration(plan.time.low)} to {_duration(plan.time.high)}, {plan.time.basis}; training only"
        rows.append(("cost", "time", _duration(plan.time.seconds), span))
    if plan.energy:
        rows.append(
            ("cost", "energy", f"{plan.energy['watt_hours']:.3g} Wh", f"at {plan.energy['watts']:g} W as stated")
        )
    if plan.price:
        rows.append(
            ("cost", "price", f"{plan.price['amount']:.2f}", f"at {plan.price['per_hour']:g} an hour as stated")
        )
    return rows


def _model(facts: ModelFacts, folder: ModelFolder) -> dict[str, Any]:
    return {
        "name": folder.name, "path": str(folder.path), "embedded": folder.embedded, "architecture": facts.architecture,
        "shape": facts.shape_name, "parameters": facts.num_parameters, "bytes": facts.weights_bytes, "dtype": facts.dtype,
    }  # fmt: skip


def _model_notes(facts: ModelFacts) -> list[str]:
    if not facts.dropped_fields:
        return []
    return [
        f"config.json holds fields that are not obeyed, since they could run code or choose kernels: {', '.join(facts.dropped_fields)}"
    ]


def _count_notes(counts: Counts) -> list[str]:
    notes = list(counts.notes)
    if not counts.exact:
        notes.append("Rows and tokens are estimates; `tunesmith data check RECIPE` makes them exact.")
    return notes


def _does_not_fit(needed: Memory, settings: Settings) -> str:
    return (
        f"Does not fit: {_size(needed.total_bytes)} are needed at {settings.atom_tokens:,} tokens a pass, "
        f"{_size(needed.available_bytes)} are available; `tunesmith train` will refuse."
    )


def _time(
    recipe: Recipe, key: SpeedKey, flops: float, counts: Counts, notes: list[str], speeds_file: Path | None
) -> Time | None:
    if recipe.machine.tflops is not None:
        stated = Speed(
            recipe.machine.tflops * 1e12, 1.0, 0, f"at {recipe.machine.tflops:g} TFLOP/s as stated in the recipe"
        )
        return run_time(flops, stated, counts)
    speed, note = speeds.lookup(key, speeds_file)
    notes += [note] if note else []
    if speed is None:
        notes.append(_UNKNOWN_TIME)
    return run_time(flops, speed, counts)


def _shown(value: Any) -> str:
    if value is None:
        return "not yet"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(str(item) for item in value) or "none"
    if isinstance(value, float):
        return f"{value:g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _size(num_bytes: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if num_bytes < 1024:
            return f"{num_bytes:.0f} {unit}" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1024
    return f"{num_bytes:.1f} GiB"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
