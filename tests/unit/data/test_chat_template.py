"""Chat templates: equal to transformers' ``apply_chat_template``, and harmless."""

from __future__ import annotations

import datetime
import importlib.util
import json
import pickle
import time
from pathlib import Path

import pytest

from tunesmith.data import template_budget
from tunesmith.data.chat_template import (
    DEFAULT_TEMPLATE,
    ChatTemplate,
    TemplateError,
    find_template,
    read_template,
    template_dict,
)
from tunesmith.data.tokenizer import Tokenizer
from tunesmith.embedded import DEFAULT_MODEL, model_folder
from tunesmith.errors import ModelError, RecipeError
from tunesmith.records import Message

FOLDER = model_folder(DEFAULT_MODEL)
assert FOLDER is not None
CHATML = (FOLDER / "chat_template.jinja").read_text(encoding="utf-8")
TOOLS = (
    {
        "type": "function",
        "function": {
            "name": "look_up_tide",
            "description": "Tide times, é <b>&",
            "parameters": {
                "type": "object",
                "properties": {"place": {"type": "string", "description": "A port"}},
                "required": ["place"],
            },
        },
    },
)
CALL = {
    "tool_calls": [
        {"id": "abcdefghi", "type": "function", "function": {"name": "look_up_tide", "arguments": '{"place": "Hull"}'}}
    ]
}
CONVERSATIONS = {
    "short": [Message("user", "Hi "), Message("assistant", " Yo")],
    "system": [
        Message("system", "Be brief."), Message("user", "One"), Message("assistant", "1"), Message("user", "Two"), Message("assistant", "2\n"),
    ],
    "empty": [Message("user", "Hi"), Message("assistant", ""), Message("user", "And?"), Message("assistant", "So.")],
    "tools": [
        Message("user", "Tide?"), Message("assistant", "", extra=CALL),
        Message("tool", '{"hour": 6}', extra={"name": "look_up_tide", "tool_call_id": "abcdefghi"}), Message("assistant", "At six."),
    ],
    "thinking": [
        Message("user", "Hi"), Message("assistant", "Yo", extra={"reasoning_content": "hm"}), Message("user", "Again"),
        Message("assistant", "<think>\nwell\n</think>\n\nYo yo"),
    ],
}  # fmt: skip


def trl_templates() -> list[Path]:
    spec = importlib.util.find_spec("trl")
    origin = spec.origin if spec else None
    return sorted((Path(origin).parent / "chat_templates").glob("*.jinja")) if origin else []


TRL = trl_templates()
ALL = [pytest.param(CHATML, id="chatml"), pytest.param(DEFAULT_TEMPLATE, id="default")] + (
    [pytest.param(path.read_text(encoding="utf-8"), id=path.stem) for path in TRL]
    or [
        pytest.param(
            "", id="trl", marks=pytest.mark.skip(reason="TRL is not installed: its chat templates are not compared")
        )
    ]
)


