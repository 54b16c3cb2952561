"""Which tokens of its own a chat template writes, told from its text and the tokenizer alone."""

from __future__ import annotations

import pytest

from tunesmith.data.chat_template import DEFAULT_TEMPLATE, ChatTemplate
from tunesmith.data.template_habits import control_tokens
from tunesmith.data.tokenizer import Tokenizer
from tunesmith.embedded import DEFAULT_MODEL, model_folder

FOLDER = model_folder(DEFAULT_MODEL)
assert FOLDER is not None
TOKENIZER = Tokenizer.from_folder(FOLDER)
CHATML = (FOLDER / "chat_template.jinja").read_text(encoding="utf-8")
NO_SYSTEM = """\
{{- bos_token }}{%- for message in messages %}
{%- if message.role == 'system' %}{{- raise_exception('no system') }}{%- endif %}
{{- '<|mask|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}{%- endfor %}"""
SYSTEM = """\
{%- for message in messages %}{{- ('<|reserved_0|>' if message.role == 'system' else '') + message.content }}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|tool_call|>' }}{%- endif %}
{%- if tools %}{{- '<|tool_result|>' }}{%- endif %}"""


@pytest.mark.parametrize(
    ("source", "texts"),
    [
        (CHATML, ["<|im_start|>", "<|im_end|>"]),
        (DEFAULT_TEMPLATE, ["<|endoftext|>"]),
        (NO_SYSTEM, ["<|endoftext|>", "<|im_end|>", "<|mask|>"]),
        (SYSTEM, ["<|tool_call|>", "<|reserved_0|>"]),
    ],
    ids=["chatml", "default", "no system", "system and prompt"],
)
def test_control_tokens(source: str, texts: list[str]) -> None:
    template = ChatTemplate(source, TOKENIZER.special_tokens)
    assert [TOKENIZER.token_text(token) for token in control_tokens(template, TOKENIZER)] == texts
