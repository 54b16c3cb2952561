"""Encoders in packs: as each document by itself in transformers' own forward, and blind to the others."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.tiny import batch
from tests.tiny_encoders import ENCODERS, encoder, write_encoder
from tunesmith.errors import ModelError
from tunesmith.models.encoder_lm import EncoderLM
from tunesmith.models.facts import headless, read_facts
from tunesmith.models.loading import load_model

LENGTHS = (5, 17, 1, 11, 30, 9)


@torch.no_grad()
def alone(model: EncoderLM, pack: object) -> torch.Tensor:
    """Last hidden states of each document by itself, as transformers computes them."""
    with model.plain_attention():
        parts = pack.input_ids_T.split(list(pack.lengths))  # type: ignore[attr-defined]
        return torch.cat([model.base()(input_ids=ids[None]).last_hidden_state[0] for ids in parts])


@pytest.mark.parametrize("name", ENCODERS)
def test_a_pack_equals_its_documents_alone(name: str) -> None:
    model, pack = EncoderLM(encoder(name)), batch(LENGTHS)
    with torch.no_grad():
        ours = model.hidden(pack)
    theirs = alone(model, pack)
    assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()


@pytest.mark.parametrize("name", ENCODERS)
def test_documents_never_see_each_other_and_see_both_ways(name: str) -> None:
    model, pack = EncoderLM(encoder(name)), batch(LENGTHS)
    embedding = model.hf.get_input_embeddings()
    kept: list[torch.Tensor] = []
    handle = embedding.register_forward_hook(lambda *call: kept.append(call[2].requires_grad_()) or call[2])
    hidden = model.hidden(pack)
    start = sum(LENGTHS[:3])
    hidden[start + 5].square().sum().backward(retain_graph=True)  # a token amid the fourth document
    handle.remove()
    reached = torch.autograd.grad(hidden[start + 5].square().sum(), kept[0])[0][0].abs().sum(-1) > 0
    inside = torch.zeros(sum(LENGTHS), dtype=torch.bool)
    inside[start : start + LENGTHS[3]] = True
    assert not reached[~inside].any()
    assert reached[[start, start + LENGTHS[3] - 1]].all(), "both ends of its own document reach it"


@pytest.mark.parametrize("name", ENCODERS)
def test_middle_layers_are_those_of_transformers(name: str) -> None:
    model, pack = EncoderLM(encoder(name)), batch((9,))
    with torch.no_grad(), model.plain_attention():
        states = model.base()(input_ids=pack.input_ids_T[None], output_hidden_states=True).hidden_states
    for layer in (0, 1):
        with torch.no_grad():
            found = model(pack, want=("hidden",), layer=layer).hidden_TH
        assert torch.allclose(found, states[layer][0], atol=1e-5)


@pytest.mark.parametrize("name", ENCODERS)
def test_logprobs_are_those_of_the_masked_language_model(name: str) -> None:
    model, pack = EncoderLM(encoder(name)), batch(LENGTHS)
    with torch.no_grad():
        ours = model(pack).logprob_S
        with model.plain_attention() as hf:
            logits = torch.cat([hf(input_ids=ids[None]).logits[0] for ids in pack.input_ids_T.split(list(LENGTHS))])
    theirs = logits.log_softmax(-1)[pack.scored_S, pack.targets_S]
    assert torch.allclose(ours, theirs, atol=1e-4)


@pytest.mark.parametrize("name", ENCODERS)
def test_facts_and_loading_with_and_without_the_language_head(tmp_path: Path, name: str) -> None:
    folder = write_encoder(tmp_path / name, name)
    facts = read_facts(folder)
    assert facts.is_encoder
    assert not facts.is_causal_lm
    assert facts.context == 128
    whole, bare = load_model(folder), load_model(folder, headless=True)
    assert not whole.is_headless
    assert bare.is_headless
    assert facts.num_parameters == sum(item.numel() for item in whole.parameters())
    assert headless(facts).num_parameters == sum(item.numel() for item in bare.parameters())
    assert set(headless(facts).tensors) == {name for name, _ in bare.hf.named_parameters()}


def test_an_encoder_that_computes_otherwise_is_refused() -> None:
    model = EncoderLM(encoder("bert"))
    layer = model.hf.bert.encoder.layer[0].attention.self
    layer.is_causal = True  # as a layer that the facade misunderstands
    with pytest.raises(ModelError, match="in a way Tunesmith does not know") as caught:
        _misled(model, layer)
    assert "docs/reference/models.md" in caught.value.hint


def _misled(model: EncoderLM, layer: torch.nn.Module) -> None:
    plainly = model.plainly

    def both_ways(ids: torch.Tensor) -> torch.Tensor:
        layer.is_causal = False
        try:
            return plainly(ids)
        finally:
            layer.is_causal = True

    model.plainly = both_ways  # type: ignore[method-assign]
    model.check_facade()


def test_roberta_counts_positions_from_behind_its_padding() -> None:
    """A document of the full context is read; one position more does not exist."""
    model = EncoderLM(encoder("roberta", max_position_embeddings=18, pad_token_id=1))
    with torch.no_grad():
        model.hidden(batch((16,)))
        with pytest.raises(IndexError):
            model.hidden(batch((17,)))


def test_a_window_hides_what_is_far_on_both_sides() -> None:
    """ModernBERT's local layers see half their window to either side."""
    hf = encoder("modernbert", num_hidden_layers=2, global_attn_every_n_layers=2, local_attention=8)
    model = EncoderLM(hf)
    pack = batch((40,))
    changed = replace(pack, input_ids_T=pack.input_ids_T.clone())
    changed.input_ids_T[0] = (changed.input_ids_T[0] + 1) % 90 + 3
    local = next(number for number, kind in enumerate(hf.config.layer_types) if kind == "sliding_attention")
    kinds = hf.config.layer_types
    assert kinds[local] == "sliding_attention"
    with torch.no_grad():
        one, other = (alone(model, item) for item in (pack, changed))
        ours_one, ours_other = model.hidden(pack), model.hidden(changed)
    assert torch.allclose((one - other).abs(), (ours_one - ours_other).abs(), atol=1e-5)
