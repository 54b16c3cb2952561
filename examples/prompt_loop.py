"""Prompt tuning in one flat loop: twenty trained rows in front of every input, torch, transformers, and nothing hidden.

A small base model learns which queue a help-desk ticket belongs to. It takes about a minute on a CPU:

    python examples/prompt_loop.py --steps 60

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
NUM_TOKENS = 20
COMMON_TOKENS = 5000
LEARNING_RATE = 2.5e-2  # 10 · 5e-4 · (2000 / width)^0.781 at width 256
WARMUP_SHARE = 0.03
CLIP = 1.0
SEED = 0
NOT_TRAINED = -100


class Prompted(nn.Module):
    """A frozen model with trained rows in front of its embedded input."""

    def __init__(self, base: Any) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        digest = hashlib.sha256(f"{SEED}\nvirtual_tokens".encode()).digest()
        torch.manual_seed(int.from_bytes(digest[:8], "big") >> 1)
        table = base.get_input_embeddings().weight
        common = torch.randint(min(COMMON_TOKENS, len(table)), (NUM_TOKENS,))
        self.prompt = nn.Parameter(table.detach()[common].clone())  # a start on the scale of real tokens

    def states(self, ids: Tensor, seen: Tensor) -> Tensor:
        """Last hidden states of the tokens, each row of which reads the prompt first."""
        embedded = self.base.get_input_embeddings()(ids)
        prompt = self.prompt.expand(len(ids), -1, -1)
        seen = torch.cat([seen.new_ones(len(ids), NUM_TOKENS), seen], dim=1)
        hidden = self.base.model(inputs_embeds=torch.cat([prompt, embedded], dim=1), attention_mask=seen)
        states: Tensor = hidden.last_hidden_state[:, NUM_TOKENS:]
        return states


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


def train(model: Prompted, tokenizer: Any, total_steps: int) -> list[float]:
    """The loop. Returns the loss of each step: the mean over the answers' tokens of its batch, in nats."""
    examples = [render(tokenizer, row) for row in read_tickets("train")]
    optimiser = torch.optim.AdamW([model.prompt], lr=LEARNING_RATE, weight_decay=0.0)
    losses: list[float] = []
    epoch = 0
    while len(losses) < total_steps:
        order = epoch_order(len(examples), SEED, epoch)
        for start in range(0, len(order), BATCH_SIZE):
            if len(losses) == total_steps:
                break
            batch = [examples[index] for index in order[start : start + BATCH_SIZE]]
            ids, labels, seen = pad(batch, tokenizer.pad_token_id)
            hidden = model.states(ids, seen)
            # The state at a place predicts the token after it; the head is needed where that token is trained.
            targets = labels[:, 1:]
            logits = model.base.lm_head(hidden[:, :-1][targets != NOT_TRAINED])
            loss = functional.cross_entropy(logits, targets[targets != NOT_TRAINED])
            loss.backward()
            nn.utils.clip_grad_norm_([model.prompt], CLIP)
            for group in optimiser.param_groups:
                group["lr"] = rate_at(len(losses), total_steps)
            optimiser.step()
            optimiser.zero_grad()
            losses.append(loss.item())
            print(f"step {len(losses):3d} of {total_steps}   loss {losses[-1]:.4f}")
        epoch += 1
    return losses


@torch.inference_mode()
def answer(model: Prompted, tokenizer: Any, ticket: str) -> str:
    """The model's greedy answer to a ticket; every token anew, without a cache, to keep it short."""
    messages = [{"role": "user", "content": ticket}]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True, return_tensors="pt")
    ids = ids["input_ids"]
    end, start = tokenizer.convert_tokens_to_ids("<|im_end|>"), ids.shape[1]
    while ids.shape[1] < start + 8:
        state = model.states(ids, torch.ones_like(ids))[:, -1]
        token = model.base.lm_head(state).argmax(-1, keepdim=True)
        if token.item() == end:
            break
        ids = torch.cat([ids, token], dim=1)
    return str(tokenizer.decode(ids[0, start:], skip_special_tokens=True)).strip()


def load() -> tuple[Prompted, Any]:
    """The embedded base model with a prompt before it, and its tokenizer."""
    folder = model_folder(DEFAULT_MODEL)
    if folder is None:
        raise SystemExit(f"the package does not carry {DEFAULT_MODEL}")
    base = AutoModelForCausalLM.from_pretrained(Path(folder), dtype=torch.float32)
    return Prompted(base), AutoTokenizer.from_pretrained(folder)


def main() -> None:
    """Train, and show what the model answers to tickets it has not seen."""
    parser = argparse.ArgumentParser(description="Prompt tuning in one flat loop.")
    parser.add_argument("--steps", type=int, default=60, help="optimiser steps of 16 tickets")
    steps = parser.parse_args().steps
    started = time.perf_counter()
    model, tokenizer = load()
    count = model.prompt.numel()
    print(f"{count:,} trained parameters before {sum(p.numel() for p in model.base.parameters()):,} frozen ones")
    train(model, tokenizer, steps)
    held_out = read_tickets("test")[:20]
    answers = [answer(model, tokenizer, row["ticket"]) for row in held_out]
    for row, said in list(zip(held_out, answers, strict=True))[:5]:
        print(f"\n{row['ticket'][:110]}\n  queue: {row['queue']}   answer: {said}")
    right = sum(said == row["queue"] for row, said in zip(held_out, answers, strict=True))
    print(f"\n{right} of {len(held_out)} held-out tickets right, {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
