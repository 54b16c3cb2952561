from __future__ import annotations

import json
import math
import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.errors import UserError
from tunesmith.evaluation import statistics, tasks
from tunesmith.evaluation.comparison import compare
from tunesmith.evaluation.pairing import MEASURES, Paired, pair_rows
from tunesmith.evaluation.questions import Question
from tunesmith.evaluation.scorecard import Scorecard
from tunesmith.evaluation.tasks import TaskResult
from tunesmith.evaluation.verdict import judge

quick = settings(deadline=None, derandomize=True, database=None, max_examples=12)


def ask(number):
    return [Question.of(f"q{i}", (i, 7), f"prompt {i}", "ab"[i % 2]) for i in range(number)]


def ranked(right, **settings):
    """A card with one label ranking, right where said."""
    card = Scorecard("m")
    card.add_task("label_ranking", ranking(right), **settings)
    return card


def ranking(right):
    questions = ask(len(right))

    class Scorer:
        def rank(self, contexts, candidates):
            # reference is a for even rows, b for odd ones
            return [
                [-1.0, -2.0] if (context[0] % 2 == 0) == bool(right[context[0]]) else [-2.0, -1.0]
                for context in contexts
            ]

    return tasks.label_ranking(questions, ["a", "b"], [(1,), (2,)], Scorer())


def lost(losses, **settings):
    card = Scorecard("m")
    card.add_task("loss", tasks.loss(losses, ask(len(losses))), **settings)
    return card


def test_won_and_lost_by_hand():
    before, after = ranked([1, 1, 0, 0, 0, 0]), ranked([1, 0, 1, 1, 1, 0])
    paired = compare(before, after).tasks["label_ranking"]["accuracy"]
    assert (paired.won, paired.lost, paired.both_right, paired.both_wrong, paired.tied) == (3, 1, 1, 1, 2)
    assert paired.p_value == 6 / 16  # 3 against 1: 2 * 5/16 - 4/16
    assert paired.test == "mid-p McNemar"
    assert paired.difference == statistics.paired_proportions(1, 3, 1, 1)
    assert (paired.before.value, paired.after.value) == (2 / 6, 4 / 6)


def test_clear_gain_is_said_in_plain_words():
    comparison = compare(ranked([1] * 8 + [0] * 32), ranked([1] * 36 + [0] * 4))
    assert (comparison.verdict, comparison.claimed_on) == ("better", "label_ranking.accuracy")
    difference = statistics.paired_proportions(8, 28, 0, 4)
    low, high = (f"{100 * part:.1f}" for part in (difference.low, difference.high))
    assert comparison.sentence == (
        f"Tuned is better: label ranking 90.0 % against 20.0 % (+70.0 points, 95 % {low} to {high}, n = 40, p < 0.001)"
    )


def test_swapping_the_sides_turns_better_into_worse():
    weak, strong = ranked([0] * 30), ranked([1] * 25 + [0] * 5)
    gain, loss = compare(weak, strong), compare(strong, weak)
    assert (gain.verdict, loss.verdict) == ("better", "worse")
    assert loss.sentence.startswith("Tuned is worse: label ranking 0.0 % against 83.3 % (−83.3 points, 95 % −")


def test_small_difference_is_no_evidence():
    comparison = compare(ranked([1, 0] * 10), ranked([1, 1] + [1, 0] * 9))
    assert comparison.verdict == "no evidence"
    assert comparison.sentence.startswith("No evidence of a difference: label ranking 55.0 % against 50.0 %")
    assert comparison.sentence.endswith("n = 20, p = 0.50)")  # one row won: mid-p of 1 against 0 is 2 * 1/2 - 1/2


def test_a_card_against_itself_is_no_change():
    card = ranked([1, 0, 1, 1])
    paired = compare(card, card).tasks["label_ranking"]
    assert {metric: (item.difference.value, item.p_value) for metric, item in paired.items()} == dict.fromkeys(
        ["accuracy", "macro_f1", "mean_reciprocal_rank"], (0.0, 1.0)
    )


@quick
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=2, max_size=40))
def test_swapping_flips_every_difference(pairs):
    before, after = ([int(pair[side]) for pair in pairs] for side in (0, 1))
    there, back = compare(ranked(before), ranked(after)), compare(ranked(after), ranked(before))
    opposite = {"better": "worse", "worse": "better", "no evidence": "no evidence"}
    assert back.verdict == opposite[there.verdict]
    for metric, one in there.tasks["label_ranking"].items():
        other = back.tasks["label_ranking"][metric]
        assert (other.difference.value, other.difference.low, other.difference.high) == pytest.approx(
            (-one.difference.value, -one.difference.high, -one.difference.low), abs=1e-9
        )
        assert (other.won, other.lost, other.tied) == (one.lost, one.won, one.tied)
        assert other.p_value == pytest.approx(one.p_value)


