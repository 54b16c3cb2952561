"""Which scores stand side by side, and what may be said about them."""

from __future__ import annotations

import pytest
from synthetic_run import write_run

from tunesmith.reports import measures
from tunesmith.reports.facts import read_facts


@pytest.fixture(scope="module")
def facts(tmp_path_factory):
    return read_facts(write_run(tmp_path_factory.mktemp("runs") / "helpdesk"))


def test_like_stands_beside_like_with_the_claim_first(facts):
    found = measures.like_for_like(facts.base, facts.tuned, facts.comparison)
    assert [(one.who, one.task) for one in found] == [
        ("majority", "label_ranking"),
        ("base", "label_ranking"),
        ("tuned", "label_ranking"),
        ("base", "exact_match"),
        ("tuned", "exact_match"),
        ("base", "loss"),
        ("tuned", "loss"),
    ]
    assert [one.claimed for one in found] == [False, True, True, False, False, False, False]
    assert all(one.score.n == 160 for one in found)


def test_a_task_of_another_name_is_known_by_its_settings():
    card = {"tasks": {"queues": {"accuracy": {"value": 0.5}}}, "settings": {"queues": {"type": "label_ranking"}}}
    assert measures.task_kind("queues", card) == "label_ranking"
    assert measures.claimed_on({}, card) == ("queues", "accuracy")


def test_exact_match_is_shown_once(facts):
    found = [(change.task, change.metric) for change in measures.changes(facts.comparison, "tasks")]
    assert found[0] == ("label_ranking", "accuracy")
    assert ("exact_match", "exact_match") in found
    assert ("exact_match", "accuracy") not in found


def _comparison(metric, difference, p_value):
    scores = {"before": {"value": 0.5}, "after": {"value": 0.5 + difference[0]}}
    low, high = difference[1:]
    gap = {"value": difference[0], "low": low, "high": high, "n": 92}
    return {"probes": {"completions": {metric: {**scores, "difference": gap, "p_value": p_value}}}}


@pytest.mark.parametrize(
    ("metric", "difference", "p_value", "words"),
    [
        ("accuracy", (-0.1, -0.2, -0.01), 0.01, "worse"),
        ("accuracy", (0.1, 0.01, 0.2), 0.01, "improved"),
        ("perplexity", (0.1, 0.01, 0.2), 0.01, "worse"),
        ("perplexity", (-0.1, -0.2, -0.01), 0.01, "improved"),
        ("accuracy", (-0.1, -0.2, 0.01), 0.01, "no clear change"),
        ("accuracy", (-0.1, -0.2, -0.01), 0.06, "no clear change"),
        ("accuracy", (-0.1, None, None), None, "no interval"),
    ],
)
def test_a_change_is_claimed_only_where_interval_and_test_agree(metric, difference, p_value, words):
    (sentence,) = measures.forgetting(_comparison(metric, difference, p_value))
    assert sentence.endswith(f": {words}")


@pytest.mark.parametrize("broken", [None, 3, "x", [], {"value": None}, {"value": "0.5"}, {"value": float("nan")}])
def test_what_is_no_score_is_none(broken):
    assert measures.read_score(broken) is None
