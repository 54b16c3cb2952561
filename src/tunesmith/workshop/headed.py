"""A model with a head at work: what a recipe asks for is built, rows are answered, losses are measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tunesmith.data.head_batches import HeadData, head_data
from tunesmith.data.loader import make_batch
from tunesmith.data.prepared import Prepared, Split
from tunesmith.models.causal_lm import CausalLM
from tunesmith.models.head_shape import HeadFile, read_labels, shape_of
from tunesmith.objectives import build as build_objective
from tunesmith.objectives.headed import Headed, row_losses
from tunesmith.objectives.label_losses import loss_of
from tunesmith.planning.base import open_base, settled_objective
from tunesmith.planning.settings import Settings
from tunesmith.recipe.heads import HeadedSection, LabelledSection, TagSection
from tunesmith.recipe.root import Recipe
from tunesmith.tags import marks_spans
from tunesmith.types import Batch, Objective

_LABELS_SHOWN = 12
Ids = np.ndarray[Any, Any]
Logits = np.ndarray[Any, np.dtype[np.float64]]


def is_headed(recipe: Recipe) -> bool:
    """Whether the recipe's objective puts a head on the model."""
    return isinstance(recipe.objective, HeadedSection)


def describe_head(recipe: Recipe, data: Prepared) -> HeadFile:
    """Shape and labels of the head that a recipe asks for on its data.

    Raises:
        RecipeError: the model cannot have such a head.
    """
    section = recipe.objective
    assert isinstance(section, HeadedSection)
    _, facts = open_base(recipe)
    labels = read_labels(getattr(section, "labels", None), data.label_counts)
    shape = shape_of(section, facts, len(labels))
    settled = settled_objective(recipe, facts)
    if not isinstance(settled, TagSection):
        return HeadFile(shape, () if shape.task == "regress" else tuple(labels))
    spans = settled.scheme != "none" and marks_spans(labels, settled.outside)
    return HeadFile(shape, tuple(labels), settled.outside, "last" if settled.pieces == "last" else "first", spans)


def make_objective(recipe: Recipe, data: Prepared, settings: Settings) -> Objective:
    """The recipe's objective, its head at its random start where it has one, at the rate that the plan gives it."""
    if not is_headed(recipe):
        return build_objective(recipe.objective)
    described = describe_head(recipe, data)
    section = recipe.objective.model_copy(update={"rate_factor": settings.head_factor})
    if not isinstance(section, LabelledSection):
        return build_objective(section, described.shape, recipe.seed)
    several = described.shape.task == "multi_label"
    counts = {"": data.ledger.trained, **data.label_counts}
    loss = loss_of(section, described.labels, counts, several=several)
    return build_objective(section, described.shape, recipe.seed, loss)


def weight_notes(objective: Objective, labels: Sequence[str]) -> list[str]:
    """The sentence about what labels count in the loss, where not all count alike."""
    weights = objective.loss.class_weights if isinstance(objective, Headed) else None
    if weights is None:
        return []
    shown = ", ".join(
        f"{label} {weight:.3g}" for label, weight in list(zip(labels, weights, strict=True))[:_LABELS_SHOWN]
    )
    more = f" and {len(weights) - _LABELS_SHOWN:,} more" if len(weights) > _LABELS_SHOWN else ""
    return [f"labels weigh in the loss: {shown}{more} (objective.class_weights)"]


