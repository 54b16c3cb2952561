"""AFLoRA: the start, the update in closed form, what trains, and the LoRA that files hold."""

from __future__ import annotations

import math

import peft
import pytest
import torch
from pydantic import ValidationError
from tests.unit.adapters.test_peft_files import WARNINGS, logits, relative

from tunesmith.adapters.aflora import AfloraAdapter, AfloraWeights
from tunesmith.adapters.lora import LoraAdapter
from tunesmith.adapters.peft_files import attach_read, read_adapter, write_adapter
from tunesmith.errors import RecipeError
from tunesmith.recipe.low_rank import AfloraSection, LoraSection

pytestmark = [pytest.mark.filterwarnings(text) for text in WARNINGS]
FAMILIES = ["llama", "llama-tied", "gpt2", "qwen3"]


def attach(model, **settings):
    adapter = AfloraAdapter(AfloraSection(**settings), seed=3)
    adapter.attach(model)
    return adapter


def random_part(trains=True, scale=0.7, dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    draw = lambda *shape: torch.randn(shape, generator=generator)  # noqa: E731
    part = AfloraWeights(draw(3, 8), draw(6, 3), scale, 0.0, trains=trains)
    with torch.no_grad():
        part.d.copy_(draw(3))
        part.b.copy_(draw(6))
    return part.to(dtype)


@pytest.mark.parametrize("trains", [True, False])
def test_forward_delta_and_lora_of_it_are_the_formula(trains):
    """Y = W X + Λ_b B Λ_d A X, §2.1, with Λ as dense diagonal matrices."""
    part = random_part(trains)
    expected = 0.7 * torch.diag(part.b) @ part.B @ torch.diag(part.d) @ part.A
    x = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(9))
    zero = torch.zeros(2, 5, 6)
    with torch.no_grad():
        torch.testing.assert_close(part(x, zero, zero, None), x @ expected.t(), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(part.delta(zero), expected)
        A, B = part.as_lora()
        torch.testing.assert_close(0.7 * B @ A, expected)


def test_gradients_are_those_of_finite_differences():
    part = random_part(dtype=torch.float64)
    x = torch.randn(4, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    zero = torch.zeros(4, 6, dtype=torch.float64)

    def loss(*values):
        found = torch.func.functional_call(part, dict(zip(names, values, strict=True)), (x, zero, zero, None))
        return found.square().sum()

    names = [name for name, _ in part.named_parameters()]
    assert sorted(names) == ["A", "B", "b", "d"]
    assert torch.autograd.gradcheck(loss, tuple(parameter for _, parameter in part.named_parameters()))


def test_the_first_step_moves_b_alone(make, ids):
    """While b is zero no gradient passes it (§2.6)."""
    model = make()
    adapter = attach(model)
    model(input_ids=ids, labels=ids).loss.backward()
    for name, parameter in adapter.trained_parts().items():
        norm = float(parameter.grad.abs().max())
        assert (norm > 0) == name.endswith("_b"), name


def test_starts_are_drawn_within_kaimings_bounds_and_vectors_are_constant(make):
    model = make()
    attach(model, rank=4)
    for layer in (model.model.layers[0].mlp.down_proj, model.model.layers[1].self_attn.k_proj):
        part = layer.added["default"]
        for matrix in (part.A.detach(), part.B.detach()):
            assert 0 < float(matrix.abs().max()) <= 1 / math.sqrt(matrix.shape[1])
        assert torch.equal(part.d, torch.full((4,), 0.1))
        assert torch.equal(part.b, torch.zeros(layer.out_features))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "settings", [{}, {"train_projections": "all", "scaling": "alpha"}, {"train_projections": "none"}]
)
def test_start_off_merge_and_state(make, ids, stir, family, settings):
    model = make(family)
    base = logits(model, ids)
    adapter = attach(model, **settings)
    assert torch.equal(logits(model, ids), base)
    stir(adapter)
    expected = logits(model, ids)
    assert relative(expected, base) > 1e-3
    with adapter.active(()):
        assert torch.equal(logits(model, ids), base)
    fresh = make(family)
    attach(fresh, **settings).load_state({name: tensor.clone() for name, tensor in adapter.state().items()})
    assert torch.equal(logits(fresh, ids), expected)
    adapter.merge(model)
    assert relative(logits(model, ids), expected) < 1e-5


@pytest.mark.parametrize("which", ["feed-forward", "all", "none"])
@pytest.mark.parametrize("family", FAMILIES)
def test_which_matrices_train(make, family, which):
    adapter = attach(make(family), train_projections=which)
    trained = adapter.trained_parts()
    vectors = {name for name in trained if name.endswith(("_d", "_b"))}
    assert len(vectors) == 2 * len(adapter._sites)
    for name in adapter._sites:
        wanted = which == "all" or (which == "feed-forward" and ".mlp." in name)
        assert (f"{name}.aflora_A" in trained) == (f"{name}.aflora_B" in trained) == wanted


def test_groups_tell_matrices_vectors_and_the_rest_apart(make):
    adapter = attach(make(), vector_rate=7.0, also_train=["*norm*", "*embed_tokens*"], train_tokens="none")
    groups = {group.name: group for group in adapter.groups()}
    matrices, vectors = groups["aflora A and B"], groups["aflora d and b"]
    assert (matrices.scored, matrices.decay, matrices.rate_factor) == (True, True, 1.0)
    assert (vectors.scored, vectors.decay, vectors.rate_factor) == (False, False, 7.0)
    assert {parameter.ndim for _, parameter in matrices.parameters} == {2}
    rest = [group for name, group in groups.items() if name not in ("aflora A and B", "aflora d and b")]
    assert all((group.scored, group.rate_factor) == (False, 1.0) for group in rest)
    names = [name for group in groups.values() for name, _ in group.parameters]
    assert len(names) == len(set(names))
    assert set(names) == set(adapter.trained_parts()) | set(adapter._beside)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "settings", [{}, {"scaling": "alpha", "alpha": 6.0, "rank": 3}, {"also_train": ["norm"]}, {"train_tokens": [3, 5]}]
)
def test_files_hold_a_lora_that_peft_and_we_read(make, ids, stir, tmp_path, family, settings):
    if "also_train" in settings:
        settings = {"also_train": ["*ln_*" if family == "gpt2" else "*norm*"]}
    model = make(family)
    adapter = attach(model, **settings)
    stir(adapter)
    expected = logits(model, ids)
    write_adapter(tmp_path, adapter, "base")
    theirs = peft.PeftModel.from_pretrained(make(family), tmp_path)
    assert relative(logits(theirs, ids), expected) < 1e-5
    again = make(family)
    read = attach_read(again, *read_adapter(tmp_path))
    assert isinstance(read, LoraAdapter)
    assert relative(logits(again, ids), expected) < 1e-5