def test_order_of_rows_does_not_matter():
    before, after = ranked([1, 0, 1, 0, 0, 1, 0]), ranked([1, 1, 1, 0, 1, 0, 1])
    expected = compare(before, after).to_json()
    random.Random(0).shuffle(before.rows)
    random.Random(1).shuffle(after.rows)
    assert compare(before, after).to_json() == expected


def test_losses_are_better_when_lower():
    rng = random.Random(2)
    before = [(10 * rng.uniform(2, 4), 10) for _ in range(40)]
    after = [(nats - 10 * rng.uniform(0.2, 0.8), tokens) for nats, tokens in before]
    comparison = compare(lost(before), lost(after))
    assert (comparison.verdict, comparison.claimed_on) == ("better", "loss.loss")
    paired = comparison.tasks["loss"]
    assert paired["loss"].difference.high < 0
    assert (paired["loss"].won, paired["loss"].lost) == (40, 0)
    assert (paired["loss"].both_right, paired["loss"].both_wrong) == (0, 0)
    assert paired["loss"].test == "paired bootstrap"
    assert paired["perplexity"].difference.value == pytest.approx(
        paired["perplexity"].after.value - paired["perplexity"].before.value
    )
    assert re.match(
        r"Tuned is better: loss 2\.\d{3} against [23]\.\d{3} nats per token \(−0\.\d{3}, 95 % −", comparison.sentence
    )
    assert compare(lost(after), lost(before)).verdict == "worse"


def test_rows_without_loss_are_ties_not_right_or_wrong():
    card = lost([(0.0, 2), (4.0, 2)])
    paired = compare(card, card).tasks["loss"]["loss"]
    assert (paired.won, paired.lost, paired.both_right, paired.both_wrong, paired.tied) == (0, 0, 0, 0, 2)


def test_every_metric_that_tasks_give_has_a_direction():
    given_by_tasks = {*ranking([1, 0]).metrics, "normalised_accuracy", *tasks.loss([(1.0, 1)]).metrics, "exact_match"}
    by_heads = {"micro_f1", "brier", "calibration_error", "mse", "pearson", "spearman"} | {
        "span_f1",
        "span_precision",
        "span_recall",
        "word_accuracy",
    }
    assert given_by_tasks | by_heads | {"accuracy_per_token"} == set(MEASURES)


def test_verdict_needs_both_the_interval_and_the_p_value():
    def paired(low, high, p_value):
        score = statistics.Score((low + high) / 2, low, high, 9)
        return Paired(score, score, score, p_value, "", 0, 0, 0, 0, 0)

    assert judge("accuracy", paired(0.1, 0.2, 0.01)) == "better"
    assert judge("loss", paired(0.1, 0.2, 0.01)) == "worse"
    assert judge("loss", paired(-0.2, -0.1, 0.01)) == "better"
    assert judge("accuracy", paired(0.1, 0.2, 0.05)) == "no evidence"
    assert judge("accuracy", paired(0.0, 0.2, 0.01)) == "no evidence"


def test_claim_prefers_label_ranking_to_exact_match_to_loss():
    def card(*names):
        card = lost([(3.0, 2), (2.0, 2)]) if "loss" in names else Scorecard("m")
        if "exact" in names:
            metric = {"exact_match": statistics.proportion(0, 1)}
            card.add_task("exact", TaskResult(metric, [tasks.row_of(ask(1)[0], "", 0)], {}))
        if "ranking" in names:
            card.add_task("ranking", ranking([1, 0]))
        return card

    everything = card("loss", "exact", "ranking")
    assert compare(everything, everything).claimed_on == "ranking.accuracy"
    assert compare(everything, card("loss", "exact")).claimed_on == "exact.exact_match"
    partly = compare(everything, card("loss"))
    assert partly.claimed_on == "loss.loss"
    assert partly.not_compared == {"exact": "only measured before", "ranking": "only measured before"}
    with pytest.raises(UserError, match="no task in common"):
        compare(card("exact"), card("loss"))


def test_validation_rows_are_claimed_on_only_for_want_of_others_and_said():
    def card(with_test):
        card = ranked([1, 0, 1], data="validation")
        if with_test:
            card.add_task("held_out", tasks.loss([(1.0, 1), (2.0, 1)]), data="test")
        return card

    assert compare(card(True), card(True)).claimed_on == "held_out.loss"
    only = compare(card(False), card(False))
    assert only.claimed_on == "label_ranking.accuracy"
    assert only.sentence.endswith(" (optimistic: measured on validation rows)")


