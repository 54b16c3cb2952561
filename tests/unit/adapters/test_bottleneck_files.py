"""Folders of bottleneck adapters: what is written reads back with the same bits, strangers' folders are refused by name, PEFT stops."""

from __future__ import annotations

import json

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.unit.adapters.test_bottleneck import SETTINGS, attach, logits

from tunesmith.adapters.peft_files import CONFIGURATION, WEIGHTS, attach_read, read_adapter, write_adapter
from tunesmith.errors import ModelError

FAMILIES = ["llama", "llama-tied", "gpt2", "qwen3"]


@pytest.fixture
def folder(make, stir, tmp_path):
    adapter = attach(make(), preset="houlsby", layer_norm="before", train_tokens=[3, 5])
    stir(adapter)
    write_adapter(tmp_path, adapter, "the-base")
    return tmp_path


def change(folder, **values):
    path = folder / CONFIGURATION
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def change_part(folder, **values):
    parts = json.loads((folder / CONFIGURATION).read_text())["parts"]
    change(folder, parts={name: part | values for name, part in parts.items()})


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("beside", [{}, {"also_train": True}, {"train_tokens": [3, 5]}], ids=["alone", "whole", "rows"])
def test_what_is_written_reads_back(make, ids, stir, tmp_path, family, settings, beside):
    if "also_train" in beside:
        beside = {"also_train": ["*wte*", "*ln_f*"] if family == "gpt2" else ["*embed_tokens*", "*norm*"]}
    model = make(family)
    adapter = attach(model, **SETTINGS[settings], **beside)
    stir(adapter)
    (note,) = write_adapter(tmp_path, adapter, "some/base")
    assert "PEFT has no bottleneck adapters" in note
    settings_read, state = read_adapter(tmp_path)
    assert settings_read.base == "some/base"
    assert settings_read.parts == adapter.parts
    again = make(family)
    back = attach_read(again, settings_read, state)
    assert torch.equal(logits(again, ids), logits(model, ids))
    with back.active(()):
        assert torch.equal(logits(again, ids), logits(make(family), ids))
    assert back.state().keys() == adapter.state().keys()
    assert {name for name, part in again.named_parameters() if part.requires_grad} == {
        name for name, part in model.named_parameters() if part.requires_grad
    }


def test_peft_stops_at_the_type(make, folder):
    """It must not take the folder for something that it knows, and answer with the base."""
    with pytest.raises(KeyError, match="TUNESMITH_BOTTLENECK"):
        peft.PeftModel.from_pretrained(make(), str(folder))


def test_an_adapter_of_another_model_is_refused_and_the_model_stays(make, ids, folder):
    model = make("gpt2")
    with pytest.raises(ModelError, match="no place for it") as error:
        attach_read(model, *read_adapter(folder))
    assert "the-base" in error.value.hint
    settings, state = read_adapter(folder)
    key = "model.layers.0.mlp.down.weight"
    other = make()
    with pytest.raises(ModelError, match="has shape"):
        attach_read(other, settings, {**state, key: state[key][:, :-1]})
    assert torch.equal(logits(other, ids), logits(make(), ids))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"format": 2}, "reads format 1"),
        ({"format": None}, "reads format 1"),
        ({"surprise": 1}, "`surprise` is no key"),
        ({"parts": {}}, "names no parts"),
        ({"parts": ["model.layers.0.mlp"]}, "names no parts"),
        ({"parts": {"model.layers.0.mlp": 3}}, "names no parts"),
        ({"token_rows": {"model.embed_tokens": [3]}}, "do not fit the token ids"),
        ({"token_rows": None}, "do not fit the token ids"),
        ({"peft_type": "BOTTLENECK"}, "`BOTTLENECK`, only .*`TUNESMITH_BOTTLENECK`"),
    ],
)
def test_a_configuration_that_cannot_be_is_refused(folder, values, words):
    change(folder, **values)
    with pytest.raises(ModelError, match=words) as caught:
        read_adapter(folder)
    assert CONFIGURATION in caught.value.where
    assert caught.value.hint


@pytest.mark.parametrize(
    "values",
    [
        {"placement": "hybrid"}, {"placement": None}, {"width": 0}, {"width": 10**30}, {"width": "2"}, {"activation": "eval"},
        {"scaling": 0}, {"scaling": "1e999"}, {"scaling": -1.0}, {"dropout": 1.0}, {"layer_norm": "both"}, {"more": 1},
    ],
)  # fmt: skip
def test_settings_of_a_part_that_cannot_be_are_refused(folder, values):
    change_part(folder, **values)
    with pytest.raises(ModelError, match="settings of `model") as caught:
        read_adapter(folder)
    assert "[parts]" in caught.value.where


def test_a_width_that_the_tensors_do_not_have(make, folder):
    change_part(folder, width=3)
    with pytest.raises(ModelError, match="has shape"):
        attach_read(make(), *read_adapter(folder))


@pytest.mark.parametrize("name", ["lm_head", "model", "", "model.layers.0", "model.layers.0.mlp.up_proj"])
def test_a_part_at_a_module_that_is_no_sub_layer(make, folder, name):
    parts = json.loads((folder / CONFIGURATION).read_text())["parts"]
    part = parts.pop("model.layers.0.mlp")
    change(folder, parts=parts | {name: part})
    tensors = load_file(folder / WEIGHTS)
    moved = {key.replace("model.layers.0.mlp.", f"{name}."): tensor for key, tensor in tensors.items()}
    save_file(moved, folder / WEIGHTS)
    with pytest.raises(ModelError, match=r"no place for it"):
        attach_read(make(), *read_adapter(folder))


def test_tensors_that_lack_or_that_nothing_asks_for(make, folder):
    tensors = load_file(folder / WEIGHTS)
    key = "model.layers.1.mlp.up.bias"
    save_file({name: tensor for name, tensor in tensors.items() if name != key}, folder / WEIGHTS)
    with pytest.raises(ModelError, match=f"lacks `{key}`"):
        read_adapter(folder)
    save_file(tensors | {"model.layers.1.mlp.side.weight": torch.ones(2)}, folder / WEIGHTS)
    with pytest.raises(ModelError, match="no parameter of this model"):
        attach_read(make(), *read_adapter(folder))
