"""Answers are those of transformers' own generate; sampling, truncation and stops are held against direct computation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tests.tiny import VOCABULARY, family
from tunesmith.models.causal_lm import CausalLM
from tunesmith.models.generation import Generator, _truncate
from tunesmith.types import Sampling

LENGTHS = (5, 1, 12, 3, 20, 12, 7)
NAMES = ("llama", "qwen3", "gpt2", "mistral", "gemma", "phi")


def prompts(lengths: tuple[int, ...] = LENGTHS, seed: int = 0) -> list[list[int]]:
    generator = np.random.default_rng(seed)
    return [generator.integers(3, VOCABULARY, length).tolist() for length in lengths]


def generator_for(name: str, stop_ids: frozenset[int] = frozenset({2}), batch_tokens: int = 8192) -> Generator:
    return Generator(
        CausalLM(family(name)), stop_ids=stop_ids, pad_id=0, decode=lambda ids: " ".join(map(str, ids)),
        batch_tokens=batch_tokens,
    )  # fmt: skip


def their_greedy(hf: Any, prompt: list[int], new_tokens: int, stop_ids: frozenset[int]) -> tuple[list[int], bool]:
    """One prompt by itself through transformers' generate, and whether it ended by a stop token, which is left out."""
    ids = torch.tensor([prompt])
    out = hf.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=new_tokens, pad_token_id=0,
        eos_token_id=sorted(stop_ids) or None, use_cache=True,
    )[0, len(prompt) :].tolist()  # fmt: skip
    return (out[:-1], True) if out and out[-1] in stop_ids else (out, False)


def greedy_stops(name: str, new_tokens: int) -> frozenset[int]:
    """Tokens that some greedy answers hold at their third place, so that stops come at unlike times."""
    with CausalLM(family(name)).plain_attention() as hf:
        answers = [their_greedy(hf, prompt, new_tokens, frozenset({2}))[0] for prompt in prompts()]
    return frozenset({2} | {answer[2] for answer in answers[::3] if len(answer) > 2})


@pytest.mark.parametrize("name", NAMES)
def test_greedy_answers_are_those_of_transformers(name: str) -> None:
    stop_ids = greedy_stops(name, 16)
    generator = generator_for(name, stop_ids)
    found = generator.sample(prompts(), Sampling(max_new_tokens=16))
    with CausalLM(family(name)).plain_attention() as hf:
        expected = [their_greedy(hf, prompt, 16, stop_ids) for prompt in prompts()]
    assert [(list(answer.ids), answer.ended) for answer in found] == expected
    assert {answer.ended for answer in found} == {True, False}, "both ways to end must be seen"


def test_a_sliding_window_is_crossed_by_prompts_and_answers() -> None:
    """Mistral's window is 8 here: prompts of 1 to 20 tokens with 24 new ones start on both sides of it."""
    generator = generator_for("mistral", frozenset())
    assert generator.model.hf.config.sliding_window == 8
    found = generator.sample(prompts(), Sampling(max_new_tokens=24))
    with generator.model.plain_attention() as hf:
        expected = [their_greedy(hf, prompt, 24, frozenset())[0] for prompt in prompts()]
    assert [list(answer.ids) for answer in found] == expected
    assert all(len(answer.ids) == 24 and not answer.ended for answer in found)


@pytest.mark.parametrize("batch_tokens", [1, 24, 8192])
def test_the_cut_into_batches_changes_nothing(batch_tokens: int) -> None:
    how = Sampling(max_new_tokens=8)
    expected = generator_for("llama").sample(prompts(), how)
    found = generator_for("llama", batch_tokens=batch_tokens).sample(prompts(), how)
    assert [answer.ids for answer in found] == [answer.ids for answer in expected]


@pytest.mark.parametrize("name", ["llama", "gpt2", "mistral"])
def test_logprobs_are_those_of_a_plain_forward(name: str) -> None:
    """Under the model itself: temperature and truncation choose the token, they do not score it."""
    generator = generator_for(name)
    asked = prompts()
    answers = generator.sample(asked, Sampling(max_new_tokens=6, temperature=1.5, top_k=20, seed=3))
    with generator.model.plain_attention() as hf, torch.inference_mode():
        for prompt, answer in zip(asked, answers, strict=True):
            logprobs = hf(torch.tensor([[*prompt, *answer.ids]])).logits[0].log_softmax(-1)
            expected = [float(logprobs[len(prompt) - 1 + at, token]) for at, token in enumerate(answer.ids)]
            assert list(answer.logprobs) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("name", ["llama", "mistral", "gpt2"])
def test_a_sampled_answer_does_not_depend_on_its_neighbours(name: str) -> None:
    how = Sampling(max_new_tokens=10, temperature=1.0, top_p=0.95, seed=11)
    asked = prompts()
    together = generator_for(name).sample(asked, how)
    assert len({answer.ids for answer in together}) == len(asked)
    alone = generator_for(name).sample(asked[:1], how)[0]
    one_by_one = generator_for(name, batch_tokens=1).sample(asked, how)
    others = generator_for(name).sample([asked[0], *prompts((30, 2, 9), seed=5)], how)[0]
    assert together[0].ids == alone.ids == others.ids
    assert [answer.ids for answer in one_by_one] == [answer.ids for answer in together]


