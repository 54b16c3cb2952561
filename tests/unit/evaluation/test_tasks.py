from __future__ import annotations

import hashlib
import math
import struct

import pytest

from tunesmith.errors import DataError, ModelError
from tunesmith.evaluation import tasks
from tunesmith.evaluation.questions import Question, hash_ids
from tunesmith.evaluation.statistics import proportion
from tunesmith.types import Sampling

GREEDY = Sampling(max_new_tokens=8)


def test_prompt_hash_is_of_the_ids_alone():
    ids = (1, 258, 70_000)
    assert hash_ids(ids) == hashlib.sha256(struct.pack("<3I", *ids)).hexdigest()
    assert Question.of("a", ids, "x", "y").prompt_hash == Question.of("b", list(ids), "z", "w").prompt_hash
    assert hash_ids((1, 2)) != hash_ids((2, 1))


@pytest.mark.parametrize("count", [0, 2])
def test_no_rows_and_twice_the_same_id_are_refused(count, table_sampler):
    questions = [Question.of("same", (0,), "", "a")] * count
    with pytest.raises(DataError, match=r"no rows|same id"):
        tasks.exact_match(questions, table_sampler({0: "a"}), GREEDY)


def test_exact_match_of_free_text(questions, table_sampler):
    asked = questions("Paris", "Rome", "Oslo")
    result = tasks.exact_match(asked, table_sampler({0: " Paris\n", 1: "rome", 2: "Oslo."}), GREEDY)
    assert result.metrics == {"exact_match": proportion(1, 3)}
    assert (result.table, result.baselines) == (None, None)
    assert [row["score"] for row in result.rows] == [1, 0, 0]
    assert result.rows[0] == {
        "id": "q0",
        "prompt_hash": asked[0].prompt_hash,
        "prompt": "prompt 0",
        "reference": "Paris",
        "answer": " Paris\n",
        "score": 1,
        "group": None,
        "num_tokens": 2,
        "ended": True,
    }


def test_ignore_case(questions, table_sampler):
    sampler = table_sampler({0: "PARIS", 1: "Straße"})
    result = tasks.exact_match(
        questions("Paris", "STRASSE"), sampler, GREEDY, matching=tasks.Matching(ignore_case=True)
    )
    assert result.metrics["exact_match"].value == 1


def test_classes_that_differ_in_case_only_go_by_the_first_wording(questions, table_sampler):
    asked = questions("Refund", "refund", "REFUND", "other", "Other", "other")
    sampler = table_sampler(dict.fromkeys(range(6), "refund"))
    result = tasks.exact_match(asked, sampler, GREEDY, matching=tasks.Matching(ignore_case=True))
    assert result.table["labels"] == ["Refund", "other"]
    assert [row["answer_label"] for row in result.rows] == ["Refund"] * 6
    assert result.baselines["majority"]["value"] == 0.5


def test_exact_match_of_a_closed_set(questions, table_sampler):
    asked = questions("a", "a", "b", "b", "c")
    sampler = table_sampler({0: "a", 1: "b", 2: "b", 3: "none of them", 4: "c"})
    result = tasks.exact_match(asked, sampler, GREEDY, labels=["a", "b", "c"], label_counts={"b": 7, "a": 7, "c": 1})
    assert result.metrics["accuracy"] == result.metrics["exact_match"] == proportion(3, 5)
    assert result.metrics["macro_f1"].value == pytest.approx((2 / 3 + 0.5 + 1) / 3)
    assert result.table["confusion"] == [[1, 1, 0, 0], [0, 1, 0, 1], [0, 0, 1, 0]]
    assert result.table["columns"][-1] == "(other)"
    assert result.rows[3]["answer_label"] is None
    assert result.rows[3]["true_label"] == "b"
    # a and b are equally common in training: the first in the alphabet
    majority = result.baselines["majority"]
    assert majority == {"label": "a", **proportion(2, 5).to_json(), "from": "training rows"}


