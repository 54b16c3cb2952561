"""Scores are sums of plain log-softmax; the candidate tree gives what scoring every candidate by itself gives."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tests.tiny import VOCABULARY, documents, family
from tunesmith.data.loader import make_batch
from tunesmith.models.causal_lm import CausalLM
from tunesmith.models.scoring import CandidateTree, PackScorer

NAMES = ("llama", "qwen3", "gpt2", "mistral", "gemma", "phi")
CANDIDATES = [[7, 8, 9], [7, 8], [7, 8, 9, 10], [7, 11], [12], [13, 8, 9], [7, 8, 14], [12, 12, 12], [7]]
"""Shared beginnings, candidates that begin others, and equal tokens after unlike parents."""


def scorer_for(name: str, context: int = 128, batch_tokens: int = 8192, **changes: Any) -> PackScorer:
    return PackScorer(CausalLM(family(name, **changes)), make_batch, context=context, batch_tokens=batch_tokens)


def sequences(lengths: tuple[int, ...], seed: int = 0) -> list[list[int]]:
    generator = np.random.default_rng(seed)
    return [generator.integers(3, VOCABULARY, length).tolist() for length in lengths]


def plain_logprobs(scorer: PackScorer, ids: list[int]) -> torch.Tensor:
    """Log-probabilities of every next token by the model's own forward ``[T, V]``."""
    with scorer.model.plain_attention() as hf, torch.inference_mode():
        return hf(torch.tensor([ids]), use_cache=False).logits[0].double().log_softmax(-1)


def plain_score(scorer: PackScorer, context: list[int], continuation: list[int]) -> tuple[float, bool]:
    logprobs = plain_logprobs(scorer, [*context, *continuation])
    places = range(len(context) - 1, len(context) + len(continuation) - 1)
    total = sum(float(logprobs[at, token]) for at, token in zip(places, continuation, strict=True))
    return total, all(int(logprobs[at].argmax()) == token for at, token in zip(places, continuation, strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_score_is_the_sum_of_log_softmax(name: str) -> None:
    scorer = scorer_for(name, batch_tokens=40)
    contexts = sequences((5, 1, 12, 20, 3))
    continuations = sequences((3, 4, 1, 6, 2), seed=1)
    with scorer.model.plain_attention() as hf, torch.inference_mode():
        continuations[2] = [int(hf(torch.tensor([contexts[2]])).logits[0, -1].argmax())]
    found = scorer.score(contexts, continuations)
    for context, continuation, score in zip(contexts, continuations, found, strict=True):
        total, greedy = plain_score(scorer, context, continuation)
        assert score.total == pytest.approx(total, rel=1e-5)
        assert score.num_tokens == len(continuation)
        assert score.greedy == greedy
    assert found[2].greedy
    assert not all(score.greedy for score in found)


@pytest.mark.parametrize("name", NAMES)
def test_rank_is_the_score_of_every_candidate(name: str) -> None:
    changes = {"sliding_window": 64} if name == "mistral" else {}
    scorer = scorer_for(name, batch_tokens=90, **changes)
    contexts = sequences((6, 1, 17, 6, 30))
    found = _rank_by_tree(scorer, contexts)
    for context, row in zip(contexts, found, strict=True):
        expected = [plain_score(scorer, context, candidate)[0] for candidate in CANDIDATES]
        assert row == pytest.approx(expected, rel=1e-5)
        assert row == pytest.approx([item.total for item in scorer.score([context] * 9, CANDIDATES)], rel=1e-5)


def _rank_by_tree(scorer: PackScorer, contexts: list[list[int]]) -> list[list[float]]:
    def refused(*_: object) -> list[list[float]]:
        raise AssertionError("the tree must be used here")

    scorer._rank_plainly = refused  # type: ignore[method-assign]
    return scorer.rank(contexts, CANDIDATES)


def test_a_context_beside_longer_ones_ranks_as_alone() -> None:
    scorer = scorer_for("qwen3")
    contexts = sequences((2, 40, 9))
    together = scorer.rank(contexts, CANDIDATES)
    for context, row in zip(contexts, together, strict=True):
        assert row == pytest.approx(scorer.rank([context], CANDIDATES)[0], rel=1e-5)


@pytest.mark.parametrize(("name", "context"), [("llama", 16), ("gpt2", 16), ("mistral", 128)])
def test_where_the_tree_does_not_fit_candidates_are_scored_one_by_one(name: str, context: int) -> None:
    """A tree of 12 nodes after 6 tokens is longer than 16, and than Mistral's window of 8; each candidate fits."""
    scorer = scorer_for(name, context=context)
    contexts = sequences((6, 4))
    assert len(CandidateTree.of(CANDIDATES).tokens) == 12

    def refused(*_: object) -> torch.Tensor:
        raise AssertionError("the tree must not be used here")

    scorer._tree_scores = refused  # type: ignore[method-assign]
    for item, row in zip(contexts, scorer.rank(contexts, CANDIDATES), strict=True):
        expected = [plain_score(scorer, item, candidate)[0] for candidate in CANDIDATES]
        assert row == pytest.approx(expected, rel=1e-5)


def test_the_tree_shares_beginnings() -> None:
    tree = CandidateTree.of([[1, 2, 3], [1, 2], [1, 4], [2]])
    assert tree.tokens == (1, 2, 3, 4, 2)
    assert tree.parents == (-1, 0, 1, 0, -1)
    assert tree.depths == (0, 1, 2, 1, 0)
    assert tree.paths == ((0, 1, 2), (0, 1), (0, 3), (4,))
    ancestors = [{0}, {0, 1}, {0, 1, 2}, {0, 3}, {4}]
    assert [set(np.flatnonzero(row.numpy())) for row in tree.sees()] == ancestors


def test_equal_candidates_have_equal_scores() -> None:
    row = scorer_for("llama").rank(sequences((4,)), [[5, 6], [5, 6]])[0]
    assert row[0] == row[1]


@pytest.mark.parametrize("name", ["llama", "mistral", "gpt2"])
def test_row_losses_are_plain_cross_entropy_over_trained_tokens(name: str) -> None:
    scorer = scorer_for(name, batch_tokens=30)
    rows = documents([9, 4, 20, 2, 13], trained_from=1)
    for ids, trained in rows:
        trained[:] = np.arange(len(ids)) % 3 != 1
    rows[3][1][:] = False
    found = scorer.row_losses(rows)
    for (ids, trained), (loss, count) in zip(rows, found, strict=True):
        logprobs = plain_logprobs(scorer, ids.tolist())
        places = [at for at in range(1, len(ids)) if trained[at]]
        assert count == len(places)
        assert loss == pytest.approx(-sum(float(logprobs[at - 1, int(ids[at])]) for at in places), rel=1e-5)
    assert found[3] == (0.0, 0)
