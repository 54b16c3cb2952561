"""Export parity gates: whether what was written answers as what was trained. Pure functions of logits.

Gate A, arithmetic: merged in fp32 against the trained model in fp32. Gate B, the file after its cast, on real text.

Shapes: N positions, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tunesmith.errors import GateRefused

MAX_RELATIVE_LOGIT = 1e-4
MAX_MEAN_KL_NATS = 1e-3
MIN_TOP1_AGREEMENT = 0.98
_CHUNK = 256


@dataclass(frozen=True)
class GateResult:
    """What a gate measured, what it allows, and a sentence for people."""

    name: str
    passed: bool
    numbers: Mapping[str, float]
    thresholds: Mapping[str, float]
    sentence: str

    def to_json(self) -> dict[str, Any]:
        """Plain values; a number that is not finite becomes null."""
        numbers = {key: value if math.isfinite(value) else None for key, value in self.numbers.items()}
        return {
            "gate": self.name,
            "passed": self.passed,
            "numbers": numbers,
            "thresholds": dict(self.thresholds),
            "sentence": self.sentence,
        }


def gate_a(logits_merged_NV: Tensor, logits_trained_NV: Tensor) -> GateResult:
    """Largest difference of a logit over the largest trained logit, at most 1e-4. Both in fp32.

    Raises:
        ValueError: shapes differ or there are no positions.
    """
    _check(logits_merged_NV, logits_trained_NV)
    pairs = list(zip(torch.split(logits_merged_NV, _CHUNK), torch.split(logits_trained_NV, _CHUNK), strict=True))
    difference = max(_largest(merged.double() - trained.double()) for merged, trained in pairs)
    largest = max(_largest(trained.double()) for _, trained in pairs)
    relative = difference / largest if largest > 0 else (0.0 if difference == 0 else math.inf)
    passed = relative <= MAX_RELATIVE_LOGIT
    num_positions = logits_trained_NV.shape[0]
    sentence = (
        f"Gate A {_verdict(passed)}: over {num_positions} positions the merged logits differ by at most {difference:.3g} "
        f"of {largest:.3g}, {relative:.2g} relative (at most {MAX_RELATIVE_LOGIT:g})."
    )
    numbers = {
        "max_difference": difference,
        "max_logit": largest,
        "relative_difference": relative,
        "positions": float(num_positions),
    }
    return GateResult("A", passed, numbers, {"relative_difference": MAX_RELATIVE_LOGIT}, sentence)


def gate_b(logprobs_reference_NV: Tensor, logprobs_candidate_NV: Tensor, what: str = "written model") -> GateResult:
    """Mean KL(reference ‖ candidate) at most 1e-3 nats and top-1 agreement at least 0.98.

    Args:
        logprobs_reference_NV: normalised log-probabilities in nats of the trained model.
        logprobs_candidate_NV: those of the written file, at the same positions.
        what: the sentence's name of what was written.

    Raises:
        ValueError: shapes differ or there are no positions.
    """
    _check(logprobs_reference_NV, logprobs_candidate_NV)
    kl_sum, same = 0.0, 0
    for reference_CV, candidate_CV in zip(
        torch.split(logprobs_reference_NV, _CHUNK), torch.split(logprobs_candidate_NV, _CHUNK), strict=True
    ):
        log_p, log_q = reference_CV.double(), candidate_CV.double()
        p = log_p.exp()
        terms = torch.where(p == 0, torch.zeros_like(p), p * (log_p - log_q))
        kl_sum += float(terms.sum())
        same += int((log_p.argmax(-1) == log_q.argmax(-1)).sum())
    num_positions = logprobs_reference_NV.shape[0]
    mean_kl, agreement = kl_sum / num_positions, same / num_positions
    passed = mean_kl <= MAX_MEAN_KL_NATS and agreement >= MIN_TOP1_AGREEMENT
    sentence = (
        f"Gate B {_verdict(passed)}: over {num_positions} positions the {what} has a mean KL of {mean_kl:.2g} nats "
        f"(at most {MAX_MEAN_KL_NATS:g}) and the same first choice at {agreement:.2%} (at least {MIN_TOP1_AGREEMENT:.0%})."
    )
    numbers = {"mean_kl_nats": mean_kl, "top1_agreement": agreement, "positions": float(num_positions)}
    thresholds = {"mean_kl_nats": MAX_MEAN_KL_NATS, "top1_agreement": MIN_TOP1_AGREEMENT}
    return GateResult("B", passed, numbers, thresholds, sentence)


def require(results: Sequence[GateResult]) -> None:
    """Raise GateRefused with every gate's sentence unless all passed."""
    if not results:
        raise ValueError("no gate was measured")
    refused = [result.name for result in results if not result.passed]
    if not refused:
        return
    hint = "the merge itself is not exact: export the adapter without `--merge`"
    if "A" not in refused:
        hint = "the cast to the file's precision loses too much: export with `--dtype float32`"
    raise GateRefused(" ".join(result.sentence for result in results), where=f"gate {' and '.join(refused)}", hint=hint)


def _check(first: Tensor, second: Tensor) -> None:
    if first.shape != second.shape or first.ndim != 2:
        raise ValueError(f"gates compare two N×V tensors, got {tuple(first.shape)} and {tuple(second.shape)}")
    if first.shape[0] == 0:
        raise ValueError("gates need at least one position")


def _largest(values: Tensor) -> float:
    """Largest magnitude; infinite where any value is not a number."""
    largest = float(values.abs().max())
    return math.inf if math.isnan(largest) else largest


def _verdict(passed: bool) -> str:
    return "passed" if passed else "refused"
