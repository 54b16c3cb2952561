"""Instruction Following Score: whether answers read like answers, or go on with the question.

AlShikh et al. 2023, "Becoming self-instruct: introducing early stopping criteria for minimal instruct tuning" (arXiv 2307.03692). From a
question and its answer R come its beginning Ip and its rest Ic:

    answer-like         R
    continuation-like   Ic, Ic + R

A classifier that sees the response alone learns the two from rows that are not asked. The score is the share of answer-like responses
to whole questions and to beginnings. The paper's classifier is a tuned BERT over one public set of conversations; this one is logistic
regression on hashed words of the run's own rows, so that scores of two data sets are not compared. An empty response
counts as continuation-like here. Torch-free.
"""

from __future__ import annotations

import hashlib
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tunesmith.errors import DataError
from tunesmith.evaluation.questions import Question
from tunesmith.types import Sampler, Sampling

FEWEST_PAIRS = 20
"""Rows that the classifier needs."""
LEAST_ACCURACY = 0.8
"""Below this, in cross-validation and balanced over both kinds, the score would be about the classifier."""
_FEWEST_WORDS = 4
_PIECES = re.compile(r"\w+|[^\w\s]")
_MOST_PAIRS = 200
_WIDTH = 1 << 12
_FOLDS = 5
_STEPS = 150
_RATE = 4.0
_DECAY = 1e-3

Vector = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Pair:
    """A question and its answer, by the id of their row."""

    id: str
    question: str
    answer: str


def cut_question(pair: Pair, seed: int) -> tuple[str, str] | None:
    """Beginning and rest of a question, cut between words in its middle half; None where it has fewer than four words."""
    words = pair.question.split()
    if len(words) < _FEWEST_WORDS:
        return None
    digest = hashlib.blake2b(f"{seed}/{pair.id}".encode(), digest_size=8).digest()
    first, last = -(-len(words) // 4), 3 * len(words) // 4
    place = first + int.from_bytes(digest, "big") % (last - first + 1)
    return " ".join(words[:place]), " ".join(words[place:])


class AnswerLike:
    """Tells answers from continuations of a question by their text alone.

    Args:
        pairs: rows to learn from, of which 200 at most are used; none of them may be asked later.
        seed: places the cuts.

    Attributes:
        accuracy: in cross-validation by row, the mean of both kinds' shares of right verdicts.

    Raises:
        DataError: too few rows, or the two kinds cannot be told apart.
    """

    def __init__(self, pairs: Sequence[Pair], seed: int) -> None:
        examples = [
            (pair, cut) for pair in pairs if (cut := cut_question(pair, seed)) is not None and pair.answer.strip()
        ]
        if len(examples) < FEWEST_PAIRS:
            raise DataError(
                f"the instruction-following score needs {FEWEST_PAIRS} validation rows to learn what an answer looks like, "
                f"with questions of at least {_FEWEST_WORDS} words; there are {len(examples)}",
                where="data.validation",
                hint="hold more rows out, or stop on another metric",
            )
        features, answers, folds = [], [], []
        for number, (pair, (_, rest)) in enumerate(examples[:_MOST_PAIRS]):
            for text, is_answer in ((pair.answer, True), (rest, False), (f"{rest} {pair.answer}", False)):
                features.append(_features(text))
                answers.append(is_answer)
                folds.append(number % _FOLDS)
        x, y, fold = np.stack(features), np.asarray(answers), np.asarray(folds)
        self.accuracy = _cross_validated(x, y, fold)
        if self.accuracy < LEAST_ACCURACY:
            raise DataError(
                f"answers and continuations of the questions cannot be told apart by their text: {self.accuracy:.0%} right, "
                f"{LEAST_ACCURACY:.0%} are needed",
                where="training.early_stopping.metric",
                hint="stop on another metric: exact_match, label_ranking or loss",
            )
        self._weights = _fit(x, y)

    def __call__(self, text: str) -> bool:
        """Whether a response is answer-like; an empty one is not."""
        return bool(text.strip()) and float(_features(text) @ self._weights) > 0.0


def following_score(
    whole: Sequence[Question], beginnings: Sequence[Question], sampler: Sampler, how: Sampling, judge: AnswerLike
) -> dict[str, float]:
    """Shares of answer-like responses: ``instruction_following`` of all, ``ifs_full``, ``ifs_partial``, and of empty ones ``empty``.

    Args:
        whole: whole questions.
        beginnings: cut ones; may be none.
        sampler: answers.
        how: greedy, with a bound on the length.
        judge: tells answers from continuations.
    """
    asked = [*whole, *beginnings]
    texts = [answer.text for answer in sampler.sample([question.prompt_ids for question in asked], how)]
    like = np.asarray([judge(text) for text in texts], dtype=np.float64)
    found = {"instruction_following": float(like.mean()), "ifs_full": float(like[: len(whole)].mean())}
    if beginnings:
        found["ifs_partial"] = float(like[len(whole) :].mean())
    return found | {"empty": sum(not text.strip() for text in texts) / len(texts)}


def _features(text: str) -> Vector:
    """Hashed words, and how the text begins and ends, of length 1 at most; the last element is 1, for the offset.

    The beginning tells most: the rest of a question sets in within a sentence, in lower case.
    """
    pieces = [piece.lower() for piece in _PIECES.findall(text)]
    found = [(f"w{piece}", 1.0) for piece in dict.fromkeys(pieces)]
    found += [(f"^{piece}", 1.5) for piece in dict.fromkeys(pieces[:6])]
    if pieces:
        first = text.lstrip()[0]
        case = "upper" if first.isupper() else "lower" if first.islower() else "none"
        found += [(f"case {case}", 4.0), (f"first {pieces[0]}", 2.0), (f"two {' '.join(pieces[:2])}", 1.5)]
        found += [(f"last {pieces[-1][-1]}", 1.5), (f"length {min(8, len(pieces).bit_length())}", 1.0)]
    vector = np.zeros(_WIDTH + 1, dtype=np.float32)
    for name, size in found:
        vector[zlib.crc32(name.encode("utf-8", "surrogatepass")) % _WIDTH] += size
    vector /= max(1.0, float(np.linalg.norm(vector)))
    vector[_WIDTH] = 1.0
    return vector


def _fit(x: Vector, y: npt.NDArray[np.bool_]) -> Vector:
    """Logistic regression with both kinds weighing the same, by accelerated descent from zero."""
    share = np.where(y, 0.5 / max(1, int(y.sum())), 0.5 / max(1, int((~y).sum()))).astype(np.float32)
    signs = np.where(y, 1.0, -1.0).astype(np.float32)
    weights = ahead = np.zeros(x.shape[1], dtype=np.float32)
    for step in range(_STEPS):
        slope = -(share * signs / (1.0 + np.exp(np.clip(signs * (x @ ahead), -60, 60)))) @ x + _DECAY * ahead
        before, weights = weights, ahead - _RATE * slope
        ahead = weights + step / (step + 3) * (weights - before)
    return weights


def _cross_validated(x: Vector, y: npt.NDArray[np.bool_], folds: npt.NDArray[np.int64]) -> float:
    right = np.zeros(len(y))
    for fold in range(_FOLDS):
        left_out = folds == fold
        right[left_out] = ((x[left_out] @ _fit(x[~left_out], y[~left_out])) > 0) == y[left_out]
    return float((right[y].mean() + right[~y].mean()) / 2)
