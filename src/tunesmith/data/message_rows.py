"""Turns of a conversation as users have them, to messages as templates read them. Torch-free."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from tunesmith.data.bad_row import BadRow
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

_TRAIN_KEYS = ("train", "weight", "loss_weight")
_BESIDE_CONTENT = frozenset({"id", "name", "tool_call_id", "reasoning_content", "reasoning", "thinking"})
"""Keys whose value is no content of the turn that could be lost: what they say is read, or about the turn."""
_TEXT_PARTS = ("text", "input_text", "output_text")
_REASONING_PARTS = ("reasoning", "thinking")
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
        value = _json(value, what) if value.strip() else None
    if value is None:
        return []
    if not isinstance(value, list | tuple):
        raise BadRow("wrong_type", f"{what} is not a list")
    return list(value)


def openai_message(turn: Any, number: int) -> Message:
    """A message from ``role`` and ``content``; its other keys that hold something go to ``extra``.

    ``content`` is text or parts: texts are joined, reasoning goes to ``extra["reasoning_content"]``, calls to
    ``extra["tool_calls"]``, a ``function_call`` among them. ``train``, ``weight`` and ``loss_weight`` of 0 or 1 set the
    message's own flag.

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
    calls = tool_calls(_json(turn.get("value"), f"the function call of turn {number}"), number)
    if not calls:
        raise BadRow("wrong_type", f"the function call of turn {number} is empty")
    return _message({**turn, "value": None, "tool_calls": calls}, number, role, ("from", "value"))


def _message(turn: Mapping[str, Any], number: int, role: Role, keys: tuple[str, str]) -> Message:
    """The message of a turn whose role and content stand under ``keys``."""
    extra = {key: value for key, value in turn.items() if key not in (*keys, *_TRAIN_KEYS) and not _is_nothing(value)}
    calls = tool_calls(extra.pop("tool_calls", None), number)
    function_calls = tool_calls(extra.pop("function_call", None), number)
    if calls and function_calls:
        raise BadRow("wrong_type", f"turn {number} has both `tool_calls` and `function_call`")
    calls += function_calls
    if keys[1] not in turn and not calls:
        raise BadRow("missing_column", f"turn {number} has no `{keys[1]}`; it has: {', '.join(turn)}")
    content, reasoning, more_calls = _content(turn.get(keys[1]), number)
    if reasoning:
        extra["reasoning_content"] = reasoning
    if calls + more_calls:
        extra["tool_calls"] = calls + more_calls
    elif not content.strip() and role != "tool":
        _refuse_unread(role, extra, number)
    return Message(role, content, _train(turn, number), extra or None)


