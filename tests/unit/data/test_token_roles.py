"""Tokens by role: each token of the training rows has one role, and the sums are the ledger's own counts."""

from __future__ import annotations

import json
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.data.test_rendering import FOLDER, RENDERERS, SOURCES, TOKENIZER, TURNS, UNMARKED, renderer
from tests.unit.data.test_template_families import CONVERSATIONS, GOLDEN, USING, renderer_for
from tunesmith.data.bad_row import BadRow
from tunesmith.data.ledger import Ledger
from tunesmith.data.prepare import load_cached, prepare
from tunesmith.data.prepared import Prepared
from tunesmith.data.rendering import Renderer
from tunesmith.data.token_roles import TOKEN_ROLES, RoleTally
from tunesmith.recipe.codec import parse
from tunesmith.recipe.objectives import ClmSection, SftSection
from tunesmith.records import Chat, Labelled, Message, Record, Text


def runs(rendering: Renderer, record: Record) -> list[tuple[str, str]]:
    """Stretches of tokens of one role, as (role, text)."""
    row = rendering.examine(record)
    assert len(row.roles) == len(row.ids)
    pairs = zip(row.roles, row.ids, strict=True)
    return [
        (TOKEN_ROLES[code], TOKENIZER.decode([token for _, token in run]))
        for code, run in groupby(pairs, lambda p: p[0])
    ]


@pytest.mark.parametrize("source", ["marked", "unmarked"])
@pytest.mark.parametrize("loss_on", ["responses", "last_response", "all_turns", "everything"])
def test_each_token_belongs_to_its_turn_whatever_is_trained(source: str, loss_on: str):
    assert runs(renderer(SOURCES[source], SftSection(loss_on=loss_on)), Chat(TURNS)) == [
        ("template", "<|im_start|>system\n"),
        ("system", "Be kind."),
        ("template", "<|im_end|>\n<|im_start|>user\n"),
        ("user", "One?"),
        ("template", "<|im_end|>\n<|im_start|>assistant\n"),
        ("assistant", "Uno.<|im_end|>"),
        ("template", "\n<|im_start|>user\n"),
        ("user", "Two?"),
        ("template", "<|im_end|>\n<|im_start|>assistant\n"),
        ("assistant", "Dos.<|im_end|>"),
    ]


@pytest.mark.parametrize("source", ["marked", "unmarked"])
@pytest.mark.parametrize("question", ["Where is it?", "user", "  card_arrival\n", "<|im_end|>", ""])
def test_labelled_rows_have_the_roles_of_the_chat_they_become(source: str, question: str):
    labelled = RENDERERS[source].examine(Labelled(question, "card_arrival"))
    chat = RENDERERS[source].examine(Chat((Message("user", question), Message("assistant", "card_arrival"))))
    assert labelled.roles == chat.roles
    user = [token for token, code in zip(labelled.ids, labelled.roles, strict=True) if TOKEN_ROLES[code] == "user"]
    assert TOKENIZER.decode(user) == question, "white space that the template keeps is the question's own"


def test_documents_are_text_with_what_closes_them():
    assert runs(renderer(objective=ClmSection()), Text("High water at six.")) == [
        ("text", "High water at six.<|endoftext|>")
    ]


def test_tools_and_their_results():
    call = {"tool_calls": [{"function": {"name": "tide", "arguments": '{"port": "Hull"}'}}]}
    turns = (Message("user", "Tide?"), Message("assistant", "", extra=call), Message("tool", "six"))
    found = runs(RENDERERS["unmarked"], Chat((*turns, Message("assistant", "At six."))))
    written = '<tool_call>\n{"name": "tide", "arguments": {"port": "Hull"}}\n</tool_call><|im_end|>'
    assert [pair for pair in found if pair[0] != "template"] == [
        ("user", "Tide?"),
        ("assistant", written),
        ("tool", "six"),
        ("assistant", "At six.<|im_end|>"),
    ]


@pytest.mark.parametrize(("name", "kind"), GOLDEN)
def test_by_default_the_answers_are_trained_whole_and_nothing_else_is(name: str, kind: str):
    """Of every family; and the roles are the same where less or more is trained."""
    record = Chat(CONVERSATIONS[kind])
    row = renderer_for(name).examine(record)
    answers = [TOKEN_ROLES[code] == "assistant" for code in row.roles]
    assert row.trained == answers
    for loss_on in ("last_response", "everything"):
        assert renderer_for(name, loss_on=loss_on).examine(record).roles == row.roles
    contents = {TOKEN_ROLES[code] for code in row.roles} - {"template"}
    assert contents == {message.role for message in CONVERSATIONS[kind]}


def test_a_turn_that_cannot_be_placed_is_the_templates_and_said():
    """The template writes results of tools twice: which of the two is the turn nobody can tell."""
    source = UNMARKED.replace("message.content +", "message.content * (2 if message.role == 'tool' else 1) +")
    row = renderer(source).examine(Chat(USING))
    assert "tool" not in {TOKEN_ROLES[code] for code in row.roles}
    assert any("where a turn of role tool begins or ends is not certain" in said for said in row.warnings)
    assert not any("not certain" in said for said in renderer().examine(Chat(USING)).warnings)


def test_the_tally_leaves_out_the_first_token_as_a_target():
    tally = RoleTally()
    tally.add(bytes([2, 2, 3]), [True, False, True])
    tally.add(bytes([3]), [True])
    assert tally.to_json() == {"user": {"tokens": 2, "trained": 0}, "assistant": {"tokens": 2, "trained": 1}}


