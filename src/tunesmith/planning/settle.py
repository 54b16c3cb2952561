"""All settings of a run from its recipe, and the recipe with nothing left unset. Torch-free."""

from __future__ import annotations

from typing import Any

from tunesmith.models.facts import ModelFacts
from tunesmith.planning import defaults
from tunesmith.planning.freezing import schedule_of
from tunesmith.planning.machine import Machine
from tunesmith.planning.settings import Counts, Derived, Settings
from tunesmith.recipe.heads import HeadedSection
from tunesmith.recipe.root import Recipe

_OPTIMISER = ("optimiser", "offload_optimiser", "betas", "momentum")
"""Settings of the optimiser, which are as the recipe says."""


def settle(
    recipe: Recipe, facts: ModelFacts, machine: Machine, counts: Counts, context: Derived[int]
) -> tuple[Settings, dict[str, Derived[Any]]]:
    """All settings but the size of a pass, and their reasons by recipe key."""
    training = recipe.training
    per_epoch = defaults.derive_steps_per_epoch(recipe, counts)
    epochs = defaults.derive_epochs(recipe, per_epoch.value)
    steps = defaults.derive_steps(recipe, per_epoch.value, epochs.value)
    precision = defaults.derive_precision(recipe, machine)
    values: dict[str, Derived[Any]] = {
        "model.context": context,
        "data.overlong": defaults.derive_overlong(recipe),
        "training.learning_rate": defaults.derive_rate(recipe, facts),
        "training.steps_per_epoch": per_epoch,
        "training.epochs": epochs,
        "training.steps": steps,
        "training.warmup_steps": defaults.derive_warmup(recipe, steps.value),
        "training.checkpoint_every": defaults.derive_cadence(training.checkpoint_every, steps.value),
        "training.evaluate_every": defaults.derive_cadence(training.evaluate_every, steps.value),
        "training.precision": precision,
        "training.weights_dtype": defaults.derive_weights_dtype(recipe, precision.value),
        "machine.device": defaults.derive_device(recipe, machine),
        "machine.threads": defaults.derive_threads(recipe, machine),
        "machine.deterministic": defaults.derive_deterministic(recipe, machine),
        **_of_objective(recipe, facts),
    }
    settings = Settings(
        learning_rate=values["training.learning_rate"].value,
        total_steps=steps.value,
        steps_per_epoch=per_epoch.value,
        epochs=epochs.value,
        warmup_steps=values["training.warmup_steps"].value,
        batch_size=training.batch_size,
        micro_batch_size=training.micro_batch_size,
        atom_tokens=context.value,
        precision=precision.value,
        weights_dtype=values["training.weights_dtype"].value,
        device=machine.device,
        threads=values["machine.threads"].value,
        deterministic=values["machine.deterministic"].value,
        recompute=False,
        checkpoint_every=values["training.checkpoint_every"].value,
        keep_checkpoints=training.keep_checkpoints,
        evaluate_every=values["training.evaluate_every"].value,
        log_every=training.log_every,
        context=context.value,
        overlong=values["data.overlong"].value,
        seed=recipe.seed,
        clip=training.clip,
        weight_decay=training.weight_decay,
        schedule=schedule_of(recipe),
        decay_share=training.decay_share,
        **{name: getattr(training, name) for name in _OPTIMISER},
        quantise=recipe.model.quantise,
        freezing=training.freezing.type if training.freezing is not None else None,
        head_factor=values["objective.rate_factor"].value if "objective.rate_factor" in values else 1.0,
    )
    return settings, values


def resolve_recipe(recipe: Recipe, settings: Settings) -> Recipe:
    """The recipe with derived values in place of unset ones.

    ``max_steps`` stays unset where epochs rule, and the other way round; ``evaluation.tasks`` waits for the data; statements about a
    machine (memory, speed, power, price) stay as they were stated.
    """
    training = recipe.training.model_copy(
        update={
            "epochs": None if recipe.training.max_steps is not None else settings.epochs,
            "learning_rate": settings.learning_rate,
            "precision": settings.precision,
            "recompute": "on" if settings.recompute else "off",
            "checkpoint_every": settings.checkpoint_every,
            "evaluate_every": settings.evaluate_every,
        }
    )
    updates = {
        "model": recipe.model.model_copy(update={"context": settings.context}),
        "data": recipe.data.model_copy(update={"overlong": settings.overlong}),
        "training": training,
        "machine": recipe.machine.model_copy(
            update={"device": settings.device, "threads": settings.threads, "deterministic": settings.deterministic}
        ),
    }
    return recipe.model_copy(update=updates)


def _of_objective(recipe: Recipe, facts: ModelFacts) -> dict[str, Derived[Any]]:
    """Values that the kind of answer decides: of a head, and what is measured."""
    return {**defaults.derive_head(recipe, facts), "evaluation.tasks": _tasks(recipe)}


def _tasks(recipe: Recipe) -> Derived[Any]:
    tasks = recipe.evaluation.tasks
    if tasks is not None:
        return Derived.given([task.type for task in tasks])
    if isinstance(recipe.objective, HeadedSection):
        return Derived(None, "what the head answers, on held-out rows")
    words = "decided after the data is read: loss, and for answers from a closed set of labels exact match and label ranking"
    return Derived(None, words)
