"""GraLoRA: blocks, ranks, the dense update, PEFT's own class, and LoRA as its special case."""

from __future__ import annotations

import peft
import pytest
import torch
from pydantic import ValidationError
from tests.unit.adapters.test_peft_files import WARNINGS, logits, relative, roughen

from tunesmith.adapters import build
from tunesmith.adapters.gralora import GraloraAdapter, GraloraWeights
from tunesmith.adapters.lora_layer import LoraWeights
from tunesmith.adapters.peft_files import attach_read, read_adapter, write_adapter
from tunesmith.errors import ModelError, RecipeError
from tunesmith.recipe.low_rank import GraloraSection

pytestmark = [pytest.mark.filterwarnings(text) for text in WARNINGS]
FAMILIES = ["llama", "llama-tied", "gpt2", "qwen3"]


def attach(model, **settings):
    adapter = GraloraAdapter(GraloraSection(**{"rank": 4, "blocks": 2, "alpha": 6.0, **settings}), seed=3)
    adapter.attach(model)
    return adapter


def random_part(blocks, rank, num_in, num_out, hybrid=0, scale=0.7):
    generator = torch.Generator().manual_seed(blocks)

    def draw(*shape):
        return torch.randn(shape, generator=generator)

    A, B = draw(blocks, num_in // blocks, rank), draw(blocks, rank, num_out // blocks)
    general = (draw(hybrid, num_in), draw(num_out, hybrid)) if hybrid else (None, None)
    return GraloraWeights(A, B, scale, 0.0, *general)


def dense(part):
    """Block (j, n) of the update is scale · (A_n[:, slice j] B_j[slice n])ᵀ, straight from the paper's §3."""
    k, chunk, rank = part.A.shape
    inner, wide = rank // k, part.B.shape[2]
    W = torch.zeros(k * wide, k * chunk)
    for j in range(k):
        for n in range(k):
            left = part.A.detach()[n][:, j * inner : (j + 1) * inner]
            right = part.B.detach()[j][n * inner : (n + 1) * inner]
            W[j * wide : (j + 1) * wide, n * chunk : (n + 1) * chunk] = (left @ right).t()
    if part.general_A is not None:
        W += part.general_B.detach() @ part.general_A.detach()
    return part.scale * W


@pytest.mark.parametrize("blocks", [1, 2, 4])
@pytest.mark.parametrize("hybrid", [0, 3])
def test_forward_delta_and_lora_of_it_are_the_dense_blocks(blocks, hybrid):
    part = random_part(blocks, 8, 24, 16, hybrid)
    expected = dense(part)
    zero = torch.zeros(5, 16)
    x = torch.randn(5, 24, generator=torch.Generator().manual_seed(9))
    with torch.no_grad():
        torch.testing.assert_close(part(x, zero, zero, None), x @ expected.t(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(part.delta(zero), expected, rtol=1e-4, atol=1e-5)
    A, B = part.as_lora()
    assert A.shape[0] == blocks * 8 + hybrid
    torch.testing.assert_close(part.scale * B @ A, expected, rtol=1e-4, atol=1e-5)


def test_one_block_is_lora():
    part = random_part(1, 6, 24, 16)
    plain = LoraWeights(part.A.detach()[0].t().contiguous(), part.B.detach()[0].t().contiguous(), part.scale, 0.0)
    x = torch.randn(2, 5, 24, generator=torch.Generator().manual_seed(9))
    zero = torch.zeros(2, 5, 16)
    with torch.no_grad():
        torch.testing.assert_close(part(x, zero, zero, None), plain(x, zero, zero, None), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("blocks", "rank"), [(1, 4), (2, 4), (4, 4), (4, 8)])
def test_the_update_has_up_to_blocks_times_the_rank(blocks, rank):
    """Random blocks reach the bound; LoRA of the same number of parameters has ``rank``."""
    part = random_part(blocks, rank, 64, 48)
    found = torch.linalg.matrix_rank(part.delta(torch.zeros(48, 64)))
    assert found == min(blocks * rank, 48)
    assert sum(item.numel() for item in part.parameters()) == rank * (64 + 48)


def test_an_outlier_touches_only_the_blocks_of_its_column():
    """∂L/∂A_n sees the inputs of chunk n alone (§2.2)."""
    part = random_part(4, 8, 32, 16)
    x = torch.randn(6, 32, generator=torch.Generator().manual_seed(1))
    zero = torch.zeros(6, 16)
    grads = []
    for factor in (1.0, 1000.0):
        part.zero_grad()
        scaled = x.clone()
        scaled[:, 0] *= factor
        part(scaled, zero, zero, None).sum().backward()
        grads.append(part.A.grad.clone())
    assert torch.equal(grads[0][1:], grads[1][1:])
    assert not torch.equal(grads[0][0], grads[1][0])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("settings", [{}, {"hybrid_rank": 2}, {"blocks": 4, "rank": 8, "dropout": 0.1}])
def test_start_off_merge_and_state(make, ids, stir, family, settings):
    model = make(family)
    base = logits(model, ids)
    adapter = attach(model, **settings)
    assert torch.equal(logits(model, ids), base)
    stir(adapter)
    expected = logits(model, ids)
    assert relative(expected, base) > 1e-2
    with adapter.active(()):
        assert torch.equal(logits(model, ids), base)
    fresh = make(family)
    attach(fresh, **settings).load_state({name: tensor.clone() for name, tensor in adapter.state().items()})
    assert torch.equal(logits(fresh, ids), expected)
    adapter.merge(model)
    assert relative(logits(model, ids), expected) < 1e-5


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("hybrid", [0, 2])
def test_losses_and_gradients_are_pefts(make, ids, tmp_path, family, hybrid):
    config = peft.GraloraConfig(
        r=4, hybrid_r=hybrid, alpha=6, gralora_k=2, target_modules=r".*(proj|c_attn|c_fc)", task_type="CAUSAL_LM",
        fan_in_fan_out=family == "gpt2",
    )  # fmt: skip
    theirs = peft.get_peft_model(make(family), config)
    roughen(theirs)
    theirs.save_pretrained(tmp_path)
    model = make(family)
    adapter = attach_read(model, *read_adapter(tmp_path))
    assert relative(logits(model, ids), logits(theirs, ids)) < 1e-5
    losses = []
    for network in (model, theirs):
        loss = network(input_ids=ids, labels=ids).loss
        loss.backward()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    table = dict(theirs.named_parameters())
    for name, parameter in adapter.trained_parts().items():
        middle = name.removesuffix(".weight")
        other = table[f"base_model.model.{middle}.default{name.removeprefix(middle)}"].grad
        assert relative(parameter.grad, other) < 1e-4, name
    assert len(adapter.trained_parts()) == sum(parameter.requires_grad for parameter in theirs.parameters())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "settings", [{}, {"hybrid_rank": 2}, {"also_train": ["*norm*", "*ln_*"]}, {"train_tokens": [3, 5]}]
)
def test_what_we_write_peft_and_we_read(make, ids, stir, tmp_path, family, settings):
    if "also_train" in settings:
        settings = {"also_train": ["*ln_*" if family == "gpt2" else "*norm*"]}
    model = make(family)
    adapter = attach(model, **settings)
    stir(adapter)
    expected = logits(model, ids)
    notes = write_adapter(tmp_path, adapter, "base")
    assert any("single rows" in note for note in notes) == ("train_tokens" in settings)
    theirs = peft.PeftModel.from_pretrained(make(family), tmp_path)
    assert relative(logits(theirs, ids), expected) < 1e-5
    again = make(family)
    attach_read(again, *read_adapter(tmp_path))
    assert relative(logits(again, ids), expected) < 1e-6


@pytest.mark.parametrize(
    ("settings", "words"), [({"rank": 6, "blocks": 4}, "does not divide `rank` 6"), ({"blocks": 0}, "greater than 0")]
)
def test_settings_that_cannot_be_are_refused(settings, words):
    with pytest.raises((ValidationError, RecipeError), match=words):
        GraloraSection(**settings)


def test_blocks_that_do_not_divide_a_layer_are_refused_with_those_that_do(make):
    """The feed-forward is 40 wide, the stream 32."""
    with pytest.raises(RecipeError, match="does not divide the 40 outputs of `model") as caught:
        build(GraloraSection(rank=16, blocks=16), 0).attach(make())
    assert caught.value.where == "adapter.blocks"
    assert "1, 2, 4, 8 " in caught.value.hint


def test_a_folder_whose_blocks_do_not_fit_is_refused(make, stir, tmp_path):
    model = make()
    adapter = attach(model)
    write_adapter(tmp_path, adapter, "base")
    path = tmp_path / "adapter_config.json"
    path.write_text(path.read_text().replace('"gralora_k": 2', '"gralora_k": 4'))
    with pytest.raises(ModelError, match="gralora_A"):
        attach_read(make(), *read_adapter(tmp_path))
