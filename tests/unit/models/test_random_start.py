"""A start from random weights: the shape of the folder, drawn from a seed, as the family draws its own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.tiny import FAMILIES, batch, family
from tunesmith.models.loading import load_model


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    found = {}
    for name in FAMILIES:
        found[name] = tmp_path_factory.mktemp(name)
        family(name, seed=5).save_pretrained(found[name])
    return found


@pytest.mark.parametrize("name", FAMILIES)
def test_shapes_are_the_folders_and_values_the_seeds(folders: dict[str, Path], name: str) -> None:
    stored = load_model(folders[name]).hf.state_dict()
    state = torch.random.get_rng_state()
    one, again, other = (load_model(folders[name], init_seed=seed).hf.state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert {key: value.shape for key, value in one.items()} == {key: value.shape for key, value in stored.items()}
    assert all(torch.equal(one[key], again[key]) for key in one)
    matrices = [key for key, value in one.items() if value.dim() > 1]
    assert not any(torch.equal(one[key], other[key]) for key in matrices)
    assert not any(torch.equal(one[key], stored[key]) for key in matrices)


def test_the_start_is_the_familys_own_and_knows_nothing(folders: dict[str, Path]) -> None:
    """Llama draws matrices from a normal distribution of 0.02 (its configuration); every token is about as likely."""
    model = load_model(folders["llama"], init_seed=0)
    assert not model.hf.training
    weight = model.hf.model.layers[0].mlp.up_proj.weight
    assert weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert bool((model.hf.model.norm.weight == 1).all())
    with torch.no_grad():
        loss = -model(batch([40, 60])).logprob_S.mean().item()
    assert loss == pytest.approx(torch.tensor(97.0).log().item(), abs=0.1)


def test_another_type_is_a_cast_of_the_same_draw(folders: dict[str, Path]) -> None:
    exact, cast = (load_model(folders["llama"], init_seed=3, dtype=kind) for kind in (torch.float32, torch.bfloat16))
    for one, other in zip(exact.hf.parameters(), cast.hf.parameters(), strict=True):
        assert torch.equal(one.to(torch.bfloat16), other)
