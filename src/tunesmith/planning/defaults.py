"""Every value that a recipe may leave unset, derived, each with its reason. Torch-free."""

from __future__ import annotations

import math
from typing import Any

from tunesmith.errors import HardwareMissing, RecipeError
from tunesmith.models.facts import ModelFacts
from tunesmith.models.head_shape import default_pooling
from tunesmith.planning.machine import Machine
from tunesmith.planning.prompts import room_behind
from tunesmith.planning.settings import Counts, Derived
from tunesmith.recipe.adapters import HeadOnlySection
from tunesmith.recipe.heads import HeadedSection, PooledSection
from tunesmith.recipe.low_rank import AddedSection
from tunesmith.recipe.objectives import ClmSection, MlmSection, SumSection
from tunesmith.recipe.prompts import VirtualSection, has_network, virtual_tokens_of
from tunesmith.recipe.root import Recipe

CONTEXT_LIMIT = 4096
DEFAULT_EPOCHS = 3.0
_LORA_RATE, _LORA_WIDTH, _LORA_POWER = 5e-4, 2000.0, 0.781
_TABLE_RATES = 10
_SGD_RATE = 0.01
_HEAD_RATE = 5e-3
_ENCODER_ADDED, _ENCODER_WHOLE = 5.0, 25.0
"""What LoRA's rule is divided by under a head on an encoder: 2.1e-4 and 4.2e-5 at width 768 (Hu et al. 2022; Devlin et al. 2019)."""
_NARROW = 1024
_BF16_CAPABILITY = (8, 0)
_SLANT_CUT = 0.1


def derive_context(recipe: Recipe, facts: ModelFacts) -> Derived[int]:
    """Longest example in tokens.

    Raises:
        RecipeError: the recipe asks for more than the model's limit, or than virtual tokens leave of it.
    """
    asked = recipe.model.context
    taken = virtual_tokens_of(recipe.adapter)
    room = room_behind(recipe, facts)
    less = f" less {taken} virtual tokens" if taken else ""
    if asked is not None:
        if facts.context_stated and taken and room < asked <= facts.context:
            raise RecipeError(
                f"`model.context` is {asked:,}, and behind {taken:,} virtual tokens the model reads at most {room:,}",
                where="model.context",
                hint=f"give at most {room}, or fewer `adapter.num_tokens`",
            )
        if facts.context_stated and asked > facts.context:
            raise RecipeError(
                f"`model.context` is {asked:,}, the model reads at most {facts.context:,} tokens",
                where="model.context",
                hint=f"give at most {facts.context}",
            )
        return Derived.given(asked)
    if not facts.context_stated:
        return Derived(facts.context, f"config.json states no limit: {facts.context:,} is taken")
    if room > CONTEXT_LIMIT:
        return Derived(
            CONTEXT_LIMIT,
            f"the model's limit of {facts.context:,}{less}, capped at {CONTEXT_LIMIT:,}; set `model.context` for more",
        )
    return Derived(room, f"the model's own limit{less}")


def derive_overlong(recipe: Recipe) -> Derived[str]:
    """What happens to examples longer than the context."""
    if recipe.data.overlong is not None:
        return Derived.given(recipe.data.overlong)
    if isinstance(recipe.objective, HeadedSection):
        return Derived("error", "a text that is cut may lose what its label is about: refuse and name the rows")
    if isinstance(recipe.objective, SumSection):
        return Derived(
            "split", "plain documents become windows without loss of text; a conversation that is too long is refused"
        )
    if isinstance(recipe.objective, ClmSection | MlmSection):
        return Derived("split", "plain documents become windows without loss of text")
    return Derived("error", "a conversation that is cut loses its answer: refuse and name the rows")


def derive_pooling(recipe: Recipe, facts: ModelFacts) -> Derived[str] | None:
    """Which hidden state stands for a row; None where no head reads one."""
    section = recipe.objective
    if not isinstance(section, PooledSection):
        return None
    return Derived.given(section.pooling) if section.pooling != "auto" else Derived(*default_pooling(facts))


def derive_head_factor(recipe: Recipe, facts: ModelFacts, rate: float) -> Derived[float] | None:
    """The head's rate over that of the rest; None where there is no head."""
    section = recipe.objective
    if not isinstance(section, HeadedSection):
        return None
    if section.rate_factor is not None:
        return Derived.given(section.rate_factor)
    if not facts.is_encoder:
        return Derived(1.0, "the rate of a decoder suits a fresh head")
    return Derived(
        round_to(max(1.0, _HEAD_RATE / rate)),
        f"what gives the head {_HEAD_RATE:g}, the rate of a head alone: at the rate that an encoder bears it would learn too slowly",
    )


