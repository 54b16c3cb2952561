"""Memory by part, before the first weight is loaded. Torch-free.

States: frozen weights 4 bytes each, or 2 in 16 bit (packed ones as in ``packed``, and the largest layer unpacked for a
moment); what trains is fp32: weight 4, gradient 4, AdamW 8 (packed 2 and a scale of 4 for 256 of
either moment, SGD with momentum 4, without 0). Where the pass is 16 bit and weights are fp32, autocast keeps a copy of 2. So full fine-tuning with AdamW takes 16 bytes
a parameter, 18 in 16 bit.

Activations, bytes per token of a Llama-like layer: what autograd keeps for the backward pass of transformers' modules under our
packed attention. H hidden, Q = heads · head_dim, K = kv_heads · head_dim, F feed-forward width, c bytes of the compute type,
r bytes of the residual stream (2 only where all weights are 16 bit), n = 1 where norms train, a and f = 1 where linear layers
of attention and of the feed-forward train or carry an adapter (a frozen linear layer keeps no input):

    norms       2 · (4 H + n r H)               the input in fp32; its normalised form for the gain's gradient
    inputs      (3 a + 2 f) c H if r > c        autocast casts an fp32 input once per linear layer (q k v, gate up),
                (a + f) c H otherwise           else the layers share it
    attention   c (2 Q + 2 K)                   varlen kernel on CUDA: q, k, v, output (which is the next layer's input)
                c (4 Q p + a Q)                 elsewhere: documents of like length padded side by side, k and v repeated to
                                                all heads; p is the padding, and the output gathered back
    feed-fwd    c F (3 + f) gated, c F (e + f)  gate, its activation, up, product; e = 4 for composite GELU, else 1
    adapters    c rank per module; DoRA and GraLoRA with dropout (1 + c) of its input's width; a bottleneck of width w: c (H + 2 w), and
                with dropout or a layer norm more (scope.py)

No term grows with the square of the length: every path uses fused attention. With recompute a layer keeps only its input (r H)
and one layer at a time is whole. The head runs on scored tokens only, a chunk of 2^24 logits at a time, three fp32 arrays of it
alive; the hidden states of scored tokens and their slope are kept, and 4 bytes per scored token for each row that trains by itself.
Such rows are in fp32 as all that trains, and the base's own values of them are kept beside.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tunesmith.errors import GateRefused
from tunesmith.models import names
from tunesmith.models.facts import ModelFacts
from tunesmith.planning.packed import largest_layer, packed_bytes
from tunesmith.planning.scope import Scope
from tunesmith.planning.settings import Settings

TYPE_BYTES: Mapping[str, int] = {"fp32": 4, "bf16": 2, "fp16": 2}
PARTS = ("weights", "gradients", "optimiser", "activations", "logits", "buffers")
_CHUNK_LOGITS = 1 << 24
_LIVE_LOGITS = 3
_PADDING = 1.25
_MOST_PADDED = 2
"""Where documents run padded through all layers, less than half of a rectangle is padding."""
_RUNTIME_BYTES = {"cpu": 450 << 20, "cuda": 800 << 20}
"""Python with torch and transformers; the CUDA context and its libraries."""
_ALLOCATOR_SHARE = {"cpu": 0.7, "cuda": 0.05}
"""What the allocator holds beyond what lives: glibc keeps freed blocks, peaks of 1.4 to 2.0 times the live bytes were measured
(8 and 28 M parameters, LoRA and full); CUDA's caching allocator fragments little."""
_SCORE_BYTES = 12
"""Of a matrix that is frozen by its score: a sum of gradients, their level and spread, in fp32."""
_BLOCK = 256
"""Numbers of a packed moment that share a scale of 4 bytes."""
_PIECE = 1 << 22
_UNPACKED_BYTES = 32
"""Gradient, two moments, their packing and the update of the numbers that are worked on at a time."""
_GIB = 1 << 30
_LARGEST_COPY_BYTES = 1 << 30


@dataclass(frozen=True)
class Memory:
    """Bytes by part at the peak of a step, and whether they fit what is available."""

    parts: Mapping[str, int]
    available_bytes: int

    @property
    def total_bytes(self) -> int:
        """Sum of the parts."""
        return sum(self.parts.values())

    def tensor_bytes(self, device: str) -> int:
        """What a run's meter sees: growth from before the model was loaded, without Python, torch and CUDA's context."""
        return self.total_bytes - _RUNTIME_BYTES[device]

    @property
    def fits(self) -> bool:
        """Whether the machine has that much."""
        return self.total_bytes <= self.available_bytes

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "parts": dict(self.parts), "total_bytes": self.total_bytes,
            "available_bytes": self.available_bytes, "fits": self.fits,
        }  # fmt: skip

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Memory:
        """Inverse of ``to_json``."""
        return cls(dict(values["parts"]), values["available_bytes"])


