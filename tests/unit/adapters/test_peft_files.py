from __future__ import annotations

import json

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

from tunesmith.adapters.lora import LoraAdapter
from tunesmith.adapters.peft_files import attach_read, read_adapter, write_adapter
from tunesmith.adapters.peft_layout import suffixes
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


SETTINGS = {
    "all-linear": {},
    "attention": {"targets": ["attention"]},
    "feed-forward": {"targets": ["feed-forward"], "rslora": True},
    "one layer": {"targets": ["*.1.*"], "dropout": 0.1},
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("settings", SETTINGS)
def test_what_we_write_peft_reads(make, ids, stir, tmp_path, family, settings):
    model = make(family)
    adapter = attach(model, **SETTINGS[settings])
    stir(adapter)
    assert write_adapter(tmp_path, adapter, "some/base") == []
    loaded = peft.PeftModel.from_pretrained(make(family), str(tmp_path)).eval()
    assert relative(logits(loaded, ids), logits(model, ids)) <= 1e-5
    wrapped = {
        name.removeprefix("base_model.model.") for name, module in loaded.named_modules() if hasattr(module, "lora_A")
    }
    assert wrapped == {key.removesuffix(".lora_A.weight") for key in adapter.state() if key.endswith("lora_A.weight")}
    with loaded.disable_adapter():
        assert torch.equal(logits(loaded, ids), logits(make(family), ids))
    assert loaded.peft_config["default"].base_model_name_or_path == "some/base"


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("rslora", [False, True])
def test_what_peft_writes_we_read(make, ids, tmp_path, family, rslora):
    config = peft.LoraConfig(
        r=4, lora_alpha=6, target_modules="all-linear", use_rslora=rslora, lora_dropout=0.1, task_type="CAUSAL_LM"
    )
    theirs = peft.get_peft_model(make(family), config).eval()
    roughen(theirs)
    theirs.save_pretrained(tmp_path)
    model = make(family)
    settings, state = read_adapter(tmp_path)
    assert (settings.section.rank, settings.section.alpha, settings.section.rslora, settings.section.dropout) == (
        4,
        6.0,
        rslora,
        0.1,
    )
    adapter = attach_read(model, settings, state)
    assert relative(logits(model, ids), logits(theirs, ids)) <= 1e-5
    with adapter.active(()):
        assert torch.equal(logits(model, ids), logits(make(family), ids))
    assert adapter.notes == []


def test_ranks_and_alphas_per_layer_go_both_ways(make, ids, tmp_path):
    config = peft.LoraConfig(
        r=4, lora_alpha=6, target_modules=["q_proj", "v_proj", "up_proj"],
        rank_pattern={"q_proj": 2, "model.layers.1.self_attn.v_proj": 8, r"layers\.[0]\.mlp\.up_proj": 3},
        alpha_pattern={"v_proj": 16, "layers.1.mlp.up_proj": 5}, task_type="CAUSAL_LM",
    )  # fmt: skip
    theirs = peft.get_peft_model(make(), config).eval()
    roughen(theirs)
    theirs.save_pretrained(tmp_path / "theirs")
    model = make()
    settings, state = read_adapter(tmp_path / "theirs")
    assert settings.ranks["model.layers.0.mlp.up_proj"] == (3, 6.0)
    assert settings.ranks["model.layers.1.mlp.up_proj"] == (4, 5.0)
    assert settings.ranks["model.layers.1.self_attn.v_proj"] == (8, 16.0)
    adapter = attach_read(model, settings, state)
    assert relative(logits(model, ids), logits(theirs, ids)) <= 1e-5
    write_adapter(tmp_path / "ours", adapter, "")
    again = peft.PeftModel.from_pretrained(make(), str(tmp_path / "ours")).eval()
    assert relative(logits(again, ids), logits(theirs, ids)) <= 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_parameters_trained_beside_go_to_peft_and_back(make, ids, stir, tmp_path, family):
    patterns = ["*ln_f*", "*ln_1.weight", "*wte*"] if family == "gpt2" else ["*norm*", "*embed_tokens*"]
    model = make(family)
    adapter = attach(model, also_train=patterns)
    stir(adapter)
    notes = write_adapter(tmp_path, adapter, "")
    loaded = peft.PeftModel.from_pretrained(make(family), str(tmp_path)).eval()
    assert relative(logits(loaded, ids), logits(model, ids)) <= 1e-5
    with loaded.disable_adapter():
        assert relative(logits(loaded, ids), logits(make(family), ids)) <= 1e-6
    assert [note for note in notes if "separate, equal copies" not in note] == []
    assert bool(notes) is (family == "gpt2")
    fresh = make(family)
    settings, state = read_adapter(tmp_path)
    back = attach_read(fresh, settings, state)
    assert torch.equal(logits(fresh, ids), logits(model, ids))
    with back.active(()):
        assert torch.equal(logits(fresh, ids), logits(make(family), ids))


def test_peft_asks_for_a_tied_embedding_under_both_its_names(make, stir, tmp_path):
    """The reason why an adapter that trains a tied embedding stores it twice."""
    adapter = attach(make("llama-tied"), also_train=["*embed_tokens*"])
    stir(adapter)
    write_adapter(tmp_path, adapter, "")
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    head, embedding = (f"base_model.model.{name}.weight" for name in ("lm_head", "model.embed_tokens"))
    assert torch.equal(tensors[head], tensors[embedding])
    save_file(
        {name: tensor for name, tensor in tensors.items() if name != head}, tmp_path / "adapter_model.safetensors"
    )
    with pytest.raises(KeyError, match="lm_head"):
        peft.PeftModel.from_pretrained(make("llama-tied"), str(tmp_path))


def test_an_untied_head_trains_beside(make, ids, stir, tmp_path):
    model = make("llama")
    adapter = attach(model, also_train=["lm_head.weight"])
    stir(adapter)
    assert write_adapter(tmp_path, adapter, "") == []
    loaded = peft.PeftModel.from_pretrained(make("llama"), str(tmp_path)).eval()
    assert relative(logits(loaded, ids), logits(model, ids)) <= 1e-5


def test_a_bias_of_an_adapted_layer_has_no_word_in_peft_and_that_is_said(make, ids, stir, tmp_path):
    model = make("gpt2")
    adapter = attach(model, targets=["c_attn"], also_train=["*.0.attn.c_attn.bias"])
    stir(adapter)
    notes = write_adapter(tmp_path, adapter, "")
    assert len(notes) == 1
    assert "`transformer.h.0.attn.c_attn.bias`" in notes[0]
    loaded = peft.PeftModel.from_pretrained(make("gpt2"), str(tmp_path)).eval()
    assert relative(logits(loaded, ids), logits(model, ids)) <= 1e-5
    fresh = make("gpt2")
    attach_read(fresh, *read_adapter(tmp_path))
    assert torch.equal(logits(fresh, ids), logits(model, ids))


@pytest.mark.parametrize("family", ["llama", "llama-tied"])
def test_modules_that_peft_saved_are_read(make, ids, tmp_path, family):
    config = peft.LoraConfig(
        r=4, target_modules=["q_proj", "down_proj"], modules_to_save=["embed_tokens", "norm"], task_type="CAUSAL_LM",
        ensure_weight_tying=family == "llama-tied",
    )  # fmt: skip
    theirs = peft.get_peft_model(make(family), config).eval()
    roughen(theirs)
    theirs.save_pretrained(tmp_path)
    model = make(family)
    attach_read(model, *read_adapter(tmp_path))
    assert relative(logits(model, ids), logits(theirs, ids)) <= 1e-5


def test_an_embedding_untied_by_peft_is_refused_on_a_tied_model(make, tmp_path):
    config = peft.LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["embed_tokens"], task_type="CAUSAL_LM")
    theirs = peft.get_peft_model(make("llama-tied"), config).eval()
    roughen(theirs)
    theirs.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"apart from lm_head\.weight"):
        attach_read(make("llama-tied"), *read_adapter(tmp_path))


