"""A classification head on a decoder in one flat loop: torch, transformers, and nothing hidden.

A small base model learns which queue a help-desk ticket belongs to, by a linear layer on the state of the last token. The
base may train along or stay frozen. It takes about a minute on a CPU:

    python examples/classify_head_loop.py --steps 60
    python examples/classify_head_loop.py --steps 60 --frozen

`tunesmith train` with `objective: {type: classify}` does the same work with packs in place of padding, checkpoints, scores
and a report; a test holds that both give the same losses on the same rows.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from tunesmith.data.ordering import epoch_order
from tunesmith.embedded import DEFAULT_MODEL, HELPDESK, model_folder

BATCH_SIZE = 16
LEARNING_RATE = 1e-3  # two fifths of 5e-4 · (2000 / width)^0.781 at width 256
HEAD_RATE = 5e-3  # of a head alone
WEIGHT_DECAY = 0.01
WARMUP_SHARE = 0.03
CLIP = 1.0
SEED = 0
START_STD = 0.02


def read_tickets(split: str) -> list[dict[str, str]]:
    """Rows of the embedded help desk: ``ticket`` and ``queue``."""
    lines = (HELPDESK / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def load(*, frozen: bool) -> tuple[Any, Any, list[str]]:
    """The embedded base with a fresh head in transformers' own class, its tokenizer, and the labels in order."""
    folder = model_folder(DEFAULT_MODEL)
    if folder is None:
        raise SystemExit(f"the package does not carry {DEFAULT_MODEL}")
    labels = sorted({row["queue"] for row in read_tickets("train")})
    model = AutoModelForSequenceClassification.from_pretrained(
        Path(folder), dtype=torch.float32, num_labels=len(labels)
    )
    with torch.no_grad():
        model.score.weight.normal_(0.0, START_STD, generator=torch.Generator().manual_seed(SEED))
    if frozen:
        model.model.requires_grad_(False)
    return model, AutoTokenizer.from_pretrained(folder), labels


def pad(texts: list[list[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Ids and attention mask of a batch, padded on the right."""
    longest = max(len(ids) for ids in texts)
    ids = torch.tensor([one + [pad_id] * (longest - len(one)) for one in texts])
    seen = torch.tensor([[1] * len(one) + [0] * (longest - len(one)) for one in texts])
    return ids, seen


def groups(model: Any) -> list[dict[str, Any]]:
    """Parameters that train: matrices decay; norms and the embedding do not."""
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    trained = [item for item in model.parameters() if item.requires_grad]
    matrices = [item for item in trained if item.ndim >= 2 and id(item) not in embeddings]
    others = [item for item in trained if item.ndim < 2 or id(item) in embeddings]
    return [{"params": matrices, "weight_decay": WEIGHT_DECAY}, {"params": others, "weight_decay": 0.0}]


def rate_at(step: int, total: int, peak: float) -> float:
    """Linear warm-up, then a cosine down to zero."""
    warmup = math.ceil(WARMUP_SHARE * total)
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


def train(model: Any, tokenizer: Any, labels: list[str], total_steps: int, *, peak: float) -> list[float]:
    """The loop. Returns the loss of each step: the mean over the tickets of its batch, in nats."""
    rows = read_tickets("train")
    texts = [tokenizer(row["ticket"])["input_ids"] for row in rows]
    classes = torch.tensor([labels.index(row["queue"]) for row in rows])
    optimiser = torch.optim.AdamW(groups(model), lr=peak)
    losses: list[float] = []
    epoch = 0
    while len(losses) < total_steps:
        order = epoch_order(len(rows), SEED, epoch)
        for start in range(0, len(order), BATCH_SIZE):
            if len(losses) == total_steps:
                break
            batch = order[start : start + BATCH_SIZE].tolist()
            ids, seen = pad([texts[index] for index in batch], tokenizer.pad_token_id)
            logits = model(input_ids=ids, attention_mask=seen).logits
            loss = functional.cross_entropy(logits, classes[batch])
            loss.backward()
            nn.utils.clip_grad_norm_([item for item in model.parameters() if item.grad is not None], CLIP)
            for group in optimiser.param_groups:
                group["lr"] = rate_at(len(losses), total_steps, peak)
            optimiser.step()
            optimiser.zero_grad()
            losses.append(loss.item())
            print(f"step {len(losses):3d} of {total_steps}   loss {losses[-1]:.4f}")
        epoch += 1
    return losses


def main() -> None:
    """Train, and count the held-out tickets whose queue is right."""
    parser = argparse.ArgumentParser(description="A classification head in one flat loop.")
    parser.add_argument("--steps", type=int, default=60, help="optimiser steps of 16 tickets")
    parser.add_argument("--frozen", action="store_true", help="train the head alone")
    given = parser.parse_args()
    model, tokenizer, labels = load(frozen=given.frozen)
    train(model, tokenizer, labels, given.steps, peak=HEAD_RATE if given.frozen else LEARNING_RATE)
    held_out = read_tickets("test")
    ids, seen = pad([tokenizer(row["ticket"])["input_ids"] for row in held_out], tokenizer.pad_token_id)
    with torch.inference_mode():
        said = model(input_ids=ids, attention_mask=seen).logits.argmax(-1).tolist()
    right = sum(labels[number] == row["queue"] for number, row in zip(said, held_out, strict=True))
    print(f"{right} of {len(held_out)} held-out tickets right")


if __name__ == "__main__":
    main()
