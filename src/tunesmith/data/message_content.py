"""The content of a turn: text, reasoning, calls, and the train flags of its parts. Torch-free."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from tunesmith.data.bad_row import BadRow
from tunesmith.json_values import RepeatedKey, loads
from tunesmith.records import Stretch

TRAIN_KEYS = ("train", "weight", "loss_weight")
"""Keys of a turn or a part that say whether it is trained."""

_TEXT_PARTS = ("text", "input_text", "output_text")
_REASONING_PARTS = ("reasoning", "thinking")
_PART_KEYS = frozenset({"type", "text", "value", "thinking", "reasoning", "tool_call", *TRAIN_KEYS})

_Kind = Literal["reasoning", "text", "tool call"]


@dataclass
class Content:
    """What a content holds.

    Attributes:
        text: of the text parts, joined.
        reasoning: of the reasoning parts, joined.
        calls: as ``tool_calls`` makes them.
        unread: keys of parts that are not read, with the value of the first.
    """

    text: str = ""
    reasoning: str = ""
    calls: list[dict[str, Any]] = field(default_factory=list)
    unread: dict[str, Any] = field(default_factory=dict)
    _parts: list[tuple[_Kind, int, bool | None]] = field(default_factory=list)

    def flags(self, own: bool | None, number: int) -> tuple[bool | None, tuple[Stretch, ...]]:
        """The flag of the whole message, and the stretches of text whose flag is another.

        A part without a flag has the message's. Templates write reasoning before the text and calls behind it, at places
        of their own: they cannot be told from the text beside them, and must have its flag.

        Args:
            own: the flag of the message.
            number: of the turn, from 1, for messages.

        Raises:
            BadRow: ``wrong_type`` for reasoning or a call with another flag than the text beside it.
        """
        parts = [(kind, length, own if flag is None else flag) for kind, length, flag in self._parts]
        chosen = {flag for _, _, flag in parts}
        if len(chosen) < 2:
            return (chosen.pop() if chosen else own), ()
        texts = [(length, flag) for kind, length, flag in parts if kind == "text"]
        for kind, at in (("reasoning", 0), ("tool call", -1)):
            if any(flag != (texts[at][1] if texts else own) for other, _, flag in parts if other == kind):
                raise BadRow(
                    "wrong_type",
                    f"turn {number} flags a {kind} part otherwise than the text beside it; only parts of text have flags of their own",
                )
        return own, _stretches(texts)


def _stretches(texts: Sequence[tuple[int, bool | None]]) -> tuple[Stretch, ...]:
    found: list[Stretch] = []
    start = 0
    for length, flag in texts:
        end = start + length
        if flag is not None:
            if found and found[-1].end == start and found[-1].train == flag:
                start = found.pop().start
            found.append(Stretch(start, end, flag))
        start = end
    return tuple(found)


def read_content(value: Any, number: int) -> Content:
    """A content that is text, missing, or a list of parts.

    Args:
        value: as in the file.
        number: of the turn, from 1, for messages.

    Raises:
        BadRow: ``wrong_type``.
    """
    if value is None or isinstance(value, str):
        return Content(value or "")
    if not isinstance(value, list | tuple):
        raise BadRow("wrong_type", f"the content of turn {number} is neither text nor a list of parts")
    content = Content()
    for part in value:
        _add_part(content, part, number)
    return content


def _add_part(content: Content, part: Any, number: int) -> None:
    kind = part.get("type") if isinstance(part, Mapping) else None
    place = f"a part of turn {number}"
    if kind == "tool_call":
        called = json_value(part.get("value", part.get("tool_call")), f"a tool call of turn {number}")
        content.calls += tool_calls(called, number)
        content._parts.append(("tool call", 0, train_flag(part, place)))
    elif kind in _TEXT_PARTS:
        text = _part_text(part, number)
        content.text += text
        if text:
            content._parts.append(("text", len(text), train_flag(part, place)))
    elif kind in _REASONING_PARTS:
        content.reasoning += _part_text(part, number)
        content._parts.append(("reasoning", 0, train_flag(part, place)))
    else:
        raise BadRow(
            "wrong_type", f"turn {number} has a part of type `{kind}`; only text, reasoning and tool_call are read"
        )
    for key, value in part.items():
        if key not in _PART_KEYS and not is_nothing(value):
            content.unread.setdefault(str(key), value)


def _part_text(part: Mapping[str, Any], number: int) -> str:
    for key in ("text", "value", "thinking", "reasoning"):
        if isinstance(part.get(key), str):
            return str(part[key])
    raise BadRow("wrong_type", f"a part of turn {number} holds no text")


def train_flag(holder: Mapping[str, Any], place: str) -> bool | None:
    """The flag that a turn or a part carries; None where it has none.

    Raises:
        BadRow: ``wrong_type`` for a value that is neither 0 nor 1, or two flags that contradict each other.
    """
    flags: dict[str, bool] = {}
    for key in TRAIN_KEYS:
        value = holder.get(key)
        if value is None:
            continue
        if not isinstance(value, bool | int | float) or value not in (0, 1):
            raise BadRow("wrong_type", f"`{key}` of {place} is {value!r}; 0 and 1 are known")
        flags[key] = bool(value)
    if len(set(flags.values())) > 1:
        raise BadRow("wrong_type", f"{' and '.join(flags)} of {place} contradict each other")
    return next(iter(flags.values()), None)


def is_nothing(value: Any) -> bool:
    """Whether a key of a turn holds nothing: exports write all keys, null or empty where they say nothing."""
    return value is None or (isinstance(value, str | list | tuple | Mapping) and not value)


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
            parsed = loads(arguments)
        except (ValueError, RecursionError):
            parsed = None
        arguments = parsed if isinstance(parsed, dict) else arguments
    outer = {key: value for key, value in item.items() if value is not None} if "function" in item else {}
    return {**outer, "type": "function", "function": {"name": function["name"], "arguments": arguments}}


def json_value(value: Any, what: str) -> Any:
    """The value itself, or what a JSON text holds. Raises BadRow ``wrong_type`` for text that is no JSON."""
    if not isinstance(value, str):
        return value
    try:
        return loads(value)
    except json.JSONDecodeError as error:
        raise BadRow("wrong_type", f"{what} is not JSON: {error.msg} (character {error.pos + 1})") from None
    except RepeatedKey as error:
        raise BadRow("wrong_type", f"{what}: {error}") from None
    except (ValueError, RecursionError):
        raise BadRow("wrong_type", f"{what} is not JSON") from None