def test_bf16_goes_both_ways(make, ids, stir, tmp_path):
    """The files are exact: on the same bf16 base computed in fp32 the logits agree to 1e-5."""
    model = make("llama", torch.bfloat16)
    adapter = attach(model)
    stir(adapter)
    write_adapter(tmp_path, adapter, "")
    assert {tensor.dtype for tensor in load_file(tmp_path / "adapter_model.safetensors").values()} == {torch.float32}
    loaded = peft.PeftModel.from_pretrained(make("llama", torch.bfloat16), str(tmp_path)).eval()
    loaded.save_pretrained(tmp_path / "theirs")
    fresh = make("llama", torch.bfloat16)
    back = attach_read(fresh, *read_adapter(tmp_path / "theirs"))
    assert {tensor.dtype for tensor in back.state().values()} == {torch.float32}
    assert torch.equal(logits(fresh, ids), logits(model, ids))
    assert relative(logits(loaded.float(), ids), logits(model.float(), ids)) <= 1e-5


def test_an_adapter_peft_kept_in_bf16_is_read_into_fp32(make, ids, tmp_path):
    config = peft.LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    theirs = peft.get_peft_model(make("llama", torch.bfloat16), config, autocast_adapter_dtype=False).eval()
    roughen(theirs)
    theirs.save_pretrained(tmp_path)
    assert {tensor.dtype for tensor in load_file(tmp_path / "adapter_model.safetensors").values()} == {torch.bfloat16}
    model = make("llama", torch.bfloat16)
    adapter = attach_read(model, *read_adapter(tmp_path))
    assert {tensor.dtype for tensor in adapter.state().values()} == {torch.float32}
    assert relative(logits(model.float(), ids), logits(theirs.float(), ids)) <= 1e-5


