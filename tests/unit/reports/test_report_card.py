"""The model card."""

from __future__ import annotations

import json

import pytest
from ruamel.yaml import YAML
from synthetic_run import write_run

from tunesmith.errors import RunError
from tunesmith.reports.card import render_card, write_card


def _metadata(card: str) -> dict:
    opening, block, _ = card.split("---\n", 2)
    assert opening == ""
    return YAML(typ="safe").load(block)


def test_the_metadata_is_yaml_that_hubs_read(tmp_path):
    folder = write_run(tmp_path / "run")
    values = _metadata(render_card(folder))
    tuned = json.loads((folder / "scorecards" / "tuned.json").read_text())
    (entry,) = values["model-index"]
    assert values["base_model"] == "tunesmith-base-8m"
    assert values["library_name"] == "peft"
    assert values["tags"] == ["tunesmith", "lora", "sft"]
    assert entry["name"] == "helpdesk"
    first = entry["results"][0]
    assert first["dataset"]["split"] == "test"
    assert first["metrics"][0]["value"] == pytest.approx(tuned["tasks"]["label_ranking"]["accuracy"]["value"], abs=1e-6)


def test_the_page_has_scores_forgetting_data_and_limits(tmp_path):
    card = render_card(write_run(tmp_path / "run"))
    for words in (
        "| tuned | label ranking, claimed |",
        "general perplexity 27.1",
        "805 rows in: 560 trained",
        "## Limits",
        "peak memory 412 MiB",
    ):
        assert words in card


def test_a_bottleneck_says_that_peft_cannot_read_it(tmp_path):
    folder = write_run(tmp_path / "run")
    recipe = json.loads((folder / "recipe.json").read_text())
    recipe["adapter"] = {"type": "bottleneck", "placement": "parallel"}
    (folder / "recipe.json").write_text(json.dumps(recipe))
    card = render_card(folder)
    assert _metadata(card)["library_name"] == "tunesmith"
    assert "bottleneck adapters, which PEFT cannot read" in card


def test_markup_in_names_and_notes_stays_text(tmp_path):
    folder = write_run(tmp_path / "run")
    ledger = json.loads((folder / "ledger.json").read_text())
    ledger["notes"] = ["<script>x</script> [a](b) | *c*\n# d"]
    (folder / "ledger.json").write_text(json.dumps(ledger))
    card = render_card(folder)
    assert "<script>" not in card
    assert r"\[a\](b) \| \*c\* \# d" in card


def test_a_bare_recipe_makes_a_card_that_says_what_is_missing(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "recipe.json").write_text('{"name": "bare: yes", "model": {"name": "m: #1"}}')
    path = write_card(folder)
    card = path.read_text(encoding="utf-8")
    assert path == folder / "card.md"
    assert _metadata(card)["base_model"] == "m: #1"
    for words in ("No scores were written", "Not measured", "No ledger was written", "Nothing was recorded"):
        assert words in card


def test_an_unfinished_and_an_optimistic_run_say_so(tmp_path):
    folder = write_run(tmp_path / "run", data="validation")
    (folder / "status.json").write_text('{"status": "interrupted"}')
    card = render_card(folder)
    assert "**Optimistic:**" in card
    assert "**Unfinished:** the run is interrupted" in card
    assert _metadata(card)["model-index"][0]["results"][0]["dataset"]["split"] == "validation"


def test_no_run_folder_is_an_error_with_a_hint(tmp_path):
    with pytest.raises(RunError) as error:
        render_card(tmp_path / "nowhere")
    assert error.value.hint
