"""Arithmetic, time, energy, money and disk of a run. Torch-free.

FLOPs per token, N_l the matrix elements of layer l: forward 2 N; the gradient by activations 2 N_l for the layers that a gradient
passes; the gradient by weights 2 per trained element. So full is 6 N, LoRA 4 N + 6 · adapters, partial between. Causal attention
over documents of mean attended length s: 2 · s · Q per layer forward, twice that backward. The head (H · V) runs on scored tokens
only: 4 H V with a frozen head, 8 H V with a trained one, whose softmax is computed twice. Recompute adds the forward of the layers.
Virtual tokens run with each example, those of a prefix in its attention only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import prod
from typing import Any

from tunesmith.models import names
from tunesmith.models.facts import ModelFacts
from tunesmith.planning.memory import saved_bytes
from tunesmith.planning.scope import Scope
from tunesmith.planning.settings import Counts, Settings
from tunesmith.planning.speeds import Speed
from tunesmith.recipe.machine import MachineSection

_TOKEN_BYTES = 5


@dataclass(frozen=True)
class Time:
    """Seconds of training with a 95 % interval, and what they rest on. Evaluation and the report come on top."""

    seconds: float
    low: float
    high: float
    basis: str

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


@dataclass(frozen=True)
class TokenFlops:
    """Floating-point operations per token, and per scored token on top."""

    per_token: float
    per_scored: float


def flops_per_token(facts: ModelFacts, scope: Scope, settings: Settings, attended: float) -> TokenFlops:
    """Operations of forward and backward.

    Args:
        facts: sizes of the model.
        scope: what trains.
        settings: recompute counts.
        attended: mean length of the document that a token is in.
    """
    forward = backward = 0.0
    query = facts.num_heads * facts.head_dim
    seen = min(attended, facts.sliding_window or attended)
    matrices = layer_matrices(facts)
    for layer in range(facts.num_layers):
        attention = 2.0 * seen * query
        one = 2.0 * matrices.get(layer, 0) + attention
        forward += one
        if layer >= scope.first_layer:
            backward += 2.0 * matrices.get(layer, 0) + 2 * attention + (one if settings.recompute else 0.0)
    trained = sum(
        size
        for name, size in scope.trained.items()
        if names.layer_index(name) is not None and len(facts.tensors[name]) >= 2
    )
    head = facts.hidden_size * facts.logit_rows
    head_trains = any(names.is_head(name) or (facts.tied and names.is_embedding(name)) for name in scope.trained)
    per_token = 0 if scope.virtual_tokens else scope.num_adapter  # virtual tokens are made once a pass
    adapters = 6.0 * per_token + (2.0 * per_token if settings.recompute else 0.0)
    adapters += (6.0 if settings.recompute else 4.0) * scope.fixed  # no gradient by what never trains
    return TokenFlops(forward + backward + 2.0 * trained + adapters, (8.0 if head_trains else 4.0) * head)


def layer_matrices(facts: ModelFacts) -> dict[int, int]:
    """Elements of the matrices of each layer that one token is multiplied with."""
    sizes: dict[int, int] = {}
    for name, shape in facts.tensors.items():
        layer = names.layer_index(name)
        if layer is not None and len(shape) >= 2:
            sizes[layer] = sizes.get(layer, 0) + prod(shape)
    return sizes


def run_flops(facts: ModelFacts, scope: Scope, settings: Settings, counts: Counts) -> float:
    """Operations of the whole run."""
    attended = counts.attended or (counts.tokens / counts.rows if counts.rows else 0.0)
    cost = flops_per_token(facts, scope, settings, attended + scope.virtual_tokens)
    epochs = passes(settings)
    run = 0 if scope.kind == "prefix" else scope.virtual_tokens  # a prefix is keys and values only
    tokens = counts.tokens + run * counts.rows
    return epochs * (tokens * cost.per_token + counts.trained_tokens * cost.per_scored)


def passes(settings: Settings) -> float:
    """Passes over the rows that the steps amount to."""
    return settings.total_steps / settings.steps_per_epoch


def run_time(flops: float, speed: Speed | None, counts: Counts) -> Time | None:
    """Seconds = FLOPs / speed; the interval joins that of the speed and that of the counts. None without a speed."""
    if speed is None:
        return None
    seconds = flops / speed.flops_per_second
    low = counts.low / counts.tokens if counts.tokens else 1.0
    high = counts.high / counts.tokens if counts.tokens else 1.0
    return Time(seconds, seconds * low / speed.spread, seconds * high * speed.spread, speed.basis)


def energy(time: Time | None, section: MachineSection) -> dict[str, float] | None:
    """Watt-hours, only where the recipe states the power and the time is known."""
    if time is None or section.watts is None:
        return None
    return {"watt_hours": time.seconds * section.watts / 3600, "watts": section.watts}


def price(time: Time | None, section: MachineSection) -> dict[str, float] | None:
    """Money in the currency of ``price_per_hour``, only where it is stated and the time is known."""
    if time is None or section.price_per_hour is None:
        return None
    return {"amount": time.seconds / 3600 * section.price_per_hour, "per_hour": section.price_per_hour}


def disk_bytes(
    facts: ModelFacts, scope: Scope, settings: Settings, counts: Counts, best_kept: bool
) -> Mapping[str, int]:
    """Bytes on disk by part: checkpoints (kept, one being written, perhaps the best), result, token cache."""
    trained = scope.num_trainable + scope.fixed
    one = saved_bytes(settings, scope)
    copies = min(settings.keep_checkpoints + best_kept, -(-settings.total_steps // settings.checkpoint_every)) + 1
    result = 4 * trained if scope.num_adapter else 4 * facts.num_parameters
    stored = counts.stored_tokens or counts.tokens
    return {"checkpoints": one * copies, "result": result, "token_cache": _TOKEN_BYTES * stored}
