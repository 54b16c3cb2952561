"""A headed model on disk: the run's own layout, and the class of transformers that can hold it.

run's own     adapter/ or model/ or head/, with head.json and head.safetensors beside what trained
transformers  config.json with id2label, model.safetensors with the head under the class's own names; head.json says
              that it is one of ours
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save
from torch import Tensor, nn

from tunesmith.errors import ModelError
from tunesmith.files import copy_file, write_bytes, write_json, write_text
from tunesmith.models import config_file
from tunesmith.models.facts import ModelFacts, read_facts
from tunesmith.models.head_shape import NAME, TENSORS, HeadFile, HeadShape, read_head, transformers_class
from tunesmith.models.loading import read_config
from tunesmith.models.task_head import TaskHead, load_head
from tunesmith.models.weights import weight_files
from tunesmith.workshop.model_files import CARRIED, DTYPE_NAMES, cast

_PROBLEMS = {
    "classify": "single_label_classification", "multi_label": "multi_label_classification", "regress": "regression",
}  # fmt: skip


def tensor_names(shape: HeadShape, facts: ModelFacts) -> dict[str, str]:
    """Name of each of our head's tensors -> its name in the class of transformers."""
    if not facts.is_encoder:
        score = "classifier" if shape.task == "tag" and facts.model_type == "gpt2" else "score"
        return {"out.weight": f"{score}.weight"} | ({"out.bias": f"{score}.bias"} if shape.bias else {})
    out = {"out.weight": "classifier.weight", "out.bias": "classifier.bias"}
    if shape.task == "tag" and facts.model_type != "modernbert":
        return out
    if facts.model_type == "modernbert":
        return {**out, "dense.weight": "head.dense.weight", "norm.weight": "head.norm.weight"}
    if facts.model_type == "bert":
        return {**out, "dense.weight": "bert.pooler.dense.weight", "dense.bias": "bert.pooler.dense.bias"}
    return {
        "dense.weight": "classifier.dense.weight", "dense.bias": "classifier.dense.bias",
        "out.weight": "classifier.out_proj.weight", "out.bias": "classifier.out_proj.bias",
    }  # fmt: skip


def class_config(base: Path, described: HeadFile, facts: ModelFacts, pad_id: int | None) -> Any:
    """The base's configuration with what the class of transformers reads of a head."""
    config, shape = read_config(base), described.shape
    names = described.labels or ("value",)
    config.num_labels = shape.outputs
    config.id2label = dict(enumerate(names))
    config.label2id = {name: number for number, name in enumerate(names)}
    if shape.task in _PROBLEMS:
        config.problem_type = _PROBLEMS[shape.task]
    if facts.model_type == "modernbert":
        config.classifier_pooling = "mean" if shape.pooling == "mean" else "cls"
        config.classifier_bias, config.classifier_activation = shape.dense_bias, "gelu"
    if config.get_text_config().pad_token_id is None and pad_id is not None:
        config.get_text_config().pad_token_id = pad_id
    return config


def to_class(hf: Any, head: TaskHead, base: Path, described: HeadFile, pad_id: int | None) -> nn.Module:
    """The trained model as the class of transformers that can hold it, in fp32 on the CPU.

    Raises:
        ModelError: there is no such class, or its tensors are others than ours.
    """
    facts = read_facts(base)
    name = transformers_class(described.shape, facts)
    if name is None:
        raise ModelError(
            "no class of transformers can hold this head", where=str(base), hint="export it in Tunesmith's own layout"
        )
    config = class_config(base, described, facts, pad_id)
    model: nn.Module = getattr(transformers, name).from_config(config, dtype=torch.float32)
    wanted = tensor_names(described.shape, facts)
    state = {**hf.state_dict(), **{wanted[key]: value for key, value in head.state_dict().items()}}
    state = {key: value.detach().float().cpu() for key, value in state.items()}
    own = model.state_dict()
    missing, strange = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    if missing or strange:
        raise ModelError(
            f"{type(model).__name__} has other tensors than the trained model: {', '.join((missing + strange)[:3])}",
            where=str(base),
            hint="the installed transformers builds this class otherwise than the tested one",
        )
    model.load_state_dict(state)
    return model.eval()


def write_class(
    folder: Path, model: Any, base: Path, dtype: torch.dtype, described: HeadFile, template: str | None = None
) -> list[str]:
    """Write a model of ``to_class``; returns sentences to say aloud."""
    model.save_pretrained(folder, state_dict=cast(model.state_dict(), dtype))
    given = json.loads((folder / config_file.NAME).read_text(encoding="utf-8"))
    config = config_file.obeyed(given)
    config["dtype"] = DTYPE_NAMES[dtype]
    write_text(folder / config_file.NAME, json.dumps(config, indent=2, ensure_ascii=False) + "\n")
    _finish(folder, base, template)
    write_json(folder / NAME, described.to_json())
    return []


def write_headless(folder: Path, hf: Any, base: Path, dtype: torch.dtype, template: str | None = None) -> list[str]:
    """Write a base without its language head as a model folder; the head lies beside it in files of its own."""
    write_bytes(folder / "model.safetensors", save(cast(hf.state_dict(), dtype), metadata={"format": "pt"}))
    given = config_file.read_config(base)
    config = config_file.obeyed(given)
    config.pop("torch_dtype", None)
    config["dtype"] = DTYPE_NAMES[dtype]
    write_text(folder / config_file.NAME, json.dumps(config, indent=2, ensure_ascii=False) + "\n")
    _finish(folder, base, template)
    return [
        f"config.json is written without `{field}`, which is not obeyed here" for field in config_file.dropped(given)
    ]


def open_head(folder: Path) -> tuple[TaskHead, HeadFile]:
    """The head of a folder in either layout.

    Raises:
        ModelError: its files are missing, damaged, or do not belong together.
    """
    if (folder / TENSORS).is_file():
        return load_head(folder)
    described = read_head(folder)
    head, names = TaskHead(described.shape), tensor_names(described.shape, read_facts(folder))
    found: dict[str, Tensor] = {}
    for path in weight_files(folder):
        tensors = load_file(path)
        found |= {ours: tensors[theirs] for ours, theirs in names.items() if theirs in tensors}
    try:
        head.load_state_dict({name: tensor.float() for name, tensor in found.items()})
    except RuntimeError as error:
        raise ModelError(
            f"the weights lack the head that {NAME} describes: {str(error).splitlines()[0]}",
            where=str(folder),
            hint="the folder is not whole: copy it again, or export the run again",
        ) from error
    return head.eval(), described


def _finish(folder: Path, base: Path, template: str | None) -> None:
    for weights in folder.glob("*.safetensors"):  # libraries leave them to their owner alone
        weights.chmod((folder / config_file.NAME).stat().st_mode)
    for name in CARRIED:
        if (base / name).is_file() and name != "generation_config.json":
            copy_file(base / name, folder / name)
    if template is not None:
        write_text(folder / "chat_template.jinja", template)
