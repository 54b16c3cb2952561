"""`generate` and `chat` with models that are told what to say."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from tunesmith.cli import doors
from tunesmith.records import Message
from tunesmith.types import Sampling

Call = Callable[..., Any]
MODEL = "tunesmith-base-8m"


class Parrot:
    """Answers how many messages it saw and the last one, in two pieces."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.seen: list[tuple[tuple[Message, ...], Sampling]] = []

    def stream(self, messages: Sequence[Message], sampling: Sampling) -> Iterator[str]:
        self.seen.append((tuple(messages), sampling))
        yield f"{len(messages)}: "
        if messages[-1].content == "interrupt":
            raise KeyboardInterrupt
        yield messages[-1].content


@pytest.fixture
def parrots(monkeypatch: pytest.MonkeyPatch) -> list[Parrot]:
    made: list[Parrot] = []

    def open_answerer(name: str) -> Parrot:
        made.append(Parrot(f"{name}-{len(made)}"))
        return made[-1]

    monkeypatch.setattr(doors, "open_answerer", open_answerer, raising=False)
    return made


def _type(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))


def test_generate_streams_the_answer(call: Call, parrots: list[Parrot]) -> None:
    said = call(
        "generate",
        MODEL,
        "--prompt",
        "hello",
        "--system",
        "be kind",
        "--temperature",
        "0.5",
        "--seed",
        "3",
        "--max-new-tokens",
        "9",
        "--top-p",
        "0.9",
    )
    assert (said.code, said.out) == (0, "2: hello\n")
    messages, sampling = parrots[0].seen[0]
    assert messages == (Message("system", "be kind"), Message("user", "hello"))
    assert sampling == Sampling(max_new_tokens=9, temperature=0.5, top_p=0.9, seed=3)


def test_generate_as_json(call: Call, parrots: list[Parrot]) -> None:
    found = call("generate", MODEL, "--prompt", "hello", "--json").json
    assert found.pop("seconds") >= 0
    assert found == {"model": f"{MODEL}-0", "prompt": "hello", "answer": "1: hello"}


def test_generate_reads_standard_input(call: Call, parrots: list[Parrot], monkeypatch: pytest.MonkeyPatch) -> None:
    _type(monkeypatch, "from a pipe\n")
    assert call("generate", MODEL).out == "1: from a pipe\n"


def test_generate_without_a_prompt(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    _type(monkeypatch, "")
    said = call("generate", MODEL)
    assert said.code == 2
    assert "--prompt" in said.err


def test_generate_with_an_unknown_model(call: Call, parrots: list[Parrot]) -> None:
    assert call("generate", "nothing-here", "--prompt", "x").code == 2
    assert parrots == []


@pytest.mark.parametrize("options", [("--temperature", "-1"), ("--top-p", "0"), ("--max-new-tokens", "0")])
def test_sampling_out_of_range(call: Call, options: tuple[str, str]) -> None:
    assert call("generate", MODEL, "--prompt", "x", *options).code == 2


def test_chat_remembers_resets_and_quits(call: Call, parrots: list[Parrot], monkeypatch: pytest.MonkeyPatch) -> None:
    _type(monkeypatch, "one\n\ntwo\n/reset\nthree\n/quit\nfour\n")
    said = call("chat", MODEL)
    name = f"{MODEL}-0"
    assert said.code == 0
    assert said.out.splitlines() == [f"{name}> 1: one", f"{name}> 3: two", f"{name}> 1: three"]
    assert [message.content for message in parrots[0].seen[1][0]] == ["one", "1: one", "two"]


def test_chat_ends_with_its_input(call: Call, parrots: list[Parrot], monkeypatch: pytest.MonkeyPatch) -> None:
    _type(monkeypatch, "one\n")
    assert call("chat", MODEL).code == 0


def test_chat_keeps_the_system_message(call: Call, parrots: list[Parrot], monkeypatch: pytest.MonkeyPatch) -> None:
    _type(monkeypatch, "one\n/reset\ntwo\n")
    call("chat", MODEL, "--system", "be kind")
    assert [len(messages) for messages, _ in parrots[0].seen] == [2, 2]


def test_two_models_answer_and_remember_themselves(
    call: Call, parrots: list[Parrot], monkeypatch: pytest.MonkeyPatch
) -> None:
    _type(monkeypatch, "one\ntwo\n")
    said = call("chat", MODEL, "--against", MODEL)
    assert said.out.splitlines() == [
        f"{MODEL}-0> 1: one",
        f"{MODEL}-1> 1: one",
        f"{MODEL}-0> 3: two",
        f"{MODEL}-1> 3: two",
    ]


class _Tty(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_two_models_side_by_side_on_a_wide_terminal(
    call: Call, parrots: list[Parrot], monkeypatch: pytest.MonkeyPatch
) -> None:
    _type(monkeypatch, "one\n")
    stream = _Tty()
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("TERM", "xterm")
    assert call("chat", MODEL, "--against", MODEL).code == 0
    last = [line for line in stream.getvalue().splitlines() if "1: one" in line][-1]
    assert last.count("1: one") == 2


def test_interrupted_answer_is_kept_and_the_talk_goes_on(
    call: Call, parrots: list[Parrot], monkeypatch: pytest.MonkeyPatch
) -> None:
    _type(monkeypatch, "interrupt\nthen\n")
    said = call("chat", MODEL)
    assert said.code == 0
    assert "(stopped)" in said.err
    assert [message.content for message in parrots[0].seen[1][0]] == ["interrupt", "1: ", "then"]
