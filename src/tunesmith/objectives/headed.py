"""Losses of heads: the hidden states of a pack are pooled, the head in ``parts`` answers, and rows, or labelled words, are the unit.

classify      −log softmax(z)[class]                         cross-entropy, in nats a row
multi_label   Σ_k softplus(z_k) − y_k z_k, over K            binary cross-entropy, the mean over the labels of a row
regress       (z − y)²                                       squared error
tag           −log softmax(z)[class] of each labelled token  cross-entropy, in nats a word
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tunesmith.models.head_shape import HeadShape
from tunesmith.models.task_head import FEATURES, WORD_FEATURES, TaskHead, pool
from tunesmith.objectives.label_losses import LabelLoss, divergence
from tunesmith.objectives.next_token import NLL
from tunesmith.types import Batch, LanguageModel, Loss, Mean

VALUES, CLASSES = "value_S", "classes_S"
"""Names among a batch's extras, as ``data.head_batches`` gives them."""


class Headed:
    """A head on the model, trained together with whatever else trains.

    Args:
        shape: of the head.
        seed: of its random start.
        rate_factor: the head's rate over that of the rest.
        loss: what changes the loss of labels.
    """

    def __init__(
        self, shape: HeadShape, seed: int = 0, rate_factor: float = 1.0, loss: LabelLoss | None = None
    ) -> None:
        self.shape = shape
        self.head = TaskHead(shape, seed)
        self.parts: nn.Module = nn.ModuleDict({"head": self.head})
        self.rate_factor = rate_factor
        self.loss = loss or LabelLoss()

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """Total weight of the rows, or of the labelled words, their classes' weights included."""
        by_class = self._by_class(batch)
        return {"loss": (batch.weights_S if by_class is None else batch.weights_S * by_class).sum()}

    def _by_class(self, batch: Batch) -> Tensor | None:
        """Class weight of each row or word ``[S]``; labels that stand by themselves weigh within a row's loss."""
        return None if self.shape.task == "multi_label" else self.loss.weights_of(batch.targets_S)

    def survey(self, model: LanguageModel, batch: Batch) -> dict[str, Mean]:
        """Nothing is needed beforehand."""
        return {}

    def penalty(self, model: LanguageModel) -> Tensor | None:
        """None: these losses have no term beside the data's."""
        return None

    def logits(self, model: LanguageModel, batch: Batch) -> Tensor:
        """What the head says of each row or word: ``[S, K]``."""
        return self.head(read_states(model, batch, self.shape))  # type: ignore[no-any-return]

    def __call__(self, model: LanguageModel, batch: Batch, seen: Mapping[str, Mean]) -> Loss:
        """Sum of ``weight · loss`` over the rows of the pack, and how many it gets right; the plain loss where it is another."""
        logits_SK = self.logits(model, batch)
        if self.loss.is_plain or self.shape.task == "regress":
            total = (row_losses(self.shape, logits_SK, batch) * batch.weights_S).sum()
            return Loss(totals={"loss": total}, metrics=self._metrics(logits_SK.detach(), batch))
        metrics = self._metrics(logits_SK.detach(), batch)
        loss_S, plain_S = self._losses(logits_SK, batch), row_losses(self.shape, logits_SK.detach(), batch)
        if self.loss.rdrop_alpha:
            other_SK = self.logits(model, batch)
            apart_S = divergence(logits_SK, other_SK, each=self.shape.task == "multi_label")
            by_class = self._by_class(batch)
            held_S = apart_S if by_class is None else by_class * apart_S
            loss_S = 0.5 * (loss_S + self._losses(other_SK, batch)) + self.loss.rdrop_alpha * held_S
            plain_S = 0.5 * (plain_S + row_losses(self.shape, other_SK.detach(), batch))
            metrics["divergence"] = Mean((held_S.detach() * batch.weights_S).sum(), self.counts(batch)["loss"])
        metrics[NLL] = Mean((plain_S * batch.weights_S).sum(), batch.weights_S.sum())
        return Loss(totals={"loss": (loss_S * batch.weights_S).sum()}, metrics=metrics)

    def _losses(self, logits_SK: Tensor, batch: Batch) -> Tensor:
        """Loss of each row or word ``[S]``, class weights included, without the row's own weight."""
        if self.shape.task == "multi_label":
            return self.loss.of_several(logits_SK, batch.extras[CLASSES])
        return self.loss.of_one(logits_SK, batch.targets_S)

    def _metrics(self, logits_SK: Tensor, batch: Batch) -> dict[str, Mean]:
        if self.shape.task == "regress":
            return {}
        if self.shape.task == "multi_label":
            right_S = ((logits_SK > 0) == (batch.extras[CLASSES] > 0.5)).all(-1)
        else:
            right_S = logits_SK.argmax(-1) == batch.targets_S
        counted_S = (batch.weights_S > 0).float()
        return {"accuracy": Mean((right_S.float() * counted_S).sum(), counted_S.sum())}


def read_states(model: Any, batch: Batch, shape: HeadShape) -> Tensor:
    """The vectors that a head reads: pooled before and carried by the batch, or pooled here from the model's states."""
    kept = batch.extras.get(WORD_FEATURES if shape.pooling == "words" else FEATURES)
    if kept is not None:
        return kept
    hidden = (
        model(batch, want=("hidden",)) if shape.layer is None else model(batch, want=("hidden",), layer=shape.layer)
    )
    if hidden.hidden_TH is None:
        raise AssertionError("the facade returns what was wanted")
    return pool(hidden.hidden_TH, batch, shape.pooling)


def row_losses(shape: HeadShape, logits_SK: Tensor, batch: Batch) -> Tensor:
    """Loss of each row or word ``[S]``, without its weight."""
    if shape.task == "regress":
        return torch.square(logits_SK[:, 0] - batch.extras[VALUES])
    if shape.task == "multi_label":
        return F.binary_cross_entropy_with_logits(logits_SK, batch.extras[CLASSES], reduction="none").mean(-1)
    return F.cross_entropy(logits_SK, batch.targets_S, reduction="none")
