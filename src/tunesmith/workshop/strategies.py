"""One task tuned in many ways: each at the best of several rates, chosen on validation rows, with several seeds.

plans ──> runs of one seed at each rate ──> the best rate, further out where it lies at an edge ──> the other seeds ──> Contest
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tunesmith.errors import RecipeError, TunesmithError, UserError
from tunesmith.evaluation.scorecard import Scorecard
from tunesmith.planning.machine import threads_each
from tunesmith.planning.plan import Plan
from tunesmith.planning.strategies import Strategy, beyond, choose, rates_around, refuse_lost_overrides
from tunesmith.progress import Progress, SilentProgress
from tunesmith.recipe.codec import load
from tunesmith.recipe.heads import ClassifySection, HeadedSection, RegressSection, TagSection
from tunesmith.recipe.objectives import MlmSection
from tunesmith.recipe.root import Recipe
from tunesmith.registry.runs import RUNS
from tunesmith.workshop.planning import plan_recipe
from tunesmith.workshop.prepare import open_data
from tunesmith.workshop.trials import Trial, Trials

SELECTION, VERDICT = "selection", "verdict"
_MOST_FURTHER = 3


@dataclass(frozen=True)
class Measure:
    """What strategies are compared on: a task of the evaluation, its metric, and the columns of a row that make it.

    ``better`` is +1 where more is better; ``kind`` is shared by measures that mean the same, such as shares of right answers.
    """

    task: str
    metric: str
    kind: str
    better: int
    column: str
    per: str | None = None

    def tasks(self) -> str:
        """The evaluation that measures it on the rows that choose and on those of the verdict, as an override."""
        asked = [
            {"type": self.task, "name": name, "data": split}
            for name, split in ((SELECTION, "validation"), (VERDICT, "test"))
        ]
        return f"evaluation.tasks={json.dumps(asked)}"


MEASURES = {
    "label_ranking": Measure("label_ranking", "accuracy", "share", +1, "score"),
    "exact_match": Measure("exact_match", "exact_match", "share", +1, "score"),
    "loss": Measure("loss", "loss", "loss", -1, "nats", "num_tokens"),
}
_OF_HEADS: dict[type[HeadedSection], Measure] = {
    ClassifySection: Measure("classification", "accuracy", "share", +1, "score"),
    TagSection: Measure("tagging", "word_accuracy", "share", +1, "words_right", "words"),
    RegressSection: Measure("regression", "mse", "squared error", -1, "squared_error"),
}


@dataclass(frozen=True)
class Asked:
    """What a comparison is asked to do.

    Attributes:
        strategies: names, in order; empty means the usual ones.
        own: strategies beside the built-in ones.
        factors: multiply the rate that the plan would take; at least two.
        seeds: different from each other; the first chooses the rate.
        reference: the strategy that the others are held against.
        score: a key of ``MEASURES``, or ``auto``: by the data.
        jobs: runs at once.
    """

    strategies: Sequence[str] = ()
    own: dict[str, Strategy] = field(default_factory=dict)
    factors: Sequence[float] = (0.25, 0.5, 1.0, 2.0)
    seeds: Sequence[int] = (0, 1, 2)
    reference: str | None = None
    score: str = "auto"
    jobs: int = 1


@dataclass(frozen=True)
class Entry:
    """A strategy that can be tried: its plan at the usual rate, and how it is measured."""

    strategy: Strategy
    plan: Plan
    measure: Measure

    @property
    def usual_rate(self) -> float:
        """The rate that the plan takes."""
        return self.plan.settings.learning_rate


@dataclass
class Chosen:
    """A strategy that was tried: rates with their score on validation rows (None: stopped), the best, and its trials."""

    entry: Entry
    tried: dict[float, float | None]
    rate: float
    at_edge: bool
    trials: list[Trial]


class Contest:
    """One comparison: what is tried, and the runs that are made for it.

    Args:
        path: the recipe.
        overrides: of the recipe, for all strategies.
        asked: what to try.
        folder: gets runs and logs; unset is ``runs/NAME-strategies``.
        progress: hears it.

    Raises:
        UserError: a strategy that was asked for cannot be tried, nothing is held out, or what is asked for makes no sense.
    """

    def __init__(
        self,
        path: str | Path,
        overrides: Sequence[str],
        asked: Asked,
        folder: Path | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.path, self.overrides, self.asked = Path(path), tuple(overrides), _checked(asked)
        self.progress = progress or SilentProgress()
        self.left_out: dict[str, str] = {}
        refuse_lost_overrides(overrides)
        self.recipe = load(self.path, *self.overrides)
        self.folder = folder or RUNS / f"{self.recipe.name}-strategies"
        self.measure = self._measure()
        self.entries = self._entries(choose(asked.strategies, asked.own))
        self.reference = self._reference()
        self._trials = Trials(self.folder, asked.jobs, threads_each(asked.jobs), self.progress)

    def num_runs(self) -> int:
        """Runs at least; a best rate at the edge of those tried adds one or more."""
        rates = {entry.strategy.name: len(self.rates(entry)) for entry in self.entries}
        return sum(rates.values()) + (len(self.asked.seeds) - 1) * len(self.entries)

    def seconds(self) -> float | None:
        """Time of training in all of them, one after the other, where the plans know it."""
        times = [entry.plan.time for entry in self.entries]
        known = [
            time.seconds * (len(self.rates(entry)) + len(self.asked.seeds) - 1)
            for time, entry in zip(times, self.entries, strict=True)
            if time is not None
        ]
        return sum(known) if len(known) == len(times) else None

    def run(self) -> list[Chosen]:
        """Train everything that is not trained yet.

        Raises:
            RunError: a run was refused or broke, or a guard stopped every rate of a strategy that was asked for.
            Interrupted: a signal ended it.
        """
        self._trials.total = self.num_runs()
        tried = self._rates_tried()
        chosen = [found for entry in self.entries if (found := self._choose(entry, tried[entry.strategy.name]))]
        others = [trial for found in chosen for trial in found.trials[1:]]
        ended = self._trials.run(others)
        for found in chosen:
            found.trials = [
                trial for trial in found.trials if trial is found.trials[0] or ended[trial.name].status == "done"
            ]
        if not any(found.entry.strategy.name == self.reference for found in chosen):
            raise UserError(
                f"the reference `{self.reference}` did not train: {self.left_out.get(self.reference, 'it was left out')}",
                where="command line: --reference",
                hint="hold the others against a strategy that trains",
            )
        return chosen

    def card(self, trial: Trial) -> Scorecard:
        """Scores of a trial's result."""
        return Scorecard.load(self._trials.run_folder(trial).scorecards_path, "tuned")

    def run_path(self, trial: Trial) -> Path:
        """Folder of a trial's run."""
        return self._trials.run_folder(trial).path

    def _measure(self) -> Measure:
        for kind, measure in _OF_HEADS.items():
            if isinstance(self.recipe.objective, kind):
                return measure
        data, _, notes = open_data(self.recipe, notify=self.progress.note)
        for note in notes:
            self.progress.note(note)
        for split, held_out in (("validation", data.validation), ("test", data.test)):
            if held_out is None:
                raise RecipeError(
                    f"no row is held out for {split}",
                    where=f"data.{split}",
                    hint="rates are chosen on validation rows and the verdict is on test rows: hold out some for both",
                )
        if self.asked.score != "auto":
            return MEASURES[self.asked.score]
        name = "label_ranking" if data.labels is not None else "loss"
        why = f"the answers are {len(data.labels)} labels" if data.labels is not None else "the answers are open text"
        self.progress.note(f"strategies are compared on {name}, because {why}")
        return MEASURES[name]

    def _entries(self, strategies: Sequence[Strategy]) -> list[Entry]:
        """What can be tried; a strategy that cannot is left out with its reason, or refused where it was asked for by name."""
        entries = []
        for strategy in strategies:
            try:
                entries.append(self._entry(strategy))
            except TunesmithError as error:
                if strategy.name in self.asked.strategies or strategy.name in self.asked.own:
                    raise type(error)(
                        f"the strategy `{strategy.name}` cannot be tried: {error.what}",
                        where=error.where,
                        hint=error.hint,
                    ) from error
                self.left_out[strategy.name] = error.what
                self.progress.note(f"{strategy.name} is left out: {error.what}")
        if len(entries) < 2:
            raise UserError(
                "there are fewer than two strategies to compare",
                where="command line: --strategies",
                hint="name two or more" if self.asked.strategies else "; ".join(self.left_out.values()),
            )
        return entries

    def _entry(self, strategy: Strategy) -> Entry:
        recipe = load(self.path, *self._overrides(strategy))
        measure = self._measure_of(recipe)
        plan = plan_recipe(load(self.path, *self._overrides(strategy), measure.tasks()))
        return Entry(strategy, plan, measure)

    def _measure_of(self, recipe: Recipe) -> Measure:
        section = recipe.objective
        measure = next((found for kind, found in _OF_HEADS.items() if isinstance(section, kind)), self.measure)
        is_headed = isinstance(section, HeadedSection | MlmSection)
        if measure.kind != self.measure.kind or (is_headed and type(section) not in _OF_HEADS):
            raise RecipeError(
                f"objective `{section.type}` is not scored by {self.measure.metric}, as the others are",
                where="objective.type",
                hint="compare it with strategies of its own kind",
            )
        return measure

    def _reference(self) -> str:
        names = [entry.strategy.name for entry in self.entries]
        wanted = self.asked.reference
        if wanted is None:
            return "lora" if "lora" in names else names[0]
        if wanted not in names:
            raise UserError(
                f"the reference `{wanted}` is not among the strategies that are compared",
                where="command line: --reference",
                hint=f"one of {', '.join(names)}",
            )
        return wanted

    def _overrides(self, strategy: Strategy) -> tuple[str, ...]:
        """The overrides given, and the strategy's in place of those of the same key."""
        own = strategy.overrides()
        keys = {item.partition("=")[0] for item in own}
        for item in self.overrides:
            key = item.partition("=")[0]
            if any(key == one or key.startswith(f"{one}.") for one in keys):
                raise RecipeError(
                    f"the override `{item}` and the strategy both set `{key}`",
                    where=f"override {key}",
                    hint="leave one of them out",
                )
        return (*self.overrides, *own)

    def rates(self, entry: Entry) -> list[float]:
        """The rates that a strategy is tried at, at least."""
        return rates_around(entry.usual_rate, self.asked.factors)

    def _trial(self, entry: Entry, rate: float, seed: int) -> Trial:
        settings = (entry.measure.tasks(), f"training.learning_rate={rate!r}", f"seed={seed}")
        return Trial(entry.strategy.name, rate, seed, (str(self.path), *self._overrides(entry.strategy), *settings))

    def _rates_tried(self) -> dict[str, dict[float, float | None]]:
        """Rates of each strategy with their score on validation rows; one beyond the edge where the best lies there, again and again."""
        seed = self.asked.seeds[0]
        wanted = [(entry, rate) for entry in self.entries for rate in self.rates(entry)]
        tried: dict[str, dict[float, float | None]] = {entry.strategy.name: {} for entry in self.entries}
        for _ in range(1 + _MOST_FURTHER):
            self._trials.run([self._trial(entry, rate, seed) for entry, rate in wanted])
            for entry, rate in wanted:
                tried[entry.strategy.name][rate] = self._selection(entry, rate, seed)
            wanted = []
            for entry in self.entries:
                found = tried[entry.strategy.name]
                best = _best(found, entry.measure.better)
                further = None if best is None else beyond(list(found), best)
                if further is not None:
                    wanted.append((entry, further))
            if not wanted:
                break
        return tried

    def _choose(self, entry: Entry, tried: dict[float, float | None]) -> Chosen | None:
        """The best of the rates that were tried; None where a guard stopped all of them."""
        best = _best(tried, entry.measure.better)
        if best is None:
            self.left_out[entry.strategy.name] = "a guard stopped every rate"
            self.progress.note(f"{entry.strategy.name} is left out: a guard stopped every rate")
            return None
        trials = [self._trial(entry, best, number) for number in self.asked.seeds]
        return Chosen(entry, dict(sorted(tried.items())), best, beyond(list(tried), best) is not None, trials)

    def _selection(self, entry: Entry, rate: float, seed: int) -> float | None:
        trial = self._trial(entry, rate, seed)
        if self._trials.ended[trial.name].status != "done":
            return None
        return self.card(trial).tasks[SELECTION][entry.measure.metric].value


