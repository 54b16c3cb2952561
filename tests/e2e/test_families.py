"""Every family of models trains, is interrupted, resumes with the same bits, is exported and loads elsewhere."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.e2e.model_folder import write_family
from tests.tiny import FAMILIES
from tunesmith.data.loader import make_batch
from tunesmith.errors import GateRefused, Interrupted
from tunesmith.models.causal_lm import CausalLM
from tunesmith.planning.plan import Plan
from tunesmith.progress import SilentProgress
from tunesmith.recipe.codec import parse
from tunesmith.recipe.root import Recipe
from tunesmith.registry.run_folder import RunFolder
from tunesmith.workshop.export import export
from tunesmith.workshop.opening import open_machine
from tunesmith.workshop.planning import plan_recipe
from tunesmith.workshop.train import train

# PEFT still reads a name that transformers renames.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

STEPS = 6
ADAPTERS: dict[str, dict[str, Any]] = {
    "lora": {"type": "lora", "rank": 4, "alpha": 8, "dropout": 0.1},
    "full": {"type": "full"},
    "partial": {"type": "partial", "last_layers": 1, "embeddings": True},
}  # fmt: skip
ALSO_TRAINED = {"gpt2": ["*ln_f*"], "phi": ["*final_layernorm*"]}
CASES = [(name, "lora") for name in FAMILIES] + [
    (name, scope) for name in ("llama", "gpt2") for scope in ("full", "partial")
]
SENTENCES = ("the kettle sings", "rain is coming", "two cats sleep", "bread is warm", "a door opens", "who is there")


class Stopper(SilentProgress):
    """Sends SIGTERM to this process when a step is reported."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.at = at

    def step(self, step: int, loss: float, tokens_per_second: float, seconds_left: float | None) -> None:
        if step == self.at:
            os.kill(os.getpid(), signal.SIGTERM)


def recipe_for(folder: Path, name: str, scope: str) -> Recipe:
    """A recipe on a random model of a family with two dozen short conversations; rows are long beside each other."""
    write_family(folder / "base", name)
    with (folder / "rows.jsonl").open("w", encoding="utf-8") as file:
        for number in range(24):
            prompt = " ".join(SENTENCES[(number + step) % 6] for step in range(1 + number % 3))
            file.write(json.dumps({"prompt": f"{number}. {prompt}", "completion": SENTENCES[number % 6]}) + "\n")
    adapter = dict(ADAPTERS[scope])
    if scope == "lora":
        adapter["also_train"] = ALSO_TRAINED.get(name, ["model.norm.weight"])
        adapter["train_tokens"] = ["<|im_start|>", "<|im_end|>"]
    values = {
        "name": f"{name}-{scope}",
        "model": "base",
        "data": {"train": "rows.jsonl", "validation": 0.1, "test": 0.1},
        "adapter": adapter,
        "training": {"max_steps": STEPS, "batch_size": 5, "learning_rate": 3e-3, "checkpoint_every": 2, "precision": "fp32",
                     "evaluate_every": 4, "samples": 1},
        "evaluation": {"tasks": [{"type": "loss"}, {"type": "exact_match", "max_new_tokens": 4}], "preserve": []},
        "machine": {"device": "cpu", "threads": 1},
    }  # fmt: skip
    return parse(values).placed(folder)


def losses(run: RunFolder) -> list[tuple[int, float, float]]:
    return [(line["step"], line["loss"], line["grad_norm"]) for line in run.metrics() if "loss" in line]


def weights(run: RunFolder) -> dict[str, torch.Tensor]:
    adapter = run.adapter_path / "adapter_model.safetensors"
    return load_file(adapter if adapter.exists() else run.model_path / "model.safetensors")


def cut_and_whole(plan: Plan, folder: Path) -> tuple[RunFolder, RunFolder]:
    """Two runs of a plan, the first interrupted at step 3 and resumed; both have the same losses."""
    whole = train(plan, folder / "whole")
    assert (whole.status, whole.steps) == ("done", plan.settings.total_steps)
    with pytest.raises(Interrupted):
        train(plan, folder / "cut", progress=Stopper(3))
    torch.rand(5)  # randomness of the process must not matter
    assert train(plan, folder / "cut").status == "done"
    cut, expected = RunFolder.open(folder / "cut"), RunFolder.open(whole.folder)
    assert losses(cut) == losses(expected)
    return cut, expected


