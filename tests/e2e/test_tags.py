"""Tagged words from a recipe: train, kill, resume with equal bits, evaluate, export, reload in transformers, ask."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForTokenClassification

from tests.e2e.desk import Call
from tests.e2e.test_families import cut_and_whole, losses
from tests.e2e.test_heads import ADAPTERS, STEPS, tensors, write_base
from tunesmith.errors import ModelError, RecipeError, UserError
from tunesmith.evaluation.scorecard import Scorecard
from tunesmith.models.head_shape import read_head
from tunesmith.recipe.codec import parse
from tunesmith.recipe.root import Recipe
from tunesmith.records import Message
from tunesmith.registry.run_folder import RunFolder
from tunesmith.types import Sampling
from tunesmith.workshop.ask import open_answerer
from tunesmith.workshop.evaluate import measure
from tunesmith.workshop.export import export
from tunesmith.workshop.opening import open_machine
from tunesmith.workshop.planning import plan_recipe
from tunesmith.workshop.prepare import open_data
from tunesmith.workshop.train import train

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

PEOPLE = ("Pemberley", "Okonkwo", "Ida Rye", "Bo")
SCORES = {"span_f1", "span_precision", "span_recall", "word_accuracy", "exact_match", "loss"}
CASES = [("llama", "lora"), ("llama", "head"), ("bert", "full"), ("modernbert", "lora")]
SLOW = [("llama", "full"), ("llama", "prefix"), ("gpt2", "lora"), ("qwen3", "partial"), ("bert", "head"),
        ("roberta", "lora"), ("modernbert", "full")]  # fmt: skip
PAIRS = [*CASES, *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW)]


def write_rows(path: Path, count: int = 48, extra: str | None = None) -> None:
    """Sentences with a person and a number; ``extra`` is the type of the last row's person."""
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            person = PEOPLE[number % 4].split()
            words = ["Ask", *person, "about", "order", str(1000 + 37 * number), "and", "rain"][
                : len(person) + 4 + number % 3
            ]
            kind = extra if extra and number == count - 1 else "PER"
            tags = ["O", f"B-{kind}", *[f"I-{kind}"] * (len(person) - 1), "O", "O", "B-ORDER", "O", "O"][: len(words)]
            file.write(json.dumps({"tokens": words, "ner_tags": tags}) + "\n")


def recipe_for(folder: Path, name: str, scope: str, **objective: Any) -> Recipe:
    """A recipe on a random model of a family with four dozen tagged sentences."""
    write_base(folder / "base", name)
    write_rows(folder / "rows.jsonl")
    values = {
        "name": f"{name}-{scope}",
        "model": "base",
        "data": {"train": "rows.jsonl", "validation": 0.1, "test": 0.2},
        "objective": {"type": "tag", **objective},
        "adapter": ADAPTERS[scope],
        "training": {"max_steps": STEPS, "batch_size": 8, "learning_rate": 1e-2, "checkpoint_every": 2, "precision": "fp32",
                     "evaluate_every": 3},
        "machine": {"device": "cpu", "threads": 1},
    }  # fmt: skip
    return parse(values).placed(folder)


TEXTS = ["Ask Pemberley about order 1037", "Bo", "Is order 1234, of Ida Rye, in the rain?"]


def ours(model: str) -> np.ndarray:
    """Logits of every token of the texts."""
    opened = open_machine(model, device="cpu")
    assert opened.machine.headed is not None
    ids = [opened.renderer.tokenizer.encode_document(text) for text in TEXTS]
    return np.concatenate(opened.machine.headed.word_logits(ids, [range(len(one)) for one in ids]))


@torch.inference_mode()
def theirs(folder: Path) -> np.ndarray:
    """The same of transformers' own class, each text by itself."""
    model = AutoModelForTokenClassification.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = open_machine(str(folder), device="cpu").renderer.tokenizer
    found = [model(input_ids=torch.tensor([tokenizer.encode_document(text)])).logits[0] for text in TEXTS]
    return torch.cat(found).double().numpy()