def test_undeclared_settings_are_refused_and_declared_ones_shown():
    before, after = ranked([1, 0, 0], template="one"), ranked([1, 1, 0], template="two")
    with pytest.raises(UserError, match="template") as caught:
        compare(before, after)
    assert caught.value.where == "label_ranking"
    comparison = compare(before, after, declared={"template"})
    assert comparison.declared == {"label_ranking": {"template": {"before": "one", "after": "two"}}}
    with pytest.raises(UserError, match="not measured alike"):
        compare(ranked([1, 0]), ranked([1, 0], shots=3))


def test_other_prompts_are_refused_unless_declared():
    before, after = ranked([1, 0, 0]), ranked([1, 1, 0])
    for row in after.rows:
        row["prompt_hash"] = "other"
    with pytest.raises(UserError, match="3 prompts are not the same"):
        compare(before, after)
    with pytest.raises(UserError, match="3 prompts are not the same"):
        compare(before, after, declared={"decoding"})
    assert compare(before, after, declared={"template"}).tasks["label_ranking"]["accuracy"].won == 1


def test_rows_on_one_side_only_are_refused():
    with pytest.raises(UserError, match="2 rows are on one side only, such as 'q2'"):
        compare(ranked([1, 0]), ranked([1, 0, 1, 1]))


def test_changed_references_are_refused_even_where_prompts_may_differ():
    rows = ranked([1, 0]).rows
    with pytest.raises(UserError, match="references"):
        pair_rows(rows, [{**row, "reference": "z"} for row in rows], "t", declared={"template"})


def test_losses_over_other_tokens_are_refused_or_left_out():
    before, after = lost([(4.0, 2), (4.0, 2)]), lost([(4.0, 2), (4.0, 3)])
    with pytest.raises(UserError, match="number of scored tokens"):
        compare(before, after)
    for card in (before, after):
        card.add_task("ranking", ranking([1, 0]))
    comparison = compare(before, after, declared={"tokenizer"})
    assert comparison.tasks["loss"] == {}
    assert set(comparison.not_compared) == {"loss.loss", "loss.perplexity"}


def test_scores_without_rows_are_refused():
    before = ranked([1, 0])
    before.rows.clear()
    with pytest.raises(UserError, match="without rows"):
        compare(before, before)


def test_unknown_metrics_are_named_not_guessed():
    card = ranked([1, 0])
    card.tasks["label_ranking"]["charm"] = statistics.proportion(1, 2)
    assert compare(card, card).not_compared == {"label_ranking.charm": "it is not known whether more is better"}


def test_forgetting_is_said_of_each_probe():
    rng = random.Random(3)
    base = [(100 * rng.uniform(3, 4), 100) for _ in range(64)]
    worse = [(nats + 100 * 0.113, tokens) for nats, tokens in base]  # e^0.113 is 1.12

    def card(losses, right):
        card = ranked([1, 0])
        card.add_probe("general", tasks.loss(losses, ask(64)))
        answers = [tasks.row_of(question, "", value) for question, value in zip(ask(len(right)), right, strict=True)]
        card.add_probe(
            "completions", TaskResult({"accuracy": statistics.proportion(sum(right), len(right))}, answers, {})
        )
        card.add_probe("instructions", TaskResult({}, [tasks.row_of(ask(1)[0], "Hello.", None)], {}))
        return card

    comparison = compare(card(base, [1] * 8 + [0] * 2), card(worse, [1] * 7 + [0] * 3))
    old = math.exp(sum(nats for nats, _ in base) / 6_400)
    assert comparison.forgetting == (
        f"general text: perplexity {old:.1f} → {old * math.exp(0.113):.1f} (+12 %); "
        "simple completions: 80.0 % → 70.0 % (−10.0 points, no evidence of change)"
    )
    assert comparison.probes["general"]["loss"].difference.value == pytest.approx(0.113)
    assert set(comparison.probes) == {"general", "completions"}
    assert compare(ranked([1, 0]), ranked([1, 0])).forgetting == "what was forgotten was not measured"


def test_json_has_the_contracts_shape():
    value = json.loads(json.dumps(compare(ranked([1, 0, 0]), ranked([1, 1, 1])).to_json(), allow_nan=False))
    assert {"before", "after", "tasks", "probes", "verdict", "claimed_on", "sentence"} <= set(value)
    paired = value["tasks"]["label_ranking"]["accuracy"]
    assert set(paired["difference"]) == {"value", "low", "high", "n"}
    assert {"before", "after", "p_value", "test", "won", "lost", "both_right", "both_wrong"} <= set(paired)
