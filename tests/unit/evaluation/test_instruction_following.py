"""The Instruction Following Score: where questions are cut, what the classifier learns, and what is counted."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from tunesmith.errors import DataError
from tunesmith.evaluation.instruction_following import AnswerLike, Pair, cut_question, following_score
from tunesmith.evaluation.questions import Question
from tunesmith.types import Completion, Sampling

THINGS = ["kettle", "parcel", "lamp", "invoice", "teapot", "toaster", "voucher", "blender", "mug", "radio"]
HOW = Sampling(max_new_tokens=8)


def pairs(count: int) -> list[Pair]:
    """Questions of a shop's customers and its polite answers."""
    return [
        Pair(
            f"{number:04d}",
            f"where is the {THINGS[number % 10]} that i ordered {number} days ago and can i still return it",
            f"Thank you for writing. Your {THINGS[(7 * number) % 10]} will arrive on day {number % 28 + 1}.",
        )
        for number in range(count)
    ]


class Scripted:
    """Answers in order, whatever is asked."""

    def __init__(self, texts: Sequence[str]) -> None:
        self.texts = list(texts)
        self.asked: list[tuple[int, ...]] = []

    def sample(self, prompts: Sequence[Sequence[int]], how: Sampling) -> list[Completion]:
        assert how == HOW
        self.asked += [tuple(prompt) for prompt in prompts]
        return [Completion(text, (), (), True) for text in self.texts]


def questions(count: int) -> list[Question]:
    return [Question.of(str(number), (number,), "", "") for number in range(count)]


@pytest.mark.parametrize("words", [4, 5, 7, 8, 23])
def test_a_question_is_cut_between_words_in_its_middle_half(words: int) -> None:
    text = " ".join(f"w{number}" for number in range(words))
    places = set()
    for number in range(200):
        cut = cut_question(Pair(str(number), text, "a"), 0)
        assert cut is not None
        assert f"{cut[0]} {cut[1]}" == text
        places.add(len(cut[0].split()))
    assert places == set(range(-(-words // 4), 3 * words // 4 + 1))


def test_a_cut_is_a_function_of_seed_and_row_and_short_questions_have_none() -> None:
    text = " ".join("abcdefghijklmnop")
    cuts = [cut_question(Pair(str(number), text, "a"), 0) for number in range(20)]
    assert cuts == [cut_question(Pair(str(number), text, "other"), 0) for number in range(20)]
    assert cuts != [cut_question(Pair(str(number), text, "a"), 1) for number in range(20)]
    assert cut_question(Pair("x", "only three words", "a"), 0) is None


def test_answers_are_told_from_continuations_never_seen_before() -> None:
    known = pairs(120)
    judge = AnswerLike(known[:80], 0)
    assert judge.accuracy > 0.95
    fresh = known[80:]
    right = [judge(pair.answer) for pair in fresh]
    for pair in fresh:
        cut = cut_question(pair, 0)
        assert cut is not None
        right += [not judge(cut[1]), not judge(f"{cut[1]} {pair.answer}")]
    assert np.mean(right) > 0.95
    assert not judge("")
    assert not judge(" \n")


def test_the_classifier_is_the_same_each_time() -> None:
    one, other = AnswerLike(pairs(60), 0), AnswerLike(pairs(60), 0)
    assert np.array_equal(one._weights, other._weights)
    assert one.accuracy == other.accuracy


def test_too_few_rows_and_kinds_that_cannot_be_told_apart_are_refused() -> None:
    with pytest.raises(DataError, match=r"needs 20 validation rows .* there are 19"):
        AnswerLike(pairs(19), 0)
    with pytest.raises(DataError, match="there are 0"):
        AnswerLike([Pair(str(number), "too short", "a") for number in range(40)], 0)
    generator = np.random.default_rng(0)
    words = [f"w{number}" for number in range(30)]
    noise = [" ".join(generator.choice(words, 12)) for _ in range(120)]
    alike = [Pair(str(number), noise[number], noise[60 + number]) for number in range(60)]
    with pytest.raises(DataError, match=r"cannot be told apart by their text: .*80% are needed"):
        AnswerLike(alike, 0)


def test_shares_are_counted_over_all_whole_and_cut_questions() -> None:
    known = pairs(60)
    judge = AnswerLike(known, 0)
    cut = cut_question(known[3], 0)
    assert cut is not None
    answer, rest = known[1].answer, cut[1]
    sampler = Scripted([answer, answer, rest, "", answer, rest])  # four whole questions, two beginnings
    found = following_score(questions(4), questions(2), sampler, HOW, judge)
    assert found == {"instruction_following": 3 / 6, "ifs_full": 2 / 4, "ifs_partial": 1 / 2, "empty": 1 / 6}
    assert next(iter(found)) == "instruction_following"
    assert sampler.asked == [(0,), (1,), (2,), (3,), (0,), (1,)]
    assert "ifs_partial" not in following_score(questions(1), [], Scripted([answer]), HOW, judge)
