"""``tunesmith blend``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from tunesmith.cli import doors
from tunesmith.cli.arguments import adapters_argument
from tunesmith.cli.command import Verb
from tunesmith.cli.export import DTYPES
from tunesmith.cli.terminal import Terminal, table
from tunesmith.workshop.blendable import LEAST_LOST, METHODS, BlendOptions, check_blend


def _numbers(context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[float, ...] | None:
    if value is None:
        return None
    try:
        return tuple(float(item) for item in value.split(","))
    except ValueError:
        raise click.BadParameter(f"{value!r} is no list of numbers such as 0.7,0.3", context, parameter) from None


@click.command(cls=Verb)
@adapters_argument
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The new folder.")
@click.option("--weights", metavar="W,W...", default=None, callback=_numbers, help="One for each; else equal shares.")
@click.option("--method", type=click.Choice(METHODS), default="linear", show_default=True, help="How changes meet.")
@click.option("--density", type=float, default=None, help="Share of entries that ties and dare keep; else 0.5.")
@click.option("--seed", type=click.IntRange(min=0), default=None, help="Seed of what dare drops; else 0.")
@click.option("--rank", type=int, default=None, help="Reduce each layer to this rank, and say what that costs.")
@click.option("--no-normalise", is_flag=True, help="Take the weights as factors instead of shares.")
@click.option("--base", metavar="MODEL", default=None, help="The base, where an adapter's name for it leads nowhere.")
@click.option("--merge", is_flag=True, help="Fold the blend into the base: a whole model in Hugging Face layout.")
@click.option(
    "--dtype", type=click.Choice(DTYPES), default=None, help="Number format of a whole model; else the base's."
)
@click.pass_obj
def blend(terminal: Terminal, /, adapters: tuple[str, ...], out: Path, no_normalise: bool, **how: Any) -> None:
    """Blend several ADAPTERs of one base into the new folder OUT: one adapter, or a merged model.

    ADAPTER is an adapter folder or a run. `linear` sums their changes of each weight, exactly; `ties` and `dare` trim or drop
    entries of them first. Exit code 3 where what was written does not answer as the blend.
    """
    how["normalise"] = not no_normalise
    check_blend(adapters, out, BlendOptions(**how))
    result = doors.blend(adapters, out, **how)
    lineage = result.lineage
    rows = [(item["name"], f"{item['factor']:.4g}", item["sha256"][:12]) for item in lineage["sources"]]
    for line in table(rows, head=("adapter", "factor", "sha256"), right=(1,)):
        terminal.show(line)
    ranks = [layer.rank for layer in result.layers]
    terminal.show(f"{lineage['method']} over {len(ranks)} layers, of rank {min(ranks)} to {max(ranks)}")
    if result.lost >= LEAST_LOST:
        terminal.show(
            f"the rank leaves out {100 * result.lost:.3g} % of the update (Frobenius norm): against the whole blend a mean KL of "
            f"{result.cost['mean_kl_nats']:.2g} nats and the same first choice at {100 * result.cost['top1_agreement']:.2f} % of "
            f"{result.cost['positions']:,.0f} positions; a higher --rank is closer, --merge is exact"
        )
    for gate in result.gates:
        terminal.show(gate.sentence)
    for note in result.notes:
        terminal.show(f"note: {note}")
    terminal.show(f"written: {result.folder}")
    if terminal.as_json:
        gates = [gate.to_json() for gate in result.gates]
        terminal.emit(
            {"folder": str(result.folder), **lineage, "gates": gates, "cost": result.cost, "notes": result.notes}
        )