def test_with_b_and_d_of_one_it_is_lora(make, ids):
    """And so its gradients of A and B are LoRA's."""
    model, other = make(), make()
    adapter = attach(model, train_projections="all")
    plain = LoraAdapter(LoraSection(rank=4, alpha=4.0), seed=3)
    plain.attach(other)
    with torch.no_grad():
        for name, site in adapter._sites.items():
            part, twin = adapter.part_at(site), plain.part_at(plain._sites[name])
            part.d.fill_(1.0)
            part.b.fill_(1.0)
            twin.A.copy_(part.A)
            twin.B.copy_(part.B)
    assert relative(logits(model, ids), logits(other, ids)) < 1e-5
    for network in (model, other):
        network(input_ids=ids, labels=ids).loss.backward()
    theirs = plain.trained_parts()
    for name, parameter in adapter.trained_parts().items():
        if name.endswith(("_A", "_B")):
            twin = theirs[name.replace("aflora_", "lora_") + ".weight"]
            assert relative(parameter.grad, twin.grad) < 1e-4, name


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"freeze_from": 0.5, "freeze_by": 0.3}, "is not after it"),
        ({"boundaries": 7}, "less than or equal to 6"),
        ({"freeze_by": 1.5}, "less than or equal to 1"),
        ({"window": 0}, "greater than 0"),
        ({"procedure": "other"}, "'released' or 'paper'"),
        ({"vector_rate": 0}, "greater than 0"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, words):
    with pytest.raises((ValidationError, RecipeError), match=words):
        AfloraSection(**settings)
