"""LoRA against PEFT on the same start and batch: losses, gradients, three optimiser steps, dropout, merge."""

from __future__ import annotations

import peft
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from tunesmith.adapters.lora import LoraAdapter
from tunesmith.recipe.adapters import LoraSection

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*fan_in_fan_out is set:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning"),
]
SHAPE = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "max_position_embeddings": 64}  # fmt: skip
GPT2_SHAPE = {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "bos_token_id": 0, "eos_token_id": 0,
              "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}  # fmt: skip


def make(family):
    torch.manual_seed(11)
    if family == "gpt2":
        return GPT2LMHeadModel(GPT2Config(**GPT2_SHAPE))
    if family == "qwen3":
        return Qwen3ForCausalLM(Qwen3Config(**SHAPE, head_dim=8))
    return LlamaForCausalLM(LlamaConfig(**SHAPE))


def ours_and_theirs(family, *, rslora=False, dropout=0.0):
    """The same model with the same random A and B, under our LoRA and under PEFT's."""
    model = make(family)
    adapter = LoraAdapter(LoraSection(rank=4, alpha=6.0, rslora=rslora, dropout=dropout), seed=0)
    adapter.attach(model)
    config = peft.LoraConfig(
        r=4, lora_alpha=6, use_rslora=rslora, lora_dropout=dropout, target_modules="all-linear", task_type="CAUSAL_LM",
        fan_in_fan_out=family == "gpt2",
    )  # fmt: skip
    theirs = peft.get_peft_model(make(family), config)
    generator = torch.Generator().manual_seed(2)
    for name, tensor in adapter.state().items():
        if name.endswith("lora_B.weight"):
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.1)
    table = dict(theirs.named_parameters())
    pairs = []
    for group in adapter.groups():
        for name, parameter in group.parameters:
            other = table["base_model.model." + name.removesuffix(".weight") + ".default.weight"]
            other.data.copy_(parameter.data)
            pairs.append((name, parameter, other))
    assert len(pairs) == sum(parameter.requires_grad for parameter in theirs.parameters())
    return model, adapter, theirs, pairs


IDS = torch.randint(0, 64, (3, 20), generator=torch.Generator().manual_seed(4))


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3"])
@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_losses_and_gradients_are_pefts(family, rslora, dropout):
    """With dropout too: one mask per layer, drawn in the same order."""
    model, _, theirs, pairs = ours_and_theirs(family, rslora=rslora, dropout=dropout)
    losses = []
    for network in (model, theirs):
        network.train()
        torch.manual_seed(21)
        loss = network(input_ids=IDS, labels=IDS).loss
        loss.backward()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    for name, parameter, other in pairs:
        difference = float((parameter.grad - other.grad).abs().max() / other.grad.abs().max())
        assert difference <= 1e-5, f"{name}: {difference}"
        torch.testing.assert_close(parameter.grad, other.grad, rtol=0, atol=1e-6)


def test_three_steps_of_adamw_stay_together():
    model, _, theirs, pairs = ours_and_theirs("llama")
    optimisers = [torch.optim.AdamW([pair[i] for pair in pairs], lr=1e-3) for i in (1, 2)]
    for _ in range(3):
        losses = []
        for network, optimiser in zip((model, theirs), optimisers, strict=True):
            loss = network(input_ids=IDS, labels=IDS).loss
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(loss.item())
        assert losses[0] == pytest.approx(losses[1], rel=1e-6)


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3"])
@pytest.mark.parametrize("rslora", [False, True])
def test_merged_logits_equal_the_attached_ones_and_pefts(family, rslora):
    model, adapter, theirs, _ = ours_and_theirs(family, rslora=rslora)
    model.eval()
    theirs.eval()
    with torch.no_grad():
        attached = model(IDS).logits
        adapter.merge(model)
        merged = model(IDS).logits
        other = theirs.merge_and_unload()(IDS).logits
    scale = attached.abs().max()
    assert (merged - attached).abs().max() / scale <= 1e-5
    assert (merged - other).abs().max() / scale <= 1e-5


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_dropout_keeps_the_mean_and_has_the_variance_it_should(p):
    """Each input of A is kept with 1 - p and scaled by 1/(1-p): E = s B A x, Var = s^2 p/(1-p) Σ (B A x)_i^2."""
    num_in, num_draws, scale = 16, 20_000, 2.0
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(num_in, 1, bias=False))
    adapter = LoraAdapter(LoraSection(rank=1, alpha=scale, dropout=p, targets=["0"]), seed=0)
    adapter.attach(model)
    state = adapter.state()
    state["0.lora_B.weight"].fill_(1.0)
    model[0].weight.data.zero_()
    x = torch.randn(num_in)
    model.train()
    with torch.no_grad():
        y = model(x.expand(num_draws, num_in)).flatten().double()
    terms = scale * state["0.lora_A.weight"].flatten().double() * x.double()
    variance = float((terms**2).sum() * p / (1 - p))
    assert float(y.mean()) == pytest.approx(float(terms.sum()), abs=4 * (variance / num_draws) ** 0.5)
    assert float(y.var()) == pytest.approx(variance, rel=0.06)