def test_a_ledger_whose_roles_do_not_add_up_is_not_balanced():
    ledger = Ledger(tokens=3, trained_tokens=1, tokens_by_role={"text": {"tokens": 3, "trained": 1}})
    assert ledger.balanced_tokens
    ledger.tokens_by_role["user"] = {"tokens": 0, "trained": 1}
    assert not ledger.balanced_tokens


# --- prepared data -------------------------------------------------------------------------------------------------


def prepared(folder: Path, rendering: Renderer, context: int, **data: Any) -> Prepared:
    values = {"train": "rows.jsonl", "validation": 0.2, "test": 0.0, "max_rejected": 1.0, **data}
    recipe = parse({"name": "r", "model": "tunesmith-base-8m", "data": values}).placed(folder)
    result = prepare(recipe, rendering, context, folder / "cache")
    cached = load_cached(recipe, rendering, context, folder / "cache")
    assert cached is not None
    assert cached.ledger == result.ledger
    return result


def must_add_up(result: Prepared) -> None:
    """Sums are held against the stored tokens themselves."""
    rows = [result.train.row(index) for index in range(result.train.num_rows)]
    roles = result.ledger.tokens_by_role.values()
    assert sum(role["tokens"] for role in roles) == sum(len(ids) for ids, _ in rows) == result.ledger.tokens
    assert sum(role["trained"] for role in roles) == sum(int(mask.sum()) for _, mask in rows)
    assert sum(role["trained"] for role in roles) == result.ledger.trained_tokens


def write(folder: Path, rows: list[Any]) -> None:
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


WORDS = st.text(alphabet=st.characters(codec="utf-8"), max_size=20) | st.text(alphabet=" \n\tabuser.:é😀", max_size=60)
PAIRS = st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=3)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    conversations=st.lists(PAIRS, max_size=8),
    name=st.sampled_from(sorted(SOURCES)),
    objective=st.sampled_from(["responses", "last_response", "all_turns", "everything", "clm"]),
    overlong=st.sampled_from(["drop", "truncate"]),
    context=st.sampled_from([24, 40, 1024]),
)
def test_roles_add_up_for_conversations(
    tmp_path_factory: pytest.TempPathFactory,
    conversations: list[list[tuple[str, str]]],
    name: str,
    objective: str,
    overlong: str,
    context: int,
):
    folder = tmp_path_factory.mktemp("roles")
    rows = [
        {
            "messages": [
                {"role": role, "content": text} for pair in pairs for role, text in zip(ROLES, pair, strict=True)
            ]
        }
        for pairs in [[("a", "b")], *conversations]
    ]
    write(folder, rows)
    rendering = renderer(SOURCES[name], ClmSection() if objective == "clm" else SftSection(loss_on=objective))
    result = prepared(folder, rendering, context, overlong=overlong, validation=0.0)
    must_add_up(result)
    assert set(result.ledger.tokens_by_role) <= {"user", "assistant", "template"}


ROLES = ("user", "assistant")


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(texts=st.lists(WORDS, max_size=6), context=st.sampled_from([8, 16, 1024]))
def test_roles_add_up_for_documents_in_windows(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], context: int
):
    folder = tmp_path_factory.mktemp("roles")
    write(folder, [{"text": "the tide is high at six"}, *({"text": text} for text in texts)])
    result = prepared(folder, renderer(objective=ClmSection()), context, validation=0.0)
    must_add_up(result)
    # Of every window all but the first token is a target.
    assert result.ledger.tokens_by_role == {
        "text": {"tokens": result.ledger.tokens, "trained": result.ledger.tokens - result.ledger.windows}
    }


@pytest.mark.parametrize("source", ["marked", "unmarked"])
def test_the_embedded_help_desk_adds_up(tmp_path: Path, source: str):
    columns = {"prompt": "ticket", "completion": "queue"}
    train = {"path": str(FOLDER.parent / "helpdesk" / "train.jsonl"), "format": "prompt-completion", "columns": columns}
    result = prepared(tmp_path, RENDERERS[source], 1024, train=train)
    must_add_up(result)
    roles = result.ledger.tokens_by_role
    assert roles["assistant"]["trained"] == roles["assistant"]["tokens"] == result.ledger.trained_tokens
    assert roles["user"]["trained"] == roles["template"]["trained"] == 0
    # <|im_start|> user ⏎ … <|im_end|> ⏎ <|im_start|> assistant ⏎: what the template writes around one question.
    header = len(TOKENIZER.encode("<|im_start|>user\n")) + len(TOKENIZER.encode("<|im_end|>\n<|im_start|>assistant\n"))
    assert roles["template"]["tokens"] == header * result.ledger.trained


def test_rejected_rows_do_not_count(tmp_path: Path):
    row = {"prompt": "One?", "completion": "Uno."}
    write(tmp_path, [row, {"prompt": "Two?", "completion": ""}, "no object"])
    alone = RENDERERS["marked"].examine(Chat((Message("user", "One?"), Message("assistant", "Uno."))))
    result = prepared(tmp_path, RENDERERS["marked"], 1024, validation=0.0)
    assert result.ledger.tokens == len(alone.ids)
    must_add_up(result)
    with pytest.raises(BadRow):
        RENDERERS["marked"].examine(Chat((Message("user", "Two?"), Message("assistant", ""))))
