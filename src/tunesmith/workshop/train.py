"""Plan to run: base scores, training, tuned scores, comparison, report. The same call starts and resumes."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch

from tunesmith.disk import disk
from tunesmith.engine.outcome import Outcome
from tunesmith.engine.randomness import use_deterministic
from tunesmith.engine.ranks import Ranks, joined
from tunesmith.engine.stopwatch import Stopwatch
from tunesmith.errors import RunError
from tunesmith.evaluation.comparison import compare
from tunesmith.evaluation.scorecard import Scorecard
from tunesmith.files import copy_file, write_json, write_sealed, write_text
from tunesmith.planning.plan import Plan, require_fit
from tunesmith.progress import Progress, SilentProgress
from tunesmith.recipe.root import Recipe
from tunesmith.registry.lease import Owner
from tunesmith.registry.lineage import parse_fork
from tunesmith.registry.runs import RunFolder
from tunesmith.reports.card import render_card
from tunesmith.reports.render import write_report
from tunesmith.signals import raise_if_asked
from tunesmith.types import Objective
from tunesmith.workshop.base_scores import BaseScores
from tunesmith.workshop.descent import check_descent
from tunesmith.workshop.endings import recorded
from tunesmith.workshop.environment import MemoryMeter, environment, environment_differences
from tunesmith.workshop.features import keeps_features
from tunesmith.workshop.fitting import Fit, check_finite
from tunesmith.workshop.forking import Child, find_fork, new_fork
from tunesmith.workshop.headed import describe_head, is_headed, make_objective, weight_notes
from tunesmith.workshop.headed_scoring import HeadedScoring, make_scoring
from tunesmith.workshop.inputs import inputs_of, run_identity
from tunesmith.workshop.machinery import Machinery, assemble_for, attach, load_base
from tunesmith.workshop.masking import hides_in, masking_of
from tunesmith.workshop.planning import remember_speed
from tunesmith.workshop.results import write_result
from tunesmith.workshop.scoring import Scoring
from tunesmith.workshop.start import Run, Start, is_done, summary
from tunesmith.workshop.stopping_metric import make_watch
from tunesmith.workshop.suite import adopt_suite
from tunesmith.workshop.together import FINISHED, require_work
from tunesmith.workshop.token_events import token_events


def train(
    plan: Plan,
    run_folder: Path,
    *,
    progress: Progress | None = None,
    restart: bool = False,
    fork: str | None = None,
) -> Run:
    """Run a plan, or go on with it, or find that there is nothing to do.

    Args:
        plan: of the recipe; its counts are made exact here.
        run_folder: made if missing; one that holds another recipe's run is refused.
        progress: hears all that happens.
        restart: start from the first step where every checkpoint is damaged.
        fork: ``RUN[@STEP]`` of another run whose checkpoint a new run starts from.

    Raises:
        RunError: the folder holds another run, another process works on it, the data or base changed, or the run cannot be
            forked from there.
        GateRefused: the plan does not fit this machine.
        ModelError: the base does not load; nothing is written.
        GuardStopped: training was stopped, or no checkpoint is good; the last good checkpoint stays.
        Interrupted: by a signal; a checkpoint is saved.
    """
    progress = progress or SilentProgress()
    run = RunFolder(Path(run_folder))
    run.check_free()
    recipe = plan.source or plan.resolved
    with joined(plan.settings.device) as ranks:
        if is_done(run) and run.report_path.exists():
            job = _Job(recipe, run, progress, restart, fork)
            job.check_unchanged()
            ranks.told(FINISHED)
            return job.found_finished()
        with run.held() as held:
            job = _Job(recipe, run, progress, restart, fork, ranks)
            job.check_unchanged()
            job.sweep()
            if is_done(run):  # another process was quicker, or one was cut off before the papers
                job.tell_swept()
                if not run.report_path.exists():
                    write_papers(run)
                ranks.told(FINISHED)
                return job.found_finished()
            job.load()
            raise_if_asked()  # a run that nobody wants leaves no folder
            job.open(held.predecessor)
            with recorded(run, job):
                job.train()
    return summary(run)


class _Job(Start):
    """One call of ``train``: everything that is open while it lasts."""

    def __init__(
        self,
        recipe: Recipe,
        run: RunFolder,
        progress: Progress,
        restart: bool = False,
        fork: str | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        self.began = time.perf_counter()
        self.fork = find_fork(fork, run)
        parents = [RunFolder(parse_fork(fork)[0])] if fork is not None else []
        super().__init__(recipe, run, progress, parents)
        self.ranks = ranks or Ranks()
        self.restart = restart
        self.step = 0
        self.doing = "preparing"
        self.has_begun = False
        self.model: Any = None
        self.meter: MemoryMeter
        self.times = Stopwatch(("starting", "scoring", "writing"))
        self.scoring: Scoring | HeadedScoring
        self.objective: Objective
        self.result_step = 0
        self.swept: list[str] = []
        if fork is not None and self.fork is None:
            inputs = inputs_of(recipe, self.renderer, self.base)
            self.fork = new_fork(fork, Child(self.plan, self.data, self.base.sha256, inputs))
        self.notes = [*self.notes, *require_work(self.settings, self.ranks, run.path)]
        if self.fork is not None:
            self.identity = run_identity(self.plan.resolved, self.data, self.base, self.fork.identity)

    def sweep(self) -> None:
        """Remove what a process that was killed left half-written; only under the lease."""
        self.swept = self.run.clean()

    def tell_swept(self) -> None:
        """Say what was removed."""
        for name in self.swept:
            self._say("swept", f"{name} was left half-written by a process that ended, and is removed")

    def load(self) -> None:
        """Load the base, once it is known to fit: one that does not load or be scored leaves no run behind."""
        require_fit(self.plan)
        # What cannot be watched is refused before anything is written.
        make_watch(self.recipe, self.data, self.renderer)
        masking_of(self.recipe, self.renderer)
        self.scoring = make_scoring(self.recipe, self.data, self.renderer, self.progress)
        use_deterministic(self.settings.deterministic)
        self.meter = MemoryMeter(torch.device(self.settings.device))
        self.model = load_base(self.base.path, self.recipe, self.settings)
        self.objective = make_objective(self.recipe, self.data, self.settings)
        if is_headed(self.recipe):
            self.notes += weight_notes(self.objective, describe_head(self.recipe, self.data).labels)
        self.objective.parts.to(self.settings.device)
        if self.fork is not None and not self.run.environment_path.exists():
            self.fork.require_fit(self.model, self.plan.resolved, self.objective)

    def open(self, predecessor: Owner | None) -> None:
        """Write what the run starts from, all or nothing, or that it goes on, and after whom."""
        run = self.run
        if run.environment_path.exists():
            if predecessor is not None:
                self._say("lost", f"the process that worked on this run before was lost: {predecessor}")
            run.append_event("continued", 0, "the same call again: going on where it stopped")
            here = environment(self.recipe.folder, self.settings, self.ranks.size)
            if changed := environment_differences(run.environment(), here):
                self.notes.append(
                    f"the machine or its software is not what the run was started with: {'; '.join(changed)}"
                )
        else:
            facts = environment(self.recipe.folder, self.settings, self.ranks.size) | {
                "run_identity": self.identity, "data_key": self.data.key, "base_sha256": self.base.sha256,
                "base_folder": str(self.base.path.resolve()), "template": self.renderer.fingerprint(),
            }  # fmt: skip
            lineage = self.fork.lineage if self.fork is not None else None
            with run.creating(self.plan.resolved.model_dump(mode="json"), lineage):
                write_sealed(run.plan_path, self.plan.to_json())
                write_json(run.inputs_path, inputs_of(self.recipe, self.renderer, self.base))
                write_json(run.ledger_path, self.data.ledger.to_json())
                copy_file(self.data.rejected_path, run.rejected_path)
                run.append_event("started", 0, f"run {self.recipe.name} started")
                write_json(run.environment_path, facts)

    def _say(self, kind: str, text: str) -> None:
        self.run.append_event(kind, self.step, text)
        self.progress.note(text)

    def train(self) -> None:
        """Score the base, train, score the result, write everything."""
        self.tell_swept()
        changed = adopt_suite(self.run, self.recipe)
        if changed is not None:
            self._say("evaluation_changed", changed)
        for note in [*self.plan.notes, *self.notes]:
            self._say("note", note)
        self.run.set_status("running", steps=self.settings.total_steps)
        started = time.perf_counter()
        model = self.model
        machine = assemble_for(self.recipe, self.settings, model, self.objective, self.data, self.renderer)
        machine = hides_in(machine, masking_of(self.recipe, self.renderer))
        scoring = self.scoring
        for note in scoring.notes:
            self._say("note", note)
        self.doing = "scoring the base"
        self.times.seconds["starting"] = time.perf_counter() - self.began
        with self.times.part("scoring"):
            base_card = self._base_card(scoring, machine)
        self.meter.restart_peak()
        self._begin("training")
        self.has_begun = True
        adapter = attach(model, self.plan.resolved, self.settings)
        for kind, text in token_events(self.plan, self.base.path, self.renderer):
            self._say(kind, text)
        fit = Fit(
            self.recipe, self.plan, self.settings, self.run, self.data, self.renderer, self.identity, self.progress,
            self._say, self.objective, self.restart, self._at_step, self.fork, self.ranks,
        )  # fmt: skip
        outcome, self.result_step = fit.train(model, adapter, machine)
        peak = self.meter.peak_bytes()
        check_finite(machine, self.data, self.result_step)
        check_descent(self.run, self.recipe.training.guards.divergence, self.result_step, self._say)
        self._begin("writing the result")
        stop_ids = self.renderer.stop_ids
        result = (self.run, adapter, model, self.recipe, self.base.path, stop_ids, self.result_step, machine.headed)
        with self.times.part("writing"):
            notes = write_result(*result)
        for note in notes:
            self._say("note", note)
        self._begin("scoring the result")
        with self.times.part("scoring"):
            tuned_card = scoring.score("tuned", machine)
        tuned_card.save(self.run.scorecards_path, "tuned")
        if scoring.tasks:
            write_json(self.run.comparison_path, compare(base_card, tuned_card).to_json())
        else:
            if self.run.comparison_path.exists():
                disk().unlink(self.run.comparison_path)
            why = "no task is asked for" if self.recipe.evaluation.tasks == [] else "no row is held out for a task"
            self._say("not_compared", f"{why}: whether the run helped is not measured")
        self._begin("writing the report")
        self._finish(outcome, peak, time.perf_counter() - started)

    def _begin(self, doing: str) -> None:
        """Go on to the next part, if the run is still this process's."""
        raise_if_asked()
        self.run.check_held()
        self.doing = doing

    def _base_card(self, scoring: Scoring | HeadedScoring, machine: Machinery) -> Scorecard:
        """Scores of the base, measured before anything is attached; kept for a resume that asks for the same."""
        if self.run.scorecard_path("base").exists():
            try:
                kept = Scorecard.load(self.run.scorecards_path, "base")
                why = "the base was scored on another evaluation"
            except RunError as error:
                kept, why = None, f"the scores of the base are damaged ({error.what}, {error.where})"
            if kept is not None and kept.suite == scoring.section.suite():
                return kept
            self._say("scored_again", f"{why}: it is scored again")
        card = self._scored_base(scoring, machine)
        card.save(self.run.scorecards_path, "base")
        return card

    def _scored_base(self, scoring: Scoring | HeadedScoring, machine: Machinery) -> Scorecard:
        """Scores of the base, from the cache where another run asked it the same; a new head's are its own."""
        if machine.headed is not None:
            return scoring.score("base", machine)
        kept = BaseScores.of(
            self.recipe, self.settings, self.data.key, self.base, self.renderer.fingerprint(), scoring.section.suite()
        )
        if (card := kept.read()) is not None:
            self._say(
                "base_scores",
                f"the base was asked the same before: its scores are taken from there ({kept.folder.name[:12]})",
            )
            return card
        card = scoring.score("base", machine)
        if (trouble := kept.keep(card)) is not None:
            self._say("note", trouble)
        return card

    def _at_step(self, step: int) -> None:
        self.step = step

    def _finish(self, outcome: Outcome, peak_bytes: int | None, seconds: float) -> None:
        measured: dict[str, Any] = {
            "step": outcome.steps, "result_step": self.result_step, "tokens": outcome.tokens, "seconds": outcome.seconds, "total_seconds": seconds,
            "loss": outcome.loss if outcome.loss == outcome.loss else None, "peak_memory_bytes": peak_bytes,
            "times": {**self.times.seconds, **outcome.times},
        }  # fmt: skip
        machine = self.recipe.machine
        if machine.watts is not None:
            measured["energy_wh"] = machine.watts * outcome.seconds / 3600
        if machine.price_per_hour is not None:
            measured["cost"] = machine.price_per_hour * outcome.seconds / 3600
        # What several processes reach together is no measure of this machine, nor is a head that reads kept features.
        if self.ranks.size == 1 and not keeps_features(self.recipe):
            remember_speed(self.plan, outcome.seconds, outcome.steps)
        self.run.append_event("done", outcome.steps, f"done after {outcome.steps} steps")
        self.run.set_status("done", **measured)
        write_papers(self.run)


def write_papers(run: RunFolder) -> None:
    """The model card and the report, from what the folder holds."""
    write_text(run.card_path, render_card(run.path))
    write_report(run.path)
