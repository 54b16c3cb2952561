"""The use case: many ways to tune one task, run, held against each other, and written down."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.files import make_folders
from tunesmith.progress import Progress
from tunesmith.reports.strategies import write_comparison
from tunesmith.workshop.latency import token_seconds
from tunesmith.workshop.strategies import Asked, Contest
from tunesmith.workshop.strategy_results import results_of


@dataclass(frozen=True)
class StrategyComparison:
    """What a comparison found.

    Attributes:
        found: all numbers, as plain values; ``found["strategies"]`` has one mapping a strategy.
        files: what was written, the page first.
    """

    found: dict[str, Any]
    files: list[Path]


def compare_strategies(
    path: str | Path,
    *overrides: str,
    folder: str | Path | None = None,
    asked: Asked | None = None,
    progress: Progress | None = None,
) -> StrategyComparison:
    """Tune a recipe's task in many ways, each at the best of several rates and with several seeds, and compare them.

    Args:
        path: the recipe.
        overrides: ``section.key=value``, for all strategies.
        folder: gets runs, logs, table, pictures and page; unset is ``runs/NAME-strategies``.
        asked: which strategies, rates, seeds and score.
        progress: hears it.

    Raises:
        UserError: what is asked for cannot be tried.
        RunError: a run was refused or broke; its log is in ``folder/logs``.
        Interrupted: a signal ended it; the same call goes on.
    """
    contest = Contest(path, overrides, asked or Asked(), Path(folder) if folder else None, progress)
    return conclude(contest)


def conclude(contest: Contest) -> StrategyComparison:
    """Run a comparison to its end and write it down. Raises as ``compare_strategies``."""
    chosen = contest.run()
    make_folders(contest.folder)
    found = results_of(contest, chosen, token_seconds)
    return StrategyComparison(found, write_comparison(contest.folder, found))
