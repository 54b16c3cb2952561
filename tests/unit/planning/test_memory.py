"""Memory by part: known totals, and activations against what autograd really keeps."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from tunesmith import embedded
from tunesmith.adapters import build
from tunesmith.adapters.bottleneck import Bottleneck
from tunesmith.data.loader import make_batch
from tunesmith.engine import blockwise, compact_adamw
from tunesmith.engine.optim import Optimiser
from tunesmith.engine.options import TrainerOptions
from tunesmith.errors import GateRefused
from tunesmith.models import names
from tunesmith.models.facts import read_facts
from tunesmith.models.loading import load_model
from tunesmith.planning import memory
from tunesmith.planning.memory import (
    PARTS,
    Memory,
    activation_bytes_per_token,
    estimate_memory,
    require_fit,
    state_bytes,
)
from tunesmith.planning.scope import SMALLEST_PACKED, scope_of
from tunesmith.planning.settings import Counts
from tunesmith.planning.sizing import fit_to_memory
from tunesmith.recipe.adapters import FullSection, LoraSection, PartialSection
from tunesmith.recipe.bottleneck import BottleneckSection
from tunesmith.recipe.low_rank import AfloraSection, GraloraSection

GIB = 1 << 30
BASE = Path(embedded.model_folder(embedded.DEFAULT_MODEL))


def on_cuda(make_settings, section, **changes):
    weights = "bf16" if isinstance(section, LoraSection) else "fp32"
    usual = {"device": "cuda", "precision": "bf16", "deterministic": False, "context": 4096, "weights_dtype": weights}
    return make_settings(**{**usual, **changes})


def test_full_seven_billion_in_bf16_is_above_80_gb(facts_7b, make_settings) -> None:
    memory = estimate_memory(
        facts_7b, scope_of(facts_7b, FullSection()), on_cuda(make_settings, FullSection()), 80 * 10**9
    )
    number = 6_738_415_616
    states = [memory.parts[part] for part in ("weights", "gradients", "optimiser")]
    assert states == [4 * number, 4 * number, 8 * number]
    assert sum(states) > 80 * 10**9
    assert not memory.fits


def test_lora_keeps_the_base_in_16_bit(facts_8b, make_settings) -> None:
    section = LoraSection(rank=16)
    memory = estimate_memory(facts_8b, scope_of(facts_8b, section), on_cuda(make_settings, section), 80 * GIB)
    assert memory.parts["weights"] == 2 * 8_030_261_248 + 4 * 41_943_040
    assert memory.parts["gradients"] == 4 * 41_943_040
    assert memory.parts["optimiser"] == 8 * 41_943_040
    assert set(memory.parts) == set(PARTS)
    assert memory.total_bytes == sum(memory.parts.values())


def test_rows_of_tokens_are_fp32_beside_the_frozen_base(facts_8b, make_settings) -> None:
    """Two rows in two matrices of width 4096; their base values are kept too, and 4 bytes per scored token and row."""
    plain, rows = LoraSection(), LoraSection(train_tokens=[3, 7])
    memory = [
        estimate_memory(facts_8b, scope_of(facts_8b, section), on_cuda(make_settings, section), 80 * GIB, 0.5)
        for section in (plain, rows)
    ]
    more = {part: memory[1].parts[part] - memory[0].parts[part] for part in PARTS}
    elements = 2 * 2 * 4096
    scored = on_cuda(make_settings, plain).atom_tokens // 2
    assert more == {
        "weights": (4 + 2) * elements, "gradients": 4 * elements, "optimiser": 8 * elements,
        "activations": 0, "logits": 0, "buffers": 4 * 2 * scored,
    }  # fmt: skip


@pytest.mark.parametrize(
    "choices",
    [
        {},
        {"activation": "silu", "dropout": 0.1},
        {"placement": "sequential", "layer_norm": "before"},
        {"layer_norm": "after"},
    ],
    ids=str,
)
def test_what_a_bottleneck_keeps_per_token(tiny, make_settings, choices) -> None:
    """What autograd saves of 64 tokens at one site, each storage once and weights left out, is planned and no more than twice."""
    section = BottleneckSection(**choices)
    width, (settings,) = tiny.hidden_size, section.parts(tiny.hidden_size).values()
    part = Bottleneck(settings, torch.ones(settings.width, width), torch.ones(width, settings.width)).train()
    saved: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.shape[:1] == (64,):
            storage = tensor.untyped_storage()
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    x, y = torch.randn(2, 64, width, requires_grad=True).unbind()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        found = part(x, y, y, None)
    found.sum().backward()
    scope, settings = scope_of(tiny, section), make_settings()
    (planned,) = {size for name, size in scope.kept.items() if names.layer_index(name) == 0}
    without = replace(scope, kept={})
    more = [activation_bytes_per_token(tiny, item, settings, 0) for item in (scope, without)]
    assert more[0] - more[1] == 4 * planned
    x_and_y = 2 * 64 * width * 4  # one storage here: the input that is read is kept alive with the other
    measured = sum(saved.values()) - x_and_y // 2
    assert measured <= 64 * 4 * planned <= 2 * measured


def test_sgd_keeps_less(tiny, make_settings) -> None:
    scope = scope_of(tiny, FullSection())
    bytes_of = lambda **changes: estimate_memory(tiny, scope, make_settings(**changes), GIB).parts["optimiser"]  # noqa: E731
    number = tiny.num_parameters
    assert bytes_of() == 8 * number
    assert bytes_of(optimiser="sgd") == 4 * number
    assert bytes_of(optimiser="sgd", momentum=0.0) == 0


def test_packed_moments_take_a_byte_a_number_and_a_scale_a_block(tiny, make_settings) -> None:
    """The tiny model's largest tensor has 96 · 32 numbers, so that all moments stay as they are."""
    constants = (memory._BLOCK, memory._PIECE, SMALLEST_PACKED)
    assert constants == (blockwise.BLOCK, compact_adamw.PIECE, compact_adamw.SMALLEST)
    settings = make_settings(optimiser="adamw_8bit")
    scope = scope_of(tiny, FullSection())
    assert scope.small == tiny.num_parameters
    assert state_bytes(settings, scope) == 8 * tiny.num_parameters
    large = replace(scope, small=1_000)
    rest = tiny.num_parameters - 1_000
    assert state_bytes(settings, large) == math.ceil(rest * (2 + 8 / 256)) + 8_000


