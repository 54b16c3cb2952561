"""Bottlenecks: one layer by hand, plain torch modules as oracle, the start, switching, packs, and their places in every family."""

from __future__ import annotations

import pytest
import torch
from tests.tiny import FAMILIES, batch, family
from torch import nn
from torch.nn import functional

from tunesmith.adapters import build
from tunesmith.adapters.added import adapters_of
from tunesmith.adapters.bottleneck import Bottleneck, BottleneckAdapter
from tunesmith.errors import RecipeError
from tunesmith.models.causal_lm import CausalLM
from tunesmith.recipe.bottleneck import BottleneckPart, BottleneckSection
from tunesmith.recipe.low_rank import LoraSection
from tunesmith.types import CannotMerge

SETTINGS = {
    "default": {},
    "houlsby": {"preset": "houlsby"},
    "pfeiffer": {"preset": "pfeiffer", "reduction": 4},
    "hybrid": {"placement": "hybrid", "reduction": 8},
    "norm before": {"preset": "houlsby", "layer_norm": "before"},
    "norm after": {"placement": "hybrid", "layer_norm": "after", "activation": "tanh"},
    "both in parallel": {"placement": "parallel", "targets": ["attention", "feed-forward"], "activation": "gelu"},
}


def attach(model, name="default", **settings):
    adapter = BottleneckAdapter(BottleneckSection(**settings), seed=3)
    adapter.attach(model, name)
    return adapter


def logits(model, ids):
    with torch.no_grad():
        return model(ids).logits.float()


def relative(a, b):
    return float((a - b).abs().max() / b.abs().max())


def by_hand(**settings):
    """down (1, -1) with bias 0.5, up (2, -1) with bias (0.1, 0.2), s = 4."""
    values = {"placement": "parallel", "width": 1, "activation": "relu", "scaling": 4.0, **settings}
    part = Bottleneck(BottleneckPart(**values), torch.tensor([[1.0, -1.0]]), torch.tensor([[2.0], [-1.0]]))
    part.down_bias.data[:] = 0.5
    part.up_bias.data[:] = torch.tensor([0.1, 0.2])
    return part


def test_one_layer_by_hand():
    x, y = torch.tensor([[3.0, 1.0]]), torch.tensor([[10.0, 20.0]])
    with torch.no_grad():
        # relu(3 - 1 + 0.5) = 2.5; up: (5.1, -2.3); times 4 onto y
        torch.testing.assert_close(by_hand()(x, y, y, None), torch.tensor([[30.4, 10.8]]))
        # relu(10 - 20 + 0.5) = 0: the bias of up alone is left
        found = by_hand(placement="sequential")(x, y, y, None)
        torch.testing.assert_close(found, torch.tensor([[10.4, 20.8]]))
        # (3, 1) normalised is (1, -1) but for epsilon: relu(2.5)
        found = by_hand(layer_norm="before", scaling=1.0)(x, y, y, None)
        torch.testing.assert_close(found, torch.tensor([[15.1, 17.7]]), rtol=1e-4, atol=0)
        part = by_hand(layer_norm="after", scaling=2.0)
        assert torch.equal(part(x, y, y, None), y)
        part.norm.data[:] = torch.tensor([3.0, 5.0])
        part.norm_bias.data[:] = torch.tensor([0.5, 0.0])
        # up gives (5.1, -2.3), normalised (1, -1); 2 · (3 + 0.5, -5)
        torch.testing.assert_close(part(x, y, y, None), torch.tensor([[17.0, 10.0]]), rtol=1e-4, atol=0)


