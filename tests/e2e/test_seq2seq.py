"""T5 and BART from a recipe: train, cut, resume with equal bits, export, reload in PEFT and transformers, answer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForSeq2SeqLM

from tests.breadth.tiny_folder import write_tiny
from tests.e2e.desk import Call
from tests.e2e.test_families import cut_and_whole, losses, relative
from tests.e2e.test_heads import tensors
from tunesmith.data.loader import make_batch
from tunesmith.errors import ModelError, RecipeError
from tunesmith.models.causal_lm import CausalLM
from tunesmith.recipe.codec import parse
from tunesmith.recipe.root import Recipe
from tunesmith.records import Chat, Message
from tunesmith.workshop.export import export
from tunesmith.workshop.opening import open_machine
from tunesmith.workshop.planning import plan_recipe
from tunesmith.workshop.train import train

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
ANSWERS = ("delivery", "billing", "repair")


def recipe_for(folder: Path, name: str, adapter: dict[str, Any], **changes: Any) -> Recipe:
    """A recipe on a random model with two dozen conversations, every third of two answers."""
    write_tiny(folder / "base", "encoder-decoder", name)
    rows = []
    for number in range(24):
        before = [("user", "good day"), ("assistant", "how can I help?")] if number % 3 == 0 else []
        turns = [*before, ("user", f"case {number}: please look"), ("assistant", ANSWERS[number % 3])]
        rows.append({"messages": [{"role": role, "content": text} for role, text in turns]})
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = {
        "name": "halves", "model": "base", "data": {"train": "rows.jsonl", "validation": 0.1, "test": 0.1},
        "objective": {"type": "sft", "loss_on": "last_response"}, "adapter": adapter,
        "training": {"max_steps": 6, "batch_size": 5, "learning_rate": 1e-2, "checkpoint_every": 2, "precision": "fp32",
                     "evaluate_every": 3, "samples": 1},
        "evaluation": {"tasks": [{"type": "loss"}, {"type": "exact_match", "max_new_tokens": 4}], "preserve": []},
        "machine": {"device": "cpu", "threads": 1}, **changes,
    }  # fmt: skip
    return parse(values).placed(folder)


def our_logits(model: CausalLM, prompt: list[int], answer: list[int]) -> torch.Tensor:
    ids = np.asarray(prompt + answer, dtype=np.uint32)
    with torch.inference_mode():
        return model.logits(make_batch([(ids, np.arange(len(ids)) >= len(prompt))], [0]))[len(prompt) - 1 :]


@torch.inference_mode()
def their_logits(model: Any, prompt: list[int], answer: list[int]) -> torch.Tensor:
    start = model.config.decoder_start_token_id
    return model(input_ids=torch.tensor([prompt]), decoder_input_ids=torch.tensor([[start, *answer]])).logits[0]


@pytest.mark.parametrize(
    ("name", "adapter"), [("t5", {"type": "lora", "rank": 4, "dropout": 0.1}), ("bart", {"type": "full"})]
)
def test_train_interrupt_resume_export_reload(tmp_path: Path, name: str, adapter: dict[str, Any]) -> None:
    plan = plan_recipe(recipe_for(tmp_path, name, adapter))
    assert any("reads a prompt with its encoder" in note for note in plan.notes)
    cut, whole = cut_and_whole(plan, tmp_path)
    assert losses(cut)[-1][1] < losses(cut)[0][1]
    ours = tensors(whole)
    assert all(torch.equal(tensor, ours[key]) for key, tensor in tensors(cut).items())
    trained = load_file(sorted(cut.checkpoints_path.iterdir())[-1] / "trained.safetensors")
    assert sum(item.numel() for item in trained.values()) == plan.parameters.trainable
    model = open_machine(str(cut.path), device="cpu").machine.model
    prompt, answer = list(range(10, 30)), list(range(40, 48))
    logits = our_logits(model, prompt, answer)
    base = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "base", dtype=torch.float32).eval()
    assert relative(their_logits(base, prompt, answer), logits) > 1e-2, "training must show"
    if adapter["type"] == "lora":
        export(cut.path, tmp_path / "adapter")
        reloaded = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
        assert type(reloaded).__name__ == "PeftModelForSeq2SeqLM"
        assert relative(their_logits(reloaded, prompt, answer), logits) <= 1e-4
    export(cut.path, tmp_path / "out", merge=True, dtype="float32")
    theirs = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "out").eval()
    assert relative(their_logits(theirs, prompt, answer), logits) <= 1e-4


def test_the_encoder_reads_all_that_stands_before_the_last_answer(tmp_path: Path, call: Call) -> None:
    run = train(plan_recipe(recipe_for(tmp_path, "t5", {"type": "lora", "rank": 2})), tmp_path / "run")
    opened = open_machine(str(run.folder), device="cpu")
    turns = (
        Message("user", "good day"),
        Message("assistant", "how can I help?"),
        Message("user", "a case"),
        Message("assistant", "repair"),
    )
    row = opened.renderer.render(Chat(turns))
    first = row.trained.index(True)
    assert row.ids[:first] == opened.renderer.prompt_ids(Chat(turns))
    assert "how can I help?" in opened.machine.tokenizer.decode(row.ids[:first], skip_special=True)
    assert all(row.trained[first:])
    assert call("generate", run.folder, "--prompt", "a case", "--max-new-tokens", "3").code == 0


@pytest.mark.parametrize(
    ("changes", "adapter", "kind", "says", "hint"),
    [
        ({"objective": {"type": "sft"}}, {"type": "lora"}, RecipeError, "not `loss_on: responses`", "loss_on: last_response"),
        ({"objective": {"type": "clm"}}, {"type": "lora"}, ModelError, "`clm`", "ForCausalLM"),
        ({"objective": {"type": "mlm"}}, {"type": "lora"}, ModelError, "not an encoder", "encoder such as BERT"),
        ({"objective": {"type": "classify"}}, {"type": "head"}, ModelError, "neither a causal", "ForCausalLM"),
        ({}, {"type": "prompt"}, RecipeError, "virtual tokens", "type: lora"),
        ({}, {"type": "prefix"}, RecipeError, "keys and values", "hint"),
        ({"training": {"neftune_alpha": 5}}, {"type": "lora"}, RecipeError, "noise", "neftune_alpha"),
    ],
)  # fmt: skip
def test_what_two_halves_cannot_do_is_refused_by_name(
    tmp_path: Path, changes: dict[str, Any], adapter: dict[str, Any], kind: Any, says: str, hint: str
) -> None:
    with pytest.raises(kind, match=says) as caught:
        plan_recipe(recipe_for(tmp_path, "t5", adapter, **changes))
    assert hint in f"hint: {caught.value.hint}"
