"""Arguments that several verbs share."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from tunesmith import embedded
from tunesmith.cli.terminal import Terminal
from tunesmith.recipe import codec
from tunesmith.recipe.root import Recipe
from tunesmith.registry.lineage import parse_fork
from tunesmith.registry.runs import find_run
from tunesmith.types import LEAST_TEMPERATURE

Function = TypeVar("Function", bound=Callable[..., Any])


def _run(context: click.Context, parameter: click.Parameter, value: Path) -> Path:
    return find_run(value)


def _model(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    return value if value is None or embedded.model_folder(value) else str(find_run(Path(value)))


def run_argument(name: str, metavar: str = "RUN") -> Callable[[Function], Function]:
    """A run folder as ``name``: a path, or what ``tunesmith runs list`` calls it."""
    return click.argument(name, metavar=metavar, type=click.Path(path_type=Path), callback=_run)


def _parent(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    if value is None:
        return None
    path, step = parse_fork(value)
    return str(find_run(path)) + (f"@{step}" if step is not None else "")


def fork_option(function: Function) -> Function:
    """``--fork RUN[@STEP]``, as ``fork``; the name of a run means its folder."""
    words = "Start a child run from a checkpoint of another run."
    return click.option("--fork", metavar="RUN[@STEP]", default=None, callback=_parent, help=words)(function)


def model_argument(function: Function) -> Function:
    """``MODEL``, as ``model``; the name of a run means its folder."""
    return click.argument("model", metavar="MODEL", callback=_model)(function)


def _adapters(context: click.Context, parameter: click.Parameter, value: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(str(find_run(Path(item))) for item in value)


def adapters_argument(function: Function) -> Function:
    """``ADAPTER...``, as ``adapters``; the name of a run means its folder."""
    return click.argument("adapters", metavar="ADAPTER...", nargs=-1, required=True, callback=_adapters)(function)


def against_option(help: str) -> Callable[[Function], Function]:
    """``--against MODEL``, as ``against``."""
    return click.option("--against", metavar="MODEL", default=None, callback=_model, help=help)


def recipe_argument(function: Function) -> Function:
    """``RECIPE [SECTION.KEY=VALUE]...``, as ``recipe`` and ``overrides``."""
    function = click.argument("overrides", nargs=-1, metavar="[SECTION.KEY=VALUE]...")(function)
    return click.argument("recipe", metavar="RECIPE")(function)


def read_recipe(terminal: Terminal, path: str, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe; from here on errors name its keys by file and line.

    Raises:
        RecipeError: it is missing or wrong.
    """
    recipe = codec.load(path, *overrides)
    terminal.locate = recipe.where
    return recipe


class _Finite(click.FloatRange):
    """Numbers of a range: NaN, which every comparison lets through, and infinities are none. ``least`` is that above 0."""

    def __init__(self, *, least: float = 0.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._least = least

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The number, or a complaint."""
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value!r} is not a finite number", param, ctx)
        if 0 < number < self._least:
            self.fail(f"{value!r} is below {self._least}: 0 takes the likeliest token each time", param, ctx)
        return number


def sampling_options(function: Function) -> Function:
    """How to answer, as ``max_new_tokens``, ``temperature``, ``top_p`` and ``seed``."""
    options = [
        click.option(
            "--max-new-tokens",
            type=click.IntRange(min=1),
            default=256,
            show_default=True,
            help="Longest answer in tokens.",
        ),
        click.option(
            "--temperature",
            type=_Finite(min=0.0, least=LEAST_TEMPERATURE),
            default=0.0,
            show_default=True,
            help="0 is greedy; higher is wilder.",
        ),
        click.option(
            "--top-p",
            type=_Finite(min=0.0, max=1.0, min_open=True),
            default=1.0,
            show_default=True,
            help="Sample from the likeliest tokens that make up this share.",
        ),
        click.option(
            "--seed",
            type=click.IntRange(min=0, max=(1 << 63) - 1),
            default=0,
            show_default=True,
            help="Seed of the sampling.",
        ),
        click.option("--system", default=None, help="System message."),
    ]
    for option in reversed(options):
        function = option(function)
    return function