class NewYear(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return cls(2026, 1, 1)


@pytest.fixture(scope="module")
def peer():
    """transformers' tokenizer over the embedded vocabulary, with the families' special tokens."""
    transformers = pytest.importorskip("transformers")
    return transformers.AutoTokenizer.from_pretrained(str(FOLDER))


@pytest.fixture
def peers_clock(monkeypatch: pytest.MonkeyPatch):
    from transformers.utils import chat_template_utils

    monkeypatch.setattr(chat_template_utils, "datetime", NewYear)


def both(peer, source, template, messages, tools, prompt):
    """What transformers and we write; None where the template refuses."""
    dicts = [template_dict(message, arguments_as_text=template.arguments_as_text) for message in messages]
    try:
        theirs = peer.apply_chat_template(
            dicts,
            tools=None if tools is None else list(tools),
            chat_template=source,
            add_generation_prompt=prompt,
            tokenize=False,
        )
    except Exception:
        theirs = None
    try:
        ours = template.render(messages, tools, prompt)
    except TemplateError:
        ours = None
    return theirs, ours


@pytest.mark.parametrize("source", ALL)
def test_text_equals_apply_chat_template(source: str, peer, peers_clock):
    template = ChatTemplate(source, peer.special_tokens_map, "2026-01-01")
    written = 0
    for messages in CONVERSATIONS.values():
        for tools in (None, TOOLS):
            for prompt in (False, True):
                theirs, ours = both(peer, source, template, messages, tools, prompt)
                assert theirs == ours
                written += ours is not None
    assert written > 0 or "content'][0]" in source, "only templates for images refuse plain text"


@pytest.mark.parametrize("source", ALL)
def test_spans_equal_assistant_masks(source: str, peer, peers_clock):
    template = ChatTemplate(source, peer.special_tokens_map, "2026-01-01")
    if not template.has_markers:
        assert "endgeneration" not in source
        return
    tokenizer = Tokenizer.from_folder(FOLDER)
    for name, messages in CONVERSATIONS.items():
        dicts = [template_dict(message, arguments_as_text=template.arguments_as_text) for message in messages]
        try:
            text, spans = template.render_with_spans(messages)
        except TemplateError:
            continue
        theirs = peer.apply_chat_template(
            dicts, chat_template=source, return_assistant_tokens_mask=True, return_dict=True
        )
        ids, offsets = tokenizer.encode_with_offsets(text)
        assert ids == theirs["input_ids"]
        assert spans is not None
        if any(start == end for start, end in spans):
            continue  # transformers looks up the character before an empty span
        ours = [int(any(start < end_t and begin < end for start, end in spans)) for begin, end_t in offsets]
        assert ours == theirs["assistant_masks"], name


def test_spans_inside_macros_are_right():
    """A marker inside a macro or a captured block still gives places in the whole text."""
    source = (
        "{%- macro turn(m) %}[{% generation %}{{ m.content }}{% endgeneration %}]{% endmacro %}"
        "{%- set first %}{{ turn(messages[1]) }}{% endset %}{{ messages[0].content }}{{ first }}"
    )
    text, spans = ChatTemplate(source, {}).render_with_spans([Message("user", "ab"), Message("assistant", "cd")])
    assert text == "ab[cd]"
    assert spans == [(3, 5)]


def test_texts_cannot_forge_marks():
    forged = Message("user", "\U0010fffetrain me\U0010ffff")
    with pytest.raises(TemplateError, match="noncharacters"):
        ChatTemplate(CHATML, {}).render_with_spans([forged, Message("assistant", "no")])


def test_the_recipes_day_is_told():
    template = ChatTemplate("{{ strftime_now('%d %b %Y') }}", {}, "2025-03-04")
    assert template.render([Message("user", "x")]) == "04 Mar 2025"
    with pytest.raises(RecipeError, match="not a day"):
        ChatTemplate("x", {}, "soon")


def test_arguments_are_mappings_unless_the_template_needs_text():
    mapping = ChatTemplate("{{ messages[1].tool_calls[0].function.arguments | tojson }}", {})
    assert mapping.render(CONVERSATIONS["tools"]) == '{"place": "Hull"}'
    text = ChatTemplate("{{ '>' + messages[1].tool_calls[0].function.arguments }}", {})
    assert text.render(CONVERSATIONS["tools"]) == '>{"place": "Hull"}'
    printed = ChatTemplate("{{ messages[1].tool_calls[0].function.arguments }}", {})
    assert printed.render(CONVERSATIONS["tools"]) == '{"place": "Hull"}'
    already = Message("assistant", "", extra={"tool_calls": [{"function": {"name": "f", "arguments": {"a": 1}}}]})
    assert text.render([Message("user", "x"), already]) == '>{"a": 1}'


def test_what_a_template_shows_is_known():
    assert not ChatTemplate(CHATML, {}).shows_tools
    assert not ChatTemplate(CHATML, {}).shows_tool_calls
    assert ChatTemplate(DEFAULT_TEMPLATE, {}).shows_tools
    assert ChatTemplate(DEFAULT_TEMPLATE, {}).shows_tool_calls


@pytest.mark.parametrize(
    ("source", "line"),
    [("{% if %}", 1), ("a\nb\n{% for x in %}", 3), ("{{ 'a' | no_such_filter }}", 1), ("{% generation %}x", 1)],
)
def test_templates_that_do_not_compile_name_the_line(source: str, line: int):
    with pytest.raises(TemplateError, match="does not compile") as caught:
        ChatTemplate(source, {}, where="mine.jinja")
    assert caught.value.where == f"mine.jinja:{line}"


@pytest.mark.parametrize(
    "source",
    [
        "{{ raise_exception('roles must alternate') }}",
        "{{ messages[7].content }}",
        "{{ 1 / 0 }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ namespace(__class__=1) }}",
        "{% include 'x' %}",
        "{{ lipsum() }}",
        "{{ [1, 2] | random }}",
        "{% macro m(x) %}{{ m(x) }}{% endmacro %}{{ m(1) }}",
    ],
)
def test_failures_and_escapes_are_template_errors(source: str):
    template = ChatTemplate(source, {})
    with pytest.raises(TemplateError):
        template.render([Message("user", "x")])


HOSTILE = {
    "loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "lazy loop": "{% for a in range(99999) %}{% for b in range(99999) | map('string') %}{% endfor %}{% endfor %}",
    "output": "{% for a in range(99999) %}{{ 'x' * 1000 }}{% endfor %}",
    "product": "{{ 'x' * 10000000000 }}",
    "list product": "{{ [1] * 10000000000 }}",
    "power": "{{ 9 ** 99999999 }}",
    "square": "{% set n = namespace(x=9) %}{% for i in range(60) %}{% set n.x = n.x * n.x %}{% endfor %}",
    "doubling": "{% set n = namespace(x='a') %}{% for i in range(99) %}{% set n.x = n.x + n.x %}{% endfor %}",
    "doubling ~": "{% set n = namespace(x='a') %}{% for i in range(99) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
    "shared tree": "{% set n = namespace(x=[1]) %}{% for i in range(99) %}{% set n.x = [n.x, n.x] %}{% endfor %}{{ n.x | tojson }}",
    "shared print": "{% set n = namespace(x=[1]) %}{% for i in range(99) %}{% set n.x = [n.x, n.x] %}{% endfor %}{{ n.x }}",
    "centre": "{{ 'x' | center(1000000000) }}",
    "method": "{{ 'x'.ljust(1000000000) }}",
    "format": "{{ '{:1000000000}'.format(1) }}",
    "nested format": "{{ '{:{}}'.format(1, 1000000000) }}",
    "percent": "{{ '%1000000000d' % 1 }}",
    "percent star": "{{ '%*d' | format(1000000000, 1) }}",
    "join": "{{ ([('x' * 1000000)] * 1000000) | join }}",
    "replace": "{{ ('x' * 1000000).replace('x', 'y' * 1000000) }}",
    "indent": "{{ ('\n' * 1000000) | indent(99999) }}",
    "json indent": "{{ [1] | tojson(indent=1000000000) }}",
    "macro tree": "{% macro m(d) %}{% if d %}{{ m(d - 1) }}{{ m(d - 1) }}{% endif %}{% endmacro %}{{ m(60) }}",
    "work": "{% set s = 'x' * 8000000 %}{% for a in range(99999) %}{% set t = s | upper %}{% endfor %}",
    "slices": "{% set s = 'x' * 8000000 %}{% for a in range(99999) %}{% set t = s[::-1] %}{% endfor %}",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_templates_are_stopped(name: str, monkeypatch: pytest.MonkeyPatch):
    """A tenth of the limit, for speed; each of these would take hours or all memory without them."""
    monkeypatch.setattr(template_budget, "MAX_WORK", template_budget.MAX_WORK // 10)
    template = ChatTemplate(HOSTILE[name], {})
    began = time.process_time()
    with pytest.raises(TemplateError, match="it was stopped"):
        template.render([Message("user", "x")])
    assert time.process_time() - began < 10


def test_the_limit_itself_is_within_seconds():
    began = time.process_time()
    with pytest.raises(TemplateError, match="1,000,000 steps"):
        ChatTemplate(HOSTILE["loops"], {}).render([Message("user", "x")])
    assert time.process_time() - began < 30


def test_long_conversations_stay_within_the_limits():
    messages = [Message("assistant" if turn % 2 else "user", "word " * 200) for turn in range(1_000)]
    assert len(ChatTemplate(CHATML, {}).render(messages)) > 1_000_000


def test_objects_reach_templates_as_plain_data():
    class Odd:
        def write(self) -> str:
            raise AssertionError

        def __str__(self) -> str:
            return "odd"

    values = template_dict(Message("user", "x", extra={"name": Odd(), "none": None, "role": "other"}))
    assert values == {"role": "user", "content": "x", "name": "odd"}


def test_templates_are_found_where_models_keep_them(tmp_path: Path):
    assert find_template(tmp_path) is None
    config = tmp_path / "tokenizer_config.json"
    config.write_text(json.dumps({"chat_template": "one"}))
    assert find_template(tmp_path) == "one"
    named = [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]
    config.write_text(json.dumps({"chat_template": named}))
    assert find_template(tmp_path) == "d"
    config.write_text(json.dumps({"chat_template": [{"name": "a", "template": "x"}, {"name": "b", "template": "y"}]}))
    with pytest.raises(ModelError, match="a, b"):
        find_template(tmp_path)
    (tmp_path / "chat_template.jinja").write_text("own")
    assert find_template(tmp_path) == "own"


def test_template_files_that_cannot_be_read(tmp_path: Path):
    with pytest.raises(TemplateError, match="no such chat template"):
        read_template(tmp_path / "missing.jinja")
    (tmp_path / "bad.jinja").write_bytes(b"\xff\xfe")
    with pytest.raises(TemplateError, match="is not UTF-8 text"):
        read_template(tmp_path / "bad.jinja")


def test_survives_pickling():
    template = pickle.loads(pickle.dumps(ChatTemplate(CHATML, {}, "2025-01-02")))
    assert template.date == "2025-01-02"
    assert template.render([Message("user", "x")]) == "<|im_start|>user\nx<|im_end|>\n"
