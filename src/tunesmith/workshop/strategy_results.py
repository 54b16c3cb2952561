"""What a comparison of strategies found: scores over rows and seeds, paired differences, costs, and what was forgotten."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tunesmith.errors import RunError
from tunesmith.evaluation.scorecard import Scorecard
from tunesmith.evaluation.seeds import SeededRows, holm, seeded_difference, seeded_score
from tunesmith.recipe.low_rank import AddedSection
from tunesmith.registry.runs import RunFolder
from tunesmith.workshop.strategies import VERDICT, Chosen, Contest, Measure, plain

_LEVEL = 0.05
_RESULTS = ("adapter", "model", "head")
_BOUNDS = {"share": (0.0, 1.0)}

Latency = Callable[[Path], Mapping[str, float] | None]


def results_of(contest: Contest, chosen: Sequence[Chosen], latency: Latency) -> dict[str, Any]:
    """All numbers of a comparison, as plain values.

    Args:
        contest: the comparison.
        chosen: what its ``run`` returned.
        latency: measures the time a token takes in a run's model, beside its base.

    Returns:
        ``recipe``, ``measure``, ``reference``, ``seeds``, ``rows``, ``left_out``, ``notes`` and ``strategies``, a list of mappings.

    Raises:
        RunError: a scorecard is missing or damaged.
    """
    cards = {found.entry.strategy.name: [contest.card(trial) for trial in found.trials] for found in chosen}
    shared, notes = _shared_rows(cards)
    rows = {
        found.entry.strategy.name: _seeded(cards[found.entry.strategy.name], found.entry.measure, shared)
        for found in chosen
    }
    listed = [
        {
            **_identity(found),
            **plain(found),
            "seeds": [trial.seed for trial in found.trials],
            **_scores(rows[found.entry.strategy.name], contest.measure),
            **_costs(contest, found, latency),
            "forgetting": _forgetting(contest, found),
        }
        for found in chosen
    ]
    seeds = {found.entry.strategy.name: [trial.seed for trial in found.trials] for found in chosen}
    _hold_against(listed, rows, seeds, contest)
    return {
        "recipe": contest.recipe.name,
        "model": contest.recipe.model.name,
        "measure": {"task": contest.measure.task, "metric": contest.measure.metric, "kind": contest.measure.kind, "better": contest.measure.better},
        "reference": contest.reference,
        "seeds": list(contest.asked.seeds),
        "rows": len(shared),
        "left_out": contest.left_out,
        "notes": [*notes, *_missing_seeds(seeds, contest.asked.seeds)],
        "strategies": listed,
    }  # fmt: skip


def _identity(found: Chosen) -> dict[str, Any]:
    strategy, plan = found.entry.strategy, found.entry.plan
    return {
        "name": strategy.name,
        "does": strategy.does,
        "values": dict(strategy.values),
        "task": found.entry.measure.task,
        "parameters": plan.parameters.trainable,
        "share": plan.parameters.share,
    }


def _shared_rows(cards: Mapping[str, Sequence[Scorecard]]) -> tuple[list[str], list[str]]:
    """Ids of the verdict's rows that every run was scored on, and what to say where some were not."""
    ids = [{str(row["id"]) for row in card.rows_of(VERDICT)} for group in cards.values() for card in group]
    shared, every = set.intersection(*ids), set.union(*ids)
    if not shared:
        raise RunError(
            "the runs have no scored row in common",
            where=VERDICT,
            hint="compare strategies that are scored on the same rows",
        )
    notes = []
    if len(shared) < len(every):
        notes.append(
            f"{len(every) - len(shared)} of {len(every)} rows were not scored by every strategy, whose contexts differ: the rest counts"
        )
    return sorted(shared), notes


def _seeded(cards: Sequence[Scorecard], measure: Measure, shared: Sequence[str]) -> SeededRows:
    by_id = [{str(row["id"]): row for row in card.rows_of(VERDICT)} for card in cards]
    totals = [[float(rows[id][measure.column]) for id in shared] for rows in by_id]
    counts = [1.0 if measure.per is None else float(by_id[0][id][measure.per]) for id in shared]
    return SeededRows.of(totals, counts)


def _scores(rows: SeededRows, measure: Measure) -> dict[str, Any]:
    return {
        "score": seeded_score(rows, bounds=_BOUNDS.get(measure.kind)).to_json(),
        "by_seed": rows.by_seed(),
        "spread": rows.spread(),
    }


