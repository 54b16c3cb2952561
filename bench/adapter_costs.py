"""What each way to tune costs at a model's size: trained parameters, speed of a step, peak memory, start, file, latency.

Usage: python bench/adapter_costs.py [--shapes 1b 8b] [--methods lora gralora ...] [--tokens 8192] [--steps 8] [--recompute]

One random base of each shape in 16 bit (fp32 on a CPU); every method is attached to it, trained through the engine on the
same packs of random tokens, asked for tokens with a cache, and detached. Speeds are medians of the steps after the first
two; memory is the allocator's peak while training; a method that does not fit says so.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench.planned_memory import SHAPES
from pydantic import TypeAdapter
from safetensors.torch import save

from tunesmith.adapters import build
from tunesmith.data.loader import PackedStream, StreamOptions
from tunesmith.data.store import StoreWriter, TokenStore
from tunesmith.engine.checkpoint import CheckpointFolder
from tunesmith.engine.options import TrainerOptions
from tunesmith.engine.trainer import Trainer
from tunesmith.models.causal_lm import CausalLM
from tunesmith.models.generation import Generator
from tunesmith.models.quantised import quantise
from tunesmith.objectives.next_token import NextToken
from tunesmith.recipe.adapters import AdapterField
from tunesmith.records import Origin, Row, Text
from tunesmith.types import Sampling

METHODS: dict[str, dict[str, Any]] = {
    "lora": {"type": "lora", "rank": 16},
    "lora-dropout": {"type": "lora", "rank": 16, "dropout": 0.05},
    "lora-64": {"type": "lora", "rank": 64},
    "dora": {"type": "lora", "rank": 16, "dora": True},
    "pissa": {"type": "lora", "rank": 16, "init": "pissa"},
    "gralora": {"type": "gralora", "rank": 16, "blocks": 2},
    "gralora-64": {"type": "gralora", "rank": 64, "blocks": 4},
    "bottleneck": {"type": "bottleneck"},
    "partial": {"type": "partial", "last_layers": 2},
    "full": {"type": "full"},
}
_SKIPPED = 2
_ANSWER_TOKENS = 48


def make_base(shape: str, device: torch.device, dtype: torch.dtype, kind: str) -> CausalLM:
    """A random Llama of a shape on the device, its linear layers packed as asked."""
    from transformers import LlamaConfig, LlamaForCausalLM

    values = {"tie_word_embeddings": True, "max_position_embeddings": 8192, "bos_token_id": 0, "eos_token_id": 1}
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device:
            model = LlamaForCausalLM(LlamaConfig(**{**values, **SHAPES[shape]}))
    finally:
        torch.set_default_dtype(before)
    if kind != "none":
        quantise(model, kind, dtype, device)
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return CausalLM(model)


def make_rows(folder: Path, vocab: int, tokens: int, rows: int) -> TokenStore:
    """Documents of a quarter of a pass, all of it trained."""
    numbers = np.random.default_rng(0)
    with StoreWriter(folder) as writer:
        for number in range(rows):
            ids = numbers.integers(10, vocab, tokens // 4).tolist()
            writer.add(Row(f"{number:016x}", Origin("random", number + 1), 0, Text("")), ids, [True] * len(ids))
    return TokenStore(folder)


def wait(device: torch.device) -> None:
    """Let the device finish."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def latency(model: CausalLM, device: torch.device) -> float:
    """Milliseconds a token of one answer with a cache."""
    model.eval()
    generator = Generator(model, stop_ids=(), pad_id=0, decode=str, batch_tokens=4096, context=2048)
    times = []
    for _ in range(3):
        wait(device)
        started = time.perf_counter()
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda"):
            generator.sample([list(range(10, 138))], Sampling(max_new_tokens=_ANSWER_TOKENS))
        wait(device)
        times.append((time.perf_counter() - started) / _ANSWER_TOKENS * 1e3)
    model.train()
    return statistics.median(times[1:])


def measure(model: CausalLM, name: str, store: TokenStore, given: argparse.Namespace, folder: Path) -> str:
    """One method on the base: a line of the table."""
    device = model.device
    section = TypeAdapter(AdapterField).validate_python(METHODS[name])
    adapter = build(section, 0)
    started = time.perf_counter()
    adapter.attach(model.hf)
    model.to(device)
    wait(device)
    start_seconds = time.perf_counter() - started
    trained = sum(item.numel() for group in adapter.groups() for _, item in group.parameters)
    options = TrainerOptions(
        total_steps=given.steps, learning_rate=1e-5, warmup_steps=1, checkpoint_every=10**6, evaluate_every=10**6,
        precision="bf16" if device.type == "cuda" else "fp32", recompute=given.recompute,
    )  # fmt: skip
    stream = PackedStream(store, StreamOptions(4, given.steps, given.tokens, 0))
    trainer = Trainer(model, NextToken(), adapter, stream, options, CheckpointFolder(folder / name, "bench"))
    model.train()
    times: list[float] = []
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    for step in stream:  # the loop's own step, without its checkpoints
        wait(device)
        began = time.perf_counter()
        trainer._one_step(step)
        wait(device)
        times.append(time.perf_counter() - began)
    peak = torch.cuda.max_memory_allocated() / 1e9 if device.type == "cuda" else float("nan")
    del trainer, stream
    speed = given.tokens / statistics.median(times[_SKIPPED:])
    size = (
        len(save({key: value.contiguous() for key, value in adapter.state().items()})) / 1e6
        if trained < 1e9
        else trained * 4 / 1e6
    )
    answer = latency(model, device)
    if hasattr(adapter, "detach"):
        adapter.detach()
    return f"| {name} | {trained:,} | {speed:,.0f} | {peak:.1f} | {start_seconds:.1f} | {size:,.1f} | {answer:.2f} |"


def main() -> None:
    """Print a table for each shape."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=["1b"], choices=SHAPES)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--recompute", action="store_true")
    parser.add_argument("--quantise", default="none", choices=["none", "nf4", "int8", "fp8"])
    given = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    print(f"torch {torch.__version__}, {torch.cuda.get_device_name(0) if device.type == 'cuda' else 'CPU'}")
    for shape in given.shapes:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            store = make_rows(folder / "rows", SHAPES[shape]["vocab_size"], given.tokens, 4 * given.steps)
            model = make_base(shape, device, dtype, given.quantise)
            if given.recompute:
                model.recompute_activations()
            print(
                f"\n{shape}: base alone {latency(model, device):.2f} ms a token; {given.tokens} tokens a step, recompute {given.recompute}, base {given.quantise}\n"
            )
            print(
                "| method | trained | tokens/s | peak GB | start s | file MB | ms a token |\n|---|---|---|---|---|---|---|",
                flush=True,
            )
            for method in given.methods:
                try:
                    line = measure(model, method, store, given, folder)
                except Exception as error:  # does not fit: said, and the next method gets a fresh base
                    line = f"| {method} | {type(error).__name__}: {str(error).splitlines()[0][:120]} |"
                    del model
                    if device.type == "cuda":
                        torch.cuda.empty_cache()
                    model = make_base(shape, device, dtype, given.quantise)
                print(line, flush=True)


if __name__ == "__main__":
    main()