def estimate_memory(
    facts: ModelFacts, scope: Scope, settings: Settings, available_bytes: int, scored_share: float = 1.0
) -> Memory:
    """Peak memory of a training step on the device.

    Args:
        facts: sizes of the model.
        scope: what trains.
        settings: precision, device, atom and recompute count.
        available_bytes: what the plan may fill.
        scored_share: trained tokens over tokens.
    """
    compute = TYPE_BYTES[settings.precision]
    in_base = sum(scope.trained.values())
    packed, num_packed = packed_bytes(facts, settings.quantise)
    frozen_bytes = packed + (facts.num_parameters - in_base - num_packed) * TYPE_BYTES[settings.weights_dtype]
    activations, workspace = _activation_bytes(facts, scope, settings)
    logits, head_buffers = _head_bytes(facts, scope, settings, scored_share)
    cast = facts.num_parameters - num_packed if settings.weights_dtype == "fp32" else in_base
    unpacked = (4 + compute) * largest_layer(facts) if num_packed else 0
    casts = 2 * (cast + scope.num_adapter + scope.fixed) if compute == 2 else 0
    held = int(_ALLOCATOR_SHARE[settings.device] * (activations + workspace))
    states, pieces = _optimiser_parts(settings, scope)
    parts = {
        "weights": frozen_bytes
        + 4 * scope.fixed
        + 4 * scope.num_trainable
        + TYPE_BYTES[settings.weights_dtype] * sum(scope.rows.values()),
        "gradients": 4 * scope.num_trainable,
        "optimiser": states,
        "activations": activations,
        "logits": logits,
        "buffers": casts
        + unpacked
        + pieces
        + workspace
        + head_buffers
        + held
        + save_copy_bytes(settings, saved_bytes(settings, scope))
        + _RUNTIME_BYTES[settings.device],
    }
    return Memory(parts, available_bytes)


def optimiser_bytes(settings: Settings) -> float:
    """Bytes of optimiser state per trained element, in 8 bits of a large tensor; autofreeze keeps sums of gradients with it."""
    sums = 4 if settings.freezing == "autofreeze" else 0
    if settings.optimiser == "adamw_8bit":
        return 2 + 2 * 4 / _BLOCK + sums
    if settings.optimiser == "adamw":
        return 8 + sums
    return (4 if settings.momentum > 0 else 0) + sums


def state_bytes(settings: Settings, scope: Scope) -> int:
    """Bytes of the optimiser's states, and of the scores by which matrices are frozen."""
    small = scope.small if settings.optimiser == "adamw_8bit" else 0
    moments = optimiser_bytes(settings) * (scope.num_trainable - small) + 8 * small
    return math.ceil(moments) + _SCORE_BYTES * scope.scored


def _optimiser_parts(settings: Settings, scope: Scope) -> tuple[int, int]:
    """Bytes of the states on the device, and of what one piece of a tensor takes while its moments are unpacked."""
    if settings.optimiser != "adamw_8bit" and not settings.offload_optimiser:
        return state_bytes(settings, scope), 0
    largest = max([0, *scope.trained.values(), *scope.adapted.values(), *scope.rows.values()])
    held = _SCORE_BYTES * scope.scored if settings.offload_optimiser else state_bytes(settings, scope)
    return held, _UNPACKED_BYTES * min(largest, _PIECE)


def saved_bytes(settings: Settings, scope: Scope) -> int:
    """Bytes of a checkpoint: what an adapter holds and what trains, and the optimiser's states."""
    return 4 * (scope.num_trainable + scope.fixed) + state_bytes(settings, scope)


def save_copy_bytes(settings: Settings, saved: int) -> int:
    """Bytes of the copy that a save in the background needs of what is saved; 0 where the step waits for the save instead.

    On a CPU it comes out of the memory that trains, so that large states are saved in the step; on CUDA it lies on the host.
    """
    return saved if settings.device == "cpu" and saved <= _LARGEST_COPY_BYTES else 0


def saves_in_background(settings: Settings, saved: int) -> bool:
    """Whether training goes on while a checkpoint of so many bytes is written."""
    return settings.device != "cpu" or save_copy_bytes(settings, saved) > 0


def activation_bytes_per_token(facts: ModelFacts, scope: Scope, settings: Settings, layer: int) -> int:
    """Bytes that one layer keeps per token for the backward pass; the module's docstring derives it."""
    compute = TYPE_BYTES[settings.precision]
    residual = _residual_bytes(settings)
    hidden, inner = facts.hidden_size, facts.intermediate_size
    query, key = facts.num_heads * facts.head_dim, facts.num_kv_heads * facts.head_dim
    own = [name for name in (*scope.trained, *scope.adapted) if names.layer_index(name) == layer]
    norms_train = any(names.is_norm(name) for name in own)
    attention = any(_is_matrix(scope, name) and names.in_attention(name.removesuffix(".weight")) for name in own)
    forward = any(_is_matrix(scope, name) and names.in_feed_forward(name.removesuffix(".weight")) for name in own)
    norms = 2 * (4 * hidden + norms_train * residual * hidden)
    if any("q_norm" in name and names.layer_index(name) == layer for name in facts.tensors):
        norms += 4 * (query + key)
    if residual > compute:
        inputs = (3 * attention + 2 * forward) * compute * hidden
    else:
        inputs = (attention + forward) * compute * hidden
    if uses_varlen(settings):
        attended = compute * (2 * query + 2 * key)
    else:
        attended = int(compute * (4 * query * _PADDING + attention * query))
    kept = 3 if facts.gated else (4 if facts.activation in ("gelu_new", "gelu_fast") else 1)
    adapters = sum(1 for name in scope.adapted if names.layer_index(name) == layer) * compute * scope.rank
    adapters += compute * sum(size for name, size in scope.kept.items() if names.layer_index(name) == layer)
    if scope.dropout > 0:
        widths = sum(_input_width(facts, name) for name in scope.adapted if names.layer_index(name) == layer)
        adapters += (1 + compute) * widths
    return norms + inputs + attended + compute * inner * (kept + forward) + adapters