@pytest.mark.parametrize(("name", "scope"), PAIRS)
def test_train_interrupt_resume_export_reload(tmp_path: Path, name: str, scope: str) -> None:
    recipe = recipe_for(tmp_path, name, scope)
    estimated = plan_recipe(recipe)
    open_data(recipe)
    plan = plan_recipe(recipe)
    assert plan.parameters == estimated.parameters, "the labels of the sample are those of the data"
    cut, expected = cut_and_whole(plan, tmp_path)
    first, second = tensors(expected), tensors(cut)
    assert first.keys() == second.keys()
    for key, tensor in first.items():
        assert torch.equal(tensor, second[key]), key
    assert losses(cut)[-1][1] < losses(cut)[0][1]
    trained = load_file(sorted(cut.checkpoints_path.iterdir())[-1] / "trained.safetensors")
    assert sum(item.numel() for item in trained.values()) == plan.parameters.trainable
    assert set(Scorecard.load(cut.scorecards_path, "tuned").tasks["tagging"]) == SCORES

    exported = export(
        cut.path, tmp_path / "out", merge=scope != "prefix", dtype="float32" if scope != "prefix" else None
    )
    expected_logits = ours(str(cut.path))
    if scope == "prefix":
        return
    assert [gate.name for gate in exported.gates] == ["A", "B"]
    for found in (theirs(tmp_path / "out"), ours(str(tmp_path / "out"))):
        assert np.abs(found - expected_logits).max() <= 1e-4 * np.abs(expected_logits).max()
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert list(config["id2label"].values()) == ["B-ORDER", "B-PER", "I-PER", "O"]
    assert config["architectures"][0].endswith("ForTokenClassification")


def test_words_and_spans_are_answered_with_probabilities(tmp_path: Path, call: Call) -> None:
    recipe = recipe_for(tmp_path, "bert", "full")
    values = recipe.model_dump(mode="json")
    values["training"] |= {"max_steps": 40, "checkpoint_every": 40}
    run = train(plan_recipe(parse(values).placed(tmp_path)), tmp_path / "run").folder
    export(run, tmp_path / "out", merge=True, dtype="float32")
    for model in (run, tmp_path / "out"):
        found = call("generate", model, "--prompt", "Ask Okonkwo about order 1037", "--json").json
        assert found["answer"] == "Ask [Okonkwo](PER) about order [1037](ORDER)"
        assert [word["text"] for word in found["words"]] == ["Ask", "Okonkwo", "about", "order", "1037"]
        (person, order) = found["spans"]
        assert (person["type"], person["start"], person["end"], person["text"]) == ("PER", 4, 11, "Okonkwo")
        assert (order["type"], order["start"], order["end"]) == ("ORDER", 24, 28)
        assert all(0.25 < item["probability"] <= 1 for item in [*found["words"], *found["spans"]])
    said = call("generate", run, "--prompt", "Ask Okonkwo about order 1037").out.splitlines()
    assert [line.split("%")[1].strip() for line in said[1:]] == ["PER: Okonkwo", "ORDER: 1037"]
    with pytest.raises(UserError, match="the text has no words"):
        list(open_answerer(str(run)).stream([Message("user", " ")], Sampling()))


def test_labels_without_spans_are_answered_word_by_word(tmp_path: Path) -> None:
    run = train(plan_recipe(recipe_for(tmp_path, "llama", "lora", scheme="none")), tmp_path / "run").folder
    card = Scorecard.load(RunFolder.open(run).scorecards_path, "tuned")
    assert set(card.tasks["tagging"]) == {"word_accuracy", "exact_match", "loss"}
    answerer = open_answerer(str(run))
    said = "".join(answerer.stream([Message("user", "Ask Bo")], Sampling()))
    assert [part.partition("/")[0] for part in said.split()] == ["Ask", "Bo"]
    assert "spans" not in answerer.details


def test_an_adapter_is_exported_with_its_head(tmp_path: Path) -> None:
    run = train(plan_recipe(recipe_for(tmp_path, "llama", "lora")), tmp_path / "run").folder
    export(run, tmp_path / "adapter")
    described = read_head(tmp_path / "adapter")
    assert (described.labels, described.reads, described.spans) == (("B-ORDER", "B-PER", "I-PER", "O"), "last", True)
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = str(tmp_path / "base")
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    assert np.allclose(ours(str(tmp_path / "adapter")), ours(str(run)), atol=1e-5)


