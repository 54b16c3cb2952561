"""Rows of a batch with adapters of their own, for families whose embedding or head is more than a matrix."""

from __future__ import annotations

import copy

import pytest
import torch
from tests.adapter_folders import stirred
from tests.tiny import VOCABULARY, family

from tunesmith.adapters.added import active_names
from tunesmith.adapters.routing import routed
from tunesmith.recipe.low_rank import LoraSection
from tunesmith.recipe.prompts import PromptSection


def logits(model, ids):
    with torch.no_grad():
        return model(input_ids=ids).logits


@pytest.mark.parametrize("name", ["gemma", "gpt2", "phi", "mistral"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_padded_rows_through_transformers_own_forward(name, dtype):
    """gemma scales its embedding, phi has a bias on its head, gpt2 has transposed layers."""
    model = family(name).to(dtype)
    if name == "phi":
        torch.nn.init.normal_(model.lm_head.bias)
    for seed, inner in enumerate(("one", "two")):
        stirred(model, LoraSection(rank=2, alpha=4.0, train_tokens=[5, 7 + seed]), seed, inner).freeze()
    ids = torch.tensor([[5, 7, 8, 9], [5, 7, 8, 9], [8, 5, 7, 30], [5, 6, 7, 8]])
    stacks = [("one",), ("two",), (), ("two", "one")]
    before = active_names(model)
    with routed(model, stacks) as routes:
        found = logits(model, ids)
        routes.keep([3, 0])
        fewer = logits(model, ids[[3, 0]])
    assert active_names(model) == before
    bound = (1e-5 if dtype == torch.float32 else 3e-2) * float(found.abs().max())
    adapter = model.tunesmith_adapters["one"]
    for row, stack in enumerate(stacks):
        with adapter.active(stack):
            alone = logits(model, ids[row : row + 1])[0]
        assert float((found[row] - alone).abs().max()) <= bound
        if row in (3, 0):
            assert float((fewer[(3, 0).index(row)] - alone).abs().max()) <= bound
    assert float((found[0] - found[1]).abs().max()) > 10 * bound
    assert found.shape[-1] == VOCABULARY


def test_what_is_active_comes_back_after_an_error():
    model = family("llama")
    adapter = stirred(model, LoraSection(rank=2, alpha=4.0), 0, "one")
    plain = copy.deepcopy(model)
    with pytest.raises(ValueError, match="no adapter `other`; it has: one"), routed(model, [("other",)]):
        pass
    with pytest.raises(KeyError), routed(model, [()]):
        raise KeyError
    assert active_names(model) == ("one",)
    ids = torch.tensor([[5, 7, 8, 9]])
    assert torch.equal(logits(model, ids), logits(plain, ids))
    stirred(model, PromptSection(num_tokens=2), 1, "front")
    with (
        pytest.raises(ValueError, match="`front` cannot share a pass: it puts tokens in front"),
        routed(model, [("front",)]),
    ):
        pass
    adapter.detach()
    assert active_names(model) == ("front",)