def derive_head(recipe: Recipe, facts: ModelFacts) -> dict[str, Derived[Any]]:
    """What a head reads and how fast it learns, by recipe key; nothing where there is no head."""
    found = {
        "objective.pooling": derive_pooling(recipe, facts),
        "objective.rate_factor": derive_head_factor(recipe, facts, derive_rate(recipe, facts).value),
    }
    return {key: value for key, value in found.items() if value is not None}


def derive_rate(recipe: Recipe, facts: ModelFacts) -> Derived[float]:
    """Peak learning rate by scope and width, rounded to two significant digits."""
    asked = recipe.training.learning_rate
    if asked is not None:
        return Derived.given(asked)
    if recipe.training.optimiser == "sgd":
        return Derived(_SGD_RATE, "a usual start for SGD with momentum; no rule by width is known, sweep it")
    width = facts.hidden_size
    lora = _LORA_RATE * (_LORA_WIDTH / width) ** _LORA_POWER
    rule = f"5e-4 · (2000/{width})^0.781"
    if isinstance(recipe.adapter, HeadOnlySection):
        return Derived(_HEAD_RATE, "usual for a head alone with AdamW, whatever the width")
    if isinstance(recipe.adapter, VirtualSection) and not has_network(recipe.adapter):
        return Derived(
            round_to(_TABLE_RATES * lora),
            f"{_TABLE_RATES} times LoRA's rule by width: {rule} · {_TABLE_RATES}; virtual tokens move one by one",
        )
    if isinstance(recipe.objective, HeadedSection) and facts.is_encoder:
        part = _ENCODER_ADDED if isinstance(recipe.adapter, AddedSection) else _ENCODER_WHOLE
        return Derived(
            round_to(lora / part),
            f"LoRA's rule by width over {part:g}: {rule} / {part:g}, for {recipe.adapter.type} under a head on an encoder, near what is "
            "published for BERT and RoBERTa at width 768",
        )
    if isinstance(recipe.adapter, AddedSection):
        return Derived(round_to(lora), f"LoRA's rule by width: {rule} (Schulman et al. 2025)")
    if width > _NARROW:
        return Derived(
            round_to(lora / 10),
            f"a tenth of LoRA's rule by width: {rule} / 10, for {recipe.adapter.type} above width {_NARROW}",
        )
    return Derived(
        round_to(lora * 2 / 5),
        f"two fifths of LoRA's rule by width: {rule} · 2/5, for {recipe.adapter.type} at width {_NARROW} or below",
    )


def round_to(value: float, digits: int = 2) -> float:
    """Round to significant digits."""
    return float(f"{value:.{digits - 1}e}")


def derive_epochs(recipe: Recipe, steps_per_epoch: int) -> Derived[float]:
    """Passes over the training rows."""
    training = recipe.training
    if training.max_steps is not None:
        epochs = training.max_steps / steps_per_epoch
        return Derived(round(epochs, 4), f"{training.max_steps} steps of {steps_per_epoch} an epoch")
    if training.epochs is not None:
        return Derived.given(training.epochs)
    return Derived(DEFAULT_EPOCHS, "neither `epochs` nor `max_steps` is set; 1 to 3 passes are usual for small data")


