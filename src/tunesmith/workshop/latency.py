"""Time that one more token takes: a run's model beside its base, in one process, turn about."""

from __future__ import annotations

import statistics
import time
from pathlib import Path

import torch

from tunesmith.models.locate import open_model
from tunesmith.registry.runs import RunFolder
from tunesmith.types import Sampling
from tunesmith.workshop.opening import Opened, open_machine

_TOKENS = 24
_ROUNDS = 7
_PROMPT_TOKENS = 32


def token_seconds(run: Path, *, tokens: int = _TOKENS, rounds: int = _ROUNDS) -> dict[str, float] | None:
    """Median seconds per token of greedy decoding with a cache, one answer at a time; None for a model with a head.

    Base and tuned model answer turn about; the prompt's own pass is taken off by answers of one token. An adapter is not merged.

    Returns:
        ``base`` and ``tuned`` in seconds, and ``added``, the median of the differences of the rounds.
    """
    tuned = open_machine(str(run))
    if tuned.machine.headed is not None:
        return None
    base = open_machine(str(open_model(str(RunFolder.open(run).path)).base.path))
    prompt = _prompt(tuned)
    sides = {"base": base, "tuned": tuned}
    taken: dict[str, list[float]] = {name: [] for name in sides}
    for opened in sides.values():
        _seconds(opened, prompt, 2)
    for _ in range(rounds):
        for name, opened in sides.items():
            taken[name].append((_seconds(opened, prompt, tokens + 1) - _seconds(opened, prompt, 1)) / tokens)
    added = [after - before for before, after in zip(taken["base"], taken["tuned"], strict=True)]
    return {name: statistics.median(values) for name, values in taken.items()} | {"added": statistics.median(added)}


def _prompt(opened: Opened) -> list[int]:
    """Tokens of some text, which text does not matter."""
    ids = opened.machine.tokenizer.encode_document("The quick answer to a long question is short. " * _PROMPT_TOKENS)
    return list(ids[:_PROMPT_TOKENS])


def _seconds(opened: Opened, prompt: list[int], tokens: int) -> float:
    """Seconds of an answer of so many tokens, whatever they are."""
    generator = opened.machine.generator
    stops, generator.stop_ids = generator.stop_ids, frozenset()
    try:
        _wait(opened)
        started = time.perf_counter()
        for _ in generator.stream(prompt, Sampling(max_new_tokens=tokens)):
            pass
        _wait(opened)
        return time.perf_counter() - started
    finally:
        generator.stop_ids = stops


def _wait(opened: Opened) -> None:
    if opened.machine.model.device.type == "cuda":
        torch.cuda.synchronize()
