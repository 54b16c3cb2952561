"""Continued pre-training of every parameter in one flat loop: torch, transformers, and nothing hidden.

A small base model reads the tickets of a help desk, as plain text, and finds new ones less surprising. It takes about a
minute on a CPU:

    python examples/clm_full_loop.py --steps 40

`tunesmith train` with `objective: {type: clm}` and `adapter: {type: full}` does the same work; a test holds that both
give the same losses on the same rows.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer

from tunesmith.data.ordering import epoch_order
from tunesmith.embedded import DEFAULT_MODEL, HELPDESK, model_folder

BATCH_SIZE = 16
LEARNING_RATE = 1e-3  # two fifths of LoRA's rule by width: 2/5 · 5e-4 · (2000 / 256)^0.781
WEIGHT_DECAY = 0.01
WARMUP_SHARE = 0.03
CLIP = 1.0
SEED = 0
NOT_TRAINED = -100


def read_documents(tokenizer: Any, split: str) -> list[list[int]]:
    """Token ids of each ticket, closed by the end-of-text token: the model learns where a document ends."""
    lines = (HELPDESK / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
    return [tokenizer(json.loads(line)["ticket"])["input_ids"] + [tokenizer.eos_token_id] for line in lines]


def pad(documents: list[list[int]], pad_id: int) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, labels and attention mask of a batch, padded on the right. Every token but the first is a target."""
    longest = max(len(ids) for ids in documents)
    ids = torch.tensor([ids + [pad_id] * (longest - len(ids)) for ids in documents])
    seen = torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for ids in documents])
    return ids, ids.masked_fill(seen == 0, NOT_TRAINED), seen


def summed_loss(model: Any, documents: list[list[int]], pad_id: int) -> tuple[Tensor, int]:
    """Loss in nats summed over the targets of a batch, and how many they are."""
    ids, labels, seen = pad(documents, pad_id)
    logits = model(input_ids=ids, attention_mask=seen).logits[:, :-1].flatten(0, 1)
    targets = labels[:, 1:].flatten()
    total = functional.cross_entropy(logits, targets, ignore_index=NOT_TRAINED, reduction="sum")
    return total, int((targets != NOT_TRAINED).sum())


def parameter_groups(model: nn.Module) -> list[dict[str, Any]]:
    """Matrices decay; norms and embeddings (here also the head, which is tied to them) do not."""
    embeddings = {id(layer.weight) for layer in model.modules() if isinstance(layer, nn.Embedding)}
    decayed = [item for item in model.parameters() if item.dim() >= 2 and id(item) not in embeddings]
    kept = [item for item in model.parameters() if item.dim() < 2 or id(item) in embeddings]
    return [{"params": decayed, "weight_decay": WEIGHT_DECAY}, {"params": kept, "weight_decay": 0.0}]


def rate_at(step: int, total: int) -> float:
    """Linear warm-up, then a cosine down to zero."""
    warmup = math.ceil(WARMUP_SHARE * total)
    if step < warmup:
        return LEARNING_RATE * (step + 1) / warmup
    return LEARNING_RATE * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


def train(model: Any, tokenizer: Any, total_steps: int) -> list[float]:
    """The loop. Returns the loss of each step: the mean over all targets of its batch, in nats."""
    documents = read_documents(tokenizer, "train")
    optimiser = torch.optim.AdamW(parameter_groups(model), lr=LEARNING_RATE)
    losses: list[float] = []
    epoch = 0
    while len(losses) < total_steps:
        order = epoch_order(len(documents), SEED, epoch)
        for start in range(0, len(order), BATCH_SIZE):
            if len(losses) == total_steps:
                break
            batch = [documents[index] for index in order[start : start + BATCH_SIZE]]
            total, count = summed_loss(model, batch, tokenizer.pad_token_id)
            (total / count).backward()
            nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            for group in optimiser.param_groups:
                group["lr"] = rate_at(len(losses), total_steps)
            optimiser.step()
            optimiser.zero_grad()
            losses.append(total.item() / count)
            print(f"step {len(losses):3d} of {total_steps}   loss {losses[-1]:.4f}")
        epoch += 1
    return losses


@torch.inference_mode()
def perplexity(model: Any, documents: list[list[int]], pad_id: int) -> float:
    """Exponential of the mean loss over all tokens of documents."""
    parts = [summed_loss(model, documents[start : start + 16], pad_id) for start in range(0, len(documents), 16)]
    return math.exp(sum(total.item() for total, _ in parts) / sum(count for _, count in parts))


def load() -> tuple[Any, Any]:
    """The embedded base model in fp32, and its tokenizer."""
    folder = model_folder(DEFAULT_MODEL)
    if folder is None:
        raise SystemExit(f"the package does not carry {DEFAULT_MODEL}")
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), AutoTokenizer.from_pretrained(folder)


def main() -> None:
    """Train, and measure held-out tickets before and after."""
    parser = argparse.ArgumentParser(description="Continued pre-training in one flat loop.")
    parser.add_argument("--steps", type=int, default=40, help="optimiser steps of 16 tickets")
    steps = parser.parse_args().steps
    started = time.perf_counter()
    model, tokenizer = load()
    held_out = read_documents(tokenizer, "test")[:64]
    before = perplexity(model, held_out, tokenizer.pad_token_id)
    train(model, tokenizer, steps)
    after = perplexity(model, held_out, tokenizer.pad_token_id)
    print(
        f"\nperplexity of held-out tickets: {before:.1f} before, {after:.1f} after, {time.perf_counter() - started:.0f} s"
    )


if __name__ == "__main__":
    main()
