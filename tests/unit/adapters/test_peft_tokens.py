"""Rows of single tokens in PEFT's files: ``trainable_token_indices``, written and read, tied and untied."""

from __future__ import annotations

import json

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.tiny import VOCABULARY
from tests.tiny import family as tiny_family

from tunesmith.adapters.lora import LoraAdapter
from tunesmith.adapters.peft_files import attach_read, read_adapter, write_adapter
from tunesmith.errors import ModelError
from tunesmith.recipe.adapters import LoraSection

FAMILIES = ["llama", "llama-tied", "gpt2", "qwen3"]
WARNINGS = [
    "ignore:.*is_gradient_checkpointing:FutureWarning",
    "ignore:.*tie_word_embeddings:UserWarning",
    "ignore:.*fan_in_fan_out is set:UserWarning",
    "ignore:Could not find a config file:UserWarning",
]
pytestmark = [pytest.mark.filterwarnings(text) for text in WARNINGS]


def attach(model, seed=0, **settings):
    adapter = LoraAdapter(LoraSection(**{"rank": 4, "alpha": 12.0, **settings}), seed)
    adapter.attach(model)
    return adapter


def logits(model, ids):
    with torch.no_grad():
        return model(ids).logits.float()


def relative(a, b):
    return float((a - b).abs().max() / b.abs().max())


def roughen(model, seed=5):
    """Random values for everything that PEFT trains."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.add_((torch.randn(parameter.shape, generator=generator) * 0.1).to(parameter.dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_rows_of_tokens_go_to_peft_and_back(make, ids, stir, tmp_path, family, dtype):
    ids[0, :2] = torch.tensor([40, 7])
    model = make(family, dtype)
    adapter = attach(model, train_tokens=[40, 3, 7])
    stir(adapter)
    assert write_adapter(tmp_path, adapter, "") == []
    stored = load_file(tmp_path / "adapter_model.safetensors")
    rows = {name: part for name, part in stored.items() if "lora" not in name}
    assert {part.shape for part in rows.values()} == {(3, 32)}, "a whole matrix must not be stored"
    assert len(rows) == (2 if family == "llama" else 1)
    loaded = peft.PeftModel.from_pretrained(make(family, dtype), str(tmp_path)).eval()
    fresh = make(family, dtype)
    back = attach_read(fresh, *read_adapter(tmp_path))
    assert torch.equal(logits(fresh, ids), logits(model, ids))
    assert back.section.train_tokens == [3, 7, 40]
    with back.active(()):
        assert torch.equal(logits(fresh, ids), logits(make(family, dtype), ids))
    if dtype == torch.float32:
        assert relative(logits(loaded, ids), logits(model, ids)) <= 1e-5
        with loaded.disable_adapter():
            assert torch.equal(logits(loaded, ids), logits(make(family), ids))
    else:  # the same bf16 values, computed in fp32
        assert relative(logits(loaded.float(), ids), logits(model.float(), ids)) <= 1e-5


TOKEN_SETTINGS = {
    "list": ([5, 40], ["embedding"]),
    "mapping of both": ({"embed_tokens": [5, 40], "lm_head": [5, 40]}, ["embedding", "head"]),
    "head alone": ({"lm_head": [5]}, ["head"]),
    "different rows": ({"embed_tokens": [5, 40], "lm_head": [7]}, ["embedding", "head"]),
}


@pytest.mark.parametrize("given", TOKEN_SETTINGS)
def test_rows_that_peft_trained_are_read(make, ids, tmp_path, given):
    tokens, trained = TOKEN_SETTINGS[given]
    config = peft.LoraConfig(
        r=4, target_modules=["q_proj", "down_proj"], trainable_token_indices=tokens, task_type="CAUSAL_LM"
    )
    theirs = peft.get_peft_model(make("llama"), config).eval()
    roughen(theirs)
    theirs.save_pretrained(tmp_path)
    ids[:, :2] = torch.tensor([5, 40])
    model = make("llama")
    adapter = attach_read(model, *read_adapter(tmp_path))
    assert relative(logits(model, ids), logits(theirs, ids)) <= 1e-5
    names = {"embedding": "model.embed_tokens.token_rows", "head": "lm_head.token_rows"}
    assert {name for name in adapter.state() if "lora" not in name} == {names[kind] for kind in trained}


@pytest.mark.parametrize("family", ["llama-tied", "gpt2", "qwen3"])
def test_tied_rows_that_peft_trained_are_read(make, ids, tmp_path, family):
    config = peft.LoraConfig(r=4, trainable_token_indices=[5, 40], task_type="CAUSAL_LM")
    theirs = peft.get_peft_model(make(family), config).eval()
    roughen(theirs)
    theirs.save_pretrained(tmp_path)
    ids[:, :2] = torch.tensor([5, 40])
    model = make(family)
    attach_read(model, *read_adapter(tmp_path))
    assert relative(logits(model, ids), logits(theirs, ids)) <= 1e-5


@pytest.mark.parametrize("tokens", [{"lm_head": [5]}, {"embed_tokens": [5], "lm_head": [7]}])
def test_rows_of_a_head_untied_by_peft_are_refused_on_a_tied_model(make, tmp_path, tokens):
    config = peft.LoraConfig(r=4, target_modules=["q_proj"], trainable_token_indices=tokens, task_type="CAUSAL_LM")
    peft.get_peft_model(make("llama-tied"), config).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="rows of `lm_head` apart from the embedding"):
        attach_read(make("llama-tied"), *read_adapter(tmp_path))


def test_a_head_with_a_bias_goes_to_peft_whole(stir, tmp_path):
    """PEFT's head with trained rows leaves its bias out, so rows alone would give other logits there."""
    ids = torch.randint(3, VOCABULARY, (2, 12), generator=torch.Generator().manual_seed(1))
    model = tiny_family("phi")
    adapter = attach(model, train_tokens=[int(ids[0, 0]), 7])
    stir(adapter)
    notes = write_adapter(tmp_path, adapter, "")
    assert ["forgets the bias of `lm_head`" in note for note in notes] == [True]
    loaded = peft.PeftModel.from_pretrained(tiny_family("phi"), str(tmp_path)).eval()
    assert relative(logits(loaded, ids), logits(model, ids)) <= 1e-5
    fresh = tiny_family("phi")
    attach_read(fresh, *read_adapter(tmp_path))
    assert torch.equal(logits(fresh, ids), logits(model, ids))


