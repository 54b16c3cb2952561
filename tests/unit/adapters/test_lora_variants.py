"""rsLoRA's kin: DoRA, PiSSA, orthogonal starts, rates per matrix, ranks and scales by pattern."""

from __future__ import annotations

import peft
import pytest
import torch
from pydantic import ValidationError
from tests.unit.adapters.test_peft_files import WARNINGS, logits, relative, roughen

from tunesmith.adapters import build, lora_layer
from tunesmith.adapters.dora import DoraWeights
from tunesmith.adapters.lora import LoraAdapter, orthogonal, principal
from tunesmith.adapters.peft_files import attach_read, read_adapter, write_adapter
from tunesmith.errors import RecipeError
from tunesmith.models.generation import weights_held
from tunesmith.recipe.low_rank import LoraSection

pytestmark = [pytest.mark.filterwarnings(text) for text in WARNINGS]
FAMILIES = ["llama", "llama-tied", "gpt2", "qwen3"]
VARIANTS = {
    "dora": {"dora": True},
    "dora rslora": {"dora": True, "rslora": True},
    "pissa": {"init": "pissa"},
    "pissa rslora": {"init": "pissa", "rslora": True},
    "orthogonal": {"init": "orthogonal"},
    "patterns": {"rank_pattern": {"*.0.*q_proj": 2, "*c_attn": 3}, "alpha_pattern": {"*.1.*": 3.0}},
}


def section(**settings):
    fits = dict(settings)
    return LoraSection(**{"rank": 4, "alpha": 12.0, **fits})


def attach(model, family="llama", **settings):
    if "rank_pattern" in settings:
        known = {"gpt2": ["*c_attn"]}.get(family, ["*.0.*q_proj"])
        settings["rank_pattern"] = {key: settings["rank_pattern"][key] for key in known}
    adapter = LoraAdapter(section(**settings), seed=3)
    adapter.attach(model)
    return adapter


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("settings", VARIANTS.values(), ids=VARIANTS)
def test_the_start_is_the_base_and_off_is_the_base_bit_for_bit(make, ids, stir, family, settings):
    model = make(family)
    base = logits(model, ids)
    adapter = attach(model, family, **settings)
    assert relative(logits(model, ids), base) < 2e-6
    stir(adapter)
    assert relative(logits(model, ids), base) > 1e-2
    with adapter.active(()):
        assert torch.equal(logits(model, ids), base)


def test_dora_takes_the_rows_lengths_once_an_answer(make, ids, stir, monkeypatch):
    """Once a layer however many passes while weights are held, with the same logits; in each pass otherwise."""
    model = make("llama")
    adapter = attach(model, dora=True)
    stir(adapter)
    parts = [module for module in model.modules() if isinstance(module, DoraWeights)]
    taken = []
    known = DoraWeights.row_lengths
    monkeypatch.setattr(DoraWeights, "row_lengths", lambda self, weight: taken.append(self) or known(self, weight))
    expected = logits(model, ids)
    assert len(taken) == len(parts)
    with weights_held(model), torch.inference_mode():
        assert torch.equal(logits(model, ids), expected)
        assert torch.equal(logits(model, ids), expected)
    assert len(taken) == 2 * len(parts)
    stir(adapter)
    model(input_ids=ids).logits.square().mean().backward()
    assert len(taken) == 3 * len(parts)
    with weights_held(model):
        changed = logits(model, ids)
    assert torch.equal(logits(model, ids), changed)
    assert not torch.equal(changed, expected)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("settings", VARIANTS.values(), ids=VARIANTS)
def test_merged_equals_attached_and_state_comes_back(make, ids, stir, family, settings):
    model = make(family)
    adapter = attach(model, family, **settings)
    stir(adapter)
    expected = logits(model, ids)
    fresh = make(family)
    other = attach(fresh, family, **settings)
    other.load_state({name: tensor.clone() for name, tensor in adapter.state().items()})
    assert torch.equal(logits(fresh, ids), expected)
    adapter.merge(model)
    assert relative(logits(model, ids), expected) < 1e-5


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("settings", VARIANTS.values(), ids=VARIANTS)
def test_what_we_write_peft_and_we_read(make, ids, stir, tmp_path, family, settings):
    model = make(family)
    adapter = attach(model, family, **settings)
    stir(adapter)
    expected = logits(model, ids)
    write_adapter(tmp_path, adapter, "base")
    theirs = peft.PeftModel.from_pretrained(make(family), tmp_path)
    assert relative(logits(theirs, ids), expected) < 1e-5
    again = make(family)
    attach_read(again, *read_adapter(tmp_path))
    assert relative(logits(again, ids), expected) < 1e-6


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_dora_of_peft_is_read_with_its_logits_gradients_and_dropout(make, ids, tmp_path, family, dropout):
    config = peft.LoraConfig(
        r=4, lora_alpha=6, use_dora=True, lora_dropout=dropout, target_modules="all-linear", task_type="CAUSAL_LM",
        fan_in_fan_out=family == "gpt2",
    )  # fmt: skip
    theirs = peft.get_peft_model(make(family), config)
    roughen(theirs)
    theirs.save_pretrained(tmp_path)
    theirs.eval()
    model = make(family)
    adapter = attach_read(model, *read_adapter(tmp_path))
    assert relative(logits(model, ids), logits(theirs, ids)) < 1e-5
    for network in (model, theirs):
        network.train()
        torch.manual_seed(21)
        network(input_ids=ids, labels=ids).loss.backward()
    table = dict(theirs.named_parameters())
    compared = 0
    for name, parameter in adapter.trained_parts().items():
        ending = name.removesuffix(".weight")
        other = table[f"base_model.model.{ending}.default.weight"].grad
        assert relative(parameter.grad, other) < 1e-4, name
        compared += 1
    assert compared == sum(parameter.requires_grad for parameter in theirs.parameters())