class Plain(nn.Module):
    """The published layer as torch modules around a sub-layer."""

    def __init__(self, base, part):
        super().__init__()
        settings = part.settings
        width, inner = part.up.shape
        self.base, self.settings = base, settings
        self.down, self.up, self.norm = nn.Linear(width, inner), nn.Linear(inner, width), nn.LayerNorm(width)
        self.activation = {"relu": nn.ReLU(), "gelu": nn.GELU(), "silu": nn.SiLU(), "tanh": nn.Tanh()}[
            settings.activation
        ]
        for ending, tensor in part.named().items():
            self.get_parameter(ending).data.copy_(tensor.detach())

    def forward(self, *args, **kwargs):
        found = self.base(*args, **kwargs)
        x = args[0] if args else kwargs["hidden_states"]
        h = found[0] if isinstance(found, tuple) else found
        read = h if self.settings.placement == "sequential" else x
        read = self.norm(read) if self.settings.layer_norm == "before" else read
        added = self.up(self.activation(self.down(read)))
        added = self.norm(added) if self.settings.layer_norm == "after" else added
        h = h + self.settings.scaling * added
        return (h, *found[1:]) if isinstance(found, tuple) else h


@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen3"])
@pytest.mark.parametrize("settings", SETTINGS)
def test_losses_and_gradients_are_those_of_plain_modules(make, ids, stir, kind, settings):
    model = make(kind)
    adapter = attach(model, **SETTINGS[settings])
    stir(adapter)
    plain = make(kind).requires_grad_(False)
    wrapped = {}
    for name in adapter.parts:
        parent, _, child = name.rpartition(".")
        wrapped[name] = Plain(plain.get_submodule(name), adapter.part_at(model.get_submodule(name)))
        setattr(plain.get_submodule(parent), child, wrapped[name])
    losses = []
    for network in (model, plain):
        loss = network(input_ids=ids, labels=ids).loss
        loss.backward()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert len(adapter.trained_parts()) >= 4 * len(wrapped)
    for name, parameter in adapter.trained_parts().items():
        site = next(site for site in wrapped if name.startswith(f"{site}."))
        other = wrapped[site].get_parameter(name.removeprefix(f"{site}."))
        assert parameter.grad.abs().max() > 0, name
        assert relative(parameter.grad, other.grad) < 1e-4, name


@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize("settings", SETTINGS)
def test_start_off_and_state(ids, stir, kind, settings):
    model = family(kind)
    base = logits(model, ids)
    adapter = attach(model, **SETTINGS[settings])
    assert torch.equal(logits(model, ids), base)
    assert len(adapter.parts) == (2 if settings in ("default", "pfeiffer") else 4)
    stir(adapter)
    expected = logits(model, ids)
    assert relative(expected, base) > 1e-3
    with adapter.active(()):
        assert torch.equal(logits(model, ids), base)
    fresh = family(kind)
    other = BottleneckAdapter(BottleneckSection(**SETTINGS[settings]), seed=99)
    other.attach(fresh)
    other.load_state({name: tensor.clone() for name, tensor in adapter.state().items()})
    assert torch.equal(logits(fresh, ids), expected)
    adapter.detach()
    assert torch.equal(logits(model, ids), base)
    assert not any("added" in name for name, _ in model.named_modules())


@pytest.mark.parametrize("settings", ["default", "norm before"])
def test_the_first_step_has_a_way_to_learn(make, ids, settings):
    """up is zero and down is not: the gradient reaches up at once, and down after one step."""
    model = make()
    adapter = attach(model, **SETTINGS[settings])
    parts = adapter.trained_parts()
    assert all(part.abs().max() > 0 for name, part in parts.items() if name.endswith("down.weight"))
    assert all(not part.any() for name, part in parts.items() if name.endswith(("up.weight", "bias")))
    for moved in (False, True):
        model(input_ids=ids, labels=ids).loss.backward()
        for name, part in parts.items():
            assert bool(part.grad.abs().max() > 0) is (moved or ".up." in name), name
            part.data -= 0.1 * part.grad
            part.grad = None


