"""Heads from a recipe: train, kill, resume with equal bits, evaluate, export, reload in transformers, ask."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from tests.e2e.desk import Call
from tests.e2e.model_folder import write_family
from tests.e2e.test_families import cut_and_whole, losses
from tests.tiny_encoders import write_encoder
from tunesmith.errors import GateRefused, ModelError, RecipeError
from tunesmith.evaluation.scorecard import Scorecard
from tunesmith.models.head_shape import read_head
from tunesmith.recipe.codec import parse
from tunesmith.recipe.root import Recipe
from tunesmith.registry.run_folder import RunFolder
from tunesmith.workshop.evaluate import measure
from tunesmith.workshop.export import export
from tunesmith.workshop.opening import open_machine
from tunesmith.workshop.planning import plan_recipe
from tunesmith.workshop.prepare import open_data
from tunesmith.workshop.train import train

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

STEPS = 6
WORDS = {"rain": "weather", "snow": "weather", "bread": "kitchen", "soup": "kitchen", "door": "house", "roof": "house"}
DECODERS, ENCODERS = ("llama", "gpt2", "qwen3"), ("bert", "roberta", "modernbert")
ADAPTERS: dict[str, dict[str, Any]] = {
    "lora": {"type": "lora", "rank": 4, "dropout": 0.1},
    "full": {"type": "full"},
    "partial": {"type": "partial", "last_layers": 1},
    "head": {"type": "head"},
    "bottleneck": {"type": "bottleneck", "preset": "houlsby", "reduction": 4},
    "prompt": {"type": "prompt", "num_tokens": 5},
    "prefix": {"type": "prefix", "num_tokens": 5},
}  # fmt: skip
CASES = [("llama", "lora"), ("llama", "head"), ("bert", "full"), ("modernbert", "lora")]
SLOW = [("llama", "full"), ("llama", "partial"), ("bert", "lora"), ("bert", "partial"), ("bert", "head"), ("gpt2", "lora"),
        ("roberta", "lora"), ("modernbert", "full"), ("qwen3", "head")]  # fmt: skip
PAIRS = [*CASES, *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW)]


def write_base(folder: Path, name: str) -> None:
    if name in ENCODERS:
        write_encoder(folder, name)
    else:
        write_family(folder, name)


def recipe_for(folder: Path, name: str, scope: str, **objective: Any) -> Recipe:
    """A recipe on a random model of a family with four dozen labelled texts; BERT's kin read the first token, as their class does."""
    write_base(folder / "base", name)
    if name in ("bert", "roberta"):
        objective = {"pooling": "first", **objective}
    with (folder / "rows.jsonl").open("w", encoding="utf-8") as file:
        for number in range(48):
            word = list(WORDS)[number % 6]
            text = f"{number} words about {word} " + "and more " * (number % 4)
            file.write(json.dumps({"text": text, "label": WORDS[word]}) + "\n")
    values = {
        "name": f"{name}-{scope}",
        "model": "base",
        "data": {"train": "rows.jsonl", "validation": 0.1, "test": 0.2},
        "objective": {"type": "classify", **objective},
        "adapter": ADAPTERS[scope],
        "training": {"max_steps": STEPS, "batch_size": 8, "learning_rate": 1e-2, "checkpoint_every": 2, "precision": "fp32",
                     "evaluate_every": 3},
        "machine": {"device": "cpu", "threads": 1},
    }  # fmt: skip
    return parse(values).placed(folder)


def tensors(run: RunFolder) -> dict[str, torch.Tensor]:
    """All tensors of a run's result."""
    files = [file for part in ("adapter", "model", "head") for file in sorted((run.path / part).glob("*.safetensors"))]
    return {
        f"{file.parent.name}/{file.name}/{name}": value for file in files for name, value in load_file(file).items()
    }


def ours(model: str, texts: list[str]) -> np.ndarray:
    opened = open_machine(model, device="cpu")
    assert opened.machine.headed is not None
    return opened.machine.headed.logits([opened.renderer.tokenizer.encode_document(text) for text in texts])


@torch.inference_mode()
def theirs(folder: Path, texts: list[str]) -> np.ndarray:
    """Logits of transformers' own class, the texts in one padded batch of its own tokenizer."""
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer(texts, return_tensors="pt", padding=True, padding_side="right")
    inputs.pop("token_type_ids", None)
    return model(**inputs).logits.double().numpy()


TEXTS = ["words about rain", "bread", "7 words about a door and more and more"]


