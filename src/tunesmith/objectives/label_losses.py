"""Losses of labels that are not the plain one: class weights, label smoothing, focal loss, R-Drop.

For one label of K, with logits z, p = softmax(z), the right class y and class weights w:

    plain             −w_y log p_y
    label smoothing   −(1 − ε) w_y log p_y − ε/K Σ_c w_c log p_c      as torch's cross_entropy
    focal             −w_y (1 − p_y)^γ log p_y                        the gradient goes through the factor

For any number of labels, each by itself with p = σ(z), the mean over the K labels of

    plain             −w y log p − (1 − y) log(1 − p)
    label smoothing   the same with y (1 − ε) + ε/2 in place of y
    focal             each term times (1 − the probability of what is right)^γ

R-Drop runs each pack twice under two draws of dropout: the mean of both losses, plus α times the symmetric divergence J of what
the two say, ½ KL(p ‖ q) + ½ KL(q ‖ p), for several labels the mean of their divergences.

Under class weights a row or word counts ``weight · w_y``, in the sum and in what it is divided by, as in torch's weighted mean.

Sources: Szegedy et al. 2016 (arXiv 1512.00567) §7; Lin et al. 2017 (arXiv 1708.02002); Liang et al. 2021 (arXiv 2106.14448).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from tunesmith.errors import RecipeError
from tunesmith.recipe.heads import LabelledSection

_LEAST_DOUBT = 1e-12
"""Floor of 1 − p: a power of exactly 0 has no finite derivative below an exponent of 1."""


@dataclass(frozen=True)
class LabelLoss:
    """What changes the loss of labels.

    Attributes:
        label_smoothing: share ε of the target that is spread over all labels.
        focal_gamma: exponent γ of the doubt; 0 is the plain loss.
        rdrop_alpha: weight α of the divergence between two passes; 0 is one pass.
        class_weights: of each label in the order of the outputs; None weighs all alike.
    """

    label_smoothing: float = 0.0
    focal_gamma: float = 0.0
    rdrop_alpha: float = 0.0
    class_weights: tuple[float, ...] | None = None

    @property
    def is_plain(self) -> bool:
        """Whether it is the loss without any of them."""
        return self == LabelLoss()

    def weights_of(self, targets_S: Tensor) -> Tensor | None:
        """Class weight of each target; None where all weigh alike."""
        weights_K = self._weights(targets_S.device)
        return None if weights_K is None else weights_K[targets_S]

    def of_one(self, logits_SK: Tensor, targets_S: Tensor) -> Tensor:
        """Loss of each row or word ``[S]`` that has one label, its class weight included."""
        weights_K = self._weights(logits_SK.device)
        loss_S = F.cross_entropy(
            logits_SK, targets_S, weight=weights_K, label_smoothing=self.label_smoothing, reduction="none"
        )
        if self.focal_gamma:
            logprob_S = logits_SK.log_softmax(-1).gather(-1, targets_S[:, None])[:, 0]
            loss_S = self._doubted(logprob_S) * loss_S
        return loss_S

    def of_several(self, logits_SK: Tensor, hot_SK: Tensor) -> Tensor:
        """Loss of each row ``[S]`` that may have any number of labels; weights are those of labels that are there."""
        wanted = hot_SK * (1 - self.label_smoothing) + 0.5 * self.label_smoothing
        loss_SK = F.binary_cross_entropy_with_logits(
            logits_SK, wanted, pos_weight=self._weights(logits_SK.device), reduction="none"
        )
        if self.focal_gamma:
            loss_SK = self._doubted(F.logsigmoid(torch.where(hot_SK > 0.5, logits_SK, -logits_SK))) * loss_SK
        return loss_SK.mean(-1)

    def _doubted(self, logprob: Tensor) -> Tensor:
        factor: Tensor = (-torch.expm1(logprob)).clamp_min(_LEAST_DOUBT) ** self.focal_gamma
        return factor

    def _weights(self, device: torch.device) -> Tensor | None:
        if self.class_weights is None:
            return None
        return torch.tensor(self.class_weights, dtype=torch.float32, device=device)


def divergence(one_SK: Tensor, other_SK: Tensor, *, each: bool) -> Tensor:
    """J of each row or word ``[S]``, between what two passes say; with ``each`` the mean over labels that stand by themselves."""
    if not each:
        p, q = one_SK.log_softmax(-1), other_SK.log_softmax(-1)
        found: Tensor = 0.5 * ((p.exp() - q.exp()) * (p - q)).sum(-1)
        return found
    gap_SK = one_SK - other_SK
    # (p − q)(log p − log q) and the same of the label's absence add up to (p − q) times the difference of log-odds
    return 0.5 * ((torch.sigmoid(one_SK) - torch.sigmoid(other_SK)) * gap_SK).mean(-1)


def loss_of(section: LabelledSection, labels: Sequence[str], counts: Mapping[str, int], *, several: bool) -> LabelLoss:
    """The loss that a section asks for.

    ``balanced`` gives a label that n of N training rows (or words) have the weight N / (K n), so that every label weighs as much
    in all; of labels that stand by themselves (N − n) / n, so that having it weighs as much as not having it.

    Args:
        section: of the recipe.
        labels: in the order of the head's outputs.
        counts: training rows, or words, of each label.
        several: whether a row may have any number of labels; ``counts`` then hold all rows under the empty name.

    Raises:
        RecipeError: a weight for a label that the head does not have.
    """
    return LabelLoss(
        section.label_smoothing, section.focal_gamma, section.rdrop_alpha, _weights(section, labels, counts, several)
    )


def _weights(
    section: LabelledSection, labels: Sequence[str], counts: Mapping[str, int], several: bool
) -> tuple[float, ...] | None:
    given = section.class_weights
    if given is None:
        return None
    if given == "balanced":
        rows = counts[""] if several else sum(counts[label] for label in labels)
        if several:
            return tuple(max(1, rows - counts[label]) / counts[label] for label in labels)
        return tuple(rows / (len(labels) * counts[label]) for label in labels)
    strange = sorted(given.keys() - set(labels))
    if strange:
        raise RecipeError(
            f"`class_weights` weighs {strange[0]!r}, which is no label of the head",
            where="objective.class_weights",
            hint=f"its labels are: {', '.join(labels[:8])}{' …' if len(labels) > 8 else ''}",
        )
    return tuple(given.get(label, 1.0) for label in labels)
