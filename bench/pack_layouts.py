"""Packs against padded rows on the CPU: one training step of full fine-tuning on the embedded model, rows a second.

Usage: python bench/pack_layouts.py [--rows 32] [--steps 12]; compare ratios, not absolute numbers, and run it twice.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from tunesmith.data.loader import make_batch
from tunesmith.data.tokenizer import Tokenizer
from tunesmith.embedded import HELPDESK, model_folder
from tunesmith.files import read_lines
from tunesmith.models.causal_lm import CausalLM
from tunesmith.models.loading import load_model

Document = tuple[np.ndarray, np.ndarray]


def documents(tokenizer: Tokenizer) -> list[Document]:
    """Tickets with their queue as the trained answer."""
    found = []
    for row in read_lines(HELPDESK / "train.jsonl"):
        prompt, answer = tokenizer.encode(row["ticket"] + "\n"), tokenizer.encode(row["queue"])
        trained = np.zeros(len(prompt) + len(answer), dtype=np.bool_)
        trained[len(prompt) :] = True
        found.append((np.asarray(prompt + answer, dtype=np.uint32), trained))
    return found


def packed_loss(model: CausalLM, chosen: Sequence[Document]) -> Tensor:
    """One pack, the engine's own path."""
    logprob_S = model(make_batch(chosen, range(len(chosen)))).logprob_S
    assert logprob_S is not None
    return -logprob_S.mean()


def padded_loss(model: CausalLM, chosen: Sequence[Document], parts: int) -> Tensor:
    """Rectangles of padded rows, sorted by length and cut into ``parts``; gradients are taken part by part."""
    ordered = sorted(chosen, key=lambda item: len(item[0]))
    total = torch.zeros(())
    scored = sum(int(trained.sum()) for _, trained in ordered)
    with model.plain_attention() as hf:
        hf.train()
        for part in range(parts):
            rows = ordered[part * len(ordered) // parts : (part + 1) * len(ordered) // parts]
            longest = max(len(ids) for ids, _ in rows)
            ids_BT = torch.zeros(len(rows), longest, dtype=torch.long)
            labels_BT = torch.full((len(rows), longest), -100)
            for index, (ids, trained) in enumerate(rows):
                tokens = torch.from_numpy(ids.astype(np.int64))
                ids_BT[index, : len(ids)] = tokens
                labels_BT[index, : len(ids)] = torch.where(torch.from_numpy(trained), tokens, -100)
            hidden_BTH = hf.model(input_ids=ids_BT, use_cache=False).last_hidden_state[:, :-1]
            kept = labels_BT[:, 1:] != -100
            logits_SV = hf.lm_head(hidden_BTH[kept])
            loss = torch.nn.functional.cross_entropy(logits_SV, labels_BT[:, 1:][kept], reduction="sum") / scored
            if part + 1 < parts:
                loss.backward()
                loss = loss.detach()
            total = total + loss
    return total


def main() -> None:
    """Time each layout in turn, several rounds, and print medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--steps", type=int, default=12)
    chosen = parser.parse_args()
    folder = model_folder("tunesmith-base-8m")
    assert folder is not None
    model = load_model(folder)
    model.train()
    data = documents(Tokenizer.from_folder(folder))
    order = np.random.default_rng(0).permutation(len(data))
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    layouts: dict[str, Callable[[Sequence[Document]], Tensor]] = {
        "pack": lambda rows: packed_loss(model, rows),
        "padded, whole": lambda rows: padded_loss(model, rows, 1),
        "padded, 2 by length": lambda rows: padded_loss(model, rows, 2),
        "padded, 4 by length": lambda rows: padded_loss(model, rows, 4),
    }
    seconds: dict[str, list[float]] = {name: [] for name in layouts}
    for step in range(chosen.steps + 1):
        rows = [data[index] for index in order[step * chosen.rows : (step + 1) * chosen.rows]]
        for name, loss_of in layouts.items():
            started = time.perf_counter()
            loss_of(rows).backward()
            optimiser.step()
            optimiser.zero_grad()
            if step:
                seconds[name].append(time.perf_counter() - started)
    for name, times in seconds.items():
        print(f"{name:22} {chosen.rows / statistics.median(times):7.1f} rows/s")


if __name__ == "__main__":
    main()
