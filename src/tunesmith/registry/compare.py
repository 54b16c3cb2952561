"""Two runs side by side: what their recipes change, their scores, their curves. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tunesmith.recipe.fingerprint import differences
from tunesmith.registry.lineage import read_lineage
from tunesmith.registry.runs import RunFolder, summarise


def compare_runs(a: Path, b: Path) -> dict[str, Any]:
    """Compare two run folders.

    Scores stand beside each other with their own intervals; a paired test needs the rows of both and is ``eval``'s.

    Returns:
        ``a`` and ``b``: the line of each run; ``recipe``: differing keys as ``key: a -> b``;
        ``scores``: task -> metric -> ``{"a", "b"}``, each a score or None; ``probes``: the same for what was kept;
        ``curves``: for ``a`` and ``b`` steps, losses in nats, and the same of the validation rows;
        ``lineage``: for ``a`` and ``b`` where a child comes from, or None.

    Raises:
        RunError: a folder is no run, or one of its files is torn.
    """
    runs = {"a": RunFolder.open(a), "b": RunFolder.open(b)}
    recipes = {side: run.recipe().model_dump(mode="json") for side, run in runs.items()}
    cards = {side: run.scorecards().get("tuned", {}) for side, run in runs.items()}
    return {
        **{side: summarise(run).to_json() for side, run in runs.items()},
        "recipe": changed(recipes["a"], recipes["b"]),
        "scores": _beside(cards["a"].get("tasks", {}), cards["b"].get("tasks", {})),
        "probes": _beside(cards["a"].get("probes", {}), cards["b"].get("probes", {})),
        "curves": {side: curves(run) for side, run in runs.items()},
        "lineage": {side: read_lineage(run) for side, run in runs.items()},
    }


def changed(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Keys of two resolved recipes that differ, as ``key: a -> b``; the names of the runs are not compared."""
    return differences(
        {key: value for key, value in before.items() if key != "name"},
        {key: value for key, value in after.items() if key != "name"},
    )


def curves(run: RunFolder) -> dict[str, list[float]]:
    """Steps and losses of training and validation, as lists of equal length by pair."""
    found: dict[str, list[float]] = {"steps": [], "losses": [], "validation_steps": [], "validation_losses": []}
    for line in run.each_metric():
        for key, steps, losses in (
            ("loss", "steps", "losses"), ("validation_loss", "validation_steps", "validation_losses"),
        ):  # fmt: skip
            if line.get(key) is not None:
                found[steps].append(line["step"])
                found[losses].append(line[key])
    return found


def _beside(a: Mapping[str, Mapping[str, Any]], b: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Both sides' scores by group and metric; a measure that one side lacks is None there."""
    result: dict[str, dict[str, Any]] = {}
    for group in [*a, *(name for name in b if name not in a)]:
        left, right = a.get(group, {}), b.get(group, {})
        metrics = [*left, *(name for name in right if name not in left)]
        result[group] = {metric: {"a": left.get(metric), "b": right.get(metric)} for metric in metrics}
    return result