def test_majority_from_the_references_says_so(questions, table_sampler):
    asked = questions("b", "b", "b", "b", "a", "a")
    result = tasks.exact_match(asked, table_sampler(dict.fromkeys(range(6), "a")), GREEDY)
    assert result.baselines["majority"] == {"label": "b", **proportion(4, 6).to_json(), "from": "references"}


def test_a_majority_label_that_no_row_has_scores_nothing(questions, table_sampler):
    result = tasks.exact_match(
        questions("a"), table_sampler({0: "a"}), GREEDY, labels=["a", "b"], label_counts={"b": 5, "a": 1}
    )
    assert result.baselines["majority"]["value"] == 0


@pytest.mark.parametrize(("references", "closed"), [(["a", "b"] * 3, True), (["a", "b", "c", "d", "e", "f"], False)])
def test_few_references_make_a_closed_set(references, closed, questions, table_sampler):
    result = tasks.exact_match(questions(*references), table_sampler(dict.fromkeys(range(6), "a")), GREEDY)
    assert ("macro_f1" in result.metrics) is closed
    assert (result.settings["labels"] is not None) is closed


def test_references_outside_the_labels_are_classes_of_their_own(questions, table_sampler):
    sampler = table_sampler({0: "a", 1: "new"})
    result = tasks.exact_match(questions("a", "new"), sampler, GREEDY, labels=["a"])
    assert result.table["labels"] == ["a", "new"]
    assert result.table["unseen_labels"] == ["new"]
    assert result.metrics["accuracy"].value == 1


def test_labels_that_compare_equal_are_refused(questions, table_sampler):
    with pytest.raises(DataError, match="compare equal"):
        tasks.exact_match(questions("a"), table_sampler({0: "a"}), GREEDY, labels=["a", " a"])


def test_greedy_settings_leave_out_what_cannot_matter(questions, table_sampler):
    def settings_of(how):
        return tasks.exact_match(questions("a"), table_sampler({0: "a"}), how).settings["decoding"]

    assert settings_of(Sampling(8, seed=1)) == settings_of(Sampling(8, seed=2, top_k=5))
    assert settings_of(Sampling(8, 0.7, seed=1)) != settings_of(Sampling(8, 0.7, seed=2))
    assert settings_of(Sampling(8)) != settings_of(Sampling(9))


def test_rows_keep_their_order_and_progress_counts_them(questions, table_sampler):
    asked = questions(*[f"r{i}" for i in range(150)])
    sampler = table_sampler({i: f"r{i}" for i in range(150)})
    seen = []
    result = tasks.exact_match(asked, sampler, GREEDY, progress=lambda done, total: seen.append((done, total)))
    assert [row["id"] for row in result.rows] == [f"q{i}" for i in range(150)]
    assert result.metrics["exact_match"].value == 1
    assert seen[-1] == (150, 150)
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})
    assert sum(sampler.calls) == 150


LABELS, IDS = ["a", "b", "c"], [(1,), (2, 3), (4,)]


def test_label_ranking_by_hand(questions, table_scorer):
    scorer = table_scorer({0: [-1, -2, -3], 1: [-1, -2, -3], 2: [-3, -2, -1], 3: [-2, -2, -1]})
    result = tasks.label_ranking(questions("a", "b", "c", "b"), LABELS, IDS, scorer)
    assert [row["answer"] for row in result.rows] == ["a", "a", "c", "c"]
    # b is second in row 1; in row 3 it ties with a, which comes first, and is third
    assert [row["rank"] for row in result.rows] == [1, 2, 1, 3]
    assert result.metrics["accuracy"] == proportion(2, 4)
    assert result.metrics["mean_reciprocal_rank"].value == pytest.approx((1 + 1 / 2 + 1 + 1 / 3) / 4)
    assert result.metrics["macro_f1"].value == pytest.approx((2 / 3 + 0 + 2 / 3) / 3)
    assert result.rows[1]["logprob"] == -1
    assert result.rows[1]["reference_logprob"] == -2
    assert "normalised_accuracy" not in result.metrics