@dataclass(frozen=True)
class HeadedMachine:
    """A headed model that answers.

    Attributes:
        model: the headless facade.
        objective: holds the head.
        described: its shape and labels.
        context: most tokens of a text.
        batch_tokens: tokens of one forward pass.
    """

    model: CausalLM
    objective: Headed
    described: HeadFile
    context: int
    batch_tokens: int

    @torch.no_grad()
    def logits(self, texts: Sequence[Sequence[int] | Ids]) -> Logits:
        """What the head says of each text, as ids: ``[texts, K]``."""
        found = np.zeros((len(texts), self.described.shape.outputs))
        arrays = [np.asarray(ids[: self.context], dtype=np.uint32) for ids in texts]
        with _Evaluating(self):
            for members in packs_of([len(ids) for ids in arrays], self.batch_tokens):
                pack = make_batch([(arrays[row], np.zeros(len(arrays[row]), dtype=bool)) for row in members], members)
                found[members] = self.objective.logits(self.model, pack.to(self.model.device)).double().cpu().numpy()
        return found

    @torch.no_grad()
    def word_logits(self, texts: Sequence[Sequence[int] | Ids], read: Sequence[Sequence[int]]) -> list[Logits]:
        """What the head says at some tokens of each text: ``[tokens, K]`` a text.

        Args:
            texts: ids, each cut to the context.
            read: of each text, numbers of tokens that are in it.
        """
        found: list[Logits] = [np.zeros((0, self.described.shape.outputs))] * len(texts)
        arrays = [np.asarray(ids[: self.context], dtype=np.uint32) for ids in texts]
        with _Evaluating(self):
            for members in packs_of([len(ids) for ids in arrays], self.batch_tokens):
                pack = make_batch([(arrays[row], np.zeros(len(arrays[row]), dtype=bool)) for row in members], members)
                starts = pack.starts_D1[:-1].tolist()
                places = [start + place for start, row in zip(starts, members, strict=True) for place in read[row]]
                batch = replace(pack, scored_S=torch.tensor(places, dtype=torch.int64)).to(self.model.device)
                said: Logits = self.objective.logits(self.model, batch).double().cpu().numpy()
                parts = np.split(said, np.cumsum([len(read[row]) for row in members])[:-1])
                for row, part in zip(members, parts, strict=True):
                    found[row] = part
        return found

    @torch.no_grad()
    def losses(self, data: HeadData, rows: Sequence[int]) -> list[tuple[float, int]]:
        """Loss and weight of each row, in order: summed over its labelled words, or of the row itself."""
        found: dict[int, tuple[float, int]] = {}
        with _Evaluating(self):
            for members in packs_of([len(data.ids(row)) for row in rows], self.batch_tokens):
                chosen = [rows[member] for member in members]
                batch = data.batch(chosen).to(self.model.device)
                found.update(zip(members, self._of_documents(batch), strict=True))
        return [found[place] for place in range(len(rows))]

    def _of_documents(self, batch: Batch) -> list[tuple[float, int]]:
        losses_S: Tensor = row_losses(self.described.shape, self.objective.logits(self.model, batch), batch)
        sums_D = torch.zeros(len(batch.lengths), dtype=torch.float64, device=losses_S.device)
        counts_D = torch.zeros_like(sums_D)
        sums_D.index_add_(0, batch.document_S, (losses_S * batch.weights_S).double())
        counts_D.index_add_(0, batch.document_S, batch.weights_S.double())
        return [(total, round(count)) for total, count in zip(sums_D.tolist(), counts_D.tolist(), strict=True)]

    def mean_loss(self, data: Prepared, split: Split) -> list[tuple[float, int]] | None:
        """``losses`` of every row of a split; None where it has none."""
        rows = head_data(data, split, self.described.shape.task, self.described.labels)
        return None if rows is None else self.losses(rows, range(rows.store.num_rows))


class _Evaluating:
    """Within the context model and head are in evaluation mode."""

    def __init__(self, machine: HeadedMachine) -> None:
        self._modules = (machine.model, machine.objective.head)
        self._were = [module.training for module in self._modules]

    def __enter__(self) -> None:
        for module in self._modules:
            module.eval()

    def __exit__(self, *_: object) -> None:
        for module, was_training in zip(self._modules, self._were, strict=True):
            module.train(was_training)


def packs_of(lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Positions of rows in packs of at most ``batch_tokens``, like lengths together."""
    packs: list[list[int]] = []
    tokens = 0
    for place in sorted(range(len(lengths)), key=lambda item: lengths[item]):
        if not packs or tokens + lengths[place] > batch_tokens:
            packs.append([])
            tokens = 0
        packs[-1].append(place)
        tokens += lengths[place]
    return packs
