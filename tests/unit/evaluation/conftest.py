"""Models made of tables: they answer and score what the test says."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from tunesmith.evaluation.questions import Question
from tunesmith.types import Completion, LogProb, Sampling


class TableSampler:
    """Answers by the prompt's first token."""

    def __init__(self, answers: dict[int, str]) -> None:
        self.answers = answers
        self.calls: list[int] = []

    def sample(self, prompts: Sequence[Sequence[int]], how: Sampling) -> list[Completion]:
        self.calls.append(len(prompts))
        return [Completion(self.answers[prompt[0]], (1, 2), (-0.1, -0.2), True) for prompt in prompts]


class TableScorer:
    """Scores a continuation by its tokens' values, and ranks by rows of a table keyed by the context's first token."""

    def __init__(self, ranks: dict[int, list[float]] | None = None, values: dict[int, float] | None = None) -> None:
        self.ranks = ranks or {}
        self.values = values or {}

    def score(self, contexts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]]) -> list[LogProb]:
        assert len(contexts) == len(continuations)
        return [LogProb(sum(self.values.get(t, 0.0) for t in ids), len(ids), False) for ids in continuations]

    def rank(self, contexts: Sequence[Sequence[int]], candidates: Sequence[Sequence[int]]) -> list[list[float]]:
        return [self.ranks[context[0]] for context in contexts]


def ask(*references: str) -> list[Question]:
    """Questions with ids q0, q1, … and prompts of unlike lengths, whose first token is the row's number."""
    return [
        Question.of(f"q{i}", [i] + [9] * (i % 3), f"prompt {i}", reference) for i, reference in enumerate(references)
    ]


@pytest.fixture
def questions():
    return ask


@pytest.fixture
def table_sampler():
    return TableSampler


@pytest.fixture
def table_scorer():
    return TableScorer