def derive_steps_per_epoch(recipe: Recipe, counts: Counts) -> Derived[int]:
    """Optimiser steps of one pass; the last may hold fewer examples."""
    batch = recipe.training.batch_size
    about = "" if counts.exact else "about "
    return Derived(max(1, -(-counts.rows // batch)), f"{about}{counts.rows:,} examples in steps of {batch}, rounded up")


def derive_steps(recipe: Recipe, steps_per_epoch: int, epochs: float) -> Derived[int]:
    """Optimiser steps of the run."""
    if recipe.training.max_steps is not None:
        return Derived.given(recipe.training.max_steps)
    return Derived(
        max(1, math.ceil(round(epochs * steps_per_epoch, 6))), f"{epochs:g} epochs of {steps_per_epoch:,} steps"
    )


def derive_warmup(recipe: Recipe, total: int) -> Derived[int]:
    """Steps in which the rate rises."""
    warmup = recipe.training.warmup
    if recipe.training.schedule == "slanted":
        return Derived(
            max(1, int(total * _SLANT_CUT)),
            "the slanted triangle rises for a tenth of the steps; `warmup` does not count",
        )
    if isinstance(warmup, int):
        return Derived(
            min(warmup, total),
            "given in the recipe" if warmup <= total else f"{warmup} steps given, the run has {total}",
        )
    return Derived(min(total, math.ceil(round(warmup * total, 6))), f"{warmup:.1%} of {total:,} steps, rounded up")


def derive_cadence(given: int | None, total: int) -> Derived[int]:
    """Steps between two checkpoints or two evaluations."""
    if given is not None:
        return Derived.given(given)
    return Derived(max(1, math.ceil(total / 10)), f"a tenth of {total:,} steps, and always at the end")


def derive_precision(recipe: Recipe, machine: Machine) -> Derived[str]:
    """Type of forward and backward.

    Raises:
        HardwareMissing: bf16 on a GPU without it, or fp16 on a CPU.
    """
    asked = recipe.training.precision
    if asked == "auto":
        return _auto_precision(machine)
    if asked == "fp16" and machine.device == "cpu":
        raise HardwareMissing(
            "fp16 training needs a CUDA device",
            where="training.precision",
            hint="set `precision: auto`, `fp32` or `bf16`",
        )
    if asked == "bf16" and machine.device == "cuda" and not machine.bf16:
        raise HardwareMissing(
            f"{machine.name} has no bf16", where="training.precision", hint="set `precision: auto` or `fp16`"
        )
    if asked == "bf16" and not machine.bf16:
        return Derived(asked, "given in the recipe; without AMX bf16 is slower than fp32 on a CPU")
    return Derived.given(asked)


def _auto_precision(machine: Machine) -> Derived[str]:
    if machine.device == "cuda":
        capability = ".".join(map(str, machine.gpus[0].capability)) if machine.gpus else "unknown"
        if machine.bf16:
            return Derived("bf16", f"compute capability {capability} has bf16 (8.0 and above)")
        return Derived("fp16", f"compute capability {capability} has no bf16 (8.0 and above); fp16 with loss scaling")
    if machine.amx:
        return Derived("bf16", "the CPU has AMX, which doubles the speed of bf16")
    seen = "AVX512-BF16 but no AMX" if machine.avx512_bf16 else "no AMX"
    return Derived("fp32", f"the CPU has {seen}: bf16 would be slower than fp32")


def derive_weights_dtype(recipe: Recipe, precision: str) -> Derived[str]:
    """Type of the base's weights in memory. Weights that train must be fp32, or small updates are rounded away."""
    if precision == "fp32":
        return Derived("fp32", "as the precision")
    adapter = recipe.adapter
    if isinstance(adapter, HeadOnlySection):
        return Derived(precision, "the base is frozen and kept in the precision of the pass; the head is fp32")
    if not isinstance(adapter, AddedSection) or adapter.also_train:
        return Derived(
            "fp32", f"weights of the base train and are kept in fp32; {precision} copies are cast for each pass"
        )
    return Derived(precision, "the base is frozen and kept in the precision of the pass; the adapter is fp32")


def require_offload(recipe: Recipe, machine: Machine) -> None:
    """Refuse to move an optimiser's states to the host where they lie there anyway.

    Raises:
        HardwareMissing: no CUDA device trains.
    """
    if recipe.training.offload_optimiser and machine.device != "cuda":
        raise HardwareMissing(
            f"`offload_optimiser` keeps the optimiser's states in the host's memory, and on {machine.device} they are there already",
            where="training.offload_optimiser",
            hint="leave it out; `training.optimiser: adamw_8bit` makes the states smaller on any machine",
        )


def derive_deterministic(recipe: Recipe, machine: Machine) -> Derived[bool]:
    """Whether two runs give the same bits."""
    if recipe.machine.deterministic is not None:
        return Derived.given(recipe.machine.deterministic)
    if machine.device == "cpu":
        return Derived(True, "costs nothing on a CPU")
    return Derived(
        False, "the fast attention on CUDA sums in changing order; `machine.deterministic: true` takes a slower one"
    )


def derive_threads(recipe: Recipe, machine: Machine) -> Derived[int]:
    """CPU threads of torch."""
    if recipe.machine.threads is not None:
        return Derived.given(recipe.machine.threads)
    if machine.threads != machine.cores:
        return Derived(machine.threads, "OMP_NUM_THREADS asks for it")
    return Derived(machine.cores, "cores that this process may use")


def derive_device(recipe: Recipe, machine: Machine) -> Derived[str]:
    """Where training runs. Raises HardwareMissing as ``require_offload``."""
    require_offload(recipe, machine)
    if recipe.machine.device != "auto":
        return Derived.given(machine.device)
    reason = f"found {machine.name}" if machine.device == "cuda" else "no CUDA device was found"
    return Derived(machine.device, reason)
