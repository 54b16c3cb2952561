"""The papers of a synthetic run: recipe, ledger, plan, environment."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def put(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1), encoding="utf-8")


def layer_vitals(step: int, num_layers: int = 8) -> dict[str, dict[str, float]]:
    """Norms of each layer at a step: ratios fall with the rate, and deeper layers move further."""
    vitals = {}
    for layer in range(num_layers):
        ratio, weights = 4e-3 * (1 + layer / num_layers) / (1 + step / 12), 11.5 + layer
        vitals[f"model.layers.{layer}"] = {
            "update_norm": ratio * weights, "weight_norm": weights, "grad_norm": 0.3 / (1 + layer), "ratio": ratio,
        }  # fmt: skip
    return vitals


def write_papers(folder: Path, num_rows: int, data: str) -> None:
    put(
        folder / "recipe.json",
        {
            "name": "helpdesk",
            "model": {"name": "tunesmith-base-8m", "context": 1024, "chat_template": None, "date": "2026-01-01"},
            "data": {
                "train": [{"path": "tickets.jsonl", "format": "prompt-completion"}],
                "overlong": "error",
                "max_rejected": 0.01,
            },
            "objective": {"type": "sft", "loss_on": "responses"},
            "adapter": {"type": "lora", "rank": 16, "alpha": 32.0, "targets": ["all-linear"]},
            "training": {"epochs": 3.0, "batch_size": 32, "learning_rate": 0.0025, "schedule": "cosine"},
            "evaluation": {
                "tasks": [
                    {"type": "loss", "data": data},
                    {"type": "exact_match", "data": data},
                    {"type": "label_ranking", "data": data},
                ],
                "preserve": ["general", "completions", "instructions"],
            },
            "seed": 0,
        },
    )
    trained, validation, rejected = 560, 80, {"duplicate_of_test": 3, "empty_answer": 2}
    put(
        folder / "ledger.json",
        {
            "rows_in": trained + validation + num_rows + 5,
            "trained": trained,
            "held_out": validation + num_rows,
            "rejected": rejected,
            "tokens": 35_600,
            "trained_tokens": 2_912,
            "validation_rows": validation,
            "test_rows": num_rows,
            "windows": trained,
            "notes": ["3 training rows were dropped: their input is also in the test rows"],
            "per_source": [
                {
                    "role": "train",
                    "path": "train.jsonl",
                    "formats": {"prompt-completion": 1},
                    "rows_in": 565,
                    "trained": 560,
                    "held_out": 0,
                    "rejected": 5,
                },
                {
                    "role": "validation",
                    "path": "validation.jsonl",
                    "formats": {"prompt-completion": 1},
                    "rows_in": 80,
                    "trained": 0,
                    "held_out": 80,
                    "rejected": 0,
                },
                {
                    "role": "test",
                    "path": "test.jsonl",
                    "formats": {"prompt-completion": 1},
                    "rows_in": num_rows,
                    "trained": 0,
                    "held_out": num_rows,
                    "rejected": 0,
                },
            ],
            "lengths": {"min": 21, "median": 58, "p95": 121, "max": 214},
            "tokens_by_role": {
                "user": {"tokens": 26_168, "trained": 0},
                "assistant": {"tokens": 2_912, "trained": 2_912},
                "template": {"tokens": 6_520, "trained": 0},
            },
            "share_trained": 2_912 / 35_600,
        },
    )
    memory = {
        "weights": 32 * 2**20,
        "gradients": 3 * 2**20,
        "optimiser": 6 * 2**20,
        "activations": 240 * 2**20,
        "logits": 90 * 2**20,
        "buffers": 9 * 2**20,
    }
    put(
        folder / "plan.json",
        {
            "steps": 60,
            "tokens": 106_800,
            "time": {"seconds": 31.0, "low": 24.0, "high": 40.0, "basis": "measured here: 3 runs"},
            "memory_bytes": sum(memory.values()),
            "memory": {"parts": memory, "total_bytes": sum(memory.values()), "available_bytes": 2**33, "fits": True},
            "disk": {"checkpoints": 9 * 2**20, "result": 3 * 2**20, "token_cache": 178_000},
            "disk_bytes": 12 * 2**20 + 178_000,
            "parameters": {"total": 8_001_024, "trainable": 786_432, "share": 0.0983},
            "values": {
                "training.learning_rate": {"value": 0.0025, "reason": "LoRA at width 256: 5e-4 x (2000 / 256)^0.781"},
                "training.precision": {"value": "fp32", "reason": "this CPU has no AMX"},
            },
            "energy_wh": None,
            "cost": None,
            "notes": ["Documents are padded side by side: this machine has no variable-length kernel."],
        },
    )
    (folder / "checkpoints" / "60").mkdir(parents=True)
    (folder / "checkpoints" / "60" / "state.safetensors").write_bytes(bytes(2**20))
    put(
        folder / "environment.json",
        {
            "python": "3.11.9",
            "platform": "Linux-6.1.0-x86_64-with-glibc2.36",
            "processor": "x86_64",
            "versions": {
                "tunesmith": "0.1.0",
                "torch": "2.13.0",
                "transformers": "5.20.0",
                "tokenizers": "0.23.1",
                "safetensors": "0.8.0",
                "numpy": "2.3.0",
                "pydantic": "2.12.0",
                "jinja2": "3.1.6",
                "pyarrow": "26.0",
            },
            "cuda": None,
            "device_name": None,
            "cores": 2,
            "threads": 2,
            "command": "tunesmith train helpdesk.yaml training.epochs=3",
            "recipe_folder": "/home/anna/helpdesk",
        },
    )