def _missing_seeds(seeds: Mapping[str, Sequence[int]], asked: Sequence[int]) -> list[str]:
    """What to say of strategies whose later seeds a guard stopped: their score is that of the seeds that went well."""
    lost = {name: [seed for seed in asked if seed not in own] for name, own in seeds.items()}
    return [
        f"{name}: a guard stopped seed {', '.join(map(str, missing))} at its best rate, and the score is that of the others, which went well"
        for name, missing in lost.items()
        if missing
    ]


def _of_seeds(rows: SeededRows, own: Sequence[int], wanted: Sequence[int]) -> SeededRows:
    """The rows of some seeds only, in the order of ``wanted``."""
    return SeededRows(rows.totals_SN[[own.index(seed) for seed in wanted]], rows.counts_N)


def _hold_against(
    listed: list[dict[str, Any]], rows: Mapping[str, SeededRows], seeds: Mapping[str, Sequence[int]], contest: Contest
) -> None:
    """Add to each strategy but the reference its difference, paired by seed and row, with Holm's correction over all of them."""
    reference = contest.reference
    others = [item for item in listed if item["name"] != contest.reference]
    compared = []
    for item in others:
        shared = [seed for seed in seeds[reference] if seed in seeds[item["name"]]]
        before, after = (_of_seeds(rows[name], seeds[name], shared) for name in (reference, item["name"]))
        compared.append(seeded_difference(before, after))
    adjusted = holm([p_value for _, p_value in compared])
    for item, (difference, p_value), corrected in zip(others, compared, adjusted, strict=True):
        gain = contest.measure.better * difference.value
        outside = difference.low > 0 or difference.high < 0
        verdict = ("better" if gain > 0 else "worse") if outside and corrected < _LEVEL else "no evidence"
        item["against"] = {
            "difference": difference.to_json(), "p_value": p_value, "p_holm": corrected, "verdict": verdict,
        }  # fmt: skip


def _costs(contest: Contest, found: Chosen, latency: Latency) -> dict[str, Any]:
    statuses = [RunFolder(contest.run_path(trial)).status() for trial in found.trials]
    section = found.entry.plan.resolved.adapter
    peaks = [status["peak_memory_bytes"] for status in statuses if status.get("peak_memory_bytes")]
    first = contest.run_path(found.trials[0])
    return {
        "parameters_on_average": _trained_on_average(first),
        "seconds": sum(float(status["seconds"]) for status in statuses) / len(statuses),
        "peak_memory_bytes": max(peaks) if peaks else None,
        "stored_bytes": _stored_bytes(first),
        "latency": latency(first),
        "merges": isinstance(section, AddedSection) and section.merges,
        "runs": [str(contest.run_path(trial)) for trial in found.trials],
    }


def _trained_on_average(run: Path) -> float | None:
    """Parameters that trained, the mean over the steps; None where no step tells."""
    sizes = [line["trained_parameters"] for line in RunFolder(run).each_metric() if "trained_parameters" in line]
    return sum(sizes) / len(sizes) if sizes else None


def _stored_bytes(run: Path) -> int:
    """Bytes of the result, whatever it is called."""
    return sum(path.stat().st_size for name in _RESULTS for path in (run / name).rglob("*") if path.is_file())


def _forgetting(contest: Contest, found: Chosen) -> dict[str, Any] | None:
    """General perplexity and completions before and after, over seeds (geometric and plain mean); None where not measured.

    Random weights knew nothing that could be forgotten.
    """
    if found.entry.plan.resolved.model.init == "random":
        return None
    probes = [(RunFolder(contest.run_path(trial)).comparison() or {}).get("probes", {}) for trial in found.trials]
    measured: dict[str, Any] = {}
    pairs = [probe["general"]["perplexity"] for probe in probes if "perplexity" in probe.get("general", {})]
    if pairs:
        after = math.exp(sum(math.log(pair["after"]["value"]) for pair in pairs) / len(pairs))
        measured["perplexity"] = {"before": pairs[0]["before"]["value"], "after": after}
    pairs = [probe["completions"]["accuracy"] for probe in probes if "accuracy" in probe.get("completions", {})]
    if pairs:
        after = sum(pair["after"]["value"] for pair in pairs) / len(pairs)
        measured["completions"] = {"before": pairs[0]["before"]["value"], "after": after}
    return measured or None
