"""What a model folder says to transformers: sizes, names of other files, code, kernels. Only the shape is obeyed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from tests.hostile.bounds import GENTLE, TELL, answer, measured, refusal
from tests.hostile.folders import CONFIG, write_model
from tests.hostile.test_model_files import JSON
from tunesmith.errors import ModelError
from tunesmith.models import config_file
from tunesmith.models.causal_lm import CausalLM
from tunesmith.models.loading import load_model
from tunesmith.workshop.model_files import write_model as export_model

EVIL = "raise SystemExit('code of the folder was run')\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_model(tmp_path / "m")


def _first_weight(folder: Path) -> float:
    model = load_model(folder)
    return float(model.hf.model.layers[0].mlp.gate_proj.weight.detach()[0, 0])


def _poison(path: Path) -> None:
    """The folder's weights with other numbers, in a file of another name."""
    tensors = {name: tensor + 1.0 for name, tensor in load_file(path.parent / "model.safetensors").items()}
    save_file(tensors, path, metadata={"format": "pt"})


@settings(GENTLE, max_examples=25)
@given(
    changes=st.dictionaries(
        st.sampled_from([*CONFIG, "rope_parameters", "hidden_act", "dtype", "to_dict", "id2label"]), JSON, min_size=1
    )
)
@example(changes={"intermediate_size": 10**9})
@example(changes={"head_dim": 10**9})
@example(changes={"num_key_value_heads": 0})
@example(changes={"num_attention_heads": 3})
@example(changes={"model_type": []})
@example(changes={"model_type": "gpt2"})
@example(changes={"rope_parameters": {"rope_type": "dynamic", "factor": "x"}})
def test_any_value_in_a_config_loads_or_is_refused(folder: Path, changes: dict[str, Any]) -> None:
    (folder / "config.json").write_text(json.dumps(CONFIG | changes), encoding="utf-8")
    assert isinstance(answer(lambda: load_model(folder), 20.0), CausalLM | ModelError)


def test_an_enormous_shape_takes_no_memory(tmp_path: Path) -> None:
    folders = [
        write_model(tmp_path / "wide", intermediate_size=10**9),
        write_model(tmp_path / "long", model_type="gpt2", max_position_embeddings=10**9),
        write_model(tmp_path / "many", model_type="mixtral", num_local_experts=10**9),
        write_model(tmp_path / "heads", head_dim=10**8),
    ]
    code = (
        TELL
        + "from tunesmith.models.loading import load_model\nfor name in sys.argv[1:]: tell(lambda: load_model(Path(name)))"
    )
    said, peak = measured(code, *map(str, folders), seconds=60, mebibytes=12_000)
    assert said.count("ModelError | config.json describes") == len(folders), said
    assert peak < 1_200, "torch and transformers alone take half of this"


@pytest.mark.parametrize("key", sorted(config_file.DROPPED_FIELDS))
@pytest.mark.parametrize("value", ["evil/kernel", {"AutoModelForCausalLM": "evil.Model"}, "evil.safetensors", True])
def test_a_field_that_chooses_code_kernels_or_files_is_dropped_at_any_depth(key: str, value: Any) -> None:
    values = {**CONFIG, key: value, "text_config": {key: value, "inner": [{key: value}]}, "__class__": "x"}
    clean = config_file.obeyed(values)
    assert clean == {**CONFIG, "text_config": {"inner": [{}]}}
    assert set(config_file.dropped(values)) == {key, f"text_config.{key}", f"text_config.inner.0.{key}", "__class__"}


@pytest.mark.parametrize(
    "changes",
    [
        {"transformers_weights": "evil.safetensors"},
        {"auto_map": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}},
        {"attn_implementation": "evil/kernel"},
        {"_attn_implementation": "evil/kernel"},
        {"_attn_implementation_internal": "evil/kernel"},
        {"_experts_implementation_internal": "evil/kernel", "experts_implementation": "evil/kernel"},
        {"kernel_config": {"kernel_mapping": {"LlamaMLP": "evil/kernel:M"}}, "use_kernels": True},
        {"quantization_config": {"quant_method": "evil"}},
        {"fusion_config": {"mlp": "evil"}},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_the_weights_that_were_checked_are_those_that_load(folder: Path, changes: dict[str, Any]) -> None:
    _poison(folder / "evil.safetensors")
    (folder / "evil.py").write_text(EVIL, encoding="utf-8")
    (folder / "config.json").write_text(json.dumps(CONFIG | changes), encoding="utf-8")
    assert _first_weight(folder) == pytest.approx(0.01)
    assert load_model(folder).hf.config._attn_implementation == "tunesmith_packed"


@pytest.mark.parametrize("name", ["shard-00000-model-00001-of-00001.safetensors", "model-00001-of-00001.safetensors"])
def test_other_weight_files_beside_are_not_found(folder: Path, name: str) -> None:
    _poison(folder / name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"model.norm.weight": name}}))
    assert _first_weight(folder) == pytest.approx(0.01)


def test_an_adapter_in_a_model_folder_is_not_loaded_with_it(folder: Path) -> None:
    pytest.importorskip("peft")
    layer = "base_model.model.model.layers.0.mlp.gate_proj"
    save_file(
        {f"{layer}.lora_A.weight": torch.ones(1, 8), f"{layer}.lora_B.weight": torch.ones(12, 1)},
        folder / "adapter_model.safetensors",
    )
    values = {
        "peft_type": "LORA",
        "r": 1,
        "lora_alpha": 1,
        "target_modules": ["gate_proj"],
        "base_model_name_or_path": "/etc",
    }
    (folder / "adapter_config.json").write_text(json.dumps(values), encoding="utf-8")
    model = load_model(folder)
    assert not any("lora" in name for name, _ in model.hf.named_parameters())


@pytest.mark.parametrize(
    "payload", [b"[" * 100_000, b"[]", b"{", b'{"eos_token_id": "x", "custom_generate": "evil"}', b"\xff"]
)
def test_generation_files_are_no_part_of_loading(folder: Path, payload: bytes) -> None:
    (folder / "generation_config.json").write_bytes(payload)
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate" / "generate.py").write_text(EVIL, encoding="utf-8")
    assert _first_weight(folder) == pytest.approx(0.01)


def test_what_is_dropped_is_not_exported_either(folder: Path, tmp_path: Path) -> None:
    changes = {
        "auto_map": {"AutoModelForCausalLM": "evil.Model"},
        "text_config": {"_attn_implementation": "evil/kernel"},
    }
    (folder / "config.json").write_text(json.dumps(CONFIG | changes), encoding="utf-8")
    out = tmp_path / "out"
    out.mkdir()
    notes = export_model(out, load_model(write_model(tmp_path / "plain")).hf, folder, torch.float32)
    written = (out / "config.json").read_text(encoding="utf-8")
    assert "evil" not in written
    assert len(notes) == 2


def test_a_header_that_the_library_refuses_is_an_error_of_ours(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-4])
    refusal(lambda: load_model(folder))
