"""The facade over encoder–decoder models against transformers' own loss, its halves, and its answers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.breadth.tiny_folder import tiny_model, write_tiny
from tests.tiny import batch, documents
from tunesmith.data.loader import make_batch
from tunesmith.errors import ModelError
from tunesmith.models.facts import read_facts
from tunesmith.models.generation import Generator
from tunesmith.models.loading import load_model
from tunesmith.models.scoring import PackScorer
from tunesmith.models.seq2seq_lm import Seq2SeqLM
from tunesmith.types import Sampling

LENGTHS, PROMPT = (9, 40, 5, 22), 4
NAMES = ("t5", "bart", "marian")


def model_of(name: str) -> Seq2SeqLM:
    hf = tiny_model("encoder-decoder", name)
    if name == "marian":  # a bias beside the output layer, which neither trains nor is zero in real ones
        hf.final_logits_bias.normal_(0.0, 0.5)
    return Seq2SeqLM(hf)


@pytest.mark.parametrize("name", NAMES)
def test_the_loss_and_its_gradients_are_those_of_transformers_with_labels(name: str) -> None:
    model = model_of(name)
    model.check_facade()
    pack = batch(LENGTHS, trained_from=PROMPT)
    ours = model(pack).logprob_S
    assert ours is not None
    (-ours.sum()).backward()
    gradients = {key: item.grad.clone() for key, item in model.hf.named_parameters() if item.grad is not None}
    model.hf.zero_grad()
    total = torch.zeros(())
    for ids, _ in documents(LENGTHS):
        row = torch.from_numpy(ids.astype(np.int64))[None]
        count = row.shape[1] - PROMPT
        loss = model.hf(input_ids=row[:, :PROMPT], labels=row[:, PROMPT:], use_cache=False).loss
        total = total + loss * count
    total.backward()
    torch.testing.assert_close(-ours.sum(), total, rtol=1e-5, atol=1e-4)
    assert gradients
    for key, item in model.hf.named_parameters():
        if item.grad is not None and item.grad.abs().max() > 0:
            torch.testing.assert_close(gradients[key], item.grad, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("name", NAMES)
def test_documents_never_see_each_other_and_answers_never_look_ahead(name: str) -> None:
    model, pack = model_of(name), batch(LENGTHS, trained_from=PROMPT)
    with torch.no_grad():
        before = model(pack).logprob_S
        changed = pack.input_ids_T.clone()
        changed[LENGTHS[0] :] = 60  # every document but the first
        changed[LENGTHS[0] - 1] = 61  # and the last token of the first
        after = model(batch_with(pack, changed)).logprob_S
    assert before is not None
    assert after is not None
    own = LENGTHS[0] - PROMPT - 1
    torch.testing.assert_close(before[:own], after[:own], rtol=1e-5, atol=1e-5)
    assert (before[own + 1 :] - after[own + 1 :]).abs().max() > 1e-2


def batch_with(pack: object, ids: torch.Tensor) -> object:
    from dataclasses import replace

    return replace(pack, input_ids_T=ids)  # type: ignore[type-var]


def test_a_row_is_cut_before_the_first_token_that_is_asked_for() -> None:
    model = model_of("t5")
    seen: list[dict[str, torch.Tensor]] = []
    model.hf.register_forward_pre_hook(lambda _m, _a, given: seen.append(given), with_kwargs=True)
    ids = np.asarray([11, 12, 13, 14, 15, 16], dtype=np.uint32)
    with torch.no_grad():
        model(make_batch([(ids, np.asarray([False, False, False, False, True, True]))], [0]))
    assert seen[0]["input_ids"].tolist() == [[11, 12, 13, 14]]
    assert seen[0]["decoder_input_ids"].tolist() == [[model.start_id, 15, 16]]


@pytest.mark.parametrize("name", NAMES)
def test_cached_answers_are_the_likeliest_tokens_and_score_as_they_were_said(name: str) -> None:
    model = model_of(name)
    model.eval()
    prompts = [[5, 6, 7, 8, 9, 10, 11], [9, 8, 7], [20, 21, 22, 23]]
    generator = Generator(model, stop_ids=frozenset({2}), pad_id=0, decode=str)
    answers = generator.sample(prompts, Sampling(max_new_tokens=6))
    scorer = PackScorer(model, make_batch, context=128)
    for prompt, answer in zip(prompts, answers, strict=True):
        given = torch.tensor([prompt])
        with torch.no_grad():
            theirs = model.hf.generate(
                given, attention_mask=torch.ones_like(given), max_new_tokens=6, do_sample=False, num_beams=1, eos_token_id=2,
                pad_token_id=0, forced_bos_token_id=None, forced_eos_token_id=None,
            )  # fmt: skip
        assert list(answer.ids) == [token for token in theirs[0, 1:].tolist() if token != 2]
        if answer.ids:
            scored = scorer.score([prompt], [answer.ids])[0]
            assert scored.total == pytest.approx(sum(answer.logprobs), abs=1e-3)
            assert scored.greedy


def test_the_files_tell_an_encoder_decoder(tmp_path: Path) -> None:
    hf = write_tiny(tmp_path, "encoder-decoder", "t5")
    facts = read_facts(tmp_path)
    assert facts.is_encoder_decoder
    assert not facts.is_causal_lm
    assert facts.num_parameters == sum(item.numel() for item in hf.parameters())
    model = load_model(tmp_path)
    assert isinstance(model, Seq2SeqLM)
    assert set(facts.tensors) == {name for name, _ in model.hf.named_parameters()}


def test_a_decoder_without_a_start_is_refused() -> None:
    hf = tiny_model("encoder-decoder", "t5")
    hf.config.decoder_start_token_id = None
    with pytest.raises(ModelError, match="which token its decoder starts with") as caught:
        Seq2SeqLM(hf)
    assert "decoder_start_token_id" in caught.value.hint