def our_logits(model: CausalLM, ids: torch.Tensor) -> torch.Tensor:
    row = ids.numpy().astype("uint32")
    with torch.inference_mode():
        return model.head().logits(model.hidden(make_batch([(row, row > 0)], [0])))


@torch.inference_mode()
def their_logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    return model(ids[None]).logits[0]


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.fixture
def few_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    """The gates measure 256 positions in place of 8,192: this test loads what was exported by itself."""
    monkeypatch.setattr("tunesmith.workshop.parity._MOST_LOGITS", 256 * 8192)


@pytest.mark.parametrize(("name", "scope"), CASES, ids=["-".join(case) for case in CASES])
def test_train_interrupt_resume_export_reload(tmp_path: Path, few_positions: None, name: str, scope: str) -> None:
    plan = plan_recipe(recipe_for(tmp_path, name, scope))
    whole = train(plan, tmp_path / "whole")
    assert (whole.status, whole.steps) == ("done", STEPS)
    with pytest.raises(Interrupted):
        train(plan, tmp_path / "cut", progress=Stopper(3))
    cut = RunFolder.open(tmp_path / "cut")
    assert cut.status()["status"] == "interrupted"
    assert len(losses(cut)) == 3
    torch.rand(5)  # randomness of the process must not matter
    assert train(plan, cut.path).status == "done"
    expected = RunFolder.open(whole.folder)
    assert losses(cut) == losses(expected)
    assert [line["validation_loss"] for line in cut.metrics() if "validation_loss" in line] == [
        line["validation_loss"] for line in expected.metrics() if "validation_loss" in line
    ]
    assert losses(cut)[-1][1] < losses(cut)[0][1]
    ours, theirs = weights(cut), weights(expected)
    assert ours.keys() == theirs.keys()
    for key, tensor in theirs.items():
        assert torch.equal(ours[key], tensor), key
    assert train(plan, cut.path).nothing_to_do

    trained = open_machine(str(cut.path), device="cpu").machine.model
    ids = torch.randint(8, 8192, (40,), generator=torch.Generator().manual_seed(1))
    logits = our_logits(trained, ids)
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32).eval()
    assert relative(their_logits(base, ids), logits) > 1e-2, "training must show"
    if scope == "lora":
        adapter = export(cut.path, tmp_path / "adapter")
        assert all(gate.passed for gate in adapter.gates)
        reloaded = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
        assert relative(their_logits(reloaded, ids), logits) <= 1e-4
    merged = export(cut.path, tmp_path / "merged", merge=True, dtype="float32")
    assert [gate.name for gate in merged.gates] == ["A", "B"]
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    assert plain.dtype == torch.float32
    assert relative(their_logits(plain, ids), logits) <= 1e-4
    _bfloat16(cut.path, tmp_path / "half", ids, logits)


def _bfloat16(run: Path, out: Path, ids: torch.Tensor, logits: torch.Tensor) -> None:
    """Random logits are nearly tied, so the cast may fail gate B: then nothing may be left, else the file is near."""
    refusal: GateRefused | None = None
    try:
        export(run, out, merge=True, dtype="bfloat16")
    except GateRefused as error:
        refusal = error
    if refusal is not None:
        assert (refusal.exit_code, refusal.where) == (3, "gate B")
        assert "--dtype float32" in refusal.hint
        assert not out.exists()
        return
    plain = AutoModelForCausalLM.from_pretrained(out).eval()
    assert plain.dtype == torch.bfloat16
    assert relative(their_logits(plain.float(), ids), logits) <= 2e-2


def test_a_merged_export_opens_again_as_a_model(tmp_path: Path, few_positions: None) -> None:
    """What was exported is a MODEL argument of its own, with the base's tokenizer and template."""
    run = train(plan_recipe(recipe_for(tmp_path, "qwen3", "lora")), tmp_path / "run").folder
    export(run, tmp_path / "merged", merge=True, dtype="float32")
    ids = torch.arange(10, 30)
    before = our_logits(open_machine(str(run), device="cpu").machine.model, ids)
    again = open_machine(str(tmp_path / "merged"), device="cpu")
    assert relative(our_logits(again.machine.model, ids), before) <= 1e-4
    assert again.renderer.template.source == (tmp_path / "base" / "chat_template.jinja").read_text()
