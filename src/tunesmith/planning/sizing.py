"""How many tokens go through the model at once, and whether activations are computed twice: chosen so that memory fits."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from tunesmith.models.facts import ModelFacts
from tunesmith.planning.memory import Memory, estimate_memory
from tunesmith.planning.scope import Scope
from tunesmith.planning.settings import Counts, Derived, Settings

CPU_ATOM_TOKENS = 4096
CUDA_ATOM_TOKENS = 16384
_GOOD_TOKENS = 2048
"""Below this a pass is too small to keep the hardware busy, and recompute costs less than more, smaller passes."""


def fit_to_memory(
    facts: ModelFacts,
    scope: Scope,
    settings: Settings,
    counts: Counts,
    available_bytes: int,
    recompute: str,
    *,
    num_passes: int = 1,
) -> tuple[Settings, Memory, Derived[int], Derived[bool]]:
    """Choose ``atom_tokens`` and ``recompute``.

    Halves the pass down to 2,048 tokens (never below the context) while activations are kept; then recomputes, at the largest
    pass that fits. What does not fit even so is returned with the smallest choice: the caller says it and `require_fit` refuses.

    Args:
        facts: sizes of the model.
        scope: what trains.
        settings: all else.
        counts: share of scored tokens.
        available_bytes: what may be filled.
        recompute: ``auto``, ``on`` or ``off``, as the recipe says.
        num_passes: how often the model runs over a pack before its backward pass.
    """
    row = settings.context + scope.virtual_tokens
    most, why = _most_tokens(settings, row)
    share = counts.trained_tokens / counts.tokens if counts.tokens else 1.0
    chosen = settings
    memory = None
    for tokens, again in _choices(most, row, recompute):
        chosen = replace(settings, atom_tokens=tokens, recompute=again)
        expected = largest_pass(chosen, counts, scope.virtual_tokens)
        largest = replace(chosen, atom_tokens=num_passes * expected)
        memory = estimate_memory(facts, scope, largest, available_bytes, share)
        if memory.fits:
            break
    assert memory is not None
    if chosen.atom_tokens < most:
        why = f"{why}, made smaller to {'fit' if memory.fits else 'need less'} memory, never below the context"
    return chosen, memory, Derived(chosen.atom_tokens, why), _recompute_reason(chosen, memory, recompute)


def largest_pass(settings: Settings, counts: Counts, virtual: int = 0) -> int:
    """Tokens of the largest pass to expect, ``virtual`` ones of each example included: at most ``atom_tokens``, less where a
    whole step is smaller.

    The length of a step is a sum of independent draws; four standard deviations above its mean are hardly ever reached.
    """
    if not counts.rows or not counts.attended:
        return settings.atom_tokens
    rows = min(settings.batch_size, settings.micro_batch_size or settings.batch_size)
    mean = counts.tokens / counts.rows
    variance = max(0.0, mean * (counts.attended - mean))
    likely = math.ceil(rows * (mean + virtual) + 4 * math.sqrt(rows * variance))
    return min(settings.atom_tokens, max(likely, (counts.longest or 0) + virtual))


def _most_tokens(settings: Settings, row: int) -> tuple[int, str]:
    usual = CUDA_ATOM_TOKENS if settings.device == "cuda" else CPU_ATOM_TOKENS
    most, why = usual, f"usual for {settings.device}"
    whole = settings.batch_size * row
    if whole < most:
        most, why = whole, f"{settings.batch_size} examples of {row:,} tokens, a whole step"
    if settings.micro_batch_size is not None and settings.micro_batch_size * row < most:
        most = settings.micro_batch_size * row
        why = f"{settings.micro_batch_size} examples of {row:,} tokens, `micro_batch_size`"
    if most < row:
        most, why = row, "one example as long as the context"
    return most, why


def _choices(most: int, context: int, recompute: str) -> Iterator[tuple[int, bool]]:
    if recompute != "on":
        floor = context if recompute == "off" else max(context, min(most, _GOOD_TOKENS))
        yield from ((tokens, False) for tokens in _halvings(most, floor))
    if recompute != "off":
        yield from ((tokens, True) for tokens in _halvings(most, context))


def _halvings(most: int, floor: int) -> Iterator[int]:
    tokens = most
    while tokens > floor:
        yield tokens
        tokens //= 2
    yield floor


def _recompute_reason(settings: Settings, memory: Memory, asked: str) -> Derived[bool]:
    if asked != "auto":
        return Derived.given(settings.recompute)
    if not settings.recompute:
        return Derived(False, "activations fit in memory")
    if memory.fits:
        return Derived(True, "memory needs it: layers are computed twice, a third more arithmetic")
    return Derived(True, "memory needs it, and it is not enough")