@pytest.fixture
def folder(make, stir, tmp_path):
    adapter = attach(make())
    stir(adapter)
    write_adapter(tmp_path, adapter, "the-base")
    return tmp_path


def change(folder, **values):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.parametrize(
    ("indices", "words"),
    [
        ([3, 7, 9], "do not fit the token ids"),
        ([3, 3], "do not fit the token ids"),
        ([3, -1], "do not fit the token ids"),
        ({"lm_head": [3, 7]}, "do not fit the token ids"),
        (None, "do not fit the token ids"),
        ([3, 48], "no token 48"),
    ],
)
def test_token_rows_that_do_not_fit_are_refused(make, tmp_path, indices, words):
    write_adapter(tmp_path, attach(make("llama-tied"), train_tokens=[3, 7]), "the-base")
    change(tmp_path, trainable_token_indices=indices)
    with pytest.raises(ModelError, match=words):
        attach_read(make("llama-tied"), *read_adapter(tmp_path))


def test_tokens_without_rows_are_refused(folder):
    change(folder, trainable_token_indices=[1])
    with pytest.raises(ModelError, match="holds no rows") as error:
        read_adapter(folder)
    assert "trainable_token_indices" in error.value.where


def test_rows_of_another_matrix_are_refused(make, folder):
    weights = folder / "adapter_model.safetensors"
    key = "base_model.model.model.norm.token_adapter.trainable_tokens_delta"
    save_file({**load_file(weights), key: torch.zeros(1, 32)}, weights)
    change(folder, trainable_token_indices=[1])
    with pytest.raises(ModelError, match=r"rows of `model\.norm` and this model has no such matrix"):
        attach_read(make(), *read_adapter(folder))
