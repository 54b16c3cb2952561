"""Supervised fine-tuning with bottleneck adapters in one flat loop: torch, transformers, and nothing hidden.

A small base model learns which queue a help-desk ticket belongs to. It takes about a minute on a CPU:

    python examples/bottleneck_loop.py --steps 60

`tunesmith train` does the same work with packs in place of padding, checkpoints, scores and a report; a test holds that
both give the same losses on the same rows.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer

from tunesmith.data.ordering import epoch_order
from tunesmith.embedded import DEFAULT_MODEL, HELPDESK, model_folder

BATCH_SIZE = 16
REDUCTION, SCALING = 2, 4.0  # width of the model over that of the adapter; He et al. 2022
LEARNING_RATE = 2.5e-3  # 5e-4 · (2000 / width)^0.781 at width 256
WEIGHT_DECAY = 0.01
WARMUP_SHARE = 0.03
CLIP = 1.0
SEED = 0
NOT_TRAINED = -100


class WithAdapter(nn.Module):
    """A frozen sub-layer with a trained adapter beside it: y = F(x) + s · up(relu(down(x)))."""

    def __init__(self, base: nn.Module, name: str, width: int) -> None:
        super().__init__()
        # Drawn by the sub-layer's name: the order in which they are visited does not matter.
        digest = hashlib.sha256(f"{SEED}\n{name}\ndown".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
        self.base = base
        self.down = nn.Linear(width, width // REDUCTION)
        self.up = nn.Linear(width // REDUCTION, width)
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5), generator=generator)
        for zero in (self.down.bias, self.up.weight, self.up.bias):  # training starts from the exact base
            nn.init.zeros_(zero)

    def forward(self, x: Tensor) -> Tensor:
        """What goes into the stream: the base's output and the adapter's."""
        return self.base(x) + SCALING * self.up(functional.relu(self.down(x)))


def add_adapters(model: Any) -> list[nn.Parameter]:
    """Freeze the model and put an adapter beside the feed-forward of each layer; returns what trains."""
    model.requires_grad_(False)
    for number, layer in enumerate(model.model.layers):
        layer.mlp = WithAdapter(layer.mlp, f"model.layers.{number}.mlp", model.config.hidden_size)
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def read_tickets(split: str) -> list[dict[str, str]]:
    """Rows of the embedded help desk: ``ticket`` and ``queue``."""
    lines = (HELPDESK / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def render(tokenizer: Any, row: dict[str, str]) -> tuple[list[int], list[int]]:
    """Token ids of a conversation, and labels that are set on the answer and its end-of-turn token only."""
    messages = [{"role": "user", "content": row["ticket"]}, {"role": "assistant", "content": row["queue"]}]
    found = tokenizer.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
    ids, trained = found["input_ids"], found["assistant_masks"]
    return ids, [token if flag else NOT_TRAINED for token, flag in zip(ids, trained, strict=True)]


def pad(examples: list[tuple[list[int], list[int]]], pad_id: int) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, labels and attention mask of a batch, padded on the right."""
    longest = max(len(ids) for ids, _ in examples)
    ids = torch.tensor([ids + [pad_id] * (longest - len(ids)) for ids, _ in examples])
    labels = torch.tensor([labels + [NOT_TRAINED] * (longest - len(labels)) for _, labels in examples])
    seen = torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for ids, _ in examples])
    return ids, labels, seen


def rate_at(step: int, total: int) -> float:
    """Linear warm-up, then a cosine down to zero."""
    warmup = math.ceil(WARMUP_SHARE * total)
    if step < warmup:
        return LEARNING_RATE * (step + 1) / warmup
    return LEARNING_RATE * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


def train(model: Any, tokenizer: Any, trained: list[nn.Parameter], total_steps: int) -> list[float]:
    """The loop. Returns the loss of each step: the mean over the answers' tokens of its batch, in nats."""
    examples = [render(tokenizer, row) for row in read_tickets("train")]
    groups = [
        {"params": [parameter for parameter in trained if parameter.dim() == 2], "weight_decay": WEIGHT_DECAY},
        {"params": [parameter for parameter in trained if parameter.dim() == 1], "weight_decay": 0.0},
    ]
    optimiser = torch.optim.AdamW(groups, lr=LEARNING_RATE)
    losses: list[float] = []
    epoch = 0
    while len(losses) < total_steps:
        order = epoch_order(len(examples), SEED, epoch)
        for start in range(0, len(order), BATCH_SIZE):
            if len(losses) == total_steps:
                break
            batch = [examples[index] for index in order[start : start + BATCH_SIZE]]
            ids, labels, seen = pad(batch, tokenizer.pad_token_id)
            hidden = model.model(input_ids=ids, attention_mask=seen).last_hidden_state
            # The state at a place predicts the token after it; the head is needed where that token is trained.
            targets = labels[:, 1:]
            logits = model.lm_head(hidden[:, :-1][targets != NOT_TRAINED])
            loss = functional.cross_entropy(logits, targets[targets != NOT_TRAINED])
            loss.backward()
            nn.utils.clip_grad_norm_(trained, CLIP)
            for group in optimiser.param_groups:
                group["lr"] = rate_at(len(losses), total_steps)
            optimiser.step()
            optimiser.zero_grad()
            losses.append(loss.item())
            print(f"step {len(losses):3d} of {total_steps}   loss {losses[-1]:.4f}")
        epoch += 1
    return losses


@torch.inference_mode()
def answer(model: Any, tokenizer: Any, ticket: str) -> str:
    """The model's greedy answer to a ticket."""
    messages = [{"role": "user", "content": ticket}]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True, return_tensors="pt")
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    out = model.generate(
        **prompt, max_new_tokens=8, do_sample=False, eos_token_id=end, pad_token_id=tokenizer.pad_token_id
    )
    return str(tokenizer.decode(out[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True)).strip()


def load() -> tuple[Any, Any, list[nn.Parameter]]:
    """The embedded base model with adapters on it, its tokenizer, and what trains."""
    folder = model_folder(DEFAULT_MODEL)
    if folder is None:
        raise SystemExit(f"the package does not carry {DEFAULT_MODEL}")
    model = AutoModelForCausalLM.from_pretrained(Path(folder), dtype=torch.float32)
    return model, AutoTokenizer.from_pretrained(folder), add_adapters(model)


def main() -> None:
    """Train, and show what the model answers to tickets it has not seen."""
    parser = argparse.ArgumentParser(description="SFT with bottleneck adapters in one flat loop.")
    parser.add_argument("--steps", type=int, default=60, help="optimiser steps of 16 tickets")
    steps = parser.parse_args().steps
    started = time.perf_counter()
    model, tokenizer, trained = load()
    count = sum(parameter.numel() for parameter in trained)
    print(f"{count:,} trained parameters beside {sum(p.numel() for p in model.parameters()) - count:,} frozen ones")
    train(model, tokenizer, trained, steps)
    held_out = read_tickets("test")[:20]
    answers = [answer(model, tokenizer, row["ticket"]) for row in held_out]
    for row, said in list(zip(held_out, answers, strict=True))[:5]:
        print(f"\n{row['ticket'][:110]}\n  queue: {row['queue']}   answer: {said}")
    right = sum(said == row["queue"] for row, said in zip(held_out, answers, strict=True))
    print(f"\n{right} of {len(held_out)} held-out tickets right, {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