def test_prior_takes_the_head_start_away(questions, table_scorer):
    # "a" is likely whatever is asked; against that, each row prefers its own label
    scorer = table_scorer({0: [-1.0, -5, -9], 1: [-1.5, -3, -9], 2: [-1.5, -5, -7]})
    result = tasks.label_ranking(questions("a", "b", "c"), LABELS, IDS, scorer, prior=[-1.2, -5.0, -9.0])
    assert result.metrics["accuracy"] == proportion(1, 3)
    assert result.metrics["normalised_accuracy"] == proportion(3, 3)
    assert [row["normalised_answer"] for row in result.rows] == ["a", "b", "c"]


def test_reference_that_is_no_label_is_wrong_at_every_rank(questions, table_scorer):
    result = tasks.label_ranking(questions("a", "z"), LABELS, IDS, table_scorer({0: [-1, -2, -3], 1: [-1, -2, -3]}))
    assert result.metrics["accuracy"] == proportion(1, 2)
    assert result.rows[1]["rank"] is None
    assert result.rows[1]["reciprocal_rank"] == 0
    assert result.table["unseen_labels"] == ["z"]
    assert result.table["confusion"][3] == [1, 0, 0, 0, 0]


def test_all_ranked_right_leaves_doubt_below(questions, table_scorer):
    asked = questions(*["a"] * 20)
    result = tasks.label_ranking(asked, LABELS, IDS, table_scorer({i: [-1, -2, -3] for i in range(20)}))
    assert {metric: score.value for metric, score in result.metrics.items()} == dict.fromkeys(result.metrics, 1.0)
    assert {round(score.low, 9) for score in result.metrics.values()} == {round(proportion(20, 20).low, 9)}


@pytest.mark.parametrize(
    ("labels", "ids", "prior"),
    [
        ([], [], None),
        (["a", "b"], [(1,)], None),
        (["a", "b"], [(1,), (1,)], None),
        (["a", "b"], [(1,), ()], None),
        (["a", "a"], [(1,), (2,)], None),
        (["a", "b"], [(1,), (2,)], [0.0]),
    ],
)
def test_unusable_labels_are_refused(labels, ids, prior, questions, table_scorer):
    with pytest.raises(DataError):
        tasks.label_ranking(questions("a"), labels, ids, table_scorer({0: [-1.0] * len(labels)}), prior=prior)


@pytest.mark.parametrize("bad", [math.nan, -math.inf])
def test_log_probabilities_that_are_not_finite_are_refused(bad, questions, table_scorer):
    with pytest.raises(ModelError, match="not finite"):
        tasks.label_ranking(questions("a"), LABELS, IDS, table_scorer({0: [-1, bad, -2]}))
    with pytest.raises(ModelError, match="not finite"):
        tasks.loss([(bad, 3)])


def test_loss_is_weighted_by_tokens(questions):
    result = tasks.loss([(10.0, 10), (6.0, 2)], questions("a", "b"))
    assert result.metrics["loss"].value == pytest.approx(16 / 12)
    assert result.metrics["perplexity"].value == pytest.approx(math.exp(16 / 12))
    assert result.metrics["perplexity"].high == pytest.approx(math.exp(result.metrics["loss"].high))
    assert [(row["id"], row["nats"], row["num_tokens"], row["score"]) for row in result.rows] == [
        ("q0", 10.0, 10, 1.0),
        ("q1", 6.0, 2, 3.0),
    ]


def test_loss_without_questions_names_rows_by_position():
    assert [row["id"] for row in tasks.loss([(1.0, 1), (2.0, 1)]).rows] == ["0", "1"]


def test_loss_refuses_rows_that_do_not_fit(questions):
    with pytest.raises(DataError, match="no scored tokens"):
        tasks.loss([(0.0, 0)])
    with pytest.raises(DataError, match="2 losses for 1 rows"):
        tasks.loss([(1.0, 1), (1.0, 1)], questions("a"))
    with pytest.raises(DataError, match="no rows"):
        tasks.loss([])
