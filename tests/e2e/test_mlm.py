"""Masked language modelling from a recipe: train, kill, resume with equal bits, export, reload in transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForMaskedLM

from tests.e2e.desk import Call
from tests.e2e.model_folder import write_family
from tests.e2e.test_families import cut_and_whole, losses
from tests.e2e.test_heads import tensors
from tests.tiny_encoders import write_encoder
from tunesmith.data.loader import make_batch
from tunesmith.errors import ModelError
from tunesmith.recipe.codec import parse
from tunesmith.recipe.root import Recipe
from tunesmith.registry.run_folder import RunFolder
from tunesmith.workshop.export import export
from tunesmith.workshop.opening import open_machine
from tunesmith.workshop.planning import plan_recipe
from tunesmith.workshop.train import train

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


def recipe_for(folder: Path, name: str, adapter: dict[str, Any], **objective: Any) -> Recipe:
    """A recipe on a random encoder with three dozen documents; its tokenizer's end token stands in for a mask token."""
    if name == "llama":
        write_family(folder / "base", name)
    else:
        write_encoder(folder / "base", name)
    config = json.loads((folder / "base" / "tokenizer_config.json").read_text()) | {"mask_token": "<|pad|>"}
    (folder / "base" / "tokenizer_config.json").write_text(json.dumps(config))
    rows = [
        {"text": f"document {number}: the kettle sings and the cats sleep, " * (1 + number % 4)} for number in range(36)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = {
        "name": "mlm", "model": "base", "data": {"train": "rows.jsonl", "validation": 0.1, "test": 0.2},
        "objective": {"type": "mlm", **objective}, "adapter": adapter,
        "training": {"max_steps": 6, "batch_size": 8, "learning_rate": 1e-2, "checkpoint_every": 2, "precision": "fp32",
                     "evaluate_every": 3},
        "machine": {"device": "cpu", "threads": 1},
    }  # fmt: skip
    return parse(values).placed(folder)


@pytest.mark.parametrize(
    ("name", "adapter"),
    [("bert", {"type": "lora", "rank": 4}), ("modernbert", {"type": "full"}), ("roberta", {"type": "partial", "last_layers": 1})],
)  # fmt: skip
def test_train_interrupt_resume_export_reload(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, adapter: dict[str, Any]
) -> None:
    monkeypatch.setattr("tunesmith.workshop.parity._MOST_LOGITS", 256 * 8192)
    plan = plan_recipe(recipe_for(tmp_path, name, adapter))
    cut, whole = cut_and_whole(plan, tmp_path)
    assert losses(cut)[-1][1] < losses(cut)[0][1]
    ours = tensors(whole)
    assert all(torch.equal(tensor, ours[key]) for key, tensor in tensors(cut).items())
    trained = load_file(sorted(cut.checkpoints_path.iterdir())[-1] / "trained.safetensors")
    assert sum(item.numel() for item in trained.values()) == plan.parameters.trainable
    export(cut.path, tmp_path / "out", merge=True, dtype="float32")
    model = open_machine(str(cut.path), device="cpu").machine.model
    ids = np.arange(10, 40, dtype=np.uint32)
    with torch.inference_mode():
        expected = model.logits(make_batch([(ids, ids > 0)], [0]))
        theirs = AutoModelForMaskedLM.from_pretrained(tmp_path / "out").eval()
        found = theirs(input_ids=torch.from_numpy(ids.astype(np.int64))[None]).logits[0]
    assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_probes_that_continue_text_are_left_out_and_it_writes_none(tmp_path: Path, call: Call) -> None:
    run = RunFolder.open(train(plan_recipe(recipe_for(tmp_path, "bert", {"type": "full"})), tmp_path / "run").folder)
    notes = [line["message"] for line in run.events()]
    assert "probes left out: completions, for an encoder continues no text" in notes
    call("generate", run.path, "--prompt", "x").refuses(2, "is an encoder: it writes no answers", "type: classify")


def test_a_causal_model_hides_nothing(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="is not an encoder"):
        plan_recipe(recipe_for(tmp_path, "llama", {"type": "full"}))


def test_a_tokenizer_without_a_mask_token_is_refused(tmp_path: Path) -> None:
    recipe = recipe_for(tmp_path, "bert", {"type": "full"})
    config = json.loads((tmp_path / "base" / "tokenizer_config.json").read_text())
    del config["mask_token"]
    (tmp_path / "base" / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="has no mask token"):
        train(plan_recipe(recipe), tmp_path / "run")
    assert not (tmp_path / "run" / "recipe.json").exists()