@pytest.mark.parametrize(("name", "scope"), PAIRS)
def test_train_interrupt_resume_export_reload(tmp_path: Path, name: str, scope: str) -> None:
    recipe = recipe_for(tmp_path, name, scope)
    estimated = plan_recipe(recipe)
    open_data(recipe)
    plan = plan_recipe(recipe)
    assert plan.parameters == estimated.parameters, "the labels of the sample are those of the data"
    assert plan.settings.total_steps == STEPS
    cut, expected = cut_and_whole(plan, tmp_path)
    first, second = tensors(expected), tensors(cut)
    assert first.keys() == second.keys()
    assert any("head.safetensors" in name for name in first)
    for key, tensor in first.items():
        assert torch.equal(tensor, second[key]), key
    assert losses(cut)[-1][1] < losses(cut)[0][1]
    trained = load_file(sorted(cut.checkpoints_path.iterdir())[-1] / "trained.safetensors")
    assert sum(item.numel() for item in trained.values()) == plan.parameters.trainable
    card = Scorecard.load(cut.scorecards_path, "tuned")
    assert {"accuracy", "macro_f1", "brier", "calibration_error", "loss"} == set(card.tasks["classification"])

    exported = export(cut.path, tmp_path / "out", merge=True, dtype="float32")
    assert [gate.name for gate in exported.gates] == ["A", "B"]
    expected_logits = ours(str(cut.path), TEXTS)
    found = theirs(tmp_path / "out", TEXTS)
    assert np.abs(found - expected_logits).max() <= 1e-4 * np.abs(expected_logits).max()
    assert np.abs(ours(str(tmp_path / "out"), TEXTS) - expected_logits).max() <= 1e-4 * np.abs(expected_logits).max()
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["id2label"] == {"0": "house", "1": "kitchen", "2": "weather"}
    assert config["architectures"][0].endswith("ForSequenceClassification")


@pytest.mark.parametrize(
    ("name", "scope"),
    [
        ("llama", "lora"),
        ("llama", "bottleneck"),
        ("bert", "bottleneck"),
        ("llama", "prefix"),
        ("roberta", "prompt"),
        ("bert", "prefix"),
    ],
)
def test_an_adapter_is_exported_with_its_head(tmp_path: Path, name: str, scope: str) -> None:
    run = train(plan_recipe(recipe_for(tmp_path, name, scope)), tmp_path / "run").folder
    result = export(run, tmp_path / "adapter")
    assert any("the head lies beside the adapter" in note for note in result.notes)
    assert read_head(tmp_path / "adapter").labels == ("house", "kitchen", "weather")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = str(tmp_path / "base")
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    assert np.allclose(ours(str(tmp_path / "adapter"), TEXTS), ours(str(run), TEXTS), atol=1e-5)


SHAPES = [
    ("llama", {"pooling": "mean"}), ("llama", {"layer": 1}), ("llama", {"head": "mlp", "width": 8}),
    ("bert", {"layer": 0, "pooling": "mean"}), ("bert", {"head": "linear"}), ("bert", {"pooling": "auto"}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "objective"), SHAPES, ids=str)
def test_a_head_of_another_shape_keeps_our_own_layout(tmp_path: Path, name: str, objective: dict[str, Any]) -> None:
    run = train(plan_recipe(recipe_for(tmp_path, name, "head", **objective)), tmp_path / "run").folder
    result = export(run, tmp_path / "out", dtype="float32")
    assert any("transformers has no class for" in note for note in result.notes)
    expected = ours(str(run), TEXTS)
    assert np.allclose(ours(str(tmp_path / "out"), TEXTS), expected, atol=1e-5 * np.abs(expected).max())


def test_a_frozen_encoder_gives_the_same_features_each_time(tmp_path: Path) -> None:
    """Its dropout is off, or what the head learns from would be noise."""
    recipe = recipe_for(tmp_path, "llama", "head")
    write_encoder(tmp_path / "base", "bert", hidden_dropout_prob=0.5)
    one = RunFolder.open(train(plan_recipe(recipe), tmp_path / "one").folder)
    write_encoder(tmp_path / "base", "bert", hidden_dropout_prob=0.0)
    other = RunFolder.open(train(plan_recipe(recipe), tmp_path / "other").folder)
    assert losses(one) == losses(other)


def test_generate_answers_with_label_and_probabilities(tmp_path: Path, call: Call) -> None:
    run = train(plan_recipe(recipe_for(tmp_path, "bert", "full")), tmp_path / "run").folder
    said = call("generate", run, "--prompt", "words about rain")
    labels = [line.split("%")[1].strip() for line in said.out.splitlines()[1:]]
    assert sorted(labels) == ["house", "kitchen", "weather"]
    assert said.out.splitlines()[0] == labels[0]
    found = call("generate", run, "--prompt", "words about rain", "--json").json
    assert found["answer"] == labels[0] == next(iter(found["probabilities"]))
    assert sum(found["probabilities"].values()) == pytest.approx(1.0)


