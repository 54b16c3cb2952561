"""Chat templates of strangers: stopped in time and in bounded memory, without a way out of the sandbox."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.hostile.bounds import GENTLE, TELL, answer, measured, refusal
from tests.hostile.evil_templates import HARMLESS, REFUSED, STOPPED, UNREADABLE
from tests.hostile.folders import EMBEDDED, copy_embedded
from tests.hostile.test_model_files import JSON
from tunesmith.data import template_budget
from tunesmith.data.chat_template import ChatTemplate, TemplateError, find_template, read_template
from tunesmith.data.rendering import make_renderer
from tunesmith.data.template_budget import MAX_CHARACTERS
from tunesmith.data.template_sandbox import MAX_SOURCE
from tunesmith.errors import ModelError
from tunesmith.foreign import SMALL_BYTES
from tunesmith.recipe.model import ModelSection
from tunesmith.recipe.objectives import SftSection
from tunesmith.records import Message

ASK = [Message("user", "When is high water?"), Message("assistant", "At noon.")]
RUN = (
    TELL
    + """
import json, time
from tunesmith.data import template_budget
from tunesmith.data.chat_template import ChatTemplate
from tunesmith.records import Message
template_budget.MAX_WORK //= int(sys.argv[2])
for name, source in json.loads(Path(sys.argv[1]).read_text()).items():
    began = time.process_time()
    print(name, end=' | ')
    tell(lambda: ChatTemplate(source, {}).render([Message('user', 'x')]))
    print(round(time.process_time() - began, 1))
