"""The headline for the terminal."""

from __future__ import annotations

import json

from synthetic_run import write_run

from tunesmith.reports.facts import read_facts
from tunesmith.reports.terminal import headline


def test_the_headline_has_every_number(tmp_path):
    facts = read_facts(write_run(tmp_path / "run"))
    lines = headline(facts.comparison, {"base": facts.base, "tuned": facts.tuned}, seconds=131.0)
    text = "\n".join(lines)
    assert lines[0] == facts.comparison["sentence"]
    scored = [line for line in lines if "95 %" in line and "n = " in line and line.startswith("  ")]
    names = ["majority class", "base, label ranking", "tuned, label ranking", "base, exact match", "tuned, exact match"]
    assert [line.strip().startswith(name) for line, name in zip(scored, names, strict=False)] == [True] * 5
    assert [line.endswith("<- claimed") for line in scored[:5]] == [False, True, True, False, False]
    value = facts.tuned["tasks"]["label_ranking"]["accuracy"]["value"]
    assert f"{100 * value:.1f} %" in scored[2]
    assert "general perplexity 27.1 → 29.0" in text
    assert "2 min 11 s training" in text
    assert " won, " in text
    assert len({line.index("95 %") for line in scored}) == 1


def test_without_scores_it_says_so():
    lines = headline(None, {})
    assert lines[0].startswith("Nothing was compared")
    assert "forgotten:  not measured" in lines


def test_validation_only_is_called_optimistic():
    lines = headline({"sentence": "Tuned is better"}, {}, optimistic=True)
    assert any(line.startswith("Optimistic") for line in lines)


def test_values_read_back_from_json_are_enough(tmp_path):
    folder = write_run(tmp_path / "run") / "scorecards"
    cards = {name: json.loads((folder / f"{name}.json").read_text()) for name in ("base", "tuned")}
    assert len(headline(json.loads((folder / "comparison.json").read_text()), cards)) > 8