@pytest.mark.parametrize("is_ours", [True, False])
def test_a_norm_behind_up_does_not_throw_the_model_from_its_start(make, is_ours):
    """With up at zero and the gain at one, the first update would blow what is nearly zero up to length one."""
    part = next(
        iter(attach(make(), layer_norm="after", scaling=1.0).model.get_submodule("model.layers.0.mlp").added.values())
    )
    if not is_ours:
        part.up.data.zero_()
        part.norm.data.fill_(1.0)
    x, y = torch.randn(2, 6, 32, generator=torch.Generator().manual_seed(1))
    assert torch.equal(part(x, y, y, None), y)
    optimiser = torch.optim.Adam(part.parameters(), lr=1e-3)
    functional.mse_loss(part(x, y, y, None), torch.ones(6, 32)).backward()
    optimiser.step()
    moved = float((part(x, y, y, None) - y).detach().abs().max())
    assert (0 < moved < 0.01) if is_ours else moved > 0.5


def test_the_start_depends_on_seed_and_place_alone(make):
    """down is drawn as LoRA's A: uniform within ±1/sqrt(d)."""
    one, two = make(), make()
    first = attach(one, preset="houlsby").state()
    second = attach(two, preset="pfeiffer", reduction=16).state()
    key = "model.layers.1.mlp.down.weight"
    assert torch.equal(first[key], second[key])
    assert not torch.equal(first[key], first["model.layers.0.mlp.down.weight"])
    limit = 32**-0.5
    assert 0.5 * limit < first[key].abs().max() <= limit


def test_a_16_bit_base_has_fp32_parts_and_16_bit_products(make, ids, stir):
    model = make(dtype=torch.bfloat16)
    base = logits(model, ids)
    adapter = attach(model, preset="houlsby", layer_norm="before")
    assert {tensor.dtype for tensor in adapter.state().values()} == {torch.float32}
    assert torch.equal(logits(model, ids), base)
    stir(adapter)
    assert model(ids).logits.dtype == torch.bfloat16
    wide = make(dtype=torch.bfloat16).float()
    attach(wide, preset="houlsby", layer_norm="before").load_state(adapter.state())
    assert 0 < relative(logits(model, ids), logits(wide, ids)) < 0.05


def test_dropout_is_inside_and_only_in_training(make, ids, stir):
    model = make()
    adapter = attach(model, dropout=0.5)
    stir(adapter)
    assert torch.equal(logits(model, ids), logits(model, ids))
    model.train()
    torch.manual_seed(0)
    assert not torch.equal(logits(model, ids), logits(model, ids))
    part = by_hand(dropout=0.5).train()
    y = torch.zeros(64, 2)
    with torch.no_grad():
        found = part(torch.tensor([[3.0, 1.0]]).expand(64, 2), y, y, None)
    # 4 · (0 or 2 · 2.5) · (2, -1) + 4 · (0.1, 0.2)
    kept = found[:, 0] > 20
    assert 10 < kept.sum() < 54
    torch.testing.assert_close(found[kept], torch.tensor([[40.4, -19.2]]).expand(int(kept.sum()), 2))
    torch.testing.assert_close(found[~kept], torch.tensor([[0.4, 0.8]]).expand(int((~kept).sum()), 2))


def test_stacked_with_lora_both_act_and_each_alone(make, ids, stir):
    """A sequential part reads what LoRA made of the sub-layer."""
    model = make()
    lora = build(LoraSection(rank=4), 1)
    lora.attach(model, "lora")
    stir(lora)
    with_lora = logits(model, ids)
    bottleneck = attach(model, "bottle", preset="houlsby")
    stir(bottleneck, seed=5)
    alone = logits(model, ids)
    assert list(adapters_of(model)) == ["lora", "bottle"]
    with bottleneck.active(("lora", "bottle")):
        both = logits(model, ids)
    with bottleneck.active(("lora",)):
        assert torch.equal(logits(model, ids), with_lora)
    assert relative(both, alone) > 1e-3
    assert relative(both, with_lora) > 1e-3
    merged = make()
    other = build(LoraSection(rank=4), 1)
    other.attach(merged)
    other.load_state(lora.state())
    other.merge(merged)
    attach(merged, preset="houlsby").load_state(bottleneck.state())
    assert relative(logits(merged, ids), both) < 1e-5


