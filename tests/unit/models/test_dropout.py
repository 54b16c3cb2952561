"""Dropout of the base: every kind that a family is said to have drops something, and nothing where no rate is set."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.tiny import FAMILIES, batch, family
from tests.tiny_encoders import ENCODERS, encoder
from tunesmith.models.causal_lm import CausalLM
from tunesmith.models.dropout import KINDS, dropout_keys, dropout_rates
from tunesmith.models.facts import read_facts
from tunesmith.models.loading import load_model

PACK = batch([9, 4, 13])
CASES = [(name, kind) for name in FAMILIES for kind in dropout_keys(name)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    found = {}
    for name in FAMILIES:
        found[name] = tmp_path_factory.mktemp(name)
        family(name).save_pretrained(found[name])
    return found


def hidden(model: CausalLM, seed: int) -> Tensor:
    torch.manual_seed(seed)
    with torch.no_grad():
        return model.hidden(PACK)


@pytest.mark.parametrize(("name", "kind"), CASES, ids=["-".join(case) for case in CASES])
def test_a_kind_that_a_family_has_drops_in_training_alone(folders: dict[str, Path], name: str, kind: str) -> None:
    model = load_model(folders[name], dropout={kind: 0.4})
    expected = hidden(load_model(folders[name]), 0)
    assert torch.equal(hidden(model, 0), expected)  # load_model leaves it in evaluation mode
    model.train()
    assert not torch.allclose(hidden(model, 0), expected)
    assert torch.equal(hidden(model, 0), hidden(model, 0))
    assert not torch.equal(hidden(model, 0), hidden(model, 1))


@pytest.mark.parametrize("name", FAMILIES)
def test_a_rate_of_nothing_drops_nothing(folders: dict[str, Path], name: str) -> None:
    assert dropout_keys(name)
    model = load_model(folders[name], dropout=dict.fromkeys(dropout_keys(name), 0.0))
    expected = hidden(model, 0)
    assert torch.equal(hidden(model.train(), 0), expected)


def test_facts_have_the_configurations_rates(folders: dict[str, Path]) -> None:
    assert read_facts(folders["llama"]).dropout == {"attention": 0.0}
    path = folders["gpt2"] / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    assert read_facts(folders["gpt2"]).dropout == dict.fromkeys(KINDS, 0.0)
    config["resid_pdrop"] = 0.25
    del config["attn_pdrop"]  # GPT-2 means 0.1 where it says nothing
    assert dropout_rates(config, "gpt2") == {"attention": 0.1, "hidden": 0.25, "embedding": 0.0}
    assert dropout_rates({"attention_dropout": "much"}, "llama") == {"attention": 0.0}
    assert dropout_rates({"dropout": 0.5}, "unheard-of") == {}


def test_attention_dropout_keeps_documents_apart(folders: dict[str, Path]) -> None:
    """With masks drawn a document's states still depend on no other document: no gradient passes."""
    model = load_model(folders["llama"], dropout={"attention": 0.4}).train()
    embedding = model.hf.get_input_embeddings()
    inputs = []
    embedding.register_forward_hook(lambda module, given, made: inputs.append(made.requires_grad_()) or made)
    torch.manual_seed(0)
    states = model.hidden(PACK)
    (gradient,) = torch.autograd.grad(states[9:13].sum(), inputs[0])
    assert bool(gradient[0, 9:13].any())
    assert not bool(gradient[0, :9].any())
    assert not bool(gradient[0, 13:].any())


ENCODER_CASES = [(name, kind) for name in ENCODERS for kind in dropout_keys(name)]


@pytest.mark.parametrize(("name", "kind"), ENCODER_CASES, ids=["-".join(case) for case in ENCODER_CASES])
def test_encoders_drop_what_they_are_said_to(tmp_path: Path, name: str, kind: str) -> None:
    none = dict.fromkeys(dropout_keys(name), 0.0)
    encoder(name).save_pretrained(tmp_path)
    quiet = load_model(tmp_path, headless=True, dropout=none)
    quiet.train()
    loud = load_model(tmp_path, headless=True, dropout={**none, kind: 0.4})
    expected = hidden(quiet, 0)
    assert torch.equal(hidden(quiet, 1), expected)
    assert torch.equal(hidden(loud, 0), expected)  # in evaluation mode
    loud.train()
    assert not torch.allclose(hidden(loud, 0), expected)
