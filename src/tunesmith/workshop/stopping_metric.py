"""What early stopping watches beside the loss: answers to validation rows, measured at each evaluation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from tunesmith.data.prepared import Prepared
from tunesmith.data.rendering import Renderer
from tunesmith.engine.stopping import EarlyStopping
from tunesmith.errors import DataError
from tunesmith.evaluation.instruction_following import AnswerLike, Pair, cut_question, following_score
from tunesmith.evaluation.questions import Question
from tunesmith.progress import SilentProgress
from tunesmith.recipe.evaluation import EvaluationSection, ExactMatchSection, LabelRankingSection
from tunesmith.recipe.root import Recipe
from tunesmith.recipe.training import EarlyStoppingSection
from tunesmith.records import Chat, Labelled, Row, Tagged, Text
from tunesmith.types import Sampling
from tunesmith.workshop.machinery import Machinery
from tunesmith.workshop.scoring import Scoring

Measure = Callable[[Machinery], dict[str, float]]
"""Measures a model in evaluation mode; the metric stands under its own name, beside others that are worth a line."""

_WHERE = "training.early_stopping.metric"
_ANSWER_TOKENS = 64
_WORDS = {
    "loss": "validation loss", "exact_match": "exact match on validation rows",
    "label_ranking": "label ranking on validation rows", "instruction_following": "instruction following on validation rows",
}  # fmt: skip


@dataclass(frozen=True)
class Watch:
    """Early stopping, and how what it watches is measured; None where that is the loss, which is measured anyway."""

    stopping: EarlyStopping
    measure: Measure | None = None


def make_watch(recipe: Recipe, data: Prepared, renderer: Renderer) -> Watch | None:
    """What a recipe's early stopping watches; None where nothing stops early.

    Raises:
        DataError: the validation rows do not have what it needs.
    """
    section = recipe.training.early_stopping
    if section is None:
        return None
    name = section.metric
    stopping = EarlyStopping(section.patience, section.min_delta, _WORDS[name], higher=name != "loss")
    if name == "loss":
        return Watch(stopping)
    if name == "instruction_following":
        return Watch(stopping, _Following(data, renderer, recipe.seed, section.rows).measure)
    return Watch(stopping, _Task(section, data, renderer, recipe.seed).measure)


class _Task:
    """Exact match or label ranking, as the verdict measures them."""

    def __init__(self, section: EarlyStoppingSection, data: Prepared, renderer: Renderer, seed: int) -> None:
        kind = ExactMatchSection if section.metric == "exact_match" else LabelRankingSection
        task = kind(data="validation", limit=section.rows, name=section.metric)
        self.name = section.metric
        self.scoring = Scoring(EvaluationSection(tasks=[task], preserve=[]), data, renderer, seed, SilentProgress())
        if not self.scoring.tasks:
            why = "; ".join(self.scoring.notes)
            raise DataError(f"early stopping cannot watch {self.name}: {why}", where=_WHERE, hint="stop on `loss`")
        if self.name == "label_ranking" and data.labels is None:
            raise DataError(
                "early stopping cannot watch label_ranking: the answers are open text, not a closed set of labels",
                where=_WHERE,
                hint="stop on `exact_match`, `instruction_following` or `loss`",
            )

    def measure(self, machine: Machinery) -> dict[str, float]:
        metrics = self.scoring.score("watched", machine).tasks[self.name]
        return {self.name: metrics["exact_match" if self.name == "exact_match" else "accuracy"].value}


class _Following:
    """The Instruction Following Score: half the validation rows teach what an answer looks like, the other half is asked."""

    def __init__(self, data: Prepared, renderer: Renderer, seed: int, most_rows: int) -> None:
        rows = sorted((row for row in data.iter_rows("validation") if _pair(row) is not None), key=lambda row: row.id)
        asked, taught = rows[::2][:most_rows], rows[1::2]
        self.judge = AnswerLike([pair for row in taught if (pair := _pair(row)) is not None], seed)
        self.whole = [_question(row, renderer) for row in asked]
        self.beginnings = [
            _question(_with_question(row, cut[0]), renderer)
            for row in asked
            if (pair := _pair(row)) is not None and (cut := cut_question(pair, seed)) is not None
        ]

    def measure(self, machine: Machinery) -> dict[str, float]:
        how = Sampling(max_new_tokens=_ANSWER_TOKENS)
        return following_score(self.whole, self.beginnings, machine.generator, how, self.judge)


def _pair(row: Row) -> Pair | None:
    """Question and answer of a row with one turn of each; None for any other."""
    record = row.record
    if isinstance(record, Labelled):
        return Pair(row.id, record.text, record.label)
    if isinstance(record, Text | Tagged):
        return None
    turns = [message for message in record.messages if message.role != "system"]
    if [message.role for message in turns] != ["user", "assistant"]:
        return None
    return Pair(row.id, turns[0].content, turns[1].content)


def _with_question(row: Row, question: str) -> Row:
    """The same row with another question."""
    record = row.record
    if isinstance(record, Labelled):
        return replace(row, record=replace(record, text=question))
    assert isinstance(record, Chat)
    messages = [
        replace(item, content=question, stretches=()) if item.role == "user" else item for item in record.messages
    ]
    return replace(row, record=replace(record, messages=tuple(messages)))


def _question(row: Row, renderer: Renderer) -> Question:
    record = row.record
    return Question.of(row.id, renderer.prompt_ids(record), renderer.prompt_text(record), renderer.reference(record))
