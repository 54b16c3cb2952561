"""``tunesmith train``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tunesmith.cli import doors
from tunesmith.cli.arguments import fork_option, read_recipe, recipe_argument
from tunesmith.cli.command import Verb
from tunesmith.cli.detach import detach as start_detached
from tunesmith.cli.launch import launch, without_nproc
from tunesmith.cli.progress import open_progress
from tunesmith.cli.terminal import Terminal
from tunesmith.errors import GuardStopped, Interrupted, RunError, UserError
from tunesmith.files import read_json
from tunesmith.launcher import is_follower, num_ranks
from tunesmith.registry.lease import refuse_if_held
from tunesmith.registry.runs import RUNS
from tunesmith.reports.terminal import headline
from tunesmith.reports.wording import count, number

if TYPE_CHECKING:
    from tunesmith.workshop.start import Run


@click.command(cls=Verb, ranks=True)
@recipe_argument
@click.option(
    "--run", "folder", type=click.Path(path_type=Path), default=None, help="Folder of the run; else runs/NAME."
)
@click.option("--detach", is_flag=True, help="Start it in the background, where it outlives this terminal.")
@click.option(
    "--nproc",
    type=click.IntRange(min=1),
    default=1,
    metavar="N",
    help="Train as N ranks on this machine, one for each GPU.",
)
@click.option("--restart", is_flag=True, help="Start from the first step where every checkpoint is damaged.")
@fork_option
@click.pass_obj
def train(
    terminal: Terminal,
    recipe: str,
    overrides: tuple[str, ...],
    folder: Path | None,
    detach: bool,
    nproc: int,
    restart: bool,
    fork: str | None,
) -> None:
    """Train as RECIPE says, score base and tuned model, and write the report.

    The same call resumes an interrupted run; one whose recipe or data changed is refused, and --fork starts a child of it.
    With --nproc N processes share out the passes of each step. So they do under `torchrun --nproc-per-node N -m -- tunesmith train RECIPE`
    (without the `--` the launcher takes `--run` for one of its own options) and under srun.
    Overrides are typed as in the recipe: training.learning_rate=1e-3 adapter.rank=8
    """
    if detach and (num_ranks() > 1 or nproc > 1):
        raise UserError(
            "--detach starts one process", where="command line", hint="put the launcher itself into the background"
        )
    read = read_recipe(terminal, recipe, overrides)
    run_folder = folder or RUNS / read.name
    if is_follower():
        doors.follow(read, run_folder, fork)
        return
    refuse_if_held(run_folder)
    if nproc > 1:
        raise click.exceptions.Exit(launch(without_nproc(terminal.given), nproc))
    plan = doors.plan_recipe(read)
    progress = open_progress()
    try:
        run = None if fork or num_ranks() > 1 else doors.finished_run(plan, run_folder, progress)
        if run is None and detach:
            doors.check_start(plan, run_folder, progress)
            start_detached(terminal, run_folder)
            return
        if run is None:
            run = doors.train(plan, run_folder, progress=progress, restart=restart, fork=fork)
    except (Interrupted, GuardStopped):
        if terminal.as_json and (status := _status(run_folder)) is not None:
            terminal.emit({"run": str(run_folder), **status})
        raise
    finally:
        progress.close()
    _tell(terminal, run)


def _tell(terminal: Terminal, run: Run) -> None:
    if run.nothing_to_do:
        terminal.tell(f"nothing to do: {run.folder} is finished")
    terminal.show(f"{run.status}: {count(run.steps)} steps, {count(run.tokens)} tokens, loss {number(run.loss, 4)}")
    for line in _headline(run):
        terminal.show(line)
    report = run.folder / "report.html"
    terminal.show(f"run: {run.folder}")
    if report.exists():
        terminal.show(f"report: {report}")
    if terminal.as_json:
        values = {
            "run": str(run.folder),
            "status": run.status,
            "steps": run.steps,
            "tokens": run.tokens,
            "loss": run.loss,
        }
        terminal.emit(values)


def _headline(run: Run) -> list[str]:
    path = run.folder / "scorecards" / "comparison.json"
    status = run.folder / "status.json"
    seconds = read_json(status).get("seconds") if status.exists() else None
    return headline(read_json(path) if path.exists() else None, run.scorecards, seconds=seconds)


def _status(folder: Path) -> dict[str, Any] | None:
    """What an unfinished run says of itself, in the keys of a finished one."""
    try:
        found = read_json(folder / "status.json")
    except (RunError, OSError):
        return None
    if not isinstance(found, dict):
        return None
    return {
        "status": found.get("status"),
        "steps": found.get("step"),
        "tokens": found.get("tokens"),
        "loss": found.get("loss"),
    }
