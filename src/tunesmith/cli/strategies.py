"""``tunesmith compare-strategies``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tunesmith.cli import doors
from tunesmith.cli.arguments import read_recipe, recipe_argument
from tunesmith.cli.command import Verb
from tunesmith.cli.progress import open_progress
from tunesmith.cli.terminal import Terminal, table
from tunesmith.errors import UserError
from tunesmith.planning.strategies import STRATEGIES, read_strategies
from tunesmith.reports.strategies import head_of, sentences, table_rows, verdict_lines
from tunesmith.reports.wording import DASH, count, duration, number, size

if TYPE_CHECKING:
    from tunesmith.workshop.strategies import Contest


def _words(context: click.Context, parameter: click.Parameter, value: str | None) -> list[str]:
    return [word.strip() for word in (value or "").split(",") if word.strip()]


def _whole_numbers(context: click.Context, parameter: click.Parameter, value: str) -> list[int]:
    try:
        return [int(word) for word in value.split(",")]
    except ValueError:
        raise UserError(
            f"`{value}` is no list of whole numbers", where="command line: --seeds", hint="for example 0,1,2"
        ) from None


def _numbers(context: click.Context, parameter: click.Parameter, value: str) -> list[float]:
    try:
        return [float(word) for word in value.split(",")]
    except ValueError:
        raise UserError(
            f"`{value}` is no list of numbers", where="command line: --factors", hint="for example 0.25,0.5,1,2"
        ) from None


@click.command("compare-strategies", cls=Verb)
@recipe_argument
@click.option(
    "--strategies",
    callback=_words,
    default=None,
    help=f"Names with commas; unset is all but `recipe`: {', '.join(STRATEGIES)}.",
)
@click.option(
    "--own",
    type=click.Path(path_type=Path),
    default=None,
    help="File of your own strategies: `name: {section.key: value}`.",
)
@click.option(
    "--factors", callback=_numbers, default="0.25,0.5,1,2", show_default=True,
    help="Rates to try, as factors of the rate that the plan would take.",
)  # fmt: skip
@click.option(
    "--seeds", callback=_whole_numbers, default="0,1,2", show_default=True, help="Seeds; the first chooses the rate."
)
@click.option("--reference", default=None, help="What the others are held against; unset is lora.")
@click.option(
    "--score", default="auto", show_default=True, help="label_ranking, exact_match or loss; auto looks at the data."
)
@click.option(
    "--jobs", type=click.IntRange(min=1), default=1, show_default=True, help="Runs at once, which share the cores."
)
@click.option("--out", type=click.Path(path_type=Path), default=None, help="Folder; else runs/NAME-strategies.")
@click.option("--dry-run", is_flag=True, help="Say what would run and how long, and stop.")
@click.pass_obj
def compare_strategies(
    terminal: Terminal,
    /,
    recipe: str,
    overrides: tuple[str, ...],
    own: Path | None,
    out: Path | None,
    dry_run: bool,
    **asked: Any,
) -> None:
    """Tune RECIPE's task in many ways and say which is best, what each costs, and what it forgets.

    Each strategy is tried at several learning rates; the best on validation rows is run with every seed, and test rows decide.
    Every run is a run folder of its own; the same call goes on where it was interrupted.
    """
    read_recipe(terminal, recipe, overrides)
    progress = open_progress()
    try:
        wishes = doors.Asked(own=read_strategies(own) if own else {}, **asked)
        contest = doors.Contest(recipe, overrides, wishes, out, progress)
        if dry_run:
            _show_plan(terminal, contest)
            return
        terminal.tell(_amount(contest))
        result = doors.conclude(contest)
    finally:
        progress.close()
    found = result.found
    for line in table(table_rows(found), head=head_of(found)):
        terminal.show(line)
    for line in [*verdict_lines(found), *sentences(found)]:
        terminal.show(line)
    terminal.show(f"page: {result.files[0]}")
    if terminal.as_json:
        terminal.emit({**found, "files": [str(path) for path in result.files]})


def _amount(contest: Contest) -> str:
    seconds, jobs = contest.seconds(), contest.asked.jobs
    takes = "" if seconds is None else f", {duration(seconds)} of training one after the other"
    return f"{len(contest.entries)} strategies, {count(contest.num_runs())} runs or a few more, {jobs} at once{takes}"


def _show_plan(terminal: Terminal, contest: Contest) -> None:
    rows = []
    for entry in contest.entries:
        plan, rates = entry.plan, ", ".join(number(rate, 3) for rate in contest.rates(entry))
        takes = DASH if plan.time is None else duration(plan.time.seconds)
        memory = size(plan.memory.total_bytes)
        rows.append((entry.strategy.name, count(plan.parameters.trainable), memory, takes, rates, entry.strategy.does))
    for line in table(rows, head=("strategy", "trained", "memory", "a run", "rates", "what it is"), right=(1, 2, 3)):
        terminal.show(line)
    terminal.show(_amount(contest))
    for name, why in contest.left_out.items():
        terminal.show(f"{name} is left out: {why}")
    if terminal.as_json:
        listed = [
            {
                "name": row[0],
                "parameters": entry.plan.parameters.trainable,
                "rates": contest.rates(entry),
                "does": row[5],
            }
            for row, entry in zip(rows, contest.entries, strict=True)
        ]
        terminal.emit(
            {
                "strategies": listed,
                "left_out": contest.left_out,
                "runs": contest.num_runs(),
                "seconds": contest.seconds(),
            }
        )
