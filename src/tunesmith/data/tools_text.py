"""Tools and tool calls as plain text, for chat templates that would leave them out. Torch-free.

The text is that of Hermes and Qwen: definitions in ``<tools>`` at the end of the system message, calls in ``<tool_call>``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from tunesmith.data.chat_template import ChatTemplate, Tools, template_dict
from tunesmith.records import Message

_INTRODUCTION = "You may call these functions. For each call write a JSON object with name and arguments within <tool_call></tool_call>."


def calls_as_text(message: Message) -> Message:
    """The message with its tool calls written into its content."""
    calls = template_dict(message).get("tool_calls")
    if not isinstance(calls, list):
        return message
    written = [f"<tool_call>\n{_json(_name_and_arguments(call))}\n</tool_call>" for call in calls]
    content = "\n".join([message.content, *written] if message.content else written)
    extra = {key: value for key, value in (message.extra or {}).items() if key != "tool_calls"}
    stretches = message.stretches
    if stretches and stretches[-1].end == len(message.content):  # calls have the flag of the text before them
        stretches = (*stretches[:-1], replace(stretches[-1], end=len(content)))
    return replace(message, content=content, extra=extra or None, stretches=stretches)


def tools_as_text(messages: Sequence[Message], tools: Tools) -> tuple[Message, ...]:
    """The conversation with the tools in its system message; one is put first, untrained, where there is none."""
    lines = "\n".join(_json(tool) for tool in tools)
    text = f"{_INTRODUCTION}\n<tools>\n{lines}\n</tools>"
    if messages and messages[0].role == "system":
        first = messages[0]
        return (replace(first, content=f"{first.content}\n\n{text}" if first.content else text), *messages[1:])
    return (Message("system", text, train=False), *messages)


def written_out(
    template: ChatTemplate, messages: Sequence[Message], tools: Tools | None
) -> tuple[tuple[Message, ...], Tools | None, list[str]]:
    """Conversation, tools left for the template, and a sentence for each thing written as text instead."""
    said: list[str] = []
    result = tuple(messages)
    if any((message.extra or {}).get("tool_calls") for message in result) and not template.shows_tool_calls:
        result = tuple(calls_as_text(message) for message in result)
        said.append("the chat template leaves tool calls out: they are written into the answers as <tool_call> text")
    if tools and not template.shows_tools:
        result = tools_as_text(result, tools)
        tools = None
        said.append("the chat template leaves tools out: their definitions are written into the system message")
    return result, tools or None, said


def _name_and_arguments(call: Any) -> Any:
    inner = call.get("function", call) if isinstance(call, Mapping) else call
    if not isinstance(inner, Mapping):
        return inner
    return {"name": inner.get("name"), "arguments": inner.get("arguments")}


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
