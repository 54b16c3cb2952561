"""``tunesmith generate`` and ``tunesmith chat``."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import click

from tunesmith.cli import doors
from tunesmith.cli.arguments import against_option, model_argument, sampling_options
from tunesmith.cli.command import Verb
from tunesmith.cli.terminal import Terminal, width
from tunesmith.errors import UserError
from tunesmith.models.locate import open_model
from tunesmith.records import Message
from tunesmith.types import Sampling
from tunesmith.visible import visible

_SIDE_BY_SIDE_COLUMNS = 90
_LABELS_SHOWN = 5


class Answerer(Protocol):
    """A model that answers conversations word by word."""

    name: str

    def stream(self, messages: Sequence[Message], sampling: Sampling) -> Iterator[str]:
        """Pieces of the answer to the last message, as they come."""
        ...


@click.command(cls=Verb)
@model_argument
@click.option("--prompt", default=None, help="What to ask; else it is read from standard input.")
@sampling_options
@click.pass_obj
def generate(terminal: Terminal, /, model: str, prompt: str | None, system: str | None, **how: Any) -> None:
    """Ask MODEL once and print its answer.

    MODEL is an embedded name, a model folder, a run folder or an adapter folder.
    """
    if prompt is None:
        prompt = _read_prompt()
    if not prompt.strip():
        raise UserError("there is nothing to ask: the prompt is empty", where="--prompt", hint="give --prompt TEXT")
    open_model(model)
    answerer: Answerer = doors.open_answerer(model)
    messages = [*_opening(system), Message("user", prompt)]
    started, pieces = time.perf_counter(), []
    for piece in answerer.stream(messages, Sampling(**how)):
        pieces.append(piece)
        terminal.write(piece)
    terminal.show()
    details = getattr(answerer, "details", {})
    for label, share in list(details.get("probabilities", {}).items())[:_LABELS_SHOWN]:
        terminal.show(f"{100 * share:5.1f} %  {visible(label)}")
    for span in details.get("spans", []):
        terminal.show(f"{100 * span['probability']:5.1f} %  {visible(span['type'])}: {visible(span['text'])}")
    if terminal.as_json:
        answer = "".join(pieces)
        seconds = time.perf_counter() - started
        terminal.emit({"model": answerer.name, "prompt": prompt, "answer": answer, **details, "seconds": seconds})


def _read_prompt() -> str:
    if sys.stdin.isatty():
        raise UserError("there is nothing to ask", where="command line", hint="give --prompt TEXT, or pipe the text in")
    text = sys.stdin.read().rstrip("\n")
    if not text:
        raise UserError(
            "there is nothing to ask: standard input is empty", where="command line", hint="give --prompt TEXT"
        )
    return text


def _opening(system: str | None) -> list[Message]:
    return [Message("system", system)] if system else []


@click.command(cls=Verb, reports=False)
@model_argument
@against_option("A second model that answers beside the first.")
@sampling_options
@click.pass_obj
def chat(terminal: Terminal, /, model: str, against: str | None, system: str | None, **how: Any) -> None:
    """Talk with MODEL, or with two models at once.

    /reset forgets the conversation, /quit ends it; Ctrl-C stops an answer.
    """
    names = [name for name in (model, against) if name]
    for name in names:
        open_model(name)
    talks = [_Talk(doors.open_answerer(name), system) for name in names]
    is_piped = not sys.stdin.isatty()
    if not is_piped:
        terminal.tell(f"{' and '.join(talk.name for talk in talks)}: /reset forgets, /quit ends")
    sampling = Sampling(**how)
    while (said := _listen(is_piped)) is not None:
        if said == "/reset":
            for talk in talks:
                talk.reset()
            terminal.tell("forgotten")
        elif said:
            _answer(terminal, talks, said, sampling)


def _listen(is_piped: bool) -> str | None:
    """The next line, or None at the end."""
    try:
        said = input("" if is_piped else "you> ").strip()
    except EOFError:
        return None
    return None if said == "/quit" else said


class _Talk:
    """One model's conversation: it remembers its own answers, not the other's."""

    def __init__(self, answerer: Answerer, system: str | None) -> None:
        self.name = answerer.name
        self._answerer = answerer
        self._opening = _opening(system)
        self._messages = list(self._opening)

    def reset(self) -> None:
        """Forget all but the system message."""
        self._messages = list(self._opening)

    def ask(self, said: str, sampling: Sampling) -> Iterator[str]:
        """Stream the answer; what came before an interruption is remembered."""
        self._messages.append(Message("user", said))
        pieces: list[str] = []
        try:
            for piece in self._answerer.stream(tuple(self._messages), sampling):
                pieces.append(piece)
                yield piece
        finally:
            self._messages.append(Message("assistant", "".join(pieces)))


def _answer(terminal: Terminal, talks: Sequence[_Talk], said: str, sampling: Sampling) -> None:
    streams = [talk.ask(said, sampling) for talk in talks]
    try:
        if len(talks) == 2 and sys.stdout.isatty() and width(200) >= _SIDE_BY_SIDE_COLUMNS:
            _side_by_side([talk.name for talk in talks], streams)
        else:
            _one_under_another(terminal.write, [talk.name for talk in talks], streams)
    except KeyboardInterrupt:
        terminal.tell("\n(stopped)")
    finally:
        for stream in streams:
            stream.close()  # type: ignore[attr-defined]


def _one_under_another(write: Callable[[str], None], names: Sequence[str], streams: Sequence[Iterator[str]]) -> None:
    for name, stream in zip(names, streams, strict=True):
        write(f"{name}> ")
        for piece in stream:
            write(piece)
        write("\n")


def _side_by_side(names: Sequence[str], streams: Sequence[Iterator[str]]) -> None:
    """Both answers in two columns, a piece of each in turn."""
    from rich.live import Live
    from rich.table import Table
    from rich.text import Text

    texts = [""] * len(streams)
    open_streams = dict(enumerate(streams))

    def page() -> Table:
        grid = Table(expand=True)
        for name in names:
            grid.add_column(Text(visible(name)), ratio=1)
        grid.add_row(*(Text(visible(text)) for text in texts))
        return grid

    with Live(page(), refresh_per_second=12, vertical_overflow="visible") as live:
        while open_streams:
            for position, stream in list(open_streams.items()):
                piece = next(stream, None)
                if piece is None:
                    del open_streams[position]
                else:
                    texts[position] += piece
            live.update(page())
