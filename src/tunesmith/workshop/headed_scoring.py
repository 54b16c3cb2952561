"""A headed model against held-out rows: the tasks that its head answers."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tunesmith.data.head_batches import HeadData, head_data
from tunesmith.data.prepared import Prepared, Split
from tunesmith.data.rendering import Renderer
from tunesmith.data.tag_rendering import TagRenderer
from tunesmith.data.words import NO_TOKEN
from tunesmith.errors import DataError, ModelError, RecipeError
from tunesmith.evaluation import headed
from tunesmith.evaluation.questions import Question
from tunesmith.evaluation.scorecard import Scorecard
from tunesmith.evaluation.tagging import Scheme, TaggedAnswer, tagging
from tunesmith.evaluation.tasks import TaskResult
from tunesmith.models.head_shape import HeadFile
from tunesmith.progress import Progress
from tunesmith.recipe.evaluation import HEAD_TASKS, EvaluationSection, TaskField
from tunesmith.recipe.objectives import MlmSection
from tunesmith.recipe.root import Recipe
from tunesmith.records import Row
from tunesmith.workshop.headed import HeadedMachine, Ids, describe_head, is_headed
from tunesmith.workshop.machinery import Machinery
from tunesmith.workshop.scoring import Scoring
from tunesmith.workshop.word_tags import tags_of

Logits = npt.NDArray[np.float64]
_ANSWERS_SHOWN = 3


@dataclass(frozen=True)
class _Task:
    name: str
    split: Split
    limit: int | None


class HeadedScoring:
    """Scores headed models on one recipe's held-out rows; takes the place of ``Scoring``.

    Args:
        section: the recipe's evaluation.
        data: the prepared data.
        renderer: of the recipe.
        described: the head that the recipe asks for.
        seed: keys bootstraps.
        progress: hears phases.

    Raises:
        RecipeError: the recipe asks for a task that a head does not answer.
    """

    def __init__(
        self,
        section: EvaluationSection,
        data: Prepared,
        renderer: Renderer,
        described: HeadFile,
        seed: int,
        progress: Progress,
    ) -> None:
        self.section = section
        self.data = data
        self.renderer = renderer
        self.described = described
        self.seed = seed
        self.progress = progress
        self.notes: list[str] = []
        self.tasks: dict[str, _Task] = self._resolve()
        if section.preserve:
            self.notes.append(
                "forgetting probes are left out: a model with a head has no next token that could be asked for"
            )

    def score(self, name: str, machine: Machinery, active: AbstractContextManager[None] | None = None) -> Scorecard:
        """Run every task.

        Args:
            name: what the card calls the model (``base``, ``tuned``).
            machine: the model at work.
            active: a context in which the wanted adapters are active.

        Raises:
            ModelError: the model has no head, or one with other labels than the data's.
        """
        started = time.perf_counter()
        card = Scorecard(model=name, suite=self.section.suite())
        self._check_head(name, machine)
        with active or nullcontext():
            for task in self.tasks.values():
                self.progress.phase(f"{name}: {task.name}", 0, 1)
                result = self._run(task, machine)
                card.add_task(
                    task.name, result, data=task.split, template=self.renderer.fingerprint(), limit=task.limit
                )
                self.progress.phase(f"{name}: {task.name}", 1, 1)
        card.seconds = time.perf_counter() - started
        return card

    def _check_head(self, name: str, machine: Machinery) -> None:
        if machine.headed is None:
            raise ModelError(
                f"{name} has no head: it cannot be asked for labels",
                where=f"model {name}",
                hint="score a run of this objective, or an export of one",
            )
        theirs, ours = machine.headed.described, self.described
        if theirs.shape.task != ours.shape.task or set(theirs.labels) != set(ours.labels):
            strange = sorted(set(theirs.labels) ^ set(ours.labels))
            shown = ", ".join(repr(label) for label in strange[:_ANSWERS_SHOWN])
            what = f"labels of only one side: {shown}" if strange else f"{theirs.shape.task} against {ours.shape.task}"
            raise ModelError(
                f"the head of {name} has other labels than the data ({what})",
                where=f"model {name}",
                hint="score it on data with the labels it was trained on, or train it on these",
            )

    def _resolve(self) -> dict[str, _Task]:
        default: Split = "test" if self.data.test is not None else "validation"
        given = self.section.tasks
        kind = _KINDS[self.described.shape.task]
        if given is None:
            self.notes.append(f"evaluation.tasks is not given: measuring {kind} on {default} rows")
            chosen = [_Task(kind, default, None)]
        else:
            chosen = [self._named(task, number) for number, task in enumerate(given)]
        found: dict[str, _Task] = {}
        for task in chosen:
            if self._rows(task.split) is None:
                self.notes.append(f"task {task.name} is left out: there are no {task.split} rows")
                continue
            name = task.name if task.name not in found else f"{task.name}_{task.split}"
            found[name] = _Task(name, task.split, task.limit)
        if found and all(task.split == "validation" for task in found.values()):
            self.notes.append(
                "only validation rows are scored: the verdict is optimistic where they also stopped training"
            )
        self._tell_strange(found)
        return found

    def _named(self, task: TaskField, number: int) -> _Task:
        kind = _KINDS[self.described.shape.task]
        if not isinstance(task, HEAD_TASKS) or task.type != kind:
            raise RecipeError(
                f"the task `{task.type}` is not one that this objective's head answers",
                where=f"evaluation.tasks.{number}.type",
                hint=f"set `{kind}`, or leave `tasks` out",
            )
        return _Task(task.name or kind, task.data, task.limit)

    def _tell_strange(self, found: dict[str, _Task]) -> None:
        """Tell rows that have a label which no training row has."""
        known = set(self.described.labels)
        for split in dict.fromkeys(task.split for task in found.values()):
            rows = self._rows(split)
            if rows is None or not known:
                continue
            strange = [row for row in range(rows.store.num_rows) if (rows.classes(row) < 0).any()]
            if strange:
                records = self._records(split)
                names = dict.fromkeys(name for row in strange for name in self._labels_of(records[row]))
                shown = ", ".join(repr(name) for name in list(names)[:_ANSWERS_SHOWN])
                self.notes.append(
                    f"{len(strange)} of {rows.store.num_rows} {split} rows have a label that no training row has ({shown}): "
                    "they count as wrong"
                )

    def _labels_of(self, row: Row) -> list[str]:
        """What a row asks for: of tagged words the labels that the head does not have, else the whole answer."""
        if isinstance(self.renderer, TagRenderer):
            known = set(self.described.labels)
            return [name for name in self.renderer.names(row.record) if name not in known]
        return [self.renderer.reference(row.record)]

    def _rows(self, split: Split) -> HeadData | None:
        return head_data(self.data, split, self.described.shape.task, self.described.labels)

    def _records(self, split: Split) -> list[Row]:
        return self.data.rows(split)

    def _run(self, task: _Task, machine: Machinery) -> TaskResult:
        rows = self._rows(task.split)
        head = machine.headed
        if rows is None or head is None:
            raise AssertionError("tasks without rows were left out, and the head was looked for")
        records = self._records(task.split)
        if len(records) != rows.store.num_rows:
            raise DataError(
                "held-out rows and their tokens are not as many", where=task.split, hint="delete the token cache"
            )
        order = sorted(range(len(records)), key=lambda row: records[row].id)
        chosen = order[: task.limit] if task.limit else range(len(records))
        texts = [rows.ids(row) for row in chosen]
        questions = [self._question(records[row], rows.ids(row).tolist()) for row in chosen]
        if isinstance(self.renderer, TagRenderer):
            return self._tagging(head, self.renderer, questions, [records[row] for row in chosen], texts)
        return _MEASURE[self.described.shape.task](
            self, questions, rows, list(chosen), _in_order(head, texts, self.described)
        )

    def _tagging(
        self, head: HeadedMachine, renderer: TagRenderer, questions: list[Question], rows: list[Row], texts: list[Ids]
    ) -> TaskResult:
        """A tag for each word; words that no token answers for are outside."""
        column = {label: number for number, label in enumerate(head.described.labels)}
        answers = []
        reads = [renderer.reading_tokens(row.record, len(ids)) for row, ids in zip(rows, texts, strict=True)]
        for row, said in zip(rows, tags_of(head, reads, texts), strict=True):
            right = renderer.names(row.record)
            nats = [
                -float(logprob_K[column[name]])
                for name, token, logprob_K in zip(right, said.read, said.logprob_WK, strict=True)
                if token != NO_TOKEN and name in column
            ]
            answers.append(TaggedAnswer(right, said.tags, sum(nats), len(nats)))
        head_file, counts = self.described, self.data.label_counts or None
        scheme = Scheme(head_file.labels, head_file.spans, head_file.outside)
        return tagging(questions, answers, scheme, label_counts=counts, seed=self.seed)

    def _question(self, row: Row, ids: list[int]) -> Question:
        return Question.of(
            row.id, ids, self.renderer.prompt_text(row.record), self.renderer.reference(row.record), row.group
        )

    def classify(self, questions: list[Question], rows: HeadData, chosen: list[int], logits: Logits) -> TaskResult:
        """One label a row."""
        counts = self.data.label_counts or None
        return headed.classification(questions, self.described.labels, logits, label_counts=counts, seed=self.seed)

    def multi_label(self, questions: list[Question], rows: HeadData, chosen: list[int], logits: Logits) -> TaskResult:
        """Any number of labels a row."""
        hot = np.zeros((len(chosen), len(self.described.labels)))
        unknown = np.zeros(len(chosen))
        for place, row in enumerate(chosen):
            classes = rows.classes(row)
            hot[place, classes[classes >= 0]] = 1.0
            unknown[place] = (classes < 0).sum()
        return headed.multi_label(questions, self.described.labels, hot, unknown, logits, seed=self.seed)

    def regress(self, questions: list[Question], rows: HeadData, chosen: list[int], logits: Logits) -> TaskResult:
        """A number a row."""
        values = np.asarray([rows.value(row) for row in chosen], dtype=np.float64)
        return headed.regression(questions, values, logits[:, 0], self.seed)


def _in_order(head: HeadedMachine, texts: list[Ids], described: HeadFile) -> Logits:
    """What a head says of texts, its outputs in the order of the recipe's labels."""
    logits: Logits = head.logits(texts)
    if not described.labels:
        return logits
    place = {label: number for number, label in enumerate(head.described.labels)}
    ordered: Logits = logits[:, [place[label] for label in described.labels]]
    return ordered


_KINDS = {"classify": "classification", "multi_label": "classification", "regress": "regression", "tag": "tagging"}
_MEASURE: dict[str, Callable[..., TaskResult]] = {
    "classify": HeadedScoring.classify, "multi_label": HeadedScoring.multi_label, "regress": HeadedScoring.regress,
}  # fmt: skip


def make_scoring(recipe: Recipe, data: Prepared, renderer: Renderer, progress: Progress) -> Scoring | HeadedScoring:
    """What scores models on a recipe's held-out rows, for the kind of answer that its objective trains.

    Raises:
        DataError: labels that the recipe names, and no row has one of them.
        RecipeError: a task that this kind of model does not answer.
    """
    if not is_headed(recipe):
        scoring = Scoring(recipe.evaluation, data, renderer, recipe.seed, progress)
        if isinstance(recipe.objective, MlmSection):
            scoring.leave_out("completions", "instructions", why="an encoder continues no text")
        return scoring
    return HeadedScoring(recipe.evaluation, data, renderer, describe_head(recipe, data), recipe.seed, progress)
