"""Chat templates: a conversation becomes the text a model reads. Torch-free, equal to ``apply_chat_template``."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import jinja2

from tunesmith.data import template_sandbox
from tunesmith.data.template_filters import clock
from tunesmith.data.template_sandbox import CLOSE, OPEN
from tunesmith.errors import DataError, ModelError, RecipeError
from tunesmith.foreign import read_object, read_text
from tunesmith.json_values import loads
from tunesmith.records import Message

Span = tuple[int, int]
"""First character and one past the last."""
Tools = Sequence[Mapping[str, Any]]

DEFAULT_TEMPLATE = """\
{%- if tools %}
    {{- '### Tools:\\n' }}
    {%- for tool in tools %}
        {{- (tool.function if tool.function is defined else tool) | tojson + '\\n' }}
    {%- endfor %}
    {{- '\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'assistant' %}
        {{- '### Assistant:\\n' }}
        {%- generation %}
            {{- message.content }}
            {%- for call in message.tool_calls or [] %}
                {%- set call = call.function if call.function is defined else call %}
                {{- ('\\n' if message.content or not loop.first else '') + '<tool_call>\\n' }}
                {{- {'name': call.name, 'arguments': call.arguments} | tojson + '\\n</tool_call>' }}
            {%- endfor %}
            {{- eos_token }}
        {%- endgeneration %}
        {{- '\\n\\n' }}
    {%- else %}
        {{- '### ' + message.role | capitalize + ':\\n' + message.content + '\\n\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '### Assistant:\\n' }}
{%- endif %}
"""
"""For base models that have no template: headed paragraphs, each answer closed by the end-of-text token."""

_MARKED = re.compile(r"\{%-?\s*generation\s*[-+]?%\}")
REASONING_KEYS = ("reasoning_content", "thinking", "reasoning")
"""Keys of a message that hold its reasoning; templates read one of them."""
_LONGEST_REASON = 300


class TemplateError(DataError):
    """A chat template does not compile, or fails on a conversation."""


class ChatTemplate:
    """A compiled chat template.

    Messages reach the template as dicts of ``role``, ``content`` and whatever ``extra`` holds. Arguments of tool calls,
    JSON text in OpenAI's format, are parsed into mappings, which is what templates expect; only a template that fails on
    a mapping or would print it as Python (the DeepSeek kind) gets the text.

    Args:
        source: the Jinja text.
        special_tokens: ``bos_token``, ``eos_token`` … as the template may name them.
        date: ISO day that ``strftime_now`` tells.
        where: file of the template, for messages.

    Raises:
        TemplateError: it does not compile; names the line.
        RecipeError: the date is not one.
    """

    def __init__(
        self, source: str, special_tokens: Mapping[str, str], date: str = "2026-01-01", where: str = "chat template"
    ) -> None:
        self.source = source
        self.special_tokens = dict(special_tokens)
        self.date = date
        self.where = where
        self.has_markers = _MARKED.search(source) is not None
        self.keys_read: set[tuple[str, str]] = set()
        """Role and key of messages that were seen to change the text."""
        try:
            self._clock = datetime.fromisoformat(date)
        except ValueError:
            raise RecipeError(f"`{date}` is not a day", where="[model.date]", hint="write it as 2026-01-31") from None
        sandbox = template_sandbox.Sandbox()
        sandbox.globals["strftime_now"] = clock(self._clock.strftime)
        try:
            self._compiled = sandbox.compile_within_limits(source)
        except jinja2.TemplateSyntaxError as error:
            raise TemplateError(
                f"the chat template does not compile: {error.message}",
                where=f"{where}:{error.lineno}",
                hint="mend the Jinja syntax",
            ) from None
        except (jinja2.TemplateError, RecursionError, ValueError, SyntaxError, MemoryError) as error:
            raise TemplateError(
                f"the chat template does not compile: {_reason(error)}",
                where=where,
                hint="give another: model.chat_template: FILE",
            ) from None

    def __reduce__(self) -> tuple[Any, ...]:
        """Compile again in another process."""
        return (ChatTemplate, (self.source, self.special_tokens, self.date, self.where))

    def render(
        self, messages: Sequence[Message], tools: Tools | None = None, add_generation_prompt: bool = False
    ) -> str:
        """Text of the conversation.

        Raises:
            TemplateError: the template refuses the conversation, fails on it or goes beyond its limits.
        """
        return self._run(messages, tools, add_generation_prompt, self.arguments_as_text, marking=False)

    def render_with_spans(
        self, messages: Sequence[Message], tools: Tools | None = None, add_generation_prompt: bool = False
    ) -> tuple[str, list[Span] | None]:
        """Text and the character spans of ``{% generation %}`` in it, in order; None where the template has no markers.

        Raises:
            TemplateError: as ``render``.
        """
        if not self.has_markers:
            return self.render(messages, tools, add_generation_prompt), None
        given = json.dumps([[m.content, _plain(m.extra)] for m in messages] + [_plain(tools)], ensure_ascii=False)
        if OPEN in given or CLOSE in given:
            raise TemplateError(
                "the conversation contains the noncharacters U+10FFFE or U+10FFFF",
                where=self.where,
                hint="take them out of the row: they are no characters",
            )
        marked = self._run(messages, tools, add_generation_prompt, self.arguments_as_text, marking=True)
        return self._read_marks(marked)

    def names(self, key: str) -> bool:
        """Whether the source holds the key as a word: it may then read it, of messages or of something else."""
        return re.search(rf"(?<!\w){re.escape(key)}(?!\w)", self.source) is not None

    @cached_property
    def arguments_as_text(self) -> bool:
        """Whether tool calls' arguments must be JSON text."""
        probe = _PROBE_CALL[:2]
        as_mapping = self._try(probe, None, as_text=False)
        if as_mapping is not None and "{'place'" not in as_mapping:
            return False
        return self._try(probe, None, as_text=True) is not None

    @cached_property
    def shows_tool_calls(self) -> bool:
        """Whether calls of an assistant message appear in the text."""
        text = self._try(_PROBE_CALL[:2], None, as_text=self.arguments_as_text)
        return text is None or "look_up_tide" in text

    @cached_property
    def shows_tools(self) -> bool:
        """Whether the declared tools appear in the text."""
        text = self._try(_PROBE_CALL[:1], _PROBE_TOOLS, as_text=False)
        return text is None or "look_up_tide" in text

    def _try(self, messages: Sequence[Message], tools: Tools | None, *, as_text: bool) -> str | None:
        try:
            return self._run(messages, tools, False, as_text, marking=False)
        except TemplateError:
            return None

    def _run(
        self, messages: Sequence[Message], tools: Tools | None, prompt: bool, as_text: bool, *, marking: bool
    ) -> str:
        variables = {
            **self.special_tokens,
            "messages": [template_dict(message, arguments_as_text=as_text) for message in messages],
            "tools": None if tools is None else [_plain(tool) for tool in tools],
            "documents": None,
            "add_generation_prompt": prompt,
        }
        try:
            return template_sandbox.render(self._compiled, variables, marking=marking)
        except (jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError) as error:
            reason = _reason(error)
        except (RecursionError, ArithmeticError, MemoryError) as error:
            reason = f"{type(error).__name__}: {_reason(error)}"
        raise TemplateError(
            f"the chat template fails: {reason}",
            where=self.where,
            hint="compare the row with what the template expects",
        )

    def _read_marks(self, marked: str) -> tuple[str, list[Span]]:
        """Take the marks out and read the spans off; nested blocks count as their outermost."""
        pieces: list[str] = []
        spans: list[Span] = []
        depth = length = start = 0
        for piece in re.split(f"([{OPEN}{CLOSE}])", marked):
            if piece == OPEN:
                start = start if depth else length
                depth += 1
            elif piece == CLOSE:
                depth -= 1
                if depth == 0:
                    spans.append((start, length))
            else:
                pieces.append(piece)
                length += len(piece)
            if depth < 0:
                break
        if depth != 0:
            raise TemplateError(
                "the template cuts its own generation markers apart",
                where=self.where,
                hint="give another: model.chat_template: FILE, with its generation tags around whole answers",
            )
        return "".join(pieces), spans


def _reason(error: BaseException) -> str:
    """The words of an error, not more of them than a person reads: a template can make it as long as it likes."""
    words = str(error) or type(error).__name__
    return words if len(words) <= _LONGEST_REASON else f"{words[:_LONGEST_REASON]}…"


_PROBE_CALL = (
    Message("user", "When is high water?"),
    Message(
        "assistant",
        "",
        extra={
            "tool_calls": [
                {
                    "id": "call00001",
                    "type": "function",
                    "function": {"name": "look_up_tide", "arguments": '{"place": "Hull"}'},
                }
            ]
        },
    ),
)
_PROBE_TOOLS = (
    {
        "type": "function",
        "function": {
            "name": "look_up_tide",
            "description": "Tide times",
            "parameters": {
                "type": "object",
                "properties": {"place": {"type": "string", "description": "A harbour"}},
                "required": ["place"],
            },
        },
    },
)


def template_dict(message: Message, *, arguments_as_text: bool = False) -> dict[str, Any]:
    """A message as templates read it: plain JSON types, no None at the top, reasoning under each of its names."""
    values: dict[str, Any] = {"role": message.role, "content": message.content}
    for key, value in (message.extra or {}).items():
        if key not in values and value is not None:
            values[key] = _plain(value)
    calls = values.get("tool_calls")
    if isinstance(calls, list):
        values["tool_calls"] = [_call(call, arguments_as_text) for call in calls]
    reasoning = next((values[key] for key in REASONING_KEYS if key in values), None)
    if reasoning is not None:
        values = {"thinking": reasoning, **values, "reasoning_content": reasoning}
    return values


def _call(call: Any, as_text: bool) -> Any:
    """A tool call with its arguments in the form the template reads."""
    if not isinstance(call, dict):
        return call
    if isinstance(call.get("function"), dict):
        return {**call, "function": _call(call["function"], as_text)}
    arguments = call.get("arguments")
    if as_text and arguments is not None and not isinstance(arguments, str):
        return {**call, "arguments": json.dumps(arguments, ensure_ascii=False)}
    if not as_text and isinstance(arguments, str):
        try:
            parsed = loads(arguments)
        except ValueError:
            return call
        return {**call, "arguments": parsed} if isinstance(parsed, dict) else call
    return call


def _plain(value: Any) -> Any:
    """Only JSON types reach a template: other objects have methods that the sandbox does not know."""
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value)


def find_template(folder: Path) -> str | None:
    """The chat template of a model folder: ``chat_template.jinja``, else what tokenizer_config.json holds.

    Raises:
        ModelError: unreadable, or several named templates of which none is the default.
    """
    own = folder / "chat_template.jinja"
    if own.is_file():
        return read_template(own)
    config = folder / "tokenizer_config.json"
    if not config.is_file():
        return None
    template: Any = read_object(config).get("chat_template")
    if isinstance(template, list):
        named = {
            item["name"]: item["template"]
            for item in template
            if isinstance(item, dict) and isinstance(item.get("name"), str) and isinstance(item.get("template"), str)
        }
        if "default" not in named and len(named) != 1:
            raise ModelError(
                f"the model has several chat templates and none is the default: {', '.join(sorted(named)) or 'none with a name'}",
                where=str(config),
                hint="write the one you want to a file and name it as model.chat_template",
            )
        template = named.get("default") or next(iter(named.values()))
    if template is not None and not isinstance(template, str):
        raise ModelError(
            "the chat template is no text",
            where=f"{config} [chat_template]",
            hint="copy the file again, or remove the key",
        )
    return template


def read_template(path: Path) -> str:
    """Text of a template file.

    Raises:
        TemplateError: it is missing, too large or not UTF-8 text.
    """
    try:
        return read_text(path, kind=TemplateError)
    except FileNotFoundError:
        raise TemplateError(
            "there is no such chat template",
            where=f"{path} [model.chat_template]",
            hint="the path starts from the recipe's folder",
        ) from None


def default_template(begins_with_bos: bool) -> str:
    """``DEFAULT_TEMPLATE``, after the begin-of-text token where the model's documents begin with one."""
    return ("{{- bos_token }}\n" if begins_with_bos else "") + DEFAULT_TEMPLATE