def test_eval_scores_a_run_and_refuses_other_labels(tmp_path: Path) -> None:
    recipe = recipe_for(tmp_path, "llama", "head")
    run = str(train(plan_recipe(recipe), tmp_path / "run").folder)
    card = measure(run, recipe).card
    assert card.tasks == Scorecard.load(RunFolder.open(tmp_path / "run").scorecards_path, "tuned").tasks
    rows = (tmp_path / "rows.jsonl").read_text().replace('"house"', '"garden"')
    (tmp_path / "other.jsonl").write_text(rows)
    source = recipe.data.train[0].model_copy(update={"path": "other.jsonl"})
    other = recipe.model_copy(update={"data": recipe.data.model_copy(update={"train": [source]})})
    with pytest.raises(ModelError, match=r"has other labels than the data .*'garden', 'house'"):
        measure(run, other.placed(tmp_path))
    with pytest.raises(ModelError, match="has no head"):
        measure(str(tmp_path / "base"), recipe)


def test_labels_that_no_training_row_has_are_said_and_wrong(tmp_path: Path) -> None:
    recipe = recipe_for(tmp_path, "llama", "head")
    lines = [{"text": "words about rain", "label": "weather"}, {"text": "about birds", "label": "garden"}]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    values = recipe.model_dump(mode="json")
    values["data"]["test"] = ["test.jsonl"]
    run = RunFolder.open(train(plan_recipe(parse(values).placed(tmp_path)), tmp_path / "run").folder)
    notes = [line["message"] for line in run.events() if line["kind"] == "note"]
    assert "1 of 2 test rows have a label that no training row has ('garden'): they count as wrong" in notes
    scores = {row["reference"]: row["score"] for row in Scorecard.load(run.scorecards_path, "tuned").rows}
    assert scores["garden"] == 0


def test_nothing_would_train(tmp_path: Path) -> None:
    recipe = recipe_for(tmp_path, "llama", "head")
    values = recipe.model_dump(mode="json")
    values["objective"] = {"type": "sft"}
    with pytest.raises(RecipeError, match="nothing would train") as caught:
        plan_recipe(parse(values).placed(tmp_path))
    assert "objective: {type: classify}" in caught.value.hint


@pytest.mark.parametrize(
    "objective",
    [
        {"class_weights": "balanced", "label_smoothing": 0.1},
        {"rdrop_alpha": 0.5, "class_weights": {"house": 2.0}},
        {"multi_label": True, "focal_gamma": 2.0},
    ],
    ids=str,
)
def test_a_run_with_another_loss_resumes_bit_by_bit(tmp_path: Path, objective: dict[str, Any]) -> None:
    cut, expected = cut_and_whole(plan_recipe(recipe_for(tmp_path, "llama", "lora", **objective)), tmp_path)
    for key, tensor in tensors(expected).items():
        assert torch.equal(tensor, tensors(cut)[key]), key
    assert losses(cut)[-1][1] < losses(cut)[0][1]
    lines = [line for line in cut.metrics() if "loss" in line]
    assert all(("nll" in line) and ("divergence" in line) == ("rdrop_alpha" in objective) for line in lines)
    notes = [line["message"] for line in cut.events() if line["kind"] == "note"]
    said = [note for note in notes if note.startswith("labels weigh in the loss: house ")]
    assert len(set(said)) == ("class_weights" in objective)


def test_an_encoder_has_no_next_token(tmp_path: Path) -> None:
    recipe = recipe_for(tmp_path, "bert", "lora")
    values = recipe.model_dump(mode="json")
    values["objective"] = {"type": "sft"}
    with pytest.raises(ModelError, match="is not a causal language model"):
        plan_recipe(parse(values).placed(tmp_path))


@pytest.mark.parametrize(
    ("change", "needle"),
    [
        ({"objective": {"type": "classify", "layer": 9}}, "the model has 2 layers"),
        ({"objective": {"type": "classify", "head": "linear", "width": 8}}, "a linear head has none"),
        ({"evaluation": {"tasks": [{"type": "exact_match"}]}}, "is not one that this objective's head answers"),
        ({"objective": {"type": "sft"}, "adapter": {"type": "full"}, "evaluation": {"tasks": [{"type": "classification"}]}}, "asks a head"),
    ],
)  # fmt: skip
def test_what_a_head_cannot_be(tmp_path: Path, change: dict[str, Any], needle: str) -> None:
    values = recipe_for(tmp_path, "llama", "head").model_dump(mode="json") | change
    with pytest.raises(RecipeError, match=needle):
        train(plan_recipe(parse(values).placed(tmp_path)), tmp_path / "run")