def uses_varlen(settings: Settings) -> bool:
    """Whether attention runs in the variable-length kernel: CUDA, 16 bit, not deterministic."""
    return settings.device == "cuda" and settings.precision != "fp32" and not settings.deterministic


def require_fit(memory: Memory, settings: Settings) -> None:
    """Refuse a run that the machine has no memory for.

    Raises:
        GateRefused: names what is needed, what there is, the largest part and what would help.
    """
    if memory.fits:
        return
    largest = max(PARTS, key=lambda part: memory.parts[part])
    raise GateRefused(
        f"the run needs {_gib(memory.total_bytes)} of memory and {_gib(memory.available_bytes)} are available; "
        f"the largest part is {largest} with {_gib(memory.parts[largest])}",
        where=f"plan for {settings.device}, {settings.precision}, {settings.atom_tokens:,} tokens in a pass",
        hint=_REMEDIES[largest],
    )


def _gib(size: int) -> str:
    """Bytes in GiB; small machines get two digits instead of ``0.0``."""
    gib = size / _GIB
    return f"{gib:.1f} GiB" if gib >= 1 else f"{gib:.2g} GiB"


_REMEDIES = {
    "weights": "take a smaller base model, `training.precision: bf16` where the hardware has it, or a machine with more memory",
    "gradients": "train fewer parameters: `adapter: {type: lora}`, or partial with fewer layers",
    "optimiser": "train fewer parameters: `adapter: {type: lora}`; or `training.optimiser: adamw_8bit`, or `sgd`",
    "activations": "set `training.recompute: on`, or a smaller `model.context`",
    "logits": "a machine with more memory; the head's chunks are as small as they get",
    "buffers": "a smaller `model.context`, or fewer trained parameters: `adapter: {type: lora}`",
}


def _activation_bytes(facts: ModelFacts, scope: Scope, settings: Settings) -> tuple[int, int]:
    """Bytes kept for the backward pass, and bytes that live only while one layer runs backward."""
    compute, residual = TYPE_BYTES[settings.precision], _residual_bytes(settings)
    hidden, tokens = facts.hidden_size, settings.atom_tokens
    if facts.unpacked is not None and not facts.unpacked.even:
        tokens *= _MOST_PADDED
    layers = [
        activation_bytes_per_token(facts, scope, settings, index)
        for index in range(scope.first_layer, facts.num_layers)
    ]
    per_token = 4 * hidden + compute * hidden  # final norm and its output
    if settings.recompute and layers:
        per_token += len(layers) * residual * hidden + max(layers)
    else:
        per_token += sum(layers)
    workspace = (4 * compute * facts.intermediate_size + 16 * hidden) * tokens
    return per_token * tokens, workspace


def _head_bytes(facts: ModelFacts, scope: Scope, settings: Settings, scored_share: float) -> tuple[int, int]:
    """Bytes of logits in flight, and of what the head keeps beside them."""
    rows = facts.logit_rows
    scored = max(1, int(settings.atom_tokens * min(1.0, scored_share)))
    logits = _LIVE_LOGITS * 4 * rows * min(scored, max(1, _CHUNK_LOGITS // rows))
    kept = 2 * TYPE_BYTES[settings.precision] * facts.hidden_size * scored
    trains = any(names.is_head(name) or (facts.tied and names.is_embedding(name)) for name in scope.trained)
    kept += max((4 * scored * size // facts.hidden_size for size in scope.rows.values()), default=0)
    return logits, kept + (8 * rows * facts.hidden_size if trains else 0)


def _residual_bytes(settings: Settings) -> int:
    """The residual stream is 16 bit only where the frozen weights are; trained fp32 weights make it fp32."""
    return TYPE_BYTES[settings.weights_dtype]


def _is_matrix(scope: Scope, name: str) -> bool:
    return name in scope.adapted or (name.endswith(".weight") and not names.is_norm(name))


def _input_width(facts: ModelFacts, module: str) -> int:
    """Width of a linear layer's input. GPT-2 stores its matrices transposed; the wider guess is the safe one."""
    rows, columns = facts.tensors[f"{module}.weight"]
    return max(rows, columns) if facts.model_type == "gpt2" else columns
