"""Rows far longer than the context are known as such without being rendered, and never by mistake."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.data import length_bound
from tunesmith.data.length_bound import num_characters, tokens_beyond
from tunesmith.records import Chat, Labelled, Message, Text

WORDS = "some words here "


def _words(text: str) -> list[int]:
    return [len(word) for word in text.split()]


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(length_bound, "LONG_CHARACTERS", 100)


def test_short_records_are_not_looked_at() -> None:
    assert tokens_beyond(Text("a " * 50), lambda text: pytest.fail("it was encoded"), 2) is None


@pytest.mark.parametrize(
    "record",
    [
        Text(WORDS * 1000),
        Labelled(WORDS * 1000, "a"),
        Chat((Message("user", "a"), Message("assistant", WORDS * 1000))),
        Chat(tuple(Message("user" if i % 2 == 0 else "assistant", WORDS * 10) for i in range(100))),
    ],
)
def test_a_beginning_is_enough(record: Text | Labelled | Chat) -> None:
    seen: list[int] = []
    beyond = tokens_beyond(record, lambda text: seen.append(len(text)) or _words(text), 60)
    assert beyond is not None
    assert 60 < beyond <= 3000
    assert sum(seen) <= 1100


def test_a_content_of_few_tokens_is_looked_at_whole() -> None:
    spaces = Text("a" + " " * 5000 + "b c d")
    assert tokens_beyond(spaces, _words, 3) == 4
    assert tokens_beyond(spaces, _words, 4) is None


@given(
    st.lists(st.text(alphabet="ab \n", max_size=300), min_size=1, max_size=4), st.integers(min_value=1, max_value=200)
)
def test_what_is_said_is_true(contents: list[str], context: int) -> None:
    record = Chat(tuple(Message("user", content) for content in contents))
    beyond = tokens_beyond(record, _words, context)
    # A beginning may end within a word, which is then one of the whole text's words as well.
    whole = sum(len(_words(content)) for content in contents)
    if beyond is None:
        assert num_characters(record) <= 100 or whole <= context
    else:
        assert context < beyond <= whole
