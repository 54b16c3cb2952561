"""Splits follow from the input alone and hit their shares."""

from __future__ import annotations

import hashlib
import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tunesmith.data.splitting import input_key, normalise, split_key, split_of
from tunesmith.errors import DataError
from tunesmith.records import Chat, Labelled, Message, Origin, Record, Row, Text


def chat(*turns: tuple[str, str]) -> Chat:
    return Chat(tuple(Message(role, content) for role, content in turns))  # type: ignore[arg-type]


def row(record: Record, group: str | None = None) -> Row:
    return Row("id", Origin("f", 1), 0, record, group)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Where is my card?", "  WHERE is\tmy\n card? "),
        ("ﬁle", "FILE"),
        ("Straße", "STRASSE"),
        ("caf\u00e9", "cafe\u0301"),
        ("１２３", "123"),
        ("a\u00a0b", "a b"),
        ("Ωmega", "ωMEGA"),
    ],
)
def test_compatibility_case_and_spaces_make_no_difference(one: str, other: str) -> None:
    assert normalise(one) == normalise(other)


def test_other_letters_make_a_difference() -> None:
    assert normalise("resume") != normalise("résumé")


@given(st.text())
@example("ͅ\u0345a")
@example("İ ẞ ŉ ǰ")
def test_normalising_twice_is_normalising_once(text: str) -> None:
    assert normalise(normalise(text)) == normalise(text)


@given(st.text(alphabet=st.characters(codec="ascii")))
def test_case_of_ascii_makes_no_difference(text: str) -> None:
    assert normalise(text.upper()) == normalise(text.lower()) == normalise(f"  {text}\n")


@given(st.text(alphabet=st.characters(codec="ascii")))
def test_ascii_is_normalised_as_the_rest(text: str) -> None:
    assert normalise(f"{text} é").split() == [*normalise(text).split(), "é"]


def test_a_question_has_one_key_in_every_format() -> None:
    asked = chat(("user", "Where is  my card?"), ("assistant", "card_arrival"))
    assert input_key(asked) == input_key(Labelled("where is my CARD?", "x")) == input_key(Text("Where is my card?"))


def test_the_key_is_all_before_the_last_answer() -> None:
    short = chat(("user", "a"), ("assistant", "b"))
    long = chat(("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"))
    same = chat(("user", "A"), ("assistant", "B"), ("user", "C"), ("assistant", "another answer"))
    assert input_key(long) == input_key(same) == "user: a\nassistant: b\nuser: c"
    assert input_key(short) == "a"
    assert input_key(chat(("system", "s"), ("user", "a"), ("assistant", "b"))) != input_key(short)


def test_a_group_replaces_the_input() -> None:
    one, other = row(Text("one"), group="customer 5"), row(Text("other"), group="customer 5")
    assert split_key(one) == split_key(other) == "customer 5"
    assert split_key(row(Text("One"))) == "one"


def test_the_split_is_the_documented_function_of_sha256() -> None:
    for key in ("", "a", "ключ", "🙂"):
        place = int(hashlib.sha256(key.encode()).hexdigest()[:16], 16) / 2**64
        expected = "test" if place < 0.3 else "validation" if place < 0.7 else "train"
        assert split_of(key, 0.4, 0.3) == expected


@given(st.lists(st.text(), unique=True, min_size=1), st.data())
def test_growth_moves_no_row(keys: list[str], data: st.DataObject) -> None:
    def split(some: list[str]) -> dict[str, str]:
        return {key: split_of(key, 0.2, 0.3) for key in some}

    few = data.draw(st.lists(st.sampled_from(keys), unique=True))
    whole = split(data.draw(st.permutations(keys)))
    assert all(whole[key] == name for key, name in split(few).items())


@given(st.text(), st.floats(0, 0.4), st.floats(0, 0.4), st.floats(0, 0.4))
def test_another_share_of_validation_leaves_test_alone(key: str, test: float, one: float, other: float) -> None:
    assert (split_of(key, one, test) == "test") == (split_of(key, other, test) == "test")


@given(st.text(), st.floats(0, 0.3), st.floats(0, 0.3), st.floats(0, 0.3))
def test_a_larger_test_share_keeps_its_rows(key: str, small: float, more: float, validation: float) -> None:
    if split_of(key, validation, small) == "test":
        assert split_of(key, validation, small + more) == "test"


def test_shares_are_hit_within_binomial_bounds() -> None:
    num_keys = 20_000
    names = [split_of(f"question {number}", 0.05, 0.1) for number in range(num_keys)]
    for name, share in (("validation", 0.05), ("test", 0.1), ("train", 0.85)):
        deviation = math.sqrt(num_keys * share * (1 - share))
        assert abs(names.count(name) - num_keys * share) < 4 * deviation


def test_no_share_holds_nothing_out() -> None:
    assert {split_of(str(number), 0.0, 0.0) for number in range(200)} == {"train"}


def test_a_lone_surrogate_has_a_split() -> None:
    assert split_of("\ud800", 0.5, 0.0) in ("train", "validation")


@pytest.mark.parametrize(("validation", "test"), [(0.5, 0.5), (0.9, 0.2), (-0.1, 0.2)])
def test_shares_that_leave_nothing_are_refused(validation: float, test: float) -> None:
    with pytest.raises(DataError, match="leave no rows"):
        split_of("a", validation, test)