def test_a_head_of_another_shape_keeps_our_own_layout(tmp_path: Path) -> None:
    run = train(plan_recipe(recipe_for(tmp_path, "bert", "head", head="mlp", width=8)), tmp_path / "run").folder
    result = export(run, tmp_path / "out", dtype="float32")
    assert any("transformers has no class for" in note for note in result.notes)
    assert np.allclose(ours(str(tmp_path / "out")), ours(str(run)), atol=1e-5)


def test_features_of_words_are_kept_and_give_the_same_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "cache"))
    recipe = recipe_for(tmp_path, "llama", "head")
    values = recipe.model_dump(mode="json")
    values["adapter"]["cache_features"] = False
    each = RunFolder.open(train(plan_recipe(parse(values).placed(tmp_path)), tmp_path / "each").folder)
    kept = RunFolder.open(train(plan_recipe(recipe), tmp_path / "kept").folder)
    (file,) = (tmp_path / "cache" / "features").iterdir()
    data = open_data(recipe)[0]
    assert load_file(file)["feature_NH"].shape == (data.ledger.trained_tokens, 32)
    for one, other in zip(losses(each), losses(kept), strict=True):
        assert one == pytest.approx(other, rel=1e-5), "packs are cut otherwise, nothing else differs"
    again = RunFolder.open(train(plan_recipe(recipe), tmp_path / "again").folder)
    assert any("using the kept features" in line["message"] for line in again.events())
    assert losses(again) == losses(kept)


def test_eval_scores_a_run_and_refuses_other_labels(tmp_path: Path) -> None:
    recipe = recipe_for(tmp_path, "llama", "head")
    run = str(train(plan_recipe(recipe), tmp_path / "run").folder)
    card = measure(run, recipe).card
    assert card.tasks == Scorecard.load(RunFolder.open(tmp_path / "run").scorecards_path, "tuned").tasks
    (tmp_path / "other.jsonl").write_text((tmp_path / "rows.jsonl").read_text().replace("-PER", "-NAME"))
    source = recipe.data.train[0].model_copy(update={"path": "other.jsonl"})
    other = recipe.model_copy(update={"data": recipe.data.model_copy(update={"train": [source]})})
    with pytest.raises(ModelError, match=r"has other labels than the data .*'B-NAME', 'B-PER'"):
        measure(run, other.placed(tmp_path))


def test_labels_that_no_training_row_has_are_said_and_wrong(tmp_path: Path) -> None:
    recipe = recipe_for(tmp_path, "llama", "head")
    write_rows(tmp_path / "test.jsonl", 4, extra="BIRD")
    values = recipe.model_dump(mode="json")
    values["data"]["test"] = ["test.jsonl"]
    values["data"]["duplicates"] = "keep"
    run = RunFolder.open(train(plan_recipe(parse(values).placed(tmp_path)), tmp_path / "run").folder)
    notes = [line["message"] for line in run.events() if line["kind"] == "note"]
    assert "1 of 4 test rows have a label that no training row has ('B-BIRD'): they count as wrong" in notes
    rows = Scorecard.load(run.scorecards_path, "tuned").rows
    assert [row["score"] for row in rows if "BIRD" in row["reference"]] == [0]


def test_what_a_tagging_head_is_not_asked(tmp_path: Path) -> None:
    values = recipe_for(tmp_path, "llama", "head").model_dump(mode="json")
    values["evaluation"] = {"tasks": [{"type": "classification"}]}
    with pytest.raises(RecipeError, match="is not one that this objective's head answers") as caught:
        train(plan_recipe(parse(values).placed(tmp_path)), tmp_path / "run")
    assert "tagging" in caught.value.hint
    values["objective"], values["adapter"] = {"type": "sft"}, {"type": "full"}
    with pytest.raises(UserError, match=r"tagged words have no answer; `objective: \{type: tag\}` trains on them"):
        train(plan_recipe(parse(values).placed(tmp_path)), tmp_path / "sft")