def _is_nothing(value: Any) -> bool:
    """Whether a key of a turn holds nothing: exports write all keys, null or empty where they say nothing."""
    return value is None or (isinstance(value, str | list | tuple | Mapping) and not value)


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
        BadRow: role_order with the turn, no_answer, or empty_answer where the last turn says and calls nothing.
    """
    if not messages:
        raise BadRow("no_answer", "the conversation has no turns")
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


def tool_calls(value: Any, number: int) -> list[dict[str, Any]]:
    """Calls as ``{"type": "function", "function": {"name", "arguments"}}``, arguments as an object where they are JSON.

    OpenAI's files hold arguments as JSON text, which templates would quote a second time.

    Raises:
        BadRow: ``wrong_type`` for anything that is not a call.
    """
    if value is None:
        return []
    items = [value] if isinstance(value, Mapping) else value
    if not isinstance(items, list | tuple):
        raise BadRow("wrong_type", f"the tool calls of turn {number} are not a list")
    return [_call(item, number) for item in items]


def _call(item: Any, number: int) -> dict[str, Any]:
    if not isinstance(item, Mapping):
        raise BadRow("wrong_type", f"a tool call of turn {number} is not an object")
    function = item.get("function", item)
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise BadRow("wrong_type", f"a tool call of turn {number} has no function name")
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        try:
            parsed = json.loads(arguments)
        except (ValueError, RecursionError):
            parsed = None
        arguments = parsed if isinstance(parsed, dict) else arguments
    outer = {key: value for key, value in item.items() if value is not None} if "function" in item else {}
    return {**outer, "type": "function", "function": {"name": function["name"], "arguments": arguments}}


def tool_schemas(value: Any) -> tuple[Mapping[str, Any], ...] | None:
    """Schemas from a list or its JSON text, each as ``{"type": "function", "function": {...}}``; None where there are none.

    Raises:
        BadRow: ``wrong_type``.
    """
    if isinstance(value, str) and value.strip():
        value = _json(value, "`tools`")
    items = [value] if isinstance(value, Mapping) else as_list(value, "`tools`")
    for item in items:
        if not isinstance(item, Mapping):
            raise BadRow("wrong_type", "an item of `tools` is not an object")
    schemas = tuple(
        item if "function" in item or "name" not in item else {"type": "function", "function": item} for item in items
    )
    return schemas or None


def _json(value: Any, what: str) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except json.JSONDecodeError as error:
        raise BadRow("wrong_type", f"{what} is not JSON: {error.msg} (character {error.pos + 1})") from None
    except (ValueError, RecursionError):
        raise BadRow("wrong_type", f"{what} is not JSON") from None


def _mapping(turn: Any, number: int, key: str) -> Mapping[str, Any]:
    if not isinstance(turn, Mapping):
        raise BadRow("wrong_type", f"turn {number} is not an object")
    if key not in turn:
        other = "sharegpt" if "from" in turn else "messages" if "role" in turn else ""
        advice = f"; the format is {other}" if other else ""
        raise BadRow("missing_column", f"turn {number} has no `{key}`; it has: {', '.join(turn) or 'nothing'}{advice}")
    return turn


def _role(value: Any, roles: Mapping[str, Role], number: int, key: str) -> Role:
    role = roles.get(value) if isinstance(value, str) else None
    if role is None:
        raise BadRow("role_order", f"turn {number} has `{key}: {value}`, known: {', '.join(roles)}")
    return role


def _content(value: Any, number: int) -> tuple[str, str, list[dict[str, Any]]]:
    """Text, reasoning and tool calls of a content."""
    if value is None or isinstance(value, str):
        return value or "", "", []
    if not isinstance(value, list | tuple):
        raise BadRow("wrong_type", f"the content of turn {number} is neither text nor a list of parts")
    texts: list[str] = []
    reasons: list[str] = []
    calls: list[dict[str, Any]] = []
    for part in value:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind == "tool_call":
            calls += tool_calls(
                _json(part.get("value", part.get("tool_call")), f"a tool call of turn {number}"), number
            )
        elif kind in _TEXT_PARTS:
            texts.append(_part_text(part, number))
        elif kind in _REASONING_PARTS:
            reasons.append(_part_text(part, number))
        else:
            raise BadRow(
                "wrong_type", f"turn {number} has a part of type `{kind}`; only text, reasoning and tool_call are read"
            )
    return "".join(texts), "".join(reasons), calls


def _part_text(part: Mapping[str, Any], number: int) -> str:
    for key in ("text", "value", "thinking", "reasoning"):
        if isinstance(part.get(key), str):
            return str(part[key])
    raise BadRow("wrong_type", f"a part of turn {number} holds no text")


def _train(turn: Mapping[str, Any], number: int) -> bool | None:
    flags: dict[str, bool] = {}
    for key in _TRAIN_KEYS:
        value = turn.get(key)
        if value is None:
            continue
        if not isinstance(value, bool | int | float) or value not in (0, 1):
            raise BadRow("wrong_type", f"`{key}` of turn {number} is {value!r}; 0 and 1 are known")
        flags[key] = bool(value)
    if len(set(flags.values())) > 1:
        raise BadRow("wrong_type", f"{' and '.join(flags)} of turn {number} contradict each other")
    return next(iter(flags.values()), None)
