"""Rows become records or say why not; real files are told apart by their columns."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tunesmith.data.bad_row import BadRow
from tunesmith.data.formats import FORMATS, check_columns, detect, note
from tunesmith.errors import DataError
from tunesmith.recipe.data import SourceSection
from tunesmith.records import Chat, Labelled, Message, Origin, RawRow, Record, Stretch, Text


def raw(values: dict[str, Any], line: int = 1) -> RawRow:
    return RawRow(Origin("f.jsonl", line), values)


def make(name: str, values: dict[str, Any], **source: Any) -> Record:
    return FORMATS[name](raw(values), SourceSection(path="f.jsonl", **source))


def chat(name: str, values: dict[str, Any], **source: Any) -> Chat:
    record = make(name, values, **source)
    assert isinstance(record, Chat)
    return record


def said(name: str, values: dict[str, Any], **source: Any) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in chat(name, values, **source).messages]


def fault(name: str, values: dict[str, Any], **source: Any) -> BadRow:
    with pytest.raises(BadRow) as caught:
        make(name, values, **source)
    return caught.value


def openai(*turns: tuple[str, Any], **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in turns], **more}


def shared_gpt(*turns: tuple[str, Any], **more: Any) -> dict[str, Any]:
    return {"conversations": [{"from": sender, "value": value} for sender, value in turns], **more}


# --- plain formats ----------------------------------------------------------------------------------------------


def test_text_and_labelled_keep_their_text_as_it_is() -> None:
    assert make("text", {"text": " a\n", "id": 3}) == Text(" a\n")
    assert make("labelled", {"text": "a", "label": 2}) == Labelled("a", "2")
    assert make("labelled", {"text": "a", "label": True}) == Labelled("a", "true")


def test_alpaca_joins_instruction_and_input() -> None:
    row = {"instruction": "Add.", "input": "1 and 2", "output": "3"}
    assert said("alpaca", row) == [("user", "Add.\n1 and 2"), ("assistant", "3")]
    for empty in ("", " ", None):
        assert said("alpaca", {**row, "input": empty}) == [("user", "Add."), ("assistant", "3")]
    del row["input"]
    assert said("alpaca", row) == [("user", "Add."), ("assistant", "3")]


def test_alpaca_takes_history_and_system() -> None:
    row = {"instruction": "c", "output": 4, "history": [["a", "b"]], "system": "s"}
    assert said("alpaca", row) == [
        ("system", "s"),
        ("user", "a"),
        ("assistant", "b"),
        ("user", "c"),
        ("assistant", "4"),
    ]


def test_seed_tasks_give_their_first_instance() -> None:
    row = {"instruction": "Do.", "instances": [{"input": "x", "output": "y"}, {"input": "u", "output": "v"}]}
    assert said("alpaca", row) == [("user", "Do.\nx"), ("assistant", "y")]
    assert detect([raw(row)], "f") == "alpaca"
    assert "first instance" in note("alpaca", raw(row))
    for instances in ([], [{"input": "x"}], ["y"], 3):
        assert fault("alpaca", {"instruction": "Do.", "instances": instances}).reason == "wrong_type"


def test_prompt_completion_is_a_conversation_of_two() -> None:
    assert said("prompt-completion", {"prompt": 1.5, "completion": "b"}) == [("user", "1.5"), ("assistant", "b")]
    assert said("prompt-completion", {"prompt": "a", "completion": "b", "system": "s"})[0] == ("system", "s")


@pytest.mark.parametrize(
    ("name", "values", "reason"),
    [
        ("text", {"text": " \n"}, "empty_text"),
        ("text", {"text": None}, "empty_text"),
        ("text", {"text": ["a"]}, "wrong_type"),
        ("text", {"text": {"a": 1}}, "wrong_type"),
        ("text", {"body": "a"}, "missing_column"),
        ("labelled", {"text": "", "label": "x"}, "empty_text"),
        ("labelled", {"text": "a", "label": ""}, "empty_answer"),
        ("labelled", {"text": "a"}, "missing_column"),
        ("prompt-completion", {"prompt": "", "completion": "b"}, "empty_text"),
        ("prompt-completion", {"prompt": "a", "completion": " "}, "empty_answer"),
        ("prompt-completion", {"prompt": "a", "completion": None}, "empty_answer"),
        ("prompt-completion", {"prompt": [{"role": "user", "content": "a"}], "completion": "b"}, "wrong_type"),
        ("alpaca", {"instruction": "", "input": "", "output": "b"}, "empty_text"),
        ("alpaca", {"instruction": "a", "output": ""}, "empty_answer"),
        ("alpaca", {"instruction": "a"}, "missing_column"),
        ("alpaca", {"instruction": "a", "output": "b", "history": [["a"]]}, "wrong_type"),
        ("messages", {"messages": "hello"}, "wrong_type"),
        ("messages", {"messages": {"role": "user"}}, "wrong_type"),
        ("messages", {"messages": []}, "no_answer"),
        ("messages", {"messages": ["hello"]}, "wrong_type"),
        ("messages", {"messages": [{"content": "a"}]}, "missing_column"),
        ("messages", {"messages": [{"role": "user"}]}, "missing_column"),
        ("messages", {"messages": [{"role": "human", "content": "a"}]}, "role_order"),
        ("messages", openai(("user", 3), ("assistant", "b")), "wrong_type"),
        ("messages", openai(("user", [{"type": "image_url", "image_url": "x"}]), ("assistant", "b")), "wrong_type"),
        ("messages", openai(("user", "a"), ("assistant", "b"), tools="not json"), "wrong_type"),
        ("messages", openai(("user", "a"), ("assistant", "b"), tools=["f"]), "wrong_type"),
        ("sharegpt", shared_gpt(("human", "a"), ("function_call", "{broken")), "wrong_type"),
        ("sharegpt", shared_gpt(("human", "a"), ("function_call", "{}")), "wrong_type"),
        ("sharegpt", {"conversations": [{"from": "human"}]}, "missing_column"),
    ],
)
def test_faults_of_a_row_have_a_reason(name: str, values: dict[str, Any], reason: str) -> None:
    found = fault(name, values)
    assert found.reason == reason
    assert found.detail


# --- conversations ----------------------------------------------------------------------------------------------

ORDERS = [
    ("u a", None),
    ("s u a", None),
    ("u a u a", None),
    ("s u a t a", None),
    ("u a t t a u a", None),
    ("u a u a t a", None),
    ("a", 1),
    ("t a", 1),
    ("u u a", 2),
    ("u a a", 3),
    ("s s u a", 2),
    ("s a", 2),
    ("u s a", 2),
    ("u a s u a", 3),
    ("u t a", 2),
    ("u a t u a", 4),
    ("u a u", 3),
    ("u a t", 3),
]


@pytest.mark.parametrize(("order", "turn"), ORDERS)
def test_roles_stand_in_order_or_the_turn_is_named(order: str, turn: int | None) -> None:
    roles = {"s": ("system", "system"), "u": ("user", "human"), "a": ("assistant", "gpt"), "t": ("tool", "observation")}
    letters = order.split()
    rows = {
        "messages": openai(*((roles[letter][0], "x") for letter in letters)),
        "sharegpt": shared_gpt(*((roles[letter][1], "x") for letter in letters)),
    }
    for name, values in rows.items():
        if turn is None:
            assert [role for role, _ in said(name, values)] == [roles[letter][0] for letter in letters]
        else:
            found = fault(name, values)
            assert found.reason == "role_order"
            assert f"turn {turn}" in found.detail


def test_a_conversation_without_an_answer() -> None:
    assert fault("messages", openai(("user", "a"))).reason == "no_answer"
    assert fault("sharegpt", shared_gpt(("system", "s"), ("human", "a"))).reason == "no_answer"


def test_only_the_last_answer_must_say_something() -> None:
    assert said("messages", openai(("user", "a"), ("assistant", ""), ("user", "b"), ("assistant", "c")))[1] == (
        "assistant",
        "",
    )
    assert fault("messages", openai(("user", "a"), ("assistant", " \n"))).reason == "empty_answer"
    assert fault("sharegpt", shared_gpt(("human", "a"), ("gpt", None))).reason == "empty_answer"
    assert (
        fault("messages", openai(("user", "a"), ("assistant", [{"type": "reasoning", "text": "hm"}]))).reason
        == "empty_answer"
    )
    called = {
        "messages": [
            {"role": "user", "content": "a"},
            {"role": "assistant", "tool_calls": [{"function": {"name": "f"}}]},
        ]
    }
    assert said("messages", called)[1] == ("assistant", "")


def test_names_of_speakers() -> None:
    for sender in ("gpt", "assistant", "chatgpt", "bing", "bard"):
        assert said("sharegpt", shared_gpt(("human", "a"), (sender, "b"))) == [("user", "a"), ("assistant", "b")]
    assert said("sharegpt", shared_gpt(("user", "a"), ("gpt", "b"), ("tool", "c"), ("gpt", "d")))[2] == ("tool", "c")
    assert said("messages", openai(("developer", "s"), ("user", "a"), ("assistant", "b")))[0] == ("system", "s")


def test_train_flags_of_a_message() -> None:
    turns: list[dict[str, Any]] = [
        {"role": "user", "content": "a", "loss_weight": 0.0},
        {"role": "assistant", "content": "b", "weight": 0},
        {"role": "user", "content": "c", "train": True},
        {"role": "assistant", "content": "d", "loss_weight": 1.0, "train": True},
        {"role": "user", "content": "e", "weight": None},
        {"role": "assistant", "content": "f"},
    ]
    messages = chat("messages", {"messages": turns}).messages
    assert [message.train for message in messages] == [False, False, True, True, None, None]
    assert all(message.extra is None for message in messages)
    for wrong in ({"weight": 0.5}, {"train": "yes"}, {"train": True, "weight": 0}, {"weight": 2}):
        values = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", **wrong}]}
        assert fault("messages", values).reason == "wrong_type"


def test_parts_are_joined_and_reasoning_and_calls_are_kept() -> None:
    parts = [
        {"type": "reasoning", "value": "I think."},
        {"type": "text", "text": "One"},
        {"type": "text", "value": " two"},
        {"type": "tool_call", "value": '{"name": "f", "arguments": {"x": 1}}'},
    ]
    message = chat("messages", openai(("user", [{"type": "text", "text": "a"}]), ("assistant", parts))).messages[1]
    assert message.content == "One two"
    assert message.extra == {
        "reasoning_content": "I think.",
        "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}],
    }


def _parts(*parts: tuple[str, bool | int | None], **flags: Any) -> dict[str, Any]:
    """A row whose answer has text parts with flags."""
    content = [{"type": "text", "text": text} | ({} if flag is None else {"train": flag}) for text, flag in parts]
    return {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": content, **flags}]}


STRETCHES = [
    (_parts(("think ", False), ("42", None)), None, [(0, 6, False)]),
    (_parts(("think ", None), ("42", 1)), None, [(6, 8, True)]),
    (_parts(("a", False), ("b", False), ("c", True), ("", False), ("d", True)), None, [(0, 2, False), (2, 4, True)]),
    (_parts(("a", None), ("b", True), weight=0), False, [(0, 1, False), (1, 2, True)]),
    (_parts(("a", True), ("b", True)), True, []),
    (_parts(("a", False)), False, []),
    (_parts(("a", None), ("b", True), train=True), True, []),
    (_parts(("a", None), ("b", None)), None, []),
]


@pytest.mark.parametrize(("values", "train", "stretches"), STRETCHES)
def test_train_flags_of_parts(values: dict[str, Any], train: bool | None, stretches: list[Any]) -> None:
    message = chat("messages", values).messages[1]
    assert message.train is train
    assert message.stretches == tuple(Stretch(*item) for item in stretches)
    assert message.extra is None


def test_a_flag_that_its_part_cannot_have_is_a_fault() -> None:
    assert fault("messages", _parts(("a", 2), ("b", None))).reason == "wrong_type"
    assert fault("messages", openai(("user", "a"), ("assistant", [{"type": "text", "text": "b", "train": "no"}])))
    reasoning = {"type": "reasoning", "text": "hm", "train": False}
    found = fault("messages", openai(("user", "a"), ("assistant", [reasoning, {"type": "text", "text": "b"}])))
    assert found.reason == "wrong_type"
    assert "turn 2 flags a reasoning part otherwise" in found.detail
    call = {"type": "tool_call", "value": {"name": "f"}, "train": True}
    parts = [{"type": "text", "text": "b", "train": False}, {"type": "text", "text": "c", "train": True}, call]
    assert chat("messages", openai(("user", "a"), ("assistant", parts))).messages[1].stretches[-1] == Stretch(
        1, 2, True
    )
    assert (
        "a tool call part" in fault("messages", openai(("user", "a"), ("assistant", [*parts[1:], *parts[:1]]))).detail
    )


def test_keys_that_are_not_read_are_kept_to_be_told() -> None:
    part = {"type": "text", "text": "b", "cache_control": {"type": "x"}, "annotations": [], "trian": False}
    message = chat("messages", openai(("user", "a"), ("assistant", [part]))).messages[1]
    assert message.extra == {"content.cache_control": {"type": "x"}, "content.trian": False}
    turns = [
        {"from": "human", "value": "a", "name": "Ann"},
        {"from": "gpt", "value": "b", "trian": False, "text": None},
    ]
    messages = chat("sharegpt", {"conversations": turns}).messages
    assert [message.extra for message in messages] == [{"name": "Ann"}, {"trian": False}]


def test_openai_tool_calls_keep_their_ids_and_parse_their_arguments() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"x": [1]}'}}
    turns = [
        {"role": "user", "content": "a", "name": "Ann"},
        {"role": "assistant", "content": None, "tool_calls": [call], "refusal": None},
        {"role": "tool", "content": "7", "tool_call_id": "c1"},
        {"role": "assistant", "content": "b", "reasoning_content": "r"},
    ]
    messages = chat("messages", {"messages": turns}).messages
    assert messages[0].extra == {"name": "Ann"}
    parsed = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": {"x": [1]}}}
    assert messages[1] == Message("assistant", "", None, {"tool_calls": [parsed]})
    assert messages[2].extra == {"tool_call_id": "c1"}
    assert messages[3].extra == {"reasoning_content": "r"}


def test_openai_function_calls_become_tool_calls_and_functions_tools() -> None:
    call = {"name": "f", "arguments": '{"x": 1}'}
    turns = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": None, "function_call": call},
        {"role": "function", "name": "f", "content": "7"},
        {"role": "assistant", "content": "b", "function_call": None},
    ]
    record = chat("messages", {"messages": turns, "functions": [{"name": "f", "parameters": {}}]})
    parsed = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
    assert record.messages[1] == Message("assistant", "", None, {"tool_calls": [parsed]})
    assert record.messages[2] == Message("tool", "7", None, {"name": "f"})
    assert record.messages[3] == Message("assistant", "b")
    assert record.tools == ({"type": "function", "function": {"name": "f", "parameters": {}}},)
    last = chat("messages", {"messages": turns[:2]}).messages[-1]
    assert last.extra == {"tool_calls": [parsed]}


def test_columns_that_hold_null_give_way_to_those_that_hold_something() -> None:
    values = openai(("user", "a"), ("assistant", "b"), tools=None, functions=[{"name": "f"}])
    assert chat("messages", values).tools is not None
    sentence = note("messages", raw(openai(("user", "a"), ("assistant", "b"), tools=[{"name": "f"}], functions=[])))
    assert sentence == "format messages, from messages, tools; not used: functions"


@pytest.mark.parametrize("calls", [[], [{"function": {"name": "g"}}]])
def test_a_turn_that_calls_in_two_ways_or_in_none_is_a_fault(calls: list[Any]) -> None:
    turn = {"role": "assistant", "content": None, "tool_calls": calls, "function_call": {"name": "f"}}
    values = {"messages": [{"role": "user", "content": "a"}, turn]}
    if calls:
        assert fault("messages", values).reason == "wrong_type"
    else:
        assert chat("messages", values).messages[1].extra is not None
    broken = {"role": "assistant", "content": None, "function_call": {"arguments": "{}"}}
    assert fault("messages", {"messages": [{"role": "user", "content": "a"}, broken]}).reason == "wrong_type"


@pytest.mark.parametrize("key", ["audio", "refusal", "functionCall"])
def test_a_turn_whose_content_stands_in_a_key_that_is_not_read_is_a_fault(key: str) -> None:
    unread = {"content": None, key: {"id": "x"} if key != "refusal" else "No."}
    after = [{"role": "user", "content": "b"}, {"role": "assistant", "content": "c"}]
    answered = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", **unread}, *after]}
    found = fault("messages", answered)
    assert found.reason == "empty_answer"
    assert f"turn 2 has no content, and its `{key}` is not read" in found.detail
    asked = fault("messages", {"messages": [{"role": "user", **unread}, {"role": "assistant", "content": "c"}]})
    assert asked.reason == "empty_text"
    human = {"from": "human", "value": "a"}
    sharegpt = {
        "conversations": [human, {"from": "gpt", "value": "", key: unread[key]}, human, {"from": "gpt", "value": "c"}]
    }
    assert fault("sharegpt", sharegpt).reason == "empty_answer"


def test_an_empty_turn_with_a_name_an_id_or_reasoning_is_none() -> None:
    turns = [
        {"role": "user", "content": "a", "name": "Ann"},
        {"role": "assistant", "content": "", "id": "m1", "reasoning_content": "hm", "annotations": [], "refusal": None},
        {"role": "user", "content": "b"},
        {"role": "assistant", "content": "c"},
    ]
    messages = chat("messages", {"messages": turns}).messages
    assert messages[1] == Message("assistant", "", None, {"id": "m1", "reasoning_content": "hm"})


def test_sharegpt_function_calls_become_tool_calls() -> None:
    tools = json.dumps([{"name": "f", "parameters": {}}])
    values = shared_gpt(
        ("human", "a"),
        ("function_call", '{"name": "f", "arguments": {"x": 1}}'),
        ("observation", "7"),
        ("gpt", "b"),
        tools=tools,
    )
    record = chat("sharegpt", values)
    assert [message.role for message in record.messages] == ["user", "assistant", "tool", "assistant"]
    assert record.messages[1].extra == {
        "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}]
    }
    assert record.tools == ({"type": "function", "function": {"name": "f", "parameters": {}}},)


@pytest.mark.parametrize("tools", [None, "", "[]", []])
def test_no_tools_are_none(tools: Any) -> None:
    assert chat("messages", openai(("user", "a"), ("assistant", "b"), tools=tools)).tools is None


def test_tools_as_a_list_and_as_text_are_the_same() -> None:
    schema = {"type": "function", "function": {"name": "f"}}
    as_list = chat("messages", openai(("user", "a"), ("assistant", "b"), tools=[schema]))
    assert as_list == chat("messages", openai(("user", "a"), ("assistant", "b"), tools=json.dumps([schema])))
    assert as_list.tools == (schema,)


def test_the_nearest_system_message_wins() -> None:
    own = shared_gpt(("system", "own"), ("human", "a"), ("gpt", "b"), system="column")
    column = shared_gpt(("human", "a"), ("gpt", "b"), system="column")
    none = shared_gpt(("human", "a"), ("gpt", "b"), system="")
    found = [said("sharegpt", values, system="source")[0] for values in (own, column, none)]
    assert found == [("system", "own"), ("system", "column"), ("system", "source")]
    assert said("sharegpt", none)[0] == ("user", "a")
    assert said("prompt-completion", {"prompt": "a", "completion": "b"}, system="source")[0] == ("system", "source")


@pytest.mark.parametrize("name", ["text", "labelled"])
def test_a_system_message_without_conversation_is_refused(name: str) -> None:
    with pytest.raises(DataError, match="conversations"):
        make(name, {"text": "a", "label": "b"}, system="source")


def test_messages_as_json_text_of_a_table() -> None:
    values = {"messages": json.dumps(openai(("user", "a"), ("assistant", "b"))["messages"])}
    assert detect([raw(values)], "f") == "messages"
    assert said("messages", values) == [("user", "a"), ("assistant", "b")]


def test_a_key_twice_in_json_within_a_column_is_a_fault() -> None:
    turns = '[{"role": "user", "content": "a", "content": "b"}, {"role": "assistant", "content": "c"}]'
    found = fault("messages", {"messages": turns})
    assert (found.reason, found.detail) == ("wrong_type", "`messages`: the key `content` stands twice in one object")
    call = {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"function": {"name": "f", "arguments": '{"x": 1, "x": 2}'}}],
    }
    kept = chat("messages", {"messages": [{"role": "user", "content": "a"}, call]}).messages[1].extra
    assert kept is not None
    assert kept["tool_calls"][0]["function"]["arguments"] == '{"x": 1, "x": 2}'


# --- columns ----------------------------------------------------------------------------------------------------


def test_columns_are_named_or_composed() -> None:
    values = {"title": "T", "body text": "B", "n": 3, "none": None, "tag": "x"}
    columns = {"prompt": "{{{title}}}: {body text} {n}{none}", "completion": "tag"}
    assert said("prompt-completion", values, columns=columns) == [("user", "{T}: B 3"), ("assistant", "x")]


def test_a_named_column_of_an_optional_field_must_be_there() -> None:
    row = {"instruction": "a", "output": "b"}
    found = fault("alpaca", row, columns={"input": "context"})
    assert found.reason == "missing_column"
    assert "instruction, output" in found.detail


@pytest.mark.parametrize(
    "template", ["{a", "a}", "{}", "{a.b}", "{a[0]}", "{a!r}", "{a:>9}", "{{a}}", "{ a}", "{a{b}}"]
)
def test_templates_hold_plain_names_only(template: str) -> None:
    with pytest.raises(DataError) as caught:
        make("text", {"a": "x", "b": "y"}, columns={"text": template})
    assert "columns.text" in caught.value.where
    assert caught.value.hint


def test_an_unknown_field_is_an_error_with_a_suggestion() -> None:
    with pytest.raises(DataError) as caught:
        make("prompt-completion", {"prompt": "a", "completion": "b"}, columns={"promt": "prompt"})
    assert "`promt`" in caught.value.what
    assert "did you mean `prompt`" in caught.value.hint
    with pytest.raises(DataError) as caught:
        make("prompt-completion", {"prompt": "a", "completion": "b"}, columns={"label": "prompt"})
    assert "belongs to labelled" in caught.value.hint
    with pytest.raises(DataError, match="no format has a field `promt`"):
        detect([raw({"text": "a"})], "f", {"promt": "text"})


def test_a_column_that_the_first_row_lacks_is_an_error_that_lists_the_columns() -> None:
    source = SourceSection(path="f", columns={"prompt": "txt", "completion": "{category} {kind}"})
    row = raw({"text": "a", "category": "b", "kind": "c"}, line=2)
    with pytest.raises(DataError) as caught:
        check_columns(row, "prompt-completion", source)
    assert "`txt`" in caught.value.what
    assert "text, category, kind" in caught.value.what
    assert "did you mean `text`" in caught.value.hint
    assert caught.value.where == "f.jsonl:2"
    check_columns(row, "prompt-completion", SourceSection(path="f", columns={**source.columns, "prompt": "text"}))


def test_a_template_with_a_missing_column_is_named() -> None:
    with pytest.raises(DataError, match="`kind`"):
        check_columns(raw({"text": "a"}), "text", SourceSection(path="f", columns={"text": "{text} {kind}"}))