def test_products_in_bf16_err_no_more_than_twice_pefts_in_bf16(make, ids, stir, tmp_path):
    """Both against the same weights in fp32; rounding of the base dominates, so the two errors are of one size."""
    model = make("llama", torch.bfloat16)
    adapter = attach(model)
    stir(adapter)
    write_adapter(tmp_path, adapter, "")
    theirs = peft.PeftModel.from_pretrained(
        make("llama", torch.bfloat16), str(tmp_path), autocast_adapter_dtype=False
    ).eval()
    ours_NV, theirs_NV, base_NV = logits(model, ids), logits(theirs, ids), logits(make("llama", torch.bfloat16), ids)
    exact_NV = logits(model.float(), ids)
    error = float((ours_NV - exact_NV).norm() / exact_NV.norm())
    assert error <= 2 * float((theirs_NV - exact_NV).norm() / exact_NV.norm())
    assert float((base_NV - exact_NV).norm() / exact_NV.norm()) > 20 * error, "the adapter must matter"


def test_suffixes_are_the_shortest_that_select_exactly():
    names = [
        "",
        "h",
        "h.0",
        "h.0.attn",
        "h.0.attn.proj",
        "h.0.mlp",
        "h.0.mlp.proj",
        "h.1.attn.proj",
        "h.1.mlp.proj",
        "proj",
    ]
    assert suffixes(names, ["h.0.attn.proj", "h.1.attn.proj"]) == ["attn.proj"]
    assert suffixes(names, [n for n in names if n.endswith("proj")]) == ["proj"]
    assert suffixes(names, ["h.0.attn.proj"]) == ["0.attn.proj"]
    assert suffixes(names, ["h.0.attn.proj", "h.0.mlp.proj", "h.1.mlp.proj"]) == ["0.attn.proj", "mlp.proj"]


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
    ("values", "words"),
    [
        ({"peft_type": "IA3"}, "`IA3`"),
        ({"peft_type": None}, "`None`"),
        ({"use_qalora": True}, "`use_qalora`"),
        ({"lora_bias": True}, "`lora_bias`"),
        ({"init_lora_weights": "pissa"}, "`pissa`"),
        ({"layer_replication": [[0, 1]]}, "`layer_replication`"),
        ({"some_future_variant": {"on": 1}}, "`some_future_variant`"),
        ({"r": -1}, "greater than 0"),
    ],
)
def test_anything_but_plain_lora_is_refused_by_name(folder, values, words):
    change(folder, **values)
    with pytest.raises(ModelError, match=words) as error:
        read_adapter(folder)
    assert "adapter_config.json" in error.value.where