def test_damaged_heads_are_refused(tmp_path: Path) -> None:
    run = train(plan_recipe(recipe_for(tmp_path, "llama", "head")), tmp_path / "run").folder
    export(run, tmp_path / "out", dtype="float32")
    described = json.loads((tmp_path / "out" / "head.json").read_text())
    described["labels"].pop()
    (tmp_path / "out" / "head.json").write_text(json.dumps(described))
    with pytest.raises(ModelError, match="it names 2 labels, the head has 3 outputs"):
        open_machine(str(tmp_path / "out"), device="cpu")


def test_the_cast_of_a_whole_model_is_held_against_the_trained_one(tmp_path: Path) -> None:
    run = train(plan_recipe(recipe_for(tmp_path, "llama", "full")), tmp_path / "run").folder
    refusal: GateRefused | None = None
    try:
        export(run, tmp_path / "half", dtype="bfloat16")
    except GateRefused as error:
        refusal = error
    if refusal is not None:
        assert "--dtype float32" in refusal.hint
        assert not (tmp_path / "half").exists()
        return
    found, expected = theirs(tmp_path / "half", TEXTS), ours(str(run), TEXTS)
    assert np.abs(found - expected).max() <= 5e-2 * np.abs(expected).max()


@pytest.mark.parametrize(
    ("name", "objective"), [("llama", {"type": "regress"}), ("bert", {"multi_label": True})], ids=str
)
def test_numbers_and_several_labels(tmp_path: Path, call: Call, name: str, objective: dict[str, Any]) -> None:
    recipe = recipe_for(tmp_path, name, "full", **objective)
    with (tmp_path / "rows.jsonl").open("w", encoding="utf-8") as file:
        for number in range(48):
            label = number % 4 / 4 if objective.get("type") else ["odd", "wide"][: number % 3]
            file.write(json.dumps({"text": f"{number} words", "label": label}) + "\n")
    run = train(plan_recipe(recipe), tmp_path / "run").folder
    card = Scorecard.load(RunFolder.open(run).scorecards_path, "tuned")
    wanted = {"regression": {"mse", "pearson", "spearman"}, "classification": {"micro_f1", "exact_match", "loss"}}
    ((task, metrics),) = card.tasks.items()
    assert set(metrics) == wanted[task]
    export(run, tmp_path / "out", dtype="float32")
    expected = ours(str(run), TEXTS)
    assert np.abs(theirs(tmp_path / "out", TEXTS) - expected).max() <= 1e-4 * np.abs(expected).max()
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["problem_type"] == ("regression" if objective.get("type") else "multi_label_classification")
    said = call("generate", tmp_path / "out", "--prompt", "7 words", "--json").json
    if objective.get("type"):
        assert float(said["answer"]) == pytest.approx(said["value"], rel=1e-4)
    else:
        shares = said["probabilities"]
        assert said["answer"] == ", ".join(label for label, share in shares.items() if share > 0.5)


def test_features_are_kept_and_give_the_same_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "cache"))
    recipe = recipe_for(tmp_path, "bert", "head")
    values = recipe.model_dump(mode="json")
    values["adapter"]["cache_features"] = False
    each = RunFolder.open(train(plan_recipe(parse(values).placed(tmp_path)), tmp_path / "each").folder)
    assert not (tmp_path / "cache" / "features").exists()
    kept = RunFolder.open(train(plan_recipe(recipe), tmp_path / "kept").folder)
    (file,) = (tmp_path / "cache" / "features").iterdir()
    data = open_data(recipe)[0]
    assert load_file(file)["feature_NH"].shape == (data.train.num_rows, 32)
    for one, other in zip(losses(each), losses(kept), strict=True):
        assert one == pytest.approx(other, rel=1e-5), "packs are cut otherwise, nothing else differs"
    again = RunFolder.open(train(plan_recipe(recipe), tmp_path / "again").folder)
    assert any("using the kept features" in line["message"] for line in again.events())
    assert losses(again) == losses(kept)
    (tmp_path / "cache" / "features" / file.name).write_bytes(b"torn")
    anew = RunFolder.open(train(plan_recipe(recipe), tmp_path / "anew").folder)
    assert any("are torn" in line["message"] for line in anew.events())
    assert losses(anew) == losses(kept)
    values["adapter"]["cache_features"], values["objective"]["pooling"] = True, "mean"
    train(plan_recipe(parse(values).placed(tmp_path)), tmp_path / "mean")
    assert len(list((tmp_path / "cache" / "features").iterdir())) == 2, "another pooling reads other features"


def test_a_frozen_base_is_asked_once_where_its_features_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "cache"))
    recipe = recipe_for(tmp_path, "llama", "head")
    open_data(recipe)
    cached, values = plan_recipe(recipe), recipe.model_dump(mode="json")
    values["adapter"]["cache_features"] = False
    each = plan_recipe(parse(values).placed(tmp_path))
    epochs = each.settings.total_steps / each.settings.steps_per_epoch
    assert epochs > 1
    assert cached.flops * epochs == pytest.approx(each.flops)
