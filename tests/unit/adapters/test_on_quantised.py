"""Adapters on a packed base: the start, the gradients, the lengths of rows, merging into what was unpacked."""

from __future__ import annotations

import peft
import pytest
import torch
from tests.unit.adapters.test_peft_files import WARNINGS, logits, relative

from tunesmith.adapters import build, lora_layer
from tunesmith.adapters.dora import DoraWeights
from tunesmith.adapters.peft_files import attach_read, read_adapter, write_adapter
from tunesmith.models.quantised import KINDS, QuantisedLinear, dequantise, quantise
from tunesmith.recipe.bottleneck import BottleneckSection
from tunesmith.recipe.low_rank import AfloraSection, GraloraSection, LoraSection
from tunesmith.types import CannotMerge

pytest.importorskip("bitsandbytes", reason="needs the extra `quantise`")
pytestmark = [pytest.mark.filterwarnings(text) for text in WARNINGS]
SECTIONS = {
    "lora": LoraSection(rank=4, alpha=12.0),
    "dora": LoraSection(rank=4, alpha=12.0, dora=True),
    "pissa": LoraSection(rank=4, alpha=12.0, init="pissa"),
    "aflora": AfloraSection(train_projections="all"),
    "gralora": GraloraSection(rank=4, blocks=2, hybrid_rank=2, alpha=12.0),
}


@pytest.fixture(params=SECTIONS)
def section(request):
    return SECTIONS[request.param]


def packed(make, family, kind):
    model = make(family)
    quantise(model, kind, torch.float32)
    return model


@pytest.mark.parametrize("family", ["llama-tied", "gpt2", "qwen3"])
@pytest.mark.parametrize("kind", KINDS)
def test_start_off_gradients_and_merge(make, ids, stir, section, family, kind):
    """Everything as on a plain model that has the unpacked weights."""
    model, plain = packed(make, family, kind), packed(make, family, kind)
    dequantise(plain)
    base = logits(model, ids)
    adapter, other = build(section, 3), build(section, 3)
    adapter.attach(model)
    other.attach(plain)
    assert relative(logits(model, ids), base) < 2e-6
    stir(adapter)
    stir(other)
    expected = logits(plain, ids)
    assert relative(logits(model, ids), expected) < 1e-5
    assert relative(expected, base) > 1e-2
    for network in (model, plain):
        network(input_ids=ids, labels=ids).loss.backward()
    for (name, one), two in zip(adapter.trained_parts().items(), other.trained_parts().values(), strict=True):
        assert relative(one.grad, two.grad) < 1e-3, name
    with adapter.active(()):
        assert torch.equal(logits(model, ids), base)
    with pytest.raises(CannotMerge, match="is quantised"):
        adapter.merge(model)
    assert relative(logits(model, ids), expected) < 1e-5, "nothing is changed"
    other.merge(plain)
    assert relative(logits(plain, ids), expected) < 1e-5


def test_gradients_of_bottlenecks_beside_packed_sub_layers(make, ids, stir):
    """Parts read and add what the sub-layers do, packed or not."""
    found = []
    for unpacks in (False, True):
        model = packed(make, "llama-tied", "nf4")
        if unpacks:
            dequantise(model)
        adapter = build(BottleneckSection(placement="hybrid", reduction=4), 3)
        adapter.attach(model)
        stir(adapter)
        model(input_ids=ids, labels=ids).loss.backward()
        found.append({name: part.grad for name, part in adapter.trained_parts().items()})
    assert found[0].keys() == found[1].keys()
    assert all(relative(found[0][name], found[1][name]) < 1e-3 for name in found[0])


def test_attaching_unpacks_nothing(make, monkeypatch):
    """Whose head a layer is, and what trains beside it, is asked of parameters; plain LoRA needs no weight to start."""
    model = packed(make, "llama-tied", "int8")
    looked = []
    monkeypatch.setattr(QuantisedLinear, "unpacked", lambda layer, dtype: looked.append(layer))
    adapter = build(SECTIONS["lora"].model_copy(update={"also_train": ["*norm*"]}), 3)
    adapter.attach(model)
    with pytest.raises(CannotMerge, match="is quantised"):
        adapter.merge(model)
    assert looked == []


def test_lengths_of_dora_are_those_of_the_unpacked_rows(make):
    model = packed(make, "llama", "nf4")
    adapter = build(SECTIONS["dora"], 3)
    adapter.attach(model)
    for site in adapter._sites.values():
        part = adapter.part_at(site)
        assert isinstance(part, DoraWeights)
        torch.testing.assert_close(part.magnitude.detach(), torch.linalg.norm(lora_layer.weight_of(site), dim=1))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_what_trained_on_it_is_read_by_peft_on_the_unpacked_base(make, ids, stir, tmp_path, section, family):
    model = packed(make, family, "nf4")
    adapter = build(section, 3)
    adapter.attach(model)
    stir(adapter)
    expected = logits(model, ids)
    write_adapter(tmp_path, adapter, "base")
    plain = packed(make, family, "nf4")
    dequantise(plain)
    assert relative(logits(peft.PeftModel.from_pretrained(plain, tmp_path), ids), expected) < 1e-5
    again = packed(make, family, "nf4")
    attach_read(again, *read_adapter(tmp_path))
    assert relative(logits(again, ids), expected) < 1e-6


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("placement", ["sequential", "parallel"])
def test_bottlenecks_stand_at_the_blocks_of_a_packed_base(make, ids, stir, tmp_path, family, placement):
    section = BottleneckSection(placement=placement, reduction=4)
    model, plain = packed(make, family, "nf4"), packed(make, family, "nf4")
    dequantise(plain)
    found = []
    for network in (model, plain):
        adapter = build(section, 3)
        adapter.attach(network)
        stir(adapter)
        found.append(logits(network, ids))
    assert relative(found[0], found[1]) < 1e-5
    write_adapter(tmp_path, adapter, "base")
    again = packed(make, family, "nf4")
    attach_read(again, *read_adapter(tmp_path))
    assert relative(logits(again, ids), found[0]) < 1e-5


def test_peft_cannot_put_gralora_on_a_packed_base(make):
    """The reason to have our own: PEFT knows the layer's weight only as a parameter of its shape."""
    import bitsandbytes

    model = make()
    layer = model.model.layers[0].self_attn.q_proj
    four = bitsandbytes.nn.Linear4bit(layer.in_features, layer.out_features, bias=False, quant_type="nf4")
    four.load_state_dict({"weight": layer.weight.data})
    model.model.layers[0].self_attn.q_proj = four.to("cpu")
    config = peft.GraloraConfig(r=4, gralora_k=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    theirs = peft.get_peft_model(model, config)
    with pytest.raises(Exception):  # noqa: B017 - of whatever kind
        theirs.merge_and_unload()
