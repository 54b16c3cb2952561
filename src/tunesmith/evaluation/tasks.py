"""Tasks: questions in, scores with intervals and rows out. The model is a ``Sampler`` or a ``Scorer``."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tunesmith.errors import DataError, ModelError
from tunesmith.evaluation.classification import confusion, macro_f1_score, table
from tunesmith.evaluation.questions import Question, check_questions
from tunesmith.evaluation.statistics import Score, exponential, mean_score, proportion, ratio_score
from tunesmith.files import canonical_json
from tunesmith.types import Completion, Sampler, Sampling, Scorer

Progress = Callable[[int, int], None]

MOST_LABELS = 256
_ROWS_A_LABEL = 3
_CHUNK = 64  # questions handed over at once: often enough for a progress bar, few enough to batch well


@dataclass(frozen=True, slots=True)
class TaskResult:
    """What one task measured.

    ``metrics`` by name; ``rows`` one mapping a question (the contract's keys and the task's own); ``table`` with
    labels, confusion and per-class figures, for closed sets; ``baselines`` by name; ``settings`` all that must agree
    before two results may be compared.
    """

    metrics: dict[str, Score]
    rows: list[dict[str, Any]]
    settings: dict[str, Any]
    table: dict[str, Any] | None = None
    baselines: dict[str, dict[str, Any]] | None = None


@dataclass(frozen=True, slots=True)
class Matching:
    """How an answer and its reference are compared: always trimmed, on request without regard to case."""

    ignore_case: bool = False

    def key(self, text: str) -> str:
        """The text as it is compared."""
        trimmed = text.strip()
        return trimmed.casefold() if self.ignore_case else trimmed

    def to_json(self) -> dict[str, bool]:
        """Return the options for the settings."""
        return {"ignore_case": self.ignore_case}


@dataclass(frozen=True, slots=True)
class ClosedSet:
    """Classes of a task: those given first, then references that are none of them (``unseen``), sorted."""

    labels: tuple[str, ...]
    unseen: tuple[str, ...]
    matching: Matching = field(default_factory=Matching)

    @classmethod
    def of(cls, references: Sequence[str], labels: Sequence[str] | None, matching: Matching) -> ClosedSet | None:
        """The given labels, or the distinct references where they are few (at most 256, on average three rows each).

        None where nothing says that the answers come from a closed set. Raises DataError when two labels compare equal.
        """
        found = {matching.key(reference): reference.strip() for reference in reversed(references)}
        if labels is None:
            few = len(found) <= MOST_LABELS and len(found) * _ROWS_A_LABEL <= len(references)
            return cls(tuple(sorted(found.values())), (), matching) if few else None
        given = {matching.key(label) for label in labels}
        if len(given) != len(labels):
            twice = [key for key, times in Counter(map(matching.key, labels)).items() if times > 1]
            raise DataError(
                f"two labels compare equal: {twice[0]!r}",
                where="labels of the task",
                hint="Trim the labels, or heed their case.",
            )
        unseen = tuple(sorted(text for key, text in found.items() if key not in given))
        return cls((*labels, *unseen), unseen, matching)

    def indices(self, texts: Sequence[str]) -> list[int]:
        """Class of each text; the number of classes for a text that is none of them."""
        index = {self.matching.key(label): k for k, label in enumerate(self.labels)}
        return [index.get(self.matching.key(text), len(self.labels)) for text in texts]

    def fingerprint(self) -> str:
        """Short hash of the classes in order."""
        return hashlib.sha256(canonical_json(list(self.labels)).encode()).hexdigest()[:16]


def exact_match(
    questions: Sequence[Question],
    sampler: Sampler,
    how: Sampling,
    *,
    matching: Matching | None = None,
    labels: Sequence[str] | None = None,
    label_counts: Mapping[str, int] | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> TaskResult:
    """Share of answers equal to their reference after trimming.

    Where the answers come from a closed set (``labels`` given, or few distinct references) also ``accuracy`` (the same
    number), ``macro_f1``, the table, and the majority baseline: always the commonest label of the training rows
    (``label_counts``), or of the references where those are not given, which its ``from`` says.

    Raises:
        DataError: no questions, an id twice, labels that compare equal.
    """
    check_questions(questions, "exact_match")
    matching = matching or Matching()
    closed = ClosedSet.of([question.reference for question in questions], labels, matching)
    answers: dict[int, Completion] = {}
    for positions in _chunks(questions):
        answered = sampler.sample([questions[i].prompt_ids for i in positions], how)
        answers.update(zip(positions, answered, strict=True))
        if progress:
            progress(len(answers), len(questions))
    rows = []
    for i, question in enumerate(questions):
        right = matching.key(answers[i].text) == matching.key(question.reference)
        length = {"num_tokens": len(answers[i].ids), "ended": answers[i].ended}
        rows.append(row_of(question, answers[i].text, int(right)) | length)
    metrics = {"exact_match": proportion(sum(row["score"] for row in rows), len(rows))}
    settings: dict[str, Any] = {
        "type": "exact_match",
        "decoding": decoding_of(how),
        "matching": matching.to_json(),
        "labels": closed.fingerprint() if closed else None,
    }
    if closed is None:
        return TaskResult(metrics, rows, settings)
    metrics["accuracy"] = metrics["exact_match"]
    metrics["macro_f1"], found = classified(rows, closed, seed)
    return TaskResult(metrics, rows, settings, found, {"majority": majority(questions, closed, label_counts)})


def label_ranking(
    questions: Sequence[Question],
    labels: Sequence[str],
    label_ids: Sequence[Sequence[int]],
    scorer: Scorer,
    *,
    prior: Sequence[float] | None = None,
    label_counts: Mapping[str, int] | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> TaskResult:
    """Choose the label with the highest log-probability after the prompt: fair to a model that was never tuned.

    Args:
        questions: prompts, whose references are labels; a reference that is no label counts as wrong at every rank.
        labels: the candidates, in the order that breaks ties.
        label_ids: the tokens of each label as an answer, shared by all questions.
        scorer: ranks candidates after contexts.
        prior: log-probability in nats of each label after a neutral context; with it ``normalised_accuracy`` ranks by
            the difference, so that common wordings have no head start.
        label_counts: labels of the training rows, for the majority baseline.
        seed: keys the bootstrap.
        progress: called with questions done and their number.

    Raises:
        DataError: no questions, an id twice, labels or their tokens not distinct, lists of unequal length.
        ModelError: a log-probability that is not finite.
    """
    check_questions(questions, "label_ranking")
    _check_labels(labels, label_ids, prior)
    closed = ClosedSet.of([question.reference for question in questions], labels, Matching())
    assert closed is not None  # labels were given
    truth = closed.indices([question.reference for question in questions])
    candidates = [tuple(ids) for ids in label_ids]
    rows: dict[int, dict[str, Any]] = {}
    for positions in _chunks(questions):
        ranked = scorer.rank([questions[i].prompt_ids for i in positions], candidates)
        for i, scores in zip(positions, ranked, strict=True):
            rows[i] = _ranked_row(questions[i], labels, truth[i], scores, prior)
        if progress:
            progress(len(rows), len(questions))
    ordered = [rows[i] for i in range(len(questions))]
    n = len(ordered)
    metrics = {"accuracy": proportion(sum(row["score"] for row in ordered), n)}
    metrics["macro_f1"], found = classified(ordered, closed, seed)
    if prior is not None:
        metrics["normalised_accuracy"] = proportion(sum(row["normalised_score"] for row in ordered), n)
    reciprocal = [row["reciprocal_rank"] for row in ordered]
    metrics["mean_reciprocal_rank"] = mean_score(reciprocal, seed, bounds=(0.0, 1.0))
    settings = {"type": "label_ranking", "labels": closed.fingerprint(), "normalised": prior is not None}
    return TaskResult(metrics, ordered, settings, found, {"majority": majority(questions, closed, label_counts)})


def loss(
    row_losses: Sequence[tuple[float, int]], questions: Sequence[Question] | None = None, seed: int = 0
) -> TaskResult:
    """Mean loss in nats per scored token, and perplexity, from each row's summed loss and number of tokens.

    ``questions`` name the rows, in the same order; without them a row's id is its position.

    Raises:
        DataError: no rows, an id twice, lists of unequal length, or a row without scored tokens.
        ModelError: a loss that is not finite.
    """
    if questions is None:
        questions = [Question.of(str(i), (), "", "") for i in range(len(row_losses))]
    check_questions(questions, "loss")
    if len(questions) != len(row_losses):
        raise DataError(
            f"{len(row_losses)} losses for {len(questions)} rows", where="loss", hint="Give one loss for each row."
        )
    rows = []
    for question, (nats, tokens) in zip(questions, row_losses, strict=True):
        if tokens <= 0:
            raise DataError(
                "a row has no scored tokens",
                where=f"loss, row {question.id}",
                hint="Its answer is empty, or cut off by the context: leave the row out.",
            )
        check_finite([nats], f"loss, row {question.id}")
        rows.append(row_of(question, "", float(nats) / tokens) | {"nats": float(nats), "num_tokens": int(tokens)})
    mean = ratio_score([row["nats"] for row in rows], [row["num_tokens"] for row in rows], seed)
    return TaskResult({"loss": mean, "perplexity": exponential(mean)}, rows, {"type": "loss"})


def row_of(question: Question, answer: str, score: float | None) -> dict[str, Any]:
    """The keys every row has."""
    return {
        "id": question.id,
        "prompt_hash": question.prompt_hash,
        "prompt": question.prompt,
        "reference": question.reference,
        "answer": answer,
        "score": score,
        "group": question.group,
    }


def decoding_of(how: Sampling) -> dict[str, Any]:
    """The decoding settings that change an answer: greedy decoding has no seed, top-p or top-k."""
    if how.temperature == 0:
        return {"max_new_tokens": how.max_new_tokens, "temperature": 0.0}
    return {
        "max_new_tokens": how.max_new_tokens,
        "temperature": how.temperature,
        "top_p": how.top_p,
        "top_k": how.top_k,
        "seed": how.seed,
    }


def _chunks(questions: Sequence[Question]) -> Iterator[list[int]]:
    """Positions in chunks, longest prompts first: like lengths batch well, and what does not fit fails at once."""
    order = sorted(range(len(questions)), key=lambda i: (-len(questions[i].prompt_ids), i))
    for start in range(0, len(order), _CHUNK):
        yield order[start : start + _CHUNK]


def _ranked_row(
    question: Question, labels: Sequence[str], truth: int, scores: Sequence[float], prior: Sequence[float] | None
) -> dict[str, Any]:
    check_finite(scores, f"label_ranking, row {question.id}")
    order = sorted(range(len(labels)), key=lambda k: (-scores[k], k))
    known = truth < len(labels)
    row = row_of(question, labels[order[0]], int(order[0] == truth))
    row["rank"] = order.index(truth) + 1 if known else None
    row["reciprocal_rank"] = 1 / (order.index(truth) + 1) if known else 0.0
    row["logprob"] = float(scores[order[0]])
    row["reference_logprob"] = float(scores[truth]) if known else None
    if prior is not None:
        best = max(range(len(labels)), key=lambda k: (scores[k] - prior[k], -k))
        row["normalised_answer"] = labels[best]
        row["normalised_score"] = int(best == truth)
    return row


def classified(rows: Sequence[dict[str, Any]], closed: ClosedSet, seed: int) -> tuple[Score, dict[str, Any]]:
    """Macro-F1 and the table; each row is given the classes of its reference and its answer (None: no class)."""
    truth = closed.indices([row["reference"] for row in rows])
    answered = closed.indices([row["answer"] for row in rows])
    for row, true, answer in zip(rows, truth, answered, strict=True):
        row["true_label"] = closed.labels[true]
        row["answer_label"] = closed.labels[answer] if answer < len(closed.labels) else None
    found = table(closed.labels, confusion(truth, answered, len(closed.labels)))
    found["unseen_labels"] = list(closed.unseen)
    return macro_f1_score(truth, answered, len(closed.labels), seed), found


def majority(
    questions: Sequence[Question], closed: ClosedSet, label_counts: Mapping[str, int] | None
) -> dict[str, Any]:
    """Score of always answering the commonest label; ties go to the label first in the alphabet."""
    source = "training rows" if label_counts else "references"
    counts = label_counts or Counter(question.reference.strip() for question in questions)
    label = min(counts, key=lambda text: (-counts[text], text))
    key = closed.matching.key(label)
    hits = sum(closed.matching.key(question.reference) == key for question in questions)
    return {"label": label, **proportion(hits, len(questions)).to_json(), "from": source}


def _check_labels(labels: Sequence[str], label_ids: Sequence[Sequence[int]], prior: Sequence[float] | None) -> None:
    where = "label_ranking"
    if not labels:
        raise DataError("there are no labels to rank", where=where, hint="Name them in the task's `labels`.")
    if len(label_ids) != len(labels) or (prior is not None and len(prior) != len(labels)):
        raise DataError(
            f"{len(labels)} labels, but another number of candidates or priors",
            where=where,
            hint="Give token ids, and a prior where there are priors, for each label.",
        )
    first: dict[tuple[int, ...], str] = {}
    for label, ids in zip(labels, label_ids, strict=True):
        if not ids:
            raise DataError(
                f"the label {label!r} has no tokens", where=where, hint="Take it out of the task's `labels`."
            )
        if (other := first.setdefault(tuple(ids), label)) != label:
            raise DataError(
                f"the labels {other!r} and {label!r} have the same tokens",
                where=where,
                hint="To this model they are one label: name them apart, or keep one of them.",
            )
    if prior is not None:
        check_finite(prior, f"{where}, prior")


def check_finite(values: Sequence[float], where: str) -> None:
    """Refuse NaN and infinities, which no interval and no JSON could hold. Raises ModelError."""
    if not all(math.isfinite(value) for value in values):
        raise ModelError(
            "the model gave a log-probability that is not finite",
            where=where,
            hint="Score in float32, or look at the training curve: the weights may have diverged.",
        )