"""
)


def _run(tmp_path: Path, templates: dict[str, str], part: int, seconds: float) -> tuple[list[str], list[float], int]:
    """What each template said, the seconds that each took, and the most memory of all."""
    (tmp_path / "templates.json").write_text(json.dumps(templates), encoding="utf-8")
    said, peak = measured(RUN, str(tmp_path / "templates.json"), str(part), seconds=seconds, mebibytes=3072)
    lines = said.splitlines()
    return lines[::2], [float(line) for line in lines[1::2]], peak


def test_evil_templates_are_stopped(tmp_path: Path) -> None:
    """At a tenth of the limit; in a process of its own, since most of them could not be interrupted in this one."""
    said, seconds, peak = _run(tmp_path, STOPPED, 10, 120)
    assert len(said) == len(STOPPED)
    for line, took in zip(said, seconds, strict=True):
        assert "| TemplateError | the chat template fails: the template " in line, line
        assert "it was stopped" in line, line
        assert took < 10, line
    assert peak < 700


@pytest.mark.slow
def test_the_whole_limit_is_within_seconds_and_a_gigabyte(tmp_path: Path) -> None:
    said, seconds, peak = _run(tmp_path, STOPPED, 1, 900)
    assert all("it was stopped" in line for line in said)
    assert max(seconds) < 40
    assert peak < 1_500


@pytest.mark.parametrize("name", REFUSED)
def test_ways_out_end_in_errors(name: str) -> None:
    template = ChatTemplate(REFUSED[name], {})
    assert isinstance(refusal(lambda: template.render(ASK), 10), TemplateError)


@pytest.mark.parametrize("name", UNREADABLE)
def test_texts_that_do_not_compile(name: str) -> None:
    assert "does not compile" in refusal(lambda: ChatTemplate(UNREADABLE[name], {}), 20).what


@pytest.mark.parametrize("name", HARMLESS)
def test_nothing_of_the_interpreter_is_shown(name: str) -> None:
    text = ChatTemplate(HARMLESS[name], {}).render(ASK)
    assert not any(word in text for word in ("class", "module", "built-in", "0x", "globals"))


PIECES = st.sampled_from(
    [
        "{% for m in messages %}", "{% endfor %}", "{{ m.content }}", "{{ m['role'] }}", "{% if tools %}", "{% else %}", "{% endif %}",
        "{% set x = messages %}", "{{ x | tojson }}", "{% macro f(a) %}", "{% endmacro %}", "{{ f(x) }}", "{% set x = [x, x] %}",
        "{% set n = namespace(v=x) %}", "{% set n.v = n.v ~ n.v %}", "{{ n.v }}", "{{ x * 999 }}", "{% generation %}",
        "{% endgeneration %}", "{{ loop.index }}", "{{ x | join(x) }}", "{{ '%s' % x }}", "{{ x | sort }}", "{{ x == n.v }}",
        "{{ raise_exception(x) }}", "{{ range(99999) | list }}", "{% for a in range(99999) %}", "{{ {x: 1} }}", "{{ x[::-1] }}",
        "{{ messages[-1].content.split(' ') }}", "{% call f(1) %}", "{% endcall %}", "{% filter upper %}", "{% endfilter %}",
    ]
)  # fmt: skip


@settings(GENTLE, max_examples=150)
@given(pieces=st.lists(PIECES, max_size=12))
def test_any_pieces_in_any_order(pieces: list[str]) -> None:
    def use() -> str:
        return ChatTemplate("".join(pieces), {"eos_token": "</s>"}).render(ASK)

    text = answer(use, 20)
    assert isinstance(text, TemplateError) or len(text) <= MAX_CHARACTERS


@GENTLE
@given(source=st.text(alphabet="{}%#|()[]'\"._ abm1*~\n", max_size=60))
def test_any_text_as_a_template(source: str) -> None:
    answer(lambda: ChatTemplate(source, {}).render(ASK))


@GENTLE
@given(
    extra=st.dictionaries(
        st.sampled_from(["tool_calls", "name", "reasoning_content", "items", "__class__"]), JSON, max_size=3
    ),
    tools=st.lists(st.dictionaries(st.text(max_size=5), JSON, max_size=2), max_size=2),
)
def test_any_message_in_the_embedded_template(extra: dict[str, Any], tools: list[dict[str, Any]]) -> None:
    template = ChatTemplate(read_template(EMBEDDED / "chat_template.jinja"), {"eos_token": "</s>"})
    answer(lambda: template.render([ASK[0], Message("assistant", "x", extra=extra)], tools))


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}{% if add_generation_prompt %}{{ '\n' * 200000 }}{% endif %}", "before an answer"),
        ("{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}{{ 'a' * 7000000 }}", "around a plain question"),
    ],
)  # fmt: skip
def test_a_template_that_writes_much_by_itself(tmp_path: Path, source: str, words: str) -> None:
    """All beginnings of a generation prompt are tried: 200,000 lines of it would fill any memory."""
    folder = copy_embedded(tmp_path / "m")
    (folder / "chat_template.jinja").write_text(source, encoding="utf-8")
    assert words in refusal(lambda: make_renderer(folder, ModelSection(name="m"), SftSection(), tmp_path), 20).what


@GENTLE
@given(
    value=JSON
    | st.fixed_dictionaries(
        {"chat_template": JSON | st.lists(st.fixed_dictionaries({"name": JSON, "template": JSON}), max_size=2)}
    )
)
def test_any_chat_template_in_a_configuration(tmp_path: Path, value: Any) -> None:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(value), encoding="utf-8")
    found = answer(lambda: find_template(tmp_path))
    assert found is None or isinstance(found, str | ModelError)


def test_template_files_have_limits(tmp_path: Path) -> None:
    path = tmp_path / "chat_template.jinja"
    with path.open("wb") as stream:
        stream.truncate(SMALL_BYTES + 1)
    assert "MiB" in refusal(lambda: find_template(tmp_path)).what
    path.write_bytes(b"\xff")
    assert "not UTF-8" in refusal(lambda: read_template(path)).what
    path.write_text("a" * (MAX_SOURCE + 1), encoding="utf-8")
    assert f"{MAX_SOURCE:,}" in refusal(lambda: ChatTemplate(read_template(path), {})).what


def test_an_error_of_a_template_is_short() -> None:
    loud = ChatTemplate("{{ raise_exception('x' * 1000000) }}", {})
    assert len(refusal(lambda: loud.render(ASK)).what) < 500


def test_work_is_counted_the_same_on_every_machine() -> None:
    """Units, not seconds: the same template with the same conversation uses the same."""
    template = ChatTemplate(read_template(EMBEDDED / "chat_template.jinja"), {"eos_token": "</s>"})
    template.render(ASK)  # what is asked once of a template
    used = []
    charge = template_budget.charge
    for _ in range(2):
        counts: list[int] = []
        template_budget.charge = lambda units=1, counts=counts: counts.append(units)  # type: ignore[assignment]
        try:
            template.render(ASK)
        finally:
            template_budget.charge = charge
        used.append(sum(counts))
    assert used[0] == used[1] > 0
