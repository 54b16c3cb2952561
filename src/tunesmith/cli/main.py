"""The command line's door: finds the verb, runs it, and turns every ending into words and an exit code.

Exit codes: 0 done, 2 the input is wrong, 3 a gate refused, 4 a guard stopped training, 130 interrupted;
1 a fault of Tunesmith itself, 141 the reader of the output left (as in ``tunesmith runs list | head -1``).
"""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from collections.abc import Sequence

import click

from tunesmith import __version__
from tunesmith.cli.command import VerbGroup
from tunesmith.cli.streams import outlive_readers
from tunesmith.cli.table import VERBS
from tunesmith.cli.terminal import Terminal
from tunesmith.errors import TunesmithError
from tunesmith.files import disk_trouble
from tunesmith.signals import end_quietly, signals_interrupt

EXIT_FAULT = 1
EXIT_INPUT = 2
EXIT_INTERRUPTED = 130
EXIT_READER_LEFT = 141


@click.group(cls=VerbGroup, table=VERBS, no_args_is_help=True)
@click.version_option(__version__, "--version", prog_name="tunesmith")
def tunesmith() -> None:
    """Turn a base language model and a pile of examples into a better model, and prove that it is better.

    Start with `tunesmith demo`, or with `tunesmith init`.
    """


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit."""
    _wait_politely()
    # Nothing is ever fetched at run time.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, ValueError):
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    outlive_readers()
    try:
        code = run(arguments)
        end_quietly()
    except KeyboardInterrupt:  # one more signal, while the answer to the first was written
        code = EXIT_INTERRUPTED
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        code = _reader_left()
    sys.exit(code)


def _wait_politely() -> None:
    """On a machine that is busy already, let OpenMP's threads sleep while they wait; set before torch is loaded.

    Spinning threads win a quarter where nobody else computes, and lose a factor of two or more where somebody does.
    """
    with contextlib.suppress(OSError, AttributeError):
        if os.getloadavg()[0] > 0.75 * (os.cpu_count() or 1):
            os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    terminal = Terminal()
    given = list(sys.argv[1:] if arguments is None else arguments)
    terminal.given = given
    terminal.wants_json = "--json" in given  # also where the arguments are too wrong to be parsed
    try:
        with signals_interrupt(), tunesmith.make_context("tunesmith", given, obj=terminal) as context:
            tunesmith.invoke(context)
    except click.exceptions.Exit as end:
        return end.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        terminal.tell(error.format_message())
        return EXIT_INPUT
    except click.ClickException as error:
        return _end(terminal, error, EXIT_INPUT, _usage(error), _place(error), _usage_hint(error))
    except (click.Abort, KeyboardInterrupt) as error:
        return _end(terminal, error, EXIT_INTERRUPTED, "interrupted", "command line", "start the same command again")
    except TunesmithError as error:
        return _end(terminal, error, error.exit_code, error.what, error.where, error.hint)
    except BrokenPipeError:
        return _reader_left()
    except OSError as error:
        return _file_trouble(terminal, error, error)
    except Exception as error:
        if trouble := disk_trouble(error):
            return _file_trouble(terminal, error, trouble)
        hint = "this is a fault of Tunesmith, not of yours: run the same command with --debug and report what it shows"
        return _end(terminal, error, EXIT_FAULT, f"sorry, something broke: {type(error).__name__}: {error}", "", hint)
    return 0


def _end(terminal: Terminal, error: BaseException, code: int, what: str, where: str, hint: str) -> int:
    if terminal.debug:
        terminal.tell("".join(traceback.format_exception(error)).rstrip())
    where = terminal.locate(where)
    terminal.fail(what, where, hint)
    if terminal.wants_json and not terminal.has_emitted:
        terminal.emit({"error": {"what": what, "where": where, "hint": hint, "exit_code": code}})
    return code


def _file_trouble(terminal: Terminal, error: Exception, trouble: OSError) -> int:
    what = (trouble.strerror or str(trouble)).lower()
    where = str(trouble.filename or "") or "the files that this command writes"
    return _end(terminal, error, EXIT_INPUT, what, where, "check the path, its permissions and the space left")


def _usage(error: click.ClickException) -> str:
    message = error.format_message().splitlines()[0].partition(". Did you mean")[0].rstrip(".")
    return message[0].lower() + message[1:]


def _place(error: click.ClickException) -> str:
    context = getattr(error, "ctx", None)
    return f"command line: {context.command_path}" if context else "command line"


def _usage_hint(error: click.ClickException) -> str:
    near = getattr(error, "possibilities", None)
    if near:
        return f"did you mean `{sorted(near)[0]}`?"
    context = getattr(error, "ctx", None)
    return (
        f"`{context.command_path} --help` shows what it takes" if context else "`tunesmith --help` shows the commands"
    )


def _reader_left() -> int:
    """Point stdout at nothing, so that the interpreter's last flush has somewhere to go."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return EXIT_READER_LEFT
