"""Golden masks: for each family of chat templates, the trained text of conversations, written by hand.

Between ⟦ and ⟧ stands what is trained. Real templates are read from the installed TRL; the others are miniatures of our own
that follow the grammar of the families TRL does not ship.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import re
from pathlib import Path

import pytest

from tunesmith.data.bad_row import BadRow
from tunesmith.data.chat_template import ChatTemplate
from tunesmith.data.rendering import Renderer
from tunesmith.data.tokenizer import Tokenizer
from tunesmith.embedded import DEFAULT_MODEL, model_folder
from tunesmith.recipe.objectives import SftSection
from tunesmith.records import Chat, Message

FOLDER = model_folder(DEFAULT_MODEL)
assert FOLDER is not None

LLAMA2 = """\
{%- if messages[0]['role'] == 'system' -%}
    {%- set rest = messages[1:] -%}{%- set system = '<<SYS>>\\n' + messages[0]['content'] + '\\n<</SYS>>\\n\\n' -%}
{%- else -%}{%- set rest = messages -%}{%- set system = '' -%}{%- endif -%}
{%- for message in rest -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}{{ raise_exception('roles must alternate') }}{%- endif -%}
    {%- if message['role'] == 'user' -%}
        {{ bos_token + '[INST] ' + (system if loop.first else '') + message['content'] | trim + ' [/INST]' }}
    {%- else -%}{{ ' ' + message['content'] | trim + ' ' + eos_token }}{%- endif -%}
{%- endfor -%}"""

MISTRAL = """\
{{- bos_token }}
{%- set ns = namespace(last=-1) %}
{%- for message in messages if message.role == 'user' %}{% set ns.last = ns.last + 1 %}{% endfor %}
{%- set users = namespace(seen=-1) %}
{%- for message in messages %}
    {%- if message.role == 'user' %}
        {%- set users.seen = users.seen + 1 %}
        {%- if tools and users.seen == ns.last %}{{- '[AVAILABLE_TOOLS]' + tools | tojson + '[/AVAILABLE_TOOLS]' }}{% endif %}
        {{- '[INST] ' + message.content + '[/INST]' }}
    {%- elif message.tool_calls is defined and message.tool_calls %}
        {{- '[TOOL_CALLS] [' }}
        {%- for call in message.tool_calls %}{{- call.function | tojson }}{{- ', ' if not loop.last }}{% endfor %}
        {{- ']' + eos_token }}
    {%- elif message.role == 'assistant' %}
        {{- ' ' + message.content | trim + eos_token }}
    {%- elif message.role == 'tool' %}
        {{- '[TOOL_RESULTS] ' + {'content': message.content} | tojson + '[/TOOL_RESULTS]' }}
    {%- else %}{{- raise_exception('Only user, assistant and tool roles') }}{% endif %}
{%- endfor %}"""

ZEPHYR = """\
{% for message in messages %}
{% if message['role'] == 'user' %}
{{ '<|user|>\\n' + message['content'] + eos_token }}
{% elif message['role'] == 'system' %}
{{ '<|system|>\\n' + message['content'] + eos_token }}
{% elif message['role'] == 'assistant' %}
{{ '<|assistant|>\\n' + message['content'] + eos_token }}
{% endif %}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}"""

CHATML = """\
{%- for message in messages %}{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""

DATED = (
    """\
{{- '<|im_start|>system\\nToday is ' + strftime_now('%d %B %Y') + '.<|im_end|>\\n' }}"""
    + CHATML
)

OWN = {"llama2": LLAMA2, "mistral": MISTRAL, "zephyr": ZEPHYR, "chatml": CHATML, "dated": DATED}

CALL = {
    "tool_calls": [
        {"id": "abcdefghi", "type": "function", "function": {"name": "tide", "arguments": '{"port": "Hull"}'}}
    ]
}
TOOLS = (
    {
        "type": "function",
        "function": {"name": "tide", "description": "d", "parameters": {"type": "object", "properties": {}}},
    },
)
PLAIN = (Message("user", "One?"), Message("assistant", "Uno."), Message("user", "Two?"), Message("assistant", "Dos."))
SYSTEM = (Message("system", "Short."), *PLAIN)
EMPTY = (Message("user", "One?"), Message("assistant", ""), Message("user", "Two?"), Message("assistant", "Dos."))
USING = (
    Message("user", "Tide?"), Message("assistant", "", extra=CALL), Message("tool", "six", extra={"name": "tide", "tool_call_id": "abcdefghi"}),
    Message("assistant", "At six."), Message("user", "Thanks"), Message("assistant", "Welcome."),
)  # fmt: skip
SPACED = (
    Message("user", " One? "),
    Message("assistant", "\n Uno. \n"),
    Message("user", "Two?"),
    Message("assistant", "  Dos."),
)
CONVERSATIONS = {"plain": PLAIN, "system": SYSTEM, "empty": EMPTY, "tools": USING, "spaced": SPACED}
_SPECIAL = re.compile(r"<[|｜][^<>]*?[|｜]>|<(?:start|end)_of_turn>|</?s>|\[/?[A-Z_]{4,}\]")


def source_of(name: str) -> str:
    if name in OWN:
        return OWN[name]
    spec = importlib.util.find_spec("trl")
    path = Path(spec.origin).parent / "chat_templates" / f"{name}.jinja" if spec and spec.origin else None
    if path is None or not path.is_file():
        pytest.skip(f"TRL with chat_templates/{name}.jinja is not installed: its masks are not checked")
    return path.read_text(encoding="utf-8")


@functools.cache
def tokenizer_for(source: str) -> Tokenizer:
    """The embedded vocabulary, with each special token that the template writes as one token."""
    import tokenizers

    backend = tokenizers.Tokenizer.from_file(str(FOLDER / "tokenizer.json"))
    texts = sorted({*_SPECIAL.findall(source), "<s>", "</s>"})
    backend.add_special_tokens([tokenizers.AddedToken(text, special=True, normalized=False) for text in texts])
    return Tokenizer(backend.to_str(), {"bos_token": "<s>", "eos_token": "</s>"})


@functools.cache
def renderer_for(name: str, **objective: str) -> Renderer:
    source = source_of(name)
    tokenizer = tokenizer_for(source)
    return Renderer(
        tokenizer, ChatTemplate(source, tokenizer.special_tokens, "2026-01-31"), SftSection(**objective), name
    )


def coloured(renderer: Renderer, record: Chat) -> str:
    """The row's text, with ⟦ ⟧ around what is trained."""
    rendered = renderer.render(record)
    pieces, run, inside = [], [], False
    for token, trained in [*zip(rendered.ids, rendered.trained, strict=True), (None, False)]:
        if trained != inside or token is None:
            text = renderer.tokenizer.decode(run)
            pieces.append(f"⟦{text}⟧" if inside else text)
            run, inside = [], trained
        if token is not None:
            run.append(token)
    return "".join(pieces)


HEADER = "<|start_header_id|>{}<|end_header_id|>\n\n"
U3, A3, S3 = HEADER.format("user"), HEADER.format("assistant"), HEADER.format("system")
QWEN = "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
U, A, S, END = "<|im_start|>user\n", "<|im_start|>assistant\n", "<|im_start|>system\n", "<|im_end|>\n"
THINK = "<think>\n\n</think>\n\n"
DS_END = "<｜end▁of▁sentence｜>"

GOLDEN = {
    ("llama2", "plain"): "<s>[INST] One? [/INST]⟦ Uno. </s>⟧<s>[INST] Two? [/INST]⟦ Dos. </s>⟧",
    ("llama2", "system"): "<s>[INST] <<SYS>>\nShort.\n<</SYS>>\n\nOne? [/INST]⟦ Uno. </s>⟧<s>[INST] Two? [/INST]⟦ Dos. </s>⟧",
    ("llama2", "empty"): "<s>[INST] One? [/INST]⟦  </s>⟧<s>[INST] Two? [/INST]⟦ Dos. </s>⟧",
    ("llama2", "spaced"): "<s>[INST] One? [/INST]⟦ Uno. </s>⟧<s>[INST] Two? [/INST]⟦ Dos. </s>⟧",
    ("llama3", "plain"): f"<s>{U3}One?<|eot_id|>{A3}⟦Uno.<|eot_id|>⟧{U3}Two?<|eot_id|>{A3}⟦Dos.<|eot_id|>⟧",
    ("llama3", "system"): f"<s>{S3}Short.<|eot_id|>{U3}One?<|eot_id|>{A3}⟦Uno.<|eot_id|>⟧{U3}Two?<|eot_id|>{A3}⟦Dos.<|eot_id|>⟧",
    ("llama3", "empty"): f"<s>{U3}One?<|eot_id|>{A3}⟦<|eot_id|>⟧{U3}Two?<|eot_id|>{A3}⟦Dos.<|eot_id|>⟧",
    ("llama3", "spaced"): f"<s>{U3}One?<|eot_id|>{A3}⟦Uno.<|eot_id|>⟧{U3}Two?<|eot_id|>{A3}⟦Dos.<|eot_id|>⟧",
    ("qwen2_5", "plain"): f"{QWEN}{U}One?{END}{A}⟦Uno.<|im_end|>⟧\n{U}Two?{END}{A}⟦Dos.<|im_end|>⟧",
    ("qwen2_5", "system"): f"{S}Short.{END}{U}One?{END}{A}⟦Uno.<|im_end|>⟧\n{U}Two?{END}{A}⟦Dos.<|im_end|>⟧",
    ("qwen2_5", "empty"): f"{QWEN}{U}One?{END}{A}⟦<|im_end|>⟧\n{U}Two?{END}{A}⟦Dos.<|im_end|>⟧",
    ("qwen2_5", "tools"): (
        f'{QWEN}{U}Tide?{END}{A}⟦<tool_call>\n{{"name": "tide", "arguments": {{"port": "Hull"}}}}\n</tool_call><|im_end|>⟧\n'
        f"{U}<tool_response>\nsix\n</tool_response>{END}{A}⟦At six.<|im_end|>⟧\n{U}Thanks{END}{A}⟦Welcome.<|im_end|>⟧"
    ),
    ("qwen3", "plain"): f"{U}One?{END}{A}⟦Uno.<|im_end|>⟧\n{U}Two?{END}{A}⟦{THINK}Dos.<|im_end|>⟧",
    ("qwen3", "system"): f"{S}Short.{END}{U}One?{END}{A}⟦Uno.<|im_end|>⟧\n{U}Two?{END}{A}⟦{THINK}Dos.<|im_end|>⟧",
    ("qwen3", "empty"): f"{U}One?{END}{A}⟦<|im_end|>⟧\n{U}Two?{END}{A}⟦{THINK}Dos.<|im_end|>⟧",
    ("qwen3", "tools"): (
        f'{U}Tide?{END}{A}⟦<tool_call>\n{{"name": "tide", "arguments": {{"port": "Hull"}}}}\n</tool_call><|im_end|>⟧\n'
        f"{U}<tool_response>\nsix\n</tool_response>{END}{A}⟦At six.<|im_end|>⟧\n{U}Thanks{END}{A}⟦{THINK}Welcome.<|im_end|>⟧"
    ),
    ("mistral", "plain"): "<s>[INST] One?[/INST]⟦ Uno.</s>⟧[INST] Two?[/INST]⟦ Dos.</s>⟧",
    ("mistral", "empty"): "<s>[INST] One?[/INST]⟦ </s>⟧[INST] Two?[/INST]⟦ Dos.</s>⟧",
    ("mistral", "tools"): (
        '<s>[INST] Tide?[/INST]⟦[TOOL_CALLS] [{"name": "tide", "arguments": {"port": "Hull"}}]</s>⟧'
        '[TOOL_RESULTS] {"content": "six"}[/TOOL_RESULTS]⟦ At six.</s>⟧[INST] Thanks[/INST]⟦ Welcome.</s>⟧'
    ),
    ("gemma", "plain"): (
        "<s><start_of_turn>user\nOne?<end_of_turn>\n<start_of_turn>model\n⟦Uno.<end_of_turn>⟧\n"
        "<start_of_turn>user\nTwo?<end_of_turn>\n<start_of_turn>model\n⟦Dos.<end_of_turn>⟧"
    ),
    ("gemma", "spaced"): (
        "<s><start_of_turn>user\nOne?<end_of_turn>\n<start_of_turn>model\n⟦Uno.<end_of_turn>⟧\n"
        "<start_of_turn>user\nTwo?<end_of_turn>\n<start_of_turn>model\n⟦Dos.<end_of_turn>⟧"
    ),
    ("gemma", "empty"): (
        "<s><start_of_turn>user\nOne?<end_of_turn>\n<start_of_turn>model\n⟦<end_of_turn>⟧\n"
        "<start_of_turn>user\nTwo?<end_of_turn>\n<start_of_turn>model\n⟦Dos.<end_of_turn>⟧"
    ),
    ("gemma3", "system"): (
        "<s><start_of_turn>user\nShort.\n\nOne?<end_of_turn>\n<start_of_turn>model\n⟦Uno.<end_of_turn>⟧\n"
        "<start_of_turn>user\nTwo?<end_of_turn>\n<start_of_turn>model\n⟦Dos.<end_of_turn>⟧"
    ),
    ("phi3", "plain"): "<|user|>\nOne?<|end|>\n<|assistant|>\n⟦Uno.<|end|>⟧\n<|user|>\nTwo?<|end|>\n<|assistant|>\n⟦Dos.<|end|>⟧",
    ("phi3", "system"): (
        "<|system|>\nShort.<|end|>\n<|user|>\nOne?<|end|>\n<|assistant|>\n⟦Uno.<|end|>⟧\n"
        "<|user|>\nTwo?<|end|>\n<|assistant|>\n⟦Dos.<|end|>⟧"
    ),
    ("phi3", "empty"): "<|user|>\nOne?<|end|>\n<|assistant|>\n⟦<|end|>⟧\n<|user|>\nTwo?<|end|>\n<|assistant|>\n⟦Dos.<|end|>⟧",
    ("deepseekv3", "plain"): f"<s><｜User｜>One?<｜Assistant｜>⟦Uno.{DS_END}⟧<｜User｜>Two?<｜Assistant｜>⟦Dos.{DS_END}⟧",
    ("deepseekv3", "system"): f"<s>Short.<｜User｜>One?<｜Assistant｜>⟦Uno.{DS_END}⟧<｜User｜>Two?<｜Assistant｜>⟦Dos.{DS_END}⟧",
    ("deepseekv3", "empty"): f"<s><｜User｜>One?<｜Assistant｜>⟦{DS_END}⟧<｜User｜>Two?<｜Assistant｜>⟦Dos.{DS_END}⟧",
    ("deepseekv3", "tools"): (
        "<s><｜User｜>Tide?<｜Assistant｜>⟦<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>tide\n```json\n"
        f'{{"port": "Hull"}}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>{DS_END}⟧<｜tool▁outputs▁begin｜><｜tool▁output▁begin｜>six'
        f"<｜tool▁output▁end｜><｜tool▁outputs▁end｜>⟦At six.{DS_END}⟧<｜User｜>Thanks<｜Assistant｜>⟦Welcome.{DS_END}⟧"
    ),
    ("chatml", "plain"): f"{U}One?{END}{A}⟦Uno.<|im_end|>⟧\n{U}Two?{END}{A}⟦Dos.<|im_end|>⟧",
    ("chatml", "system"): f"{S}Short.{END}{U}One?{END}{A}⟦Uno.<|im_end|>⟧\n{U}Two?{END}{A}⟦Dos.<|im_end|>⟧",
    ("chatml", "empty"): f"{U}One?{END}{A}⟦<|im_end|>⟧\n{U}Two?{END}{A}⟦Dos.<|im_end|>⟧",
    ("chatml", "spaced"): f"{U} One? {END}{A}⟦\n Uno. \n<|im_end|>⟧\n{U}Two?{END}{A}⟦  Dos.<|im_end|>⟧",
    ("chatml", "tools"): (
        f'{U}Tide?{END}{A}⟦<tool_call>\n{{"name": "tide", "arguments": {{"port": "Hull"}}}}\n</tool_call><|im_end|>⟧\n'
        f"<|im_start|>tool\nsix{END}{A}⟦At six.<|im_end|>⟧\n{U}Thanks{END}{A}⟦Welcome.<|im_end|>⟧"
    ),
    ("dated", "plain"): f"{S}Today is 31 January 2026.{END}{U}One?{END}{A}⟦Uno.<|im_end|>⟧\n{U}Two?{END}{A}⟦Dos.<|im_end|>⟧",
    ("zephyr", "plain"): "<|user|>\nOne?</s>\n<|assistant|>\n⟦Uno.</s>⟧\n<|user|>\nTwo?</s>\n<|assistant|>\n⟦Dos.</s>⟧",
    ("zephyr", "system"): (
        "<|system|>\nShort.</s>\n<|user|>\nOne?</s>\n<|assistant|>\n⟦Uno.</s>⟧\n<|user|>\nTwo?</s>\n<|assistant|>\n⟦Dos.</s>⟧"
    ),
    ("zephyr", "empty"): "<|user|>\nOne?</s>\n<|assistant|>\n⟦</s>⟧\n<|user|>\nTwo?</s>\n<|assistant|>\n⟦Dos.</s>⟧",
}  # fmt: skip
REFUSED = {
    ("llama2", "tools"): "alternate",
    ("mistral", "system"): "Only user",
    ("gemma", "system"): "System role",
    ("gemma", "tools"): "alternate",
    ("gemma3", "tools"): "alternate",
}
FAMILIES = sorted({name for name, _ in GOLDEN})


@pytest.mark.parametrize(("name", "kind"), GOLDEN)
def test_golden_masks(name: str, kind: str):
    assert coloured(renderer_for(name), Chat(CONVERSATIONS[kind])) == GOLDEN[name, kind]


@pytest.mark.parametrize("name", FAMILIES)
def test_the_end_of_turn_token_is_one_token_trained_and_stopped_on(name: str):
    renderer = renderer_for(name)
    rendered = renderer.render(Chat(PLAIN))
    last = rendered.ids[-1]
    assert rendered.trained[-1]
    assert last in renderer.stop_ids
    assert last in renderer.tokenizer.special_ids
    closings = [trained for token, trained in zip(rendered.ids, rendered.trained, strict=True) if token == last]
    assert sum(closings) == 2, "each of the two answers is closed by it"


@pytest.mark.parametrize(
    ("name", "kind"), [(name, kind) for name in FAMILIES for kind in CONVERSATIONS if (name, kind) not in REFUSED]
)
def test_what_is_trained_is_what_is_served(name: str, kind: str):
    renderer = renderer_for(name)
    record = Chat(CONVERSATIONS[kind])
    rendered = renderer.render(record)
    assert renderer.prompt_ids(record) + renderer.answer_ids(record, renderer.reference(record)) == rendered.ids


@pytest.mark.parametrize(("name", "kind"), REFUSED)
def test_what_a_family_refuses_is_rejected_in_its_words(name: str, kind: str):
    with pytest.raises(BadRow, match=REFUSED[name, kind]) as caught:
        renderer_for(name).render(Chat(CONVERSATIONS[kind]))
    assert caught.value.reason == "template_failed"


def trained_text(text: str) -> list[str]:
    return [piece.rstrip("\n") for piece in re.findall("⟦(.*?)⟧", text, re.DOTALL)]


@pytest.mark.parametrize(
    "name", ["llama3", "gemma", "gemma3", "phi3", "phi3_5", "qwen2_5_vl", "qwen3_instruct_2507", "qwen3_vl"]
)
@pytest.mark.parametrize("kind", ["plain", "system", "empty", "tools"])
def test_masks_agree_with_the_markers_that_trl_put_in(name: str, kind: str):
    """TRL's `_training` variants of these templates differ only by markers, which also cover the line's end after a turn."""
    record = Chat(CONVERSATIONS[kind])
    plain, marked = renderer_for(name), renderer_for(f"{name}_training")
    try:
        theirs = coloured(marked, record)
    except BadRow as error:
        with pytest.raises(BadRow, match=re.escape(error.detail)):
            plain.render(record)
        return
    assert trained_text(coloured(plain, record)) == trained_text(theirs)


def test_qwen3_keeps_thinking_of_the_current_question_only():
    """After the next question the template drops the thinking of earlier tool steps; masks follow."""
    thinking = {**CALL, "reasoning_content": "Look it up."}
    turns = (
        Message("user", "Tide?"), Message("assistant", "", extra=thinking), Message("tool", "six"),
        Message("assistant", "At six.", extra={"reasoning_content": "Six it is."}),
    )  # fmt: skip
    call = '<tool_call>\n{"name": "tide", "arguments": {"port": "Hull"}}\n</tool_call>'
    result = f"{U}<tool_response>\nsix\n</tool_response>{END}"
    renderer = renderer_for("qwen3")
    assert coloured(renderer, Chat(turns)) == (
        f"{U}Tide?{END}{A}⟦<think>\nLook it up.\n</think>\n\n{call}<|im_end|>⟧\n{result}"
        f"{A}⟦<think>\nSix it is.\n</think>\n\nAt six.<|im_end|>⟧"
    )
    longer = (*turns, Message("user", "Thanks"), Message("assistant", "Welcome."))
    assert coloured(renderer, Chat(longer)) == (
        f"{U}Tide?{END}{A}⟦{call}<|im_end|>⟧\n{result}{A}⟦At six.<|im_end|>⟧\n{U}Thanks{END}{A}⟦{THINK}Welcome.<|im_end|>⟧"
    )
    assert "the chat template leaves out the reasoning of an answer" in renderer.examine(Chat(longer)).warnings


def test_notes_name_each_templates_peculiarities():
    assert any("writes earlier answers otherwise" in note for note in renderer_for("qwen3").notes)
    assert not renderer_for("qwen3", loss_on="last_response").notes
    assert any("'<think>\\n'" in note for note in renderer_for("deepseekv3").notes)
    assert renderer_for("llama3").notes == []


def test_deepseek_prompts_end_where_answers_begin():
    renderer = renderer_for("deepseekv3")
    assert renderer.prompt_text(Chat(PLAIN)).endswith("Two?<｜Assistant｜>")


def test_declared_tools_reach_templates_that_show_them_and_text_elsewhere():
    record = Chat(USING, TOOLS)
    mistral = coloured(renderer_for("mistral"), record)
    assert f"[AVAILABLE_TOOLS]{json.dumps(list(TOOLS))}[/AVAILABLE_TOOLS][INST] Thanks" in mistral
    plain = renderer_for("chatml")
    text = coloured(plain, record)
    assert text.startswith(S)
    assert f"<tools>\n{json.dumps(TOOLS[0])}\n</tools>{END}" in text
    said = plain.examine(record).warnings
    assert [words for warning in said for words in ("tool calls out", "tools out", "`name` of a turn") if words in warning] == [
        "tool calls out", "tools out", "`name` of a turn",
    ]  # fmt: skip
    assert len(said) == 3


def test_an_answer_that_is_moved_or_doubled_is_rejected():
    """Never a wrong mask: where a turn cannot be told from the text, the row goes."""
    doubled = CHATML.replace("message.content +", "message.content + message.content +")
    tokenizer = tokenizer_for(doubled)
    with pytest.raises(Exception, match="once each"):
        Renderer(tokenizer, ChatTemplate(doubled, {}), SftSection())
    summed = (
        "{%- set n = messages | length %}{%- for message in messages %}{{ '<|im_start|>' + message.role + '\\n' }}"
        "{%- if n > 4 %}{{ n }}{% endif %}{{ message.content + '<|im_end|>\\n' }}{% endfor %}"
        "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    )
    renderer = Renderer(tokenizer_for(summed), ChatTemplate(summed, {}), SftSection())
    assert coloured(renderer, Chat(PLAIN)).count("⟦") == 2
    with pytest.raises(BadRow, match="does not begin with the prompt"):
        renderer.render(Chat((*PLAIN, Message("user", "x"), Message("assistant", "y"))))