def test_lengths_without_a_second_matrix_are_the_norms_of_rows():
    generator = torch.Generator().manual_seed(1)
    W, A, B = (torch.randn(shape, generator=generator) for shape in ((10, 8), (3, 8), (10, 3)))
    part = DoraWeights(A, B, 0.7, 0.0, W)
    expected = (W + 0.7 * B @ A).square().sum(1).sqrt()
    torch.testing.assert_close(part.row_lengths(W), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(part.magnitude.detach(), expected, rtol=1e-5, atol=1e-6)


def test_a_merge_into_the_base_moves_the_lengths_of_other_adapters(make, ids, stir):
    model = make()
    first = LoraAdapter(section(dora=True), seed=3)
    first.attach(model, "first")
    stir(first)
    second = LoraAdapter(section(), seed=4)
    second.attach(model, "second")
    stir(second)
    second.merge(model)
    layer = next(iter(first._sites.values()))
    part = first.part_at(layer)
    expected = lora_layer.weight_of(layer) + part.scale * part.B.detach() @ part.A.detach()
    torch.testing.assert_close(part.row_lengths(lora_layer.weight_of(layer)), expected.square().sum(1).sqrt())


@pytest.mark.parametrize("scale", [0.5, 2.0])
def test_pissa_starts_from_the_best_approximation_of_its_rank(scale):
    """Eckart-Young: what is left has the other singular values, so its norm is theirs."""
    W = torch.randn(12, 9, generator=torch.Generator().manual_seed(2))
    A, B = principal(W, 3, scale, torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(W)
    rest = torch.linalg.norm(W - scale * B @ A)
    torch.testing.assert_close(rest, values[3:].square().sum().sqrt(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(A @ A.t(), torch.diag(values[:3] / scale), rtol=1e-4, atol=1e-4)


def test_pissa_beyond_the_exact_size_is_near_the_best(monkeypatch):
    monkeypatch.setattr("tunesmith.adapters.lora._LARGEST_EXACT", 4)
    W = torch.randn(40, 30, generator=torch.Generator().manual_seed(2))
    A, B = principal(W, 3, 1.0, torch.Generator().manual_seed(0))
    best = torch.linalg.svdvals(W)[3:].square().sum().sqrt()
    assert torch.linalg.norm(W - B @ A) < 1.001 * best
    again = principal(W, 3, 1.0, torch.Generator().manual_seed(0))
    assert torch.equal(again[0], A)


def test_pissa_moves_the_principal_directions_from_the_first_step(make, ids):
    """Both factors get a gradient at once, where A of plain LoRA gets none."""
    grads = {}
    for init in ("default", "pissa"):
        model = make()
        adapter = attach(model, init=init)
        model(input_ids=ids, labels=ids).loss.backward()
        name = next(name for name in adapter.trained_parts() if name.endswith("lora_A.weight"))
        grads[init] = float(adapter.trained_parts()[name].grad.abs().max())
    assert grads["default"] == 0
    assert grads["pissa"] > 0


def test_orthogonal_factors_cancel_and_neither_is_zero():
    A, B = orthogonal(torch.Generator().manual_seed(5), 16, 12, 6)
    assert A.shape == (6, 16)
    assert B.shape == (12, 6)
    assert (B @ A).abs().max() < 1e-6
    assert A.abs().mean() > 0.01
    assert B.abs().mean() > 0.01


def test_rates_per_matrix(make):
    groups = attach(make(), rate_ratio=16.0).groups()
    factors = {name.rpartition("lora_")[2]: group.rate_factor for group in groups for name, _ in group.parameters}
    assert factors == {"A.weight": 1.0, "B.weight": 16.0}


def test_ranks_and_scales_by_pattern(make):
    adapter = attach(make(), **VARIANTS["patterns"])
    ranks = {name: tensor.shape[0] for name, tensor in adapter.state().items() if name.endswith("lora_A.weight")}
    assert {name: rank for name, rank in ranks.items() if rank != 4} == {
        "model.layers.0.self_attn.q_proj.lora_A.weight": 2
    }
    scales = {name: adapter.part_at(site).scale for name, site in adapter._sites.items()}
    assert scales["model.layers.0.self_attn.q_proj"] == 12 / 2
    assert scales["model.layers.0.mlp.up_proj"] == 12 / 4
    assert scales["model.layers.1.mlp.up_proj"] == 3 / 4


@pytest.mark.parametrize("key", ["rank_pattern", "alpha_pattern"])
def test_a_pattern_that_fits_nothing_is_refused(make, key):
    with pytest.raises(RecipeError, match="`\\*nothing` fits none of the layers") as caught:
        build(section(**{key: {"*nothing": 2}}), 0).attach(make())
    assert caught.value.where == f"adapter.{key}"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"init": "orthogonal", "rank": 3}, "must be even"),
        ({"init": "orthogonal", "rank_pattern": {"*": 5}}, "must be even"),
        ({"init": "pissa", "dora": True}, "cannot be combined"),
        ({"rank_pattern": {"*": 0}}, "not above 0"),
        ({"rate_ratio": 0}, "greater than 0"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, words):
    with pytest.raises((ValidationError, RecipeError), match=words):
        section(**settings)