def test_lora_merges_beneath_a_bottleneck_and_the_bottleneck_refuses(make, ids, stir):
    model = make()
    lora = build(LoraSection(rank=4), 1)
    lora.attach(model, "lora")
    stir(lora)
    adapter = attach(model, "bottle")
    stir(adapter, seed=5)
    with adapter.active(("lora", "bottle")):
        both = logits(model, ids)
    lora.merge(model)
    assert relative(logits(model, ids), both) < 1e-5
    before = logits(model, ids)
    with pytest.raises(CannotMerge, match="no weight of the base can hold"):
        adapter.merge(model)
    assert torch.equal(logits(model, ids), before)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "phi"])
@pytest.mark.parametrize("settings", ["houlsby", "hybrid"])
def test_a_pack_has_the_hidden_states_of_its_documents(stir, kind, settings):
    model = CausalLM(family(kind))
    adapter = attach(model.hf, **SETTINGS[settings])
    stir(adapter)
    pack = batch([5, 9, 3])
    alone = CausalLM(family(kind))
    attach(alone.hf, **SETTINGS[settings]).load_state(adapter.state())
    with torch.no_grad():
        together = model.hidden(pack)
        with alone.plain_attention() as hf:
            ids = pack.input_ids_T.split([5, 9, 3])
            apart = torch.cat([hf.base_model(one[None]).last_hidden_state[0] for one in ids])
    assert relative(together.reshape(apart.shape), apart) < 1e-4


def test_recomputed_activations_give_the_same_gradients(ids, stir):
    gradients = []
    for recompute in (False, True):
        model = CausalLM(family("llama"))
        adapter = attach(model.hf, placement="hybrid", dropout=0.2)
        stir(adapter)
        if recompute:
            model.recompute_activations()
        model.train()
        torch.manual_seed(4)
        hidden = model.hidden(batch([5, 9]))
        functional.mse_loss(hidden, torch.zeros_like(hidden)).backward()
        gradients.append({name: part.grad for name, part in adapter.trained_parts().items()})
    assert all(torch.equal(gradients[0][name], gradients[1][name]) for name in gradients[0])
    assert all(gradient.abs().max() > 0 for gradient in gradients[1].values())


def test_matrices_decay_and_vectors_do_not(make):
    adapter = attach(make(), preset="houlsby", layer_norm="before")
    groups = {group.name: group for group in adapter.groups()}
    assert {name: group.decay for name, group in groups.items()} == {
        "bottleneck matrices": True, "bottleneck vectors and embeddings": False,
    }  # fmt: skip
    assert all(name.endswith(("down.weight", "up.weight")) for name, _ in groups["bottleneck matrices"].parameters)


def test_a_sub_layer_that_adds_the_stream_is_refused(ids):
    from transformers import BloomConfig, BloomForCausalLM

    model = BloomForCausalLM(BloomConfig(vocab_size=48, hidden_size=32, n_layer=2, n_head=4))
    with pytest.raises(RecipeError, match="adds the residual stream itself") as caught:
        attach(model)
    assert "lora" in caught.value.hint
    assert adapters_of(model) == {}


@pytest.mark.parametrize("placement", ["sequential", "parallel"])
def test_a_feed_forward_without_a_module(ids, stir, placement):
    """OPT's fc1 and fc2 lie in the layer: an adapter comes after fc2, and nothing runs beside the two."""
    from transformers import OPTConfig, OPTForCausalLM

    torch.manual_seed(0)
    config = OPTConfig(
        vocab_size=48, hidden_size=32, ffn_dim=40, num_hidden_layers=2, num_attention_heads=4, word_embed_proj_dim=32
    )
    model = OPTForCausalLM(config).eval()
    base = logits(model, ids)
    if placement == "parallel":
        with pytest.raises(RecipeError, match=r"ends with `model\.decoder\.layers\.0\.fc2`") as caught:
            attach(model, placement=placement)
        assert "sequential" in caught.value.hint
        return
    adapter = attach(model, preset="houlsby")
    assert set(adapter.parts) == {f"model.decoder.layers.{n}.{end}" for n in (0, 1) for end in ("self_attn", "fc2")}
    assert torch.equal(logits(model, ids), base)
    stir(adapter)
    assert relative(logits(model, ids), base) > 1e-3
