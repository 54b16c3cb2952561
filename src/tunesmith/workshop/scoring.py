"""A model against a recipe's tasks and probes: the only place where evaluation meets models and data."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import numpy as np

from tunesmith.data.prepared import Prepared
from tunesmith.data.rendering import Renderer
from tunesmith.errors import DataError, RecipeError
from tunesmith.evaluation import probes, tasks
from tunesmith.evaluation.questions import Question
from tunesmith.evaluation.scorecard import Scorecard
from tunesmith.progress import Progress
from tunesmith.recipe.evaluation import (
    ClassificationTaskSection,
    EvaluationSection,
    ExactMatchSection,
    LabelRankingSection,
    LossTaskSection,
    RegressionTaskSection,
    SplitName,
    TaggingTaskSection,
    TaskField,
)
from tunesmith.records import Chat, Message, Row, Text
from tunesmith.types import Sampling
from tunesmith.workshop.machinery import Machinery

Task = LossTaskSection | ExactMatchSection | LabelRankingSection
"""What a language model can be asked for."""
_EXTRA_TOKENS = 4
_LONGEST_ANSWER = 128
_NEUTRAL = "N/A"
_INSTRUCTION_TOKENS = 48
_ANSWERS_SHOWN = 3


class Scoring:
    """Scores models on one recipe's held-out rows.

    Args:
        section: the recipe's evaluation.
        data: the prepared data.
        renderer: the one rendering path.
        seed: keys bootstraps.
        progress: hears phases.

    Raises:
        DataError: labels that the recipe names, and no row has one of them.
    """

    def __init__(
        self, section: EvaluationSection, data: Prepared, renderer: Renderer, seed: int, progress: Progress
    ) -> None:
        self.section = section
        self.data = data
        self.renderer = renderer
        self.seed = seed
        self.progress = progress
        self.notes: list[str] = []
        self._left_out: set[str] = set()
        self._rows: dict[str, list[Row]] = {}
        self.tasks = self._resolve()

    def score(self, name: str, machine: Machinery, active: AbstractContextManager[None] | None = None) -> Scorecard:
        """Run every task and probe.

        Args:
            name: what the card calls the model (``base``, ``tuned``).
            machine: the model at work.
            active: a context in which the wanted adapters are active.
        """
        started = time.perf_counter()
        card = Scorecard(model=name, suite=self.section.suite())
        was_training = machine.model.training
        machine.model.eval()
        with active or nullcontext():
            for task_name, task in self.tasks.items():
                self._run_task(card, task_name, task, machine)
            for probe in self.section.preserve:
                if probe in self._left_out:
                    continue
                self._run_probe(card, probe, machine)
        machine.model.train(was_training)
        card.seconds = time.perf_counter() - started
        return card

    def leave_out(self, *probes: str, why: str) -> None:
        """Measure no such probes, and say so where the recipe asks for one."""
        self._left_out.update(probes)
        if asked := [probe for probe in self.section.preserve if probe in probes]:
            self.notes.append(f"probes left out: {', '.join(asked)}, for {why}")

    def _resolve(self) -> dict[str, Task]:
        """Names to tasks; unset tasks are chosen by what the data is, and that is said."""
        chosen: list[Task]
        if self.section.tasks is not None:
            chosen = [_of_language(task, number) for number, task in enumerate(self.section.tasks)]
        else:
            split: SplitName = "test" if self.data.test is not None else "validation"
            chosen = [LossTaskSection(data=split)]
            why = "answers are open text"
            if self.data.labels is not None:
                chosen += [ExactMatchSection(data=split), LabelRankingSection(data=split)]
                why = f"the answers are a closed set of {len(self.data.labels)} labels"
            names = ", ".join(task.type for task in chosen)
            self.notes.append(f"evaluation.tasks is not given: measuring {names} on {split} rows, because {why}")
        named = self._named(chosen)
        if named and all(task.data == "validation" for task in named.values()):
            self.notes.append(
                "only validation rows are scored: the verdict is optimistic where they also stopped training"
            )
        return named

    def _named(self, chosen: Sequence[Task]) -> dict[str, Task]:
        """The tasks that have rows, by name; a name that the recipe gives is never another task's."""
        given = {task.name for task in chosen if task.name is not None}
        named: dict[str, Task] = {}
        for number, task in enumerate(chosen):
            why = self._unfit(task)
            if why is not None:
                self.notes.append(f"task {task.name or task.type} is left out: {why}")
                continue
            name = task.name or task.type
            if task.name is None and (name in named or name in given):
                name = f"{name}_{task.data}"
                while name in named or name in given:
                    name += "_2"
            named[name] = task
            if isinstance(task, LabelRankingSection):
                self._check_labels(name, number, task)
        return named

    def _unfit(self, task: Task) -> str | None:
        """Why a task has nothing to score, where it has not."""
        if self._store(task.data) is None:
            return f"there are no {task.data} rows"
        if isinstance(task, LossTaskSection) or self._answered(task):
            return None
        return f"the {task.data} rows are documents, which ask for no answer"

    def _check_labels(self, name: str, number: int, task: LabelRankingSection) -> None:
        """Tell rows whose answer is none of the labels.

        Raises:
            DataError: it is so of every row, with labels that the recipe names.
        """
        labels = task.labels or self.data.labels
        if labels is None:
            return
        known = {label.strip() for label in labels}
        answers = [self.renderer.reference(row.record).strip() for row in self._answered(task)]
        strange = [answer for answer in answers if answer not in known]
        shown = ", ".join(repr(answer) for answer in list(dict.fromkeys(strange))[:_ANSWERS_SHOWN])
        if len(strange) == len(answers) and task.labels is not None:
            raise DataError(
                f"no {task.data} row has an answer that is one of the {len(labels)} labels; they have {shown}",
                where=f"evaluation.tasks.{number}.labels",
                hint="write the labels as the answers have them, or leave `labels` out",
            )
        if strange:
            self.notes.append(
                f"{name}: of {len(answers)} rows {len(strange)} have an answer that is none of the labels ({shown}): "
                "they count as wrong"
            )

    def _store(self, split: str) -> object | None:
        return self.data.test if split == "test" else self.data.validation

    def _rows_of(self, task: Task) -> list[Row]:
        if task.data not in self._rows:
            self._rows[task.data] = self.data.rows(task.data)
        rows = self._rows[task.data]
        return rows if task.limit is None else sorted(rows, key=lambda row: row.id)[: task.limit]

    def _answered(self, task: Task) -> list[Row]:
        return [row for row in self._rows_of(task) if not isinstance(row.record, Text)]

    def _run_task(self, card: Scorecard, name: str, task: Task, machine: Machinery) -> None:
        tell = self._teller(f"{card.model}: {name}")
        shared = {"data": task.data, "template": self.renderer.fingerprint(), "limit": task.limit}
        if isinstance(task, LossTaskSection):
            card.add_task(name, self._loss(task, machine), **shared)
            return
        rows = self._answered(task)
        questions = [self._question(row) for row in rows]
        if isinstance(task, ExactMatchSection):
            room = task.max_new_tokens or self._room(rows)
            questions, left_out = _that_fit(questions, room, machine.context)
            result = tasks.exact_match(
                questions,
                machine.generator,
                Sampling(max_new_tokens=room),
                matching=tasks.Matching(ignore_case=task.ignore_case),
                labels=_distinct(self.data.labels, ignore_case=task.ignore_case),
                label_counts=self.data.label_counts or None,
                seed=self.seed,
                progress=tell,
            )
        else:
            labels = task.labels or self.data.labels or sorted({question.reference for question in questions})
            candidates = [self.renderer.answer_ids(rows[0].record, label) for label in labels]
            room = max(len(candidate) for candidate in candidates)
            questions, left_out = _that_fit(questions, room, machine.context)
            result = tasks.label_ranking(
                questions,
                labels,
                candidates,
                machine.scorer,
                prior=machine.scorer.rank([self._neutral_prompt()], candidates)[0],
                label_counts=self.data.label_counts or None,
                seed=self.seed,
                progress=tell,
            )
        if left_out:
            self._note(
                f"{name}: {left_out} rows whose prompt leaves no room for an answer in the context are not scored"
            )
        card.add_task(name, result, **shared, left_out=left_out)

    def _loss(self, task: Task, machine: Machinery) -> tasks.TaskResult:
        store = self.data.test if task.data == "test" else self.data.validation
        if store is None:
            raise AssertionError("tasks without rows were left out")
        count = store.num_rows if task.limit is None else min(task.limit, store.num_rows)
        documents = [store.row(index) for index in range(count)]
        questions = [
            Question.of(f"{store.row_id(index)}", ids.tolist(), "", "") for index, (ids, _) in enumerate(documents)
        ]
        return tasks.loss(machine.scorer.row_losses(documents), questions, self.seed)

    def _run_probe(self, card: Scorecard, name: str, machine: Machinery) -> None:
        tell = self._teller(f"{card.model}: {name}")
        tokenizer = machine.tokenizer
        if name == "general":
            documents = []
            for text in probes.general_texts():
                ids = np.asarray(tokenizer.encode_document(text.text)[: machine.context], dtype=np.uint32)
                documents.append((ids, np.ones(len(ids), dtype=np.bool_)))
            card.add_probe(name, probes.general_probe(machine.scorer.row_losses(documents), self.seed))
        elif name == "completions":
            card.add_probe(name, probes.completions_probe(tokenizer.encode_document, machine.scorer, tell))
        else:
            asked = [
                Question.of(item.id, self._prompt_ids(item.text), item.text, item.reference, item.kind)
                for item in probes.instruction_items()
            ]
            how = Sampling(max_new_tokens=_INSTRUCTION_TOKENS)
            card.add_probe(name, probes.instructions_probe(asked, machine.generator, how, tell))

    def _question(self, row: Row) -> Question:
        return Question.of(
            row.id,
            self.renderer.prompt_ids(row.record),
            self.renderer.prompt_text(row.record),
            self.renderer.reference(row.record),
            row.group,
        )

    def _prompt_ids(self, text: str) -> list[int]:
        return self.renderer.prompt_ids(Chat((Message("user", text), Message("assistant", "?"))))

    def _neutral_prompt(self) -> list[int]:
        return self._prompt_ids(_NEUTRAL)

    def _room(self, rows: Sequence[Row]) -> int:
        """Tokens of the longest reference and a few more, so that a wrong answer may still end."""
        longest = max(len(self.renderer.answer_ids(row.record, self.renderer.reference(row.record))) for row in rows)
        return min(longest + _EXTRA_TOKENS, _LONGEST_ANSWER)

    def _teller(self, phase: str) -> Callable[[int, int], None]:
        return lambda done, total: self.progress.phase(phase, done, total)

    def _note(self, sentence: str) -> None:
        if sentence not in self.notes:
            self.notes.append(sentence)
            self.progress.note(sentence)


def _of_language(task: TaskField, number: int) -> Task:
    if isinstance(task, ClassificationTaskSection | RegressionTaskSection | TaggingTaskSection):
        raise RecipeError(
            f"the task `{task.type}` asks a head, and this objective puts none on the model",
            where=f"evaluation.tasks.{number}.type",
            hint="set `label_ranking`, `exact_match` or `loss`",
        )
    return task


def _that_fit(questions: Sequence[Question], room: int, context: int) -> tuple[list[Question], int]:
    fitting = [question for question in questions if len(question.prompt_ids) + room <= context]
    return fitting, len(questions) - len(fitting)


def _distinct(labels: Sequence[str] | None, *, ignore_case: bool) -> list[str] | None:
    """Labels that compare as different, the first of each."""
    if labels is None:
        return None
    key = tasks.Matching(ignore_case=ignore_case).key
    return list({key(label): label for label in reversed(labels)}.values())[::-1]
