"""What is asked of a model: a prompt in tokens, and what a right answer is."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from tunesmith.errors import DataError


@dataclass(frozen=True, slots=True)
class Question:
    """One row of a task. ``prompt_hash`` is the sha256 of the ids: what the model saw, whatever rendered it.

    ``group`` names what the row belongs to (a kind, a conversation); it is carried into the rows, not into statistics.
    """

    id: str
    prompt_ids: tuple[int, ...]
    prompt: str
    reference: str
    prompt_hash: str
    group: str | None = None

    @classmethod
    def of(cls, id: str, prompt_ids: Iterable[int], prompt: str, reference: str, group: str | None = None) -> Question:
        """Make a question, hashing its prompt."""
        ids = tuple(prompt_ids)
        return cls(id, ids, prompt, reference, hash_ids(ids), group)


def hash_ids(ids: Sequence[int]) -> str:
    """Hex sha256 of token ids, as little-endian 32-bit words."""
    return hashlib.sha256(np.asarray(ids, dtype="<u4").tobytes()).hexdigest()


def check_questions(questions: Sequence[Question], task: str) -> None:
    """Refuse a task without rows, and one in which an id occurs twice, since rows are paired by id.

    Raises:
        DataError: no rows, or an id occurs twice.
    """
    if not questions:
        raise DataError("there are no rows to score", where=task, hint="Give the task a split that has rows.")
    seen: set[str] = set()
    for question in questions:
        if question.id in seen:
            raise DataError(
                f"two rows to score have the same id, {question.id!r}",
                where=task,
                hint="Rows are paired by id: drop the duplicate.",
            )
        seen.add(question.id)
