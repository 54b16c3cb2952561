"""Records as turns. Torch-free."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tunesmith.data.bad_row import BadRow
from tunesmith.records import Chat, Labelled, Message, Tagged


def messages_of(record: Chat | Labelled | Tagged) -> tuple[Message, ...]:
    """The turns of a conversation; a labelled text is a question and its answer.

    Raises:
        BadRow: no_answer for tagged words.
    """
    if isinstance(record, Tagged):
        raise BadRow("no_answer", "tagged words have no answer; `objective: {type: tag}` trains on them")
    if isinstance(record, Labelled):
        return (Message("user", record.text), Message("assistant", record.label))
    return record.messages


def called_names(message: Message) -> list[Any]:
    """Names of the functions that a message calls."""
    calls = (message.extra or {}).get("tool_calls") or []
    functions = [call.get("function", call) for call in calls if isinstance(call, dict)]
    return [function["name"] for function in functions if isinstance(function, dict) and "name" in function]


def must_answer(messages: Sequence[Message]) -> None:
    """Check that a conversation ends with an answer.

    Raises:
        BadRow: no_answer or empty_answer.
    """
    if not messages or messages[-1].role != "assistant":
        raise BadRow("no_answer", "the conversation does not end with an answer")
    if not messages[-1].content.strip() and not called_names(messages[-1]):
        raise BadRow("empty_answer", "the last answer is empty")