def test_lengths_of_dora_that_the_configuration_does_not_tell_of_are_refused(make, tmp_path):
    config = peft.LoraConfig(r=4, target_modules=["q_proj"], use_dora=True, task_type="CAUSAL_LM")
    peft.get_peft_model(make(), config).save_pretrained(tmp_path)
    change(tmp_path, use_dora=False)
    with pytest.raises(ModelError, match="lora_magnitude_vector"):
        read_adapter(tmp_path)


def test_lengths_that_are_missing_are_refused(folder):
    change(folder, use_dora=True)
    with pytest.raises(ModelError, match=r"has only some of .*\.lora_magnitude_vector"):
        read_adapter(folder)


def test_every_plain_configuration_peft_writes_is_accepted(make, tmp_path):
    """A key that PEFT writes by default must not be taken for a variant."""
    config = peft.LoraConfig(target_modules=["q_proj"], lora_alpha=8)
    peft.get_peft_model(make(), config).save_pretrained(tmp_path)
    settings, _ = read_adapter(tmp_path)
    assert settings.section.rank == 8


def test_pickled_weights_are_refused_unread(folder):
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(ModelError, match="has no weights"):
        read_adapter(folder)
    (folder / "adapter_model.bin").write_bytes(b"cos\nsystem\n")
    with pytest.raises(ModelError, match="pickle") as error:
        read_adapter(folder)
    assert error.value.hint


def test_torn_and_missing_files_are_told(folder):
    weights = folder / "adapter_model.safetensors"
    payload = weights.read_bytes()
    weights.write_bytes(payload[:-10])
    with pytest.raises(ModelError, match="cannot be read"):
        read_adapter(folder)
    weights.write_bytes(payload)
    (folder / "adapter_config.json").write_text("{")
    with pytest.raises(ModelError, match="not valid JSON"):
        read_adapter(folder)
    (folder / "adapter_config.json").unlink()
    with pytest.raises(ModelError, match="holds no adapter"):
        read_adapter(folder)


def test_half_a_pair_is_refused(folder):
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    gone = next(name for name in tensors if name.endswith("lora_B.weight"))
    save_file({name: tensor for name, tensor in tensors.items() if name != gone}, path)
    with pytest.raises(ModelError, match=r"has only some of \.lora_A\.weight, \.lora_B\.weight"):
        read_adapter(folder)


def test_an_adapter_of_another_model_is_refused_and_the_model_stays(make, ids, folder):
    model = make("gpt2")
    with pytest.raises(ModelError, match="no adaptable layer") as error:
        attach_read(model, *read_adapter(folder))
    assert "the-base" in error.value.hint
    settings, state = read_adapter(folder)
    key = "model.layers.0.mlp.up_proj.lora_B.weight"
    other = make()
    with pytest.raises(ModelError, match="has shape"):
        attach_read(other, settings, {**state, key: state[key][:-1]})
    assert torch.equal(logits(other, ids), logits(make(), ids))
    assert not any(".lora" in name for name, _ in other.named_modules())


def test_the_hash_of_the_base_is_in_the_file_and_its_bytes_do_not_depend_on_the_process(make, ids, stir, tmp_path):
    model = make()
    adapter = attach(model)
    stir(adapter)
    expected = logits(model, ids)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write_adapter(tmp_path / name, adapter, "some/base", "ab" * 32)
    files = [(tmp_path / name / "adapter_model.safetensors").read_bytes() for name in ("one", "two")]
    header = json.loads(files[0][8 : 8 + int.from_bytes(files[0][:8], "little")])
    assert list(header["__metadata__"]) == ["format", "base_sha256"]
    assert files[0] == files[1]
    assert read_adapter(tmp_path / "one")[0].base_sha256 == "ab" * 32
    loaded = peft.PeftModel.from_pretrained(make(), str(tmp_path / "one")).eval()
    assert relative(logits(loaded, ids), expected) <= 1e-5