def _best(tried: dict[float, float | None], better: int) -> float | None:
    """The rate with the best score; of equals the lowest rate, which moves the model least."""
    scored = [(-better * score, rate) for rate, score in tried.items() if score is not None]
    return min(scored)[1] if scored else None


def _checked(asked: Asked) -> Asked:
    """The same, with factors and seeds as tuples.

    Raises:
        UserError: too few factors, one that is no factor, a seed twice, or no such score.
    """
    factors = tuple(sorted(set(asked.factors)))
    if len(factors) < 2 or not all(0 < factor < float("inf") for factor in factors):
        raise UserError(
            "at least two different factors above 0 are needed, for a rate to be chosen",
            where="command line: --factors",
            hint="for example --factors 0.25,0.5,1,2",
        )
    if not asked.seeds or len(set(asked.seeds)) != len(asked.seeds):
        raise UserError(
            "seeds have to differ from each other", where="command line: --seeds", hint="for example --seeds 0,1,2"
        )
    if not all(0 <= seed < 2**63 for seed in asked.seeds):
        raise UserError(
            "a seed is a whole number from 0 on", where="command line: --seeds", hint="for example --seeds 0,1,2"
        )
    if asked.score != "auto" and asked.score not in MEASURES:
        raise UserError(
            f"there is no score `{asked.score}`",
            where="command line: --score",
            hint=f"one of auto, {', '.join(MEASURES)}",
        )
    return replace(asked, factors=factors, seeds=tuple(asked.seeds))


def plain(chosen: Chosen) -> dict[str, Any]:
    """What was tried, as plain values."""
    return {
        "rates": [{"rate": rate, "selection": score} for rate, score in chosen.tried.items()],
        "rate": chosen.rate,
        "usual_rate": chosen.entry.usual_rate,
        "at_edge": chosen.at_edge,
    }
