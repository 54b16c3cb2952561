"""Planned against measured memory, and tokens a second, of whole runs on this machine.

Usage: python bench/planned_memory.py [--shapes 0.3b 1b 8b] [--scopes lora full] [--tokens 4096] [--steps 12]

Makes a random model of each shape and a file of random text, then runs `tunesmith train` on them as a user would and reads
plan.json, status.json and metrics.jsonl. Memory is what the run's own meter saw (CUDA: the allocator's peak) against what the
plan said of the same quantity. The speed is the median of the second half of the steps.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tunesmith.embedded import model_folder

SHAPES: dict[str, dict[str, Any]] = {
    "0.1b": {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 12,
             "num_key_value_heads": 4, "vocab_size": 32768},
    "0.3b": {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 16, "num_attention_heads": 16,
             "num_key_value_heads": 8, "vocab_size": 65536},
    "1b": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
           "num_key_value_heads": 8, "vocab_size": 128256},
    "3b": {"hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 28, "num_attention_heads": 24,
           "num_key_value_heads": 8, "vocab_size": 128256},
    "8b": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
           "num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": False},
}  # fmt: skip
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


def make_model(folder: Path, shape: str) -> None:
    """A random Llama of a shape, in bf16, with the embedded tokenizer."""
    like = model_folder("tunesmith-base-8m")
    assert like is not None
    values = {"tie_word_embeddings": True, "max_position_embeddings": 8192, "bos_token_id": 0, "eos_token_id": 1}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(device):
        model = LlamaForCausalLM(LlamaConfig(**{**values, **SHAPES[shape]}))
    torch.set_default_dtype(before)
    model.save_pretrained(folder)
    del model
    if device == "cuda":
        torch.cuda.empty_cache()
    for name in TOKENIZER:
        shutil.copyfile(like / name, folder / name)


def make_rows(path: Path, tokens: int, rows: int) -> None:
    """Random words; each row is as long as a pass, give or take a tenth."""
    generator = random.Random(0)
    words = [f"{left}{right}" for left in "abcdefgh" for right in ("or", "in", "est", "al", "um", "ed")]
    with path.open("w", encoding="utf-8") as stream:
        for _ in range(rows):
            count = int(tokens * generator.uniform(0.35, 0.45))
            stream.write(json.dumps({"text": " ".join(generator.choice(words) for _ in range(count))}) + "\n")


def run(folder: Path, shape: str, scope: str, recompute: str, options: argparse.Namespace) -> dict[str, Any]:
    """One training run; returns what it planned and what it measured."""
    name = f"{shape}-{scope}-{recompute}"
    recipe = {
        "name": name, "model": {"name": shape, "context": options.tokens},
        "data": {"train": [{"path": "rows.jsonl", "format": "text"}], "validation": 0, "test": 0},
        "objective": {"type": "clm"},
        "adapter": {"type": "lora", "rank": 16} if scope == "lora" else {"type": scope},
        "training": {
            "max_steps": options.steps, "batch_size": options.rows, "samples": 0, "recompute": recompute,
            "checkpoint_every": options.steps, "learning_rate": 1e-5, "guards": {"divergence": "off"},
        },
        "evaluation": {"tasks": [], "preserve": []},
    }  # fmt: skip
    (folder / f"{name}.json").write_text(json.dumps(recipe), encoding="utf-8")
    command = [sys.executable, "-m", "tunesmith", "train", f"{name}.json", "--json"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        return {"name": name, "error": done.stderr.strip().splitlines()[-3:]}
    place = folder / "runs" / name
    plan, status = (json.loads((place / f"{item}.json").read_text()) for item in ("plan", "status"))
    lines = [json.loads(line) for line in (place / "metrics.jsonl").read_text().splitlines()]
    speeds = [line["tokens_per_second"] for line in lines if "loss" in line]
    shutil.rmtree(place)
    return {
        "name": name, "planned": plan["memory_bytes"], "measured": status["peak_memory_bytes"],
        "parts": plan["memory"]["parts"], "atom_tokens": plan["settings"]["atom_tokens"],
        "recompute": plan["settings"]["recompute"], "speed": statistics.median(speeds[len(speeds) // 2 :]),
    }  # fmt: skip


def main() -> None:
    """Run every combination and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shapes", nargs="+", default=["0.3b", "1b"], choices=SHAPES)
    parser.add_argument("--scopes", nargs="+", default=["lora", "full"])
    parser.add_argument("--recompute", nargs="+", default=["off", "on"])
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--steps", type=int, default=12)
    options = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.cuda.get_device_name(0) if torch.cuda.is_available() else 'CPU'}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_rows(folder / "rows.jsonl", options.tokens, 64)
        print(f"{'run':24} {'planned GB':>10} {'measured GB':>11} {'ratio':>6} {'pass':>6} {'tokens/s':>9}", flush=True)
        for shape in options.shapes:
            make_model(folder / shape, shape)
            for scope in options.scopes:
                for recompute in options.recompute:
                    found = run(folder, shape, scope, recompute, options)
                    if "error" in found:
                        print(f"{found['name']:24} {found['error']}", flush=True)
                        continue
                    planned, measured = found["planned"] / 1e9, found["measured"] / 1e9
                    print(
                        f"{found['name']:24} {planned:10.2f} {measured:11.2f} {planned / measured:6.2f} "
                        f"{found['atom_tokens']:6} {found['speed']:9,.0f}   "
                        + " ".join(f"{part} {size / 1e9:.2f}" for part, size in found["parts"].items()),
                        flush=True,
                    )
            shutil.rmtree(folder / shape)


if __name__ == "__main__":
    main()
