"""Turns of a conversation as users have them, to messages as templates read them. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tunesmith.data.bad_row import BadRow
from tunesmith.data.columns import shown_columns
from tunesmith.data.message_content import TRAIN_KEYS, is_nothing, json_value, read_content, tool_calls, train_flag
from tunesmith.records import Message, Role

OPENAI_ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "function": "tool",
}
"""Values of ``role``."""

SHAREGPT_ROLES: dict[str, Role] = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "function_call": "assistant",
    "observation": "tool",
    "tool": "tool",
}
"""Values of ``from``."""

_BESIDE_CONTENT = frozenset({"id", "name", "tool_call_id", "reasoning_content", "reasoning", "thinking"})
"""Keys whose value is no content of the turn that could be lost: what they say is read, or about the turn."""
MOST_TURNS = 1_000
"""Turns of a conversation: each is found by rendering those before it, so the time grows with their square."""

_AFTER: dict[str, tuple[Role, ...]] = {
    "": ("system", "user"),
    "system": ("user",),
    "user": ("assistant",),
    "assistant": ("user", "tool"),
    "tool": ("assistant", "tool"),
}


def as_list(value: Any, what: str) -> list[Any]:
    """A list, or the list in a JSON text; missing is empty. Raises BadRow ``wrong_type``."""
    if isinstance(value, str):
        value = json_value(value, what) if value.strip() else None
    if value is None:
        return []
    if not isinstance(value, list | tuple):
        raise BadRow("wrong_type", f"{what} is not a list")
    return list(value)


def openai_message(turn: Any, number: int) -> Message:
    """A message from ``role`` and ``content``; its other keys that hold something go to ``extra``.

    ``content`` is text or parts: texts are joined, reasoning goes to ``extra["reasoning_content"]``, calls to
    ``extra["tool_calls"]``, a ``function_call`` among them; keys of parts that are not read to ``extra["content.KEY"]``.
    ``train``, ``weight`` and ``loss_weight`` of 0 or 1 set the message's own flag, in a part that of the part.

    Args:
        turn: as in the file.
        number: of the turn, from 1, for messages.

    Raises:
        BadRow: wrong_type, missing_column, role_order for an unknown role, or empty_answer and empty_text for a turn
            whose only content stands in a key that is not read.
    """
    turn = _mapping(turn, number, "role")
    return _message(turn, number, _role(turn["role"], OPENAI_ROLES, number, "role"), ("role", "content"))


def sharegpt_message(turn: Any, number: int) -> Message:
    """A message from ``from`` and ``value``; a ``function_call`` becomes an assistant message with ``tool_calls``.

    Other keys are read as ``openai_message`` does.

    Raises:
        BadRow: as ``openai_message``.
    """
    turn = _mapping(turn, number, "from")
    sender = turn["from"]
    role = _role(sender, SHAREGPT_ROLES, number, "from")
    if sender != "function_call":
        return _message(turn, number, role, ("from", "value"))
    calls = tool_calls(json_value(turn.get("value"), f"the function call of turn {number}"), number)
    if not calls:
        raise BadRow("wrong_type", f"the function call of turn {number} is empty")
    return _message({**turn, "value": None, "tool_calls": calls}, number, role, ("from", "value"))


def _message(turn: Mapping[str, Any], number: int, role: Role, keys: tuple[str, str]) -> Message:
    """The message of a turn whose role and content stand under ``keys``."""
    extra = {key: value for key, value in turn.items() if key not in (*keys, *TRAIN_KEYS) and not is_nothing(value)}
    calls = tool_calls(extra.pop("tool_calls", None), number)
    function_calls = tool_calls(extra.pop("function_call", None), number)
    if calls and function_calls:
        raise BadRow("wrong_type", f"turn {number} has both `tool_calls` and `function_call`")
    calls += function_calls
    if keys[1] not in turn and not calls:
        raise BadRow("missing_column", f"turn {number} has no `{keys[1]}`; it has: {shown_columns(turn)}")
    content = read_content(turn.get(keys[1]), number)
    extra |= {f"content.{key}": value for key, value in content.unread.items()}
    if content.reasoning:
        extra["reasoning_content"] = content.reasoning
    if calls + content.calls:
        extra["tool_calls"] = calls + content.calls
    elif not content.text.strip() and role != "tool":
        _refuse_unread(role, extra, number)
    train, stretches = content.flags(train_flag(turn, f"turn {number}"), number)
    return Message(role, content.text, train, extra or None, stretches)


def _refuse_unread(role: Role, extra: Mapping[str, Any], number: int) -> None:
    """Refuse a turn without content beside keys that may hold it: an empty turn would be read, or trained, in its place."""
    unread = [
        key
        for key, value in extra.items()
        if key not in _BESIDE_CONTENT and isinstance(value, str | list | tuple | Mapping)
    ]
    if unread:
        names = " and ".join(f"`{key}`" for key in unread)
        raise BadRow(
            "empty_answer" if role == "assistant" else "empty_text",
            f"turn {number} has no content, and its {names} {'is' if len(unread) == 1 else 'are'} not read",
        )


def check_turns(messages: Sequence[Message]) -> None:
    """Hold the order: system first if at all, then user and assistant in turn with tool results between, assistant last.

    Raises:
        BadRow: role_order with the turn, no_answer, empty_answer where the last turn says and calls nothing, or
            wrong_type for more than ``MOST_TURNS``.
    """
    if not messages:
        raise BadRow("no_answer", "the conversation has no turns")
    if len(messages) > MOST_TURNS:
        raise BadRow("wrong_type", f"the conversation has {len(messages):,} turns, at most {MOST_TURNS:,} are read")
    before = ""
    for number, message in enumerate(messages, 1):
        allowed = _AFTER[before]
        if message.role not in allowed:
            place = f"after {before}" if before else "at the start"
            raise BadRow("role_order", f"turn {number} is {message.role}; {place} comes {' or '.join(allowed)}")
        before = message.role
    if not any(message.role == "assistant" for message in messages):
        raise BadRow("no_answer", "the conversation has no turn of the assistant")
    last = messages[-1]
    if last.role != "assistant":
        raise BadRow(
            "role_order", f"turn {len(messages)}, the last, is {last.role}; a conversation ends with assistant"
        )
    if not last.content.strip() and not (last.extra or {}).get("tool_calls"):
        raise BadRow("empty_answer", f"turn {len(messages)}, the answer, is empty")


def tool_schemas(value: Any) -> tuple[Mapping[str, Any], ...] | None:
    """Schemas from a list or its JSON text, each as ``{"type": "function", "function": {...}}``; None where there are none.

    Raises:
        BadRow: ``wrong_type``.
    """
    if isinstance(value, str) and value.strip():
        value = json_value(value, "`tools`")
    items = [value] if isinstance(value, Mapping) else as_list(value, "`tools`")
    for item in items:
        if not isinstance(item, Mapping):
            raise BadRow("wrong_type", "an item of `tools` is not an object")
    schemas = tuple(
        item if "function" in item or "name" not in item else {"type": "function", "function": item} for item in items
    )
    return schemas or None


def _mapping(turn: Any, number: int, key: str) -> Mapping[str, Any]:
    if not isinstance(turn, Mapping):
        raise BadRow("wrong_type", f"turn {number} is not an object")
    if key not in turn:
        other = "sharegpt" if "from" in turn else "messages" if "role" in turn else ""
        advice = f"; the format is {other}" if other else ""
        raise BadRow("missing_column", f"turn {number} has no `{key}`; it has: {shown_columns(turn)}{advice}")
    return turn


def _role(value: Any, roles: Mapping[str, Role], number: int, key: str) -> Role:
    role = roles.get(value) if isinstance(value, str) else None
    if role is None:
        raise BadRow("role_order", f"turn {number} has `{key}: {value}`, known: {', '.join(roles)}")
    return role
