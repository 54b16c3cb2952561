"""Layers frozen and unfrozen on the way, from the recipe to the page, and rates by layer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.desk import Call, Write
from tests.e2e.test_heads import recipe_for
from tunesmith.recipe.codec import parse
from tunesmith.workshop.planning import plan_recipe
from tunesmith.workshop.train import train

RUN = Path("runs/desk")
TRAINING = {
    "max_steps": 8, "batch_size": 4, "samples": 0, "learning_rate": 1e-3, "warmup": 0, "checkpoint_every": 2,
    "evaluate_every": 4, "keep_checkpoints": 9, "layer_rates": {"decay": 0.5},
}  # fmt: skip
FULL = {"type": "full"}
UNFREEZING = {"type": "unfreeze_gradually", "every": 3, "warmup": 2}
SCHEDULES = [UNFREEZING, {"type": "freezeout", "first": 0.5}, {"type": "autofreeze", "intervals": 4, "percentile": 100}]


def _lines(run: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / name).read_text(encoding="utf-8").splitlines()]


def _hashes(run: Path, step: int) -> dict[str, str]:
    manifest = json.loads((run / "checkpoints" / f"{step:08d}" / "manifest.json").read_text(encoding="utf-8"))
    return {name: item["sha256"] for name, item in manifest["files"].items() if name != "state.json"}


@pytest.mark.parametrize("freezing", SCHEDULES, ids=lambda section: section["type"])
def test_a_schedule_goes_on_where_it_was(desk: Path, call: Call, write: Write, freezing: dict[str, Any]) -> None:
    """A child of the checkpoint of step 4, under the same schedule, ends with the bits of the whole run."""
    recipe = write(adapter=FULL, training=TRAINING | {"freezing": freezing})
    assert call("train", recipe).code == 0
    events = [item for item in _lines(RUN, "events.jsonl") if item["kind"] in ("layers_frozen", "layers_unfrozen")]
    sizes = [line["trained_parameters"] for line in _lines(RUN, "metrics.jsonl") if "trained_parameters" in line]
    assert len(sizes) == 8
    assert len({*sizes}) > 1
    assert all(" from step " in item["message"] for item in events)
    changes = {step for step in range(1, 8) if sizes[step] != sizes[step - 1]}
    assert {item["step"] for item in events} - {0} == changes
    assert any(item["step"] == 0 for item in events) == (freezing is UNFREEZING)
    said = call("train", recipe, "--fork", "runs/desk@4", "--run", "runs/child")
    assert said.code == 0, said.err
    assert _hashes(Path("runs/child"), 8) == _hashes(RUN, 8)


def test_the_plan_and_the_page_show_rates_and_layers(desk: Path, call: Call, write: Write) -> None:
    """The small model has two layers and a tied head, which is the embedding."""
    recipe = write(adapter=FULL, training=TRAINING | {"freezing": UNFREEZING})
    plan = call("plan", recipe).out
    for words in (
        "layer 1 0.0005 peak rate; trains in all steps",
        "layer 0 0.00025 peak rate; trains in steps 4 to 8",
        "the embeddings 0.000125 peak rate; trains in steps 7 to 8",
    ):
        assert words in " ".join(plan.split()), plan
    assert call("train", recipe).code == 0
    page = (RUN / "report.html").read_text(encoding="utf-8")
    assert "<strong>Trained parameters</strong>" in page
    assert "trained from step 4 on: layer 0" in page
    assert "layers.the embeddings" in page
    assert call("train", write(adapter=FULL, training=TRAINING), "--run", "runs/plain").code == 0
    assert "<strong>Trained parameters</strong>" not in (Path("runs/plain") / "report.html").read_text(encoding="utf-8")


def test_a_child_under_another_schedule_starts_it_anew(desk: Path, call: Call, write: Write) -> None:
    recipe = write(adapter=FULL, training=TRAINING | {"freezing": SCHEDULES[2]})
    assert call("train", recipe).code == 0
    said = call(
        "train",
        recipe,
        "training.freezing=null",
        "training.max_steps=10",
        "--fork",
        "runs/desk@8",
        "--run",
        "runs/child",
    )
    assert said.code == 0, said.err
    assert "what is frozen starts anew" in said.err
    sizes = [
        line["trained_parameters"]
        for line in _lines(Path("runs/child"), "metrics.jsonl")
        if "trained_parameters" in line
    ]
    assert len(set(sizes)) == 1
    names = (Path("runs/child") / "checkpoints" / "00000010" / "optimiser.safetensors").read_bytes()
    assert b"gradient_sum" not in names
    assert b"exp_avg" in names


@pytest.mark.parametrize("freezing", SCHEDULES, ids=lambda section: section["type"])
@pytest.mark.parametrize(("name", "scope"), [("bert", "full"), ("llama", "lora")])
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_a_head_trains_beside_layers_that_freeze(
    tmp_path: Path, name: str, scope: str, freezing: dict[str, Any]
) -> None:
    """Encoders and decoders; a head alone has no layers to freeze, and is refused."""
    written = recipe_for(tmp_path, name, scope)
    section = parse(
        {"name": "r", "model": "m", "data": {"train": ["d"]}, "training": {"freezing": freezing}}
    ).training.freezing
    training = written.training.model_copy(update={"freezing": section, "max_steps": 8})
    recipe = written.model_copy(update={"training": training})
    result = train(plan_recipe(recipe), tmp_path / "run")
    assert (result.status, result.steps) == ("done", 8)
    sizes = {
        line["trained_parameters"] for line in _lines(tmp_path / "run", "metrics.jsonl") if "trained_parameters" in line
    }
    assert len(sizes) > 1