def test_a_seed_gives_the_same_answers_twice_and_another_seed_others() -> None:
    found = [
        [answer.ids for answer in generator_for("llama").sample(prompts(), Sampling(10, temperature=1.0, seed=seed))]
        for seed in (1, 1, 2)
    ]
    assert found[0] == found[1]
    assert found[0] != found[2]


def test_top_k_of_one_is_greedy() -> None:
    generator = generator_for("qwen3")
    greedy = generator.sample(prompts(), Sampling(max_new_tokens=8))
    found = generator.sample(prompts(), Sampling(max_new_tokens=8, temperature=2.0, top_k=1, seed=4))
    assert [answer.ids for answer in found] == [answer.ids for answer in greedy]


@pytest.mark.parametrize("top_p", [0.05, 0.3, 0.8, 0.999])
@pytest.mark.parametrize("top_k", [0, 1, 5, 50])
def test_truncation_keeps_the_smallest_set_that_holds_top_p(top_k: int, top_p: float) -> None:
    logits = torch.randn(4, 30, generator=torch.Generator().manual_seed(0)) * 2
    found = _truncate(logits, Sampling(top_k=top_k, top_p=top_p))
    for row, cut in zip(logits, found, strict=True):
        order = sorted(range(30), key=lambda token: -float(row[token]))
        order = order[:top_k] if top_k else order
        total = sum(float(row[token].double().exp()) for token in order)
        kept, mass = set(), 0.0
        for token in order:
            kept.add(token)
            mass += float(row[token].double().exp()) / total
            if mass >= top_p:
                break
        assert {token for token in range(30) if torch.isfinite(cut[token])} == kept
        assert all(cut[token] == row[token] for token in kept)


def test_sampling_follows_the_tempered_truncated_probabilities() -> None:
    """Two thousand first tokens of one prompt against softmax(logits / T) over the three likeliest."""
    generator = generator_for("llama", frozenset())
    prompt = prompts()[0]
    how = Sampling(max_new_tokens=1, temperature=0.7, top_k=3, seed=0)
    draws = [answer.ids[0] for answer in generator.sample([prompt] * 2000, how)]
    with generator.model.plain_attention() as hf, torch.inference_mode():
        top = (hf(torch.tensor([prompt])).logits[0, -1] / 0.7).topk(3)
    for token, share in zip(top.indices.tolist(), top.values.softmax(-1).tolist(), strict=True):
        spread = (share * (1 - share) / 2000) ** 0.5
        assert draws.count(token) / 2000 == pytest.approx(share, abs=5 * spread + 1e-9)
    assert set(draws) <= set(top.indices.tolist())


@pytest.mark.parametrize("how", [Sampling(12), Sampling(12, temperature=0.9, top_p=0.9, seed=6)])
@pytest.mark.parametrize("name", ["llama", "gpt2", "mistral"])
def test_a_stream_says_what_sample_says(name: str, how: Sampling) -> None:
    generator = generator_for(name, greedy_stops(name, 12))
    for prompt in prompts():
        assert tuple(generator.stream(prompt, how)) == generator.sample([prompt], how)[0].ids


def test_an_answer_may_be_empty() -> None:
    first = generator_for("llama").sample(prompts()[:1], Sampling(max_new_tokens=1))[0].ids[0]
    generator = generator_for("llama", frozenset({first}))
    answer = generator.sample(prompts()[:1], Sampling(max_new_tokens=5))[0]
    assert (answer.ids, answer.text, answer.ended) == ((), "", True)
    assert list(generator.stream(prompts()[0], Sampling(max_new_tokens=5))) == []
    assert generator.sample([], Sampling()) == []


def test_generation_leaves_the_model_ready_to_train() -> None:
    generator = generator_for("llama")
    generator.model.train()
    attention = generator.model.hf.config._attn_implementation
    generator.sample(prompts()[:2], Sampling(max_new_tokens=2))
    assert generator.model.hf.training
    assert generator.model.hf.config._attn_implementation == attention


def test_a_stream_that_is_left_early_leaves_the_model_ready_to_train() -> None:
    generator = generator_for("llama", frozenset())
    attention = generator.model.hf.config._attn_implementation
    stream = generator.stream(prompts()[0], Sampling(max_new_tokens=5))
    next(stream)
    stream.close()
    assert generator.model.hf.config._attn_implementation == attention


def test_answers_end_where_the_context_does() -> None:
    """GPT-2 has no position behind its context; an answer there stops, and a prompt that fills it gets none."""
    generator = generator_for("gpt2", frozenset())
    generator.context = generator.model.hf.config.n_positions
    assert generator.context == 128
    asked = prompts((120, 5, 128, 127, 130))
    answers = generator.sample(asked, Sampling(max_new_tokens=20))
    assert [len(answer.ids) for answer in answers] == [8, 20, 0, 1, 0]
    assert not any(answer.ended for answer in answers)
    assert [len(list(generator.stream(prompt, Sampling(max_new_tokens=20)))) for prompt in asked] == [8, 20, 0, 1, 0]
    assert answers[1].ids == generator.sample(asked[1:2], Sampling(max_new_tokens=20))[0].ids