@pytest.mark.parametrize(
    "section",
    [FullSection(), LoraSection(rank=16), LoraSection(rank=64, dora=True), GraloraSection(), AfloraSection(rank=32)],
    ids=str,
)
def test_the_plan_counts_the_states_that_are_made(section, make_facts, make_settings) -> None:
    """On a Llama of some hundred thousand parameters, byte for byte but for steps and the last block of each tensor."""
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=512, hidden_size=128, intermediate_size=352, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=True,
        )
    )  # fmt: skip
    shapes = {name: tuple(part.shape) for name, part in model.named_parameters()}
    facts = make_facts(shapes, 128, 2, 4, 2, 352, 512, tied=True, context=64)
    adapter = build(section, 0)
    adapter.attach(model)
    made = Optimiser(adapter.groups(), TrainerOptions(1, 1e-3, 0, optimiser="adamw_8bit"))
    for parameter in made.parameters:
        parameter.grad = torch.ones_like(parameter)
    made.step(torch.zeros(()))
    tensors = [tensor for name, tensor in made.state().items() if not name.endswith("/step")]
    measured = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    settings = make_settings(optimiser="adamw_8bit")
    scope = scope_of(facts, section)
    planned = state_bytes(settings, scope) - 12 * scope.scored
    assert 0 <= measured - planned <= 2 * 4 * len(made.parameters)


def test_states_on_the_host_are_none_on_the_device(tiny, make_settings) -> None:
    scope = scope_of(tiny, FullSection())
    there = estimate_memory(tiny, scope, make_settings(device="cuda"), GIB)
    away = estimate_memory(tiny, scope, make_settings(device="cuda", offload_optimiser=True), GIB)
    assert away.parts["optimiser"] == 0
    assert away.parts["buffers"] - there.parts["buffers"] == 32 * 96 * 32


def test_logits_do_not_grow_with_the_pass(facts_8b, make_settings) -> None:
    """A chunk holds 2^24 logits: three fp32 arrays of 64 MiB, however many tokens."""
    section = LoraSection()
    scope = scope_of(facts_8b, section)
    sizes = {
        tokens: estimate_memory(facts_8b, scope, on_cuda(make_settings, section, atom_tokens=tokens), GIB).parts[
            "logits"
        ]
        for tokens in (4096, 16384)
    }
    assert sizes[4096] == sizes[16384] == pytest.approx(3 * 4 * 2**24, rel=0.01)


def test_recompute_keeps_only_inputs_of_layers(facts_8b, make_settings) -> None:
    section = LoraSection()
    scope = scope_of(facts_8b, section)
    kept, again = (
        estimate_memory(facts_8b, scope, on_cuda(make_settings, section, recompute=flag), GIB).parts["activations"]
        for flag in (False, True)
    )
    layer = activation_bytes_per_token(facts_8b, scope, on_cuda(make_settings, section), 0)
    inputs = 32 * 2 * 4096
    assert kept - again == 4096 * (31 * layer - inputs)


