"""Documents of a pack never see each other, in every family."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tiny import FAMILIES, batch, documents, family
from tunesmith.data.loader import make_batch
from tunesmith.models.attention import layout_of
from tunesmith.models.causal_lm import CausalLM

LENGTHS = (7, 1, 13, 5, 22, 40)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_pack_gives_each_document_the_hidden_states_it_has_alone(name: str) -> None:
    model = CausalLM(family(name))
    with torch.no_grad():
        packed_TH = model.hidden(batch(LENGTHS))
        start = 0
        for index, document in enumerate(documents(LENGTHS)):
            alone_TH = model.hidden(make_batch([document], [index]))
            torch.testing.assert_close(packed_TH[start : start + LENGTHS[index]], alone_TH, rtol=2e-5, atol=2e-5)
            start += LENGTHS[index]


@pytest.mark.parametrize("name", FAMILIES)
def test_the_facade_agrees_with_the_models_own_forward(name: str) -> None:
    model = CausalLM(family(name))
    model.check_facade()
    lengths = (30,)
    one = batch(lengths)
    with torch.no_grad():
        ours_TV = model.head().logits(model.hidden(one))
        with model.plain_attention() as hf:
            theirs_TV = hf(input_ids=one.input_ids_T[None], use_cache=False).logits[0]
    torch.testing.assert_close(ours_TV, theirs_TV, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", FAMILIES)
def test_no_gradient_flows_from_one_document_to_another(name: str) -> None:
    model = CausalLM(family(name))
    embedding = model.hf.get_input_embeddings()
    kept: list[torch.Tensor] = []

    def keep(_module: object, _inputs: object, output: torch.Tensor) -> torch.Tensor:
        output.retain_grad()
        kept.append(output)
        return output

    handle = embedding.register_forward_hook(keep)
    pack = batch((6, 9, 4))
    hidden_TH = model.hidden(pack)
    hidden_TH[6:15].pow(2).sum().backward()
    handle.remove()
    gradient_TH = kept[0].grad
    assert gradient_TH is not None
    gradient_TH = gradient_TH.reshape(19, -1)
    assert gradient_TH[6:15].abs().max() > 0
    assert gradient_TH[:6].abs().max() == 0
    assert gradient_TH[15:].abs().max() == 0


def test_gradient_checkpointing_changes_nothing() -> None:
    losses, gradients = [], []
    for recompute in (False, True):
        model = CausalLM(family("llama"))
        model.train()
        if recompute:
            model.recompute_activations()
        output = model(batch(LENGTHS))
        assert output.logprob_S is not None
        loss = -output.logprob_S.sum()
        loss.backward()
        losses.append(loss.item())
        gradients.append(model.hf.model.layers[0].mlp.up_proj.weight.grad.clone())
    assert losses[0] == losses[1]
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-6, atol=1e-7)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(1, 90), min_size=1, max_size=20))
def test_the_layout_takes_every_token_once_and_wastes_less_than_half(lengths: list[int]) -> None:
    starts = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32)
    layout = layout_of(starts, lengths)
    total = sum(lengths)
    taken = torch.cat([group.take_NL.reshape(-1)[group.real_R] for group in layout.groups])
    restored = taken if layout.order_T is None else taken[layout.order_T]
    assert restored.tolist() == list(range(total))
    for group in layout.groups:
        if group.take_NL.shape[1] > 32:
            assert len(group.real_R) > group.take_NL.numel() / 2
