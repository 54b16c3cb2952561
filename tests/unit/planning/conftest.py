"""Facts of models without files, and machines that are not this one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from tunesmith.models.facts import ModelFacts
from tunesmith.planning.machine import Gpu, Machine
from tunesmith.planning.settings import Settings

GIB = 1 << 30


def llama_facts(
    hidden: int,
    layers: int,
    heads: int,
    kv_heads: int,
    inner: int,
    vocabulary: int,
    *,
    tied: bool = False,
    context: int = 4096,
) -> ModelFacts:
    """A Llama of any size."""
    width = hidden // heads
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocabulary, hidden)}
    for layer in range(layers):
        prefix = f"model.layers.{layer}"
        shapes |= {
            f"{prefix}.self_attn.q_proj.weight": (hidden, hidden),
            f"{prefix}.self_attn.k_proj.weight": (kv_heads * width, hidden),
            f"{prefix}.self_attn.v_proj.weight": (kv_heads * width, hidden),
            f"{prefix}.self_attn.o_proj.weight": (hidden, hidden),
            f"{prefix}.mlp.gate_proj.weight": (inner, hidden),
            f"{prefix}.mlp.up_proj.weight": (inner, hidden),
            f"{prefix}.mlp.down_proj.weight": (hidden, inner),
            f"{prefix}.input_layernorm.weight": (hidden,),
            f"{prefix}.post_attention_layernorm.weight": (hidden,),
        }
    shapes["model.norm.weight"] = (hidden,)
    if not tied:
        shapes["lm_head.weight"] = (vocabulary, hidden)
    return facts_of(shapes, hidden, layers, heads, kv_heads, inner, vocabulary, tied=tied, context=context)


def facts_of(
    shapes: dict[str, tuple[int, ...]], hidden: int, layers: int, heads: int, kv_heads: int, inner: int, vocabulary: int,
    *, tied: bool = False, context: int = 4096,
) -> ModelFacts:  # fmt: skip
    elements = 0
    for shape in shapes.values():
        size = 1
        for width in shape:
            size *= width
        elements += size
    return ModelFacts(
        architecture="LlamaForCausalLM", model_type="llama", num_parameters=elements, weights_bytes=2 * elements,
        hidden_size=hidden, num_layers=layers, num_heads=heads, num_kv_heads=kv_heads, head_dim=hidden // heads,
        intermediate_size=inner, vocab_size=vocabulary, embedding_rows=vocabulary, context=context, context_stated=True,
        tied=tied, dtype="bf16", activation="silu", gated=True, sliding_window=None, tensors=shapes, dropped_fields=(),
    )  # fmt: skip


LLAMA_2_7B = llama_facts(4096, 32, 32, 32, 11008, 32000)
LLAMA_31_8B = llama_facts(4096, 32, 32, 8, 14336, 128256)
TINY = llama_facts(32, 3, 4, 2, 48, 96, tied=True, context=128)

CPU = Machine(
    device="cpu", name="Test CPU", cores=2, threads=2, memory_bytes=24 * GIB, available_bytes=22 * GIB,
    host_memory_bytes=24 * GIB, bf16=False, amx=False, avx512_bf16=True,
)  # fmt: skip
H200 = replace(
    CPU, device="cuda", name="Test H200", memory_bytes=140 * GIB, available_bytes=133 * GIB, bf16=True,
    gpus=(Gpu("Test H200", 140 * GIB, (9, 0)),),
)  # fmt: skip


def settings(**changes: object) -> Settings:
    """Settings of a small CPU run, with changes."""
    usual = Settings(
        learning_rate=1e-3, total_steps=30, steps_per_epoch=10, epochs=3.0, warmup_steps=1, batch_size=32,
        micro_batch_size=None, atom_tokens=4096, precision="fp32", weights_dtype="fp32", device="cpu", threads=2,
        deterministic=True, recompute=False, checkpoint_every=3, keep_checkpoints=2, evaluate_every=3, log_every=1,
        context=1024, overlong="error", seed=0, clip=1.0, weight_decay=0.01, schedule="cosine", decay_share=0.2,
        optimiser="adamw", betas=(0.9, 0.999), momentum=0.9,
    )  # fmt: skip
    return replace(usual, **changes)


def _fixture(value: object) -> Callable[[], object]:
    return pytest.fixture(scope="session")(lambda: value)


cpu, h200 = _fixture(CPU), _fixture(H200)
facts_7b, facts_8b, tiny = _fixture(LLAMA_2_7B), _fixture(LLAMA_31_8B), _fixture(TINY)
make_facts, make_llama, make_settings = _fixture(facts_of), _fixture(llama_facts), _fixture(settings)