def saved_bytes_per_token(section, precision: str, weights: str, lengths: list[int]) -> float:
    """Bytes of distinct storages that autograd keeps in a forward pass, without parameters."""
    dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16}
    model = load_model(BASE, dtype=dtypes[weights], check=False)
    build(section, 0).attach(model.hf)
    model.train()
    generator = np.random.default_rng(0)
    documents = [(generator.integers(0, 8000, n).astype(np.uint32), np.ones(n, bool)) for n in lengths]
    batch = make_batch(documents, list(range(len(lengths))))
    parameters = {part.untyped_storage().data_ptr() for part in model.parameters()}
    cast_sizes = {part.numel() * 2 for part in model.parameters()} if precision == "bf16" else set()
    seen: dict[int, object] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters and storage.nbytes() not in cast_sizes:
            seen[storage.data_ptr()] = storage
        return tensor

    autocast = torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16")
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), autocast:
        model.hidden(batch)
    return sum(storage.nbytes() for storage in seen.values()) / sum(lengths)


@pytest.mark.parametrize(
    ("section", "precision", "weights"),
    [
        (LoraSection(), "fp32", "fp32"),
        (LoraSection(targets=["attention"]), "fp32", "fp32"),
        (LoraSection(targets=["feed-forward"]), "fp32", "fp32"),
        (LoraSection(dropout=0.1), "fp32", "fp32"),
        (LoraSection(dropout=0.1), "bf16", "bf16"),
        (GraloraSection(dropout=0.1), "fp32", "fp32"),
        (LoraSection(), "bf16", "bf16"),
        (FullSection(), "fp32", "fp32"),
        (FullSection(), "bf16", "fp32"),
        (PartialSection(last_layers=2), "fp32", "fp32"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.type,
)
def test_activations_are_what_autograd_keeps(section, precision: str, weights: str, make_settings) -> None:
    lengths = [int(n) for n in np.random.default_rng(1).integers(20, 120, 8)]
    facts = read_facts(BASE)
    scope = scope_of(facts, section)
    settings = make_settings(precision=precision, weights_dtype=weights, atom_tokens=sum(lengths))
    layers = sum(activation_bytes_per_token(facts, scope, settings, layer) for layer in range(scope.first_layer, 8))
    # How much the documents are padded depends on their lengths; the plan takes 1.25 for all.
    assert layers == pytest.approx(saved_bytes_per_token(section, precision, weights, lengths), rel=0.12)


def fitted(facts, section, settings, available: float, recompute: str = "auto"):
    counts = Counts(rows=100, tokens=10_000, trained_tokens=3_000)
    return fit_to_memory(facts, scope_of(facts, section), settings, counts, int(available), recompute)


def test_usual_pass_where_memory_is_plenty(facts_8b, make_settings) -> None:
    settings, memory, atom, recompute = fitted(
        facts_8b, LoraSection(), on_cuda(make_settings, LoraSection()), 1000 * GIB
    )
    assert (settings.atom_tokens, settings.recompute) == (atom.value, recompute.value) == (16384, False)
    assert memory.fits


def test_pass_shrinks_then_recomputes_then_refuses(facts_8b, make_settings) -> None:
    section = LoraSection()
    tokens = []
    for available in (133, 60, 40, 22, 16):
        settings, memory, _, _ = fitted(facts_8b, section, on_cuda(make_settings, section), available * GIB)
        tokens.append((settings.atom_tokens, settings.recompute))
        assert settings.atom_tokens >= settings.context
        assert memory.fits == (available > 16)
    assert tokens[0] == (16384, False)
    assert tokens[-1] == (4096, True)
    assert tokens == sorted(tokens, key=lambda pair: (pair[1], -pair[0]))
    assert {again for _, again in tokens} == {False, True}


@pytest.mark.parametrize(("choice", "flag"), [("on", True), ("off", False)])
def test_recompute_as_the_recipe_says(facts_8b, make_settings, choice: str, flag: bool) -> None:
    settings, _, _, reason = fitted(facts_8b, LoraSection(), on_cuda(make_settings, LoraSection()), 10 * GIB, choice)
    assert settings.recompute is flag
    assert reason.reason == "given in the recipe"


def test_pass_is_never_more_than_a_step_or_a_micro_batch_nor_less_than_the_context(tiny, make_settings) -> None:
    atom = lambda **changes: fitted(tiny, LoraSection(), make_settings(**changes), 10 * GIB)[0].atom_tokens  # noqa: E731
    assert atom(batch_size=2, context=100) == 200
    assert atom(micro_batch_size=3, context=100) == 300
    assert atom(context=8192) == 8192
    assert atom(context=100, batch_size=64) == 4096


def test_refusal_names_need_and_remedy(facts_7b, make_settings) -> None:
    settings = on_cuda(make_settings, FullSection())
    memory = estimate_memory(facts_7b, scope_of(facts_7b, FullSection()), settings, 80 * GIB)
    with pytest.raises(GateRefused, match=r"80\.0 GiB are available; the largest part is optimiser") as caught:
        require_fit(memory, settings)
    assert caught.value.exit_code == 3
    assert "lora" in caught.value.hint
    require_fit(replace(memory, available_bytes=1000 * GIB), settings)


def test_json_round_trip() -> None:
    memory = Memory(dict.fromkeys(PARTS, 3), 20)
    assert memory.to_json()["total_bytes"] == 18
    assert Memory.from_json(memory.to_json()) == memory
