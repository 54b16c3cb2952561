"""Small fixed measurements of what a model could do before: general text, simple completions, ten kinds of instruction.

The texts are the package's own. Their hash is among the settings, so that probes of two versions are never compared.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from tunesmith.embedded import PROBES
from tunesmith.errors import ModelError
from tunesmith.evaluation.questions import Question, check_questions, hash_ids
from tunesmith.evaluation.statistics import Score, proportion
from tunesmith.evaluation.tasks import Progress, TaskResult, check_finite, decoding_of, loss, row_of
from tunesmith.files import sha256_of
from tunesmith.types import LogProb, Sampler, Sampling, Scorer

_CHUNK = 16


@dataclass(frozen=True, slots=True)
class GeneralText:
    """A text whose loss is measured."""

    id: str
    kind: str
    text: str


@dataclass(frozen=True, slots=True)
class CompletionItem:
    """A context, its possible continuations (each with its leading space), and the index of the right one."""

    id: str
    kind: str
    context: str
    choices: tuple[str, ...]
    answer: int


@dataclass(frozen=True, slots=True)
class InstructionItem:
    """An instruction, its input (may be empty) and one acceptable answer."""

    id: str
    kind: str
    instruction: str
    input: str
    reference: str

    @property
    def text(self) -> str:
        """Instruction and input as one user's turn."""
        return f"{self.instruction}\n\n{self.input}" if self.input else self.instruction


@cache
def general_texts() -> tuple[GeneralText, ...]:
    """The package's general texts, in order."""
    return tuple(GeneralText(**row) for row in _read("general"))


@cache
def completion_items() -> tuple[CompletionItem, ...]:
    """The package's completions, in order."""
    return tuple(CompletionItem(**{**row, "choices": tuple(row["choices"])}) for row in _read("completions"))


@cache
def instruction_items() -> tuple[InstructionItem, ...]:
    """The package's instructions, in order."""
    return tuple(InstructionItem(**row) for row in _read("instructions"))


@cache
def probe_sha256(name: str) -> str:
    """Hash of the file of a probe: ``general``, ``completions`` or ``instructions``."""
    return sha256_of(PROBES / f"{name}.jsonl")


def general_probe(row_losses: Sequence[tuple[float, int]], seed: int = 0) -> TaskResult:
    """Loss and perplexity on ``general_texts()``, from each text's summed loss in nats and number of scored tokens.

    Raises:
        DataError: not one pair a text, or a text without scored tokens.
        ModelError: a loss that is not finite.
    """
    texts = general_texts()
    # the hash is of the text, not of tokens: the probe is the same whatever tokenizer reads it
    questions = [Question.of(item.id, item.text.encode(), item.text, "", item.kind) for item in texts]
    result = loss(row_losses, questions, seed)
    return TaskResult(result.metrics, result.rows, _settings("general"))


def completions_probe(
    encode: Callable[[str], Sequence[int]], scorer: Scorer, progress: Progress | None = None
) -> TaskResult:
    """Share of ``completion_items()`` whose right continuation is the likeliest.

    ``accuracy`` compares summed log-probabilities, ``accuracy_per_token`` their mean per token; ties go to the wrong
    choice, as the right one is always first. ``encode`` gives the tokens of a document, with what the model expects
    before it (such as BOS).

    Raises:
        ModelError: the tokenizer leaves no border between context and choice, or a log-probability is not finite.
    """
    items = completion_items()
    rows: list[dict[str, Any]] = []
    for start in range(0, len(items), _CHUNK):
        chunk = items[start : start + _CHUNK]
        cut = [_cut(encode, item) for item in chunk]
        contexts = [context for context, choices in cut for _ in choices]
        scored = iter(scorer.score(contexts, [choice for _, choices in cut for choice in choices]))
        for item, (context, choices) in zip(chunk, cut, strict=True):
            rows.append(_completion_row(item, context, [next(scored) for _ in choices]))
        if progress:
            progress(len(rows), len(items))
    n = len(rows)
    metrics = {
        "accuracy": proportion(sum(row["score"] for row in rows), n),
        "accuracy_per_token": proportion(sum(row["per_token_score"] for row in rows), n),
    }
    return TaskResult(metrics, rows, _settings("completions"))


def instructions_probe(
    questions: Sequence[Question], sampler: Sampler, how: Sampling, progress: Progress | None = None
) -> TaskResult:
    """Answers to ``instruction_items()`` (rendered by the caller into ``questions``), to be read side by side.

    There is no score: a reference is one good answer among many.
    """
    check_questions(questions, "probes.instructions")
    rows: list[dict[str, Any]] = []
    for start in range(0, len(questions), _CHUNK):
        chunk = questions[start : start + _CHUNK]
        answers = sampler.sample([question.prompt_ids for question in chunk], how)
        for question, answer in zip(chunk, answers, strict=True):
            length = {"num_tokens": len(answer.ids), "ended": answer.ended}
            rows.append(row_of(question, answer.text, None) | length)
        if progress:
            progress(len(rows), len(questions))
    return TaskResult({}, rows, _settings("instructions") | {"decoding": decoding_of(how)})


def by_kind(rows: Sequence[dict[str, Any]]) -> dict[str, Score]:
    """Share of right rows of each kind, kinds in order of appearance."""
    kinds: dict[str, list[int]] = {}
    for row in rows:
        kinds.setdefault(row["group"], []).append(row["score"])
    return {kind: proportion(sum(scores), len(scores)) for kind, scores in kinds.items()}


def _read(name: str) -> list[dict[str, Any]]:
    lines = (PROBES / f"{name}.jsonl").read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines if line]


def _settings(name: str) -> dict[str, Any]:
    return {"type": f"probe:{name}", "file_sha256": probe_sha256(name)}


def _cut(encode: Callable[[str], Sequence[int]], item: CompletionItem) -> tuple[list[int], list[list[int]]]:
    """Tokens that all choices share before they part from the context, and the rest of each.

    Whole texts are encoded and cut where tokens first differ from the context's, so that a tokenizer which merges over
    the border is scored on what it really reads.
    """
    wholes = [list(encode(item.context + choice)) for choice in item.choices]
    alone = list(encode(item.context))
    shared = min(_common(alone, whole) for whole in wholes)
    if shared == 0 or any(len(whole) == shared for whole in wholes):
        raise ModelError(
            "the tokenizer leaves no border between a context and its continuation",
            where=f"completions, {item.id}",
            hint="Leave `completions` out of evaluation.preserve: this probe is not made for such a tokenizer.",
        )
    return wholes[0][:shared], [whole[shared:] for whole in wholes]


def _common(first: Sequence[int], second: Sequence[int]) -> int:
    for length, (a, b) in enumerate(zip(first, second, strict=False)):
        if a != b:
            return length
    return min(len(first), len(second))


def _completion_row(item: CompletionItem, context: Sequence[int], scored: Sequence[LogProb]) -> dict[str, Any]:
    totals = [score.total for score in scored]
    check_finite(totals, f"completions, {item.id}")
    means = [score.total / score.num_tokens for score in scored]
    best, best_mean = _likeliest(totals, item.answer), _likeliest(means, item.answer)
    question = Question(item.id, tuple(context), item.context, item.choices[item.answer], hash_ids(context), item.kind)
    row = row_of(question, item.choices[best], int(best == item.answer))
    row["per_token_score"] = int(best_mean == item.answer)
    row["logprobs"] = totals
    return row


def _likeliest(values: Sequence[float], answer: int) -> int:
    """Index of the highest value; a tie goes against the answer."""
    return max(range(len(values)), key=lambda k: (values[k], k != answer))
