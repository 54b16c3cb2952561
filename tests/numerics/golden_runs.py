"""Runs whose losses are kept in golden.json: five steps on a tiny random Llama and fixed rows, fp32, one thread."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from tests.loops import MemoryStore, Recorder
from tests.tiny import VOCABULARY, family
from tests.tiny_encoders import encoder
from tunesmith.adapters import ADAPTERS
from tunesmith.adapters import build as build_adapter
from tunesmith.data.loader import PackedStream, StreamOptions, make_batch
from tunesmith.data.masked_batches import Masking
from tunesmith.engine.checkpoint import CheckpointFolder
from tunesmith.engine.options import TrainerOptions
from tunesmith.engine.trainer import Trainer
from tunesmith.engine.windows import ScoreRule
from tunesmith.models.causal_lm import CausalLM
from tunesmith.models.encoder_lm import EncoderLM
from tunesmith.models.head_shape import HeadShape, task_of
from tunesmith.objectives import OBJECTIVES
from tunesmith.objectives import build as build_objective
from tunesmith.recipe.adapters import FullSection, HeadOnlySection, PartialSection
from tunesmith.recipe.bottleneck import BottleneckSection
from tunesmith.recipe.heads import HeadedSection, TagSection
from tunesmith.recipe.low_rank import AfloraSection, GraloraSection, LoraSection
from tunesmith.recipe.objectives import ClmSection, MlmSection, SftSection, SumSection
from tunesmith.recipe.prompts import PrefixSection, PromptSection, PTuningSection
from tunesmith.recipe.section import Section
from tunesmith.types import Batch

FILE = Path(__file__).with_name("golden.json")
STEPS = 5
ROW_LENGTHS = [5, 9, 17, 8, 30, 8, 12, 21, 6, 11, 14, 7, 25, 7, 10, 19, 13, 6, 16, 28]
PROMPT_TOKENS = {SftSection: 4, ClmSection: 1}
"""First trained token of each row: answers only, or all text."""
SECTIONS: dict[type[Section], Section] = {
    FullSection: FullSection(),
    PartialSection: PartialSection(last_layers=1, norms=True, head=True),
    HeadOnlySection: HeadOnlySection(),
    LoraSection: LoraSection(rank=4, alpha=8.0, dropout=0.0),
    GraloraSection: GraloraSection(rank=4, blocks=2, hybrid_rank=2, alpha=12.0),
    AfloraSection: AfloraSection(),
    BottleneckSection: BottleneckSection(placement="hybrid", reduction=4, layer_norm="before"),
    PromptSection: PromptSection(num_tokens=4),
    PTuningSection: PTuningSection(num_tokens=4, encoder_width=24),
    PrefixSection: PrefixSection(num_tokens=4),
}
HEADLESS = {**SECTIONS, PartialSection: PartialSection(last_layers=1, norms=True)}
"""The same for a model whose language head is left out."""
RATES = {FullSection: 3e-3, PartialSection: 5e-3, HeadOnlySection: 5e-2, LoraSection: 1e-2, GraloraSection: 1e-2,
         AfloraSection: 1e-2,
         BottleneckSection: 5e-3, PromptSection: 1e-1, PTuningSection: 1e-2,
         PrefixSection: 1e-1}  # fmt: skip
ON_ENCODER = {**HEADLESS, BottleneckSection: BottleneckSection(placement="sequential", reduction=4)}
"""The same for an encoder, whose feed-forward is no module of its own that an adapter could run beside."""
SCORES = ScoreRule(boundaries=((2, 0.5), (4, 1.0)), window=1)
LABELS = 3


def goes_with(objective: type[Section], adapter: type[Section]) -> bool:
    """Whether the two train anything together: a head alone needs an objective that brings one."""
    return adapter is not HeadOnlySection or issubclass(objective, HeadedSection)


def cases() -> list[tuple[type[Section], type[Section]]]:
    """Every objective with every adapter that it goes with."""
    return [pair for pair in itertools.product(OBJECTIVES, ADAPTERS) if goes_with(*pair)]


def _headed_rows(store: MemoryStore, section: HeadedSection) -> Callable[[Sequence[int], float, int], Batch]:
    """Packs whose rows ask for a label or a number, made of the row's index; or whose tokens each ask for a label."""

    def make(rows: Sequence[int], progress: float, epoch: int) -> Batch:
        pack = make_batch([store.row(row) for row in rows], rows, progress=progress)
        numbers = torch.tensor(list(rows))
        if isinstance(section, TagSection):
            every = torch.arange(pack.num_tokens)
            owners = torch.repeat_interleave(torch.arange(len(rows)), torch.tensor(pack.lengths))
            tags, weights = (pack.input_ids_T + pack.positions_T) % LABELS, torch.ones(pack.num_tokens)
            return replace(pack, scored_S=every, targets_S=tags, weights_S=weights, document_S=owners)
        return replace(
            pack,
            scored_S=pack.starts_D1[1:].long() - 1,
            targets_S=numbers % LABELS,
            weights_S=torch.ones(len(rows)),
            document_S=torch.arange(len(rows)),
            extras={"value_S": (numbers % 5).float() / 5},
        )

    return make


def _rows_of_parts(store: MemoryStore) -> Callable[[Sequence[int], float, int], Batch]:
    """Packs whose rows belong to one part or the other by turns."""

    def make(rows: Sequence[int], progress: float, epoch: int) -> Batch:
        pack = make_batch([store.row(row) for row in rows], rows, progress=progress)
        return replace(pack, extras={"part_D": torch.tensor([row % 2 for row in rows])})

    return make


def _masked_rows(store: MemoryStore) -> Callable[[Sequence[int], float, int], Batch]:
    """Packs with hidden tokens, drawn by epoch and row index."""
    masking = Masking(1, 0.15, False, frozenset({0, 1, 2}), VOCABULARY)

    def make(rows: Sequence[int], progress: float, epoch: int) -> Batch:
        keys = [f"{epoch} {row}" for row in rows]
        return masking.batch([store.row(row)[0] for row in rows], keys, rows, [1.0] * len(rows), progress)

    return make


def name_of(objective: type[Section], adapter: type[Section]) -> str:
    """``sft-lora``."""
    return f"{objective.model_fields['type'].default}-{adapter.model_fields['type'].default}"


def golden_losses(objective: type[Section], adapter: type[Section]) -> list[float]:
    """Losses of five steps, in nats per trained token."""
    section = objective()
    model = EncoderLM(encoder("bert")) if objective is MlmSection else CausalLM(family("llama"))
    store = MemoryStore(ROW_LENGTHS, seed=3, trained_from=PROMPT_TOKENS.get(objective, 1))
    shape, make = None, None
    if isinstance(section, HeadedSection):
        model.drop_head()
        task = task_of(section)
        pooling: Any = {"pooling": "words"} if task == "tag" else {}
        shape = HeadShape(task, "linear", 32, 1 if task == "regress" else LABELS, **pooling)
        make = _headed_rows(store, section)
    if objective is MlmSection:
        make = _masked_rows(store)
    if objective is SumSection:
        make = _rows_of_parts(store)
    scope = build_adapter((ON_ENCODER if objective is MlmSection else HEADLESS if shape else SECTIONS)[adapter], 7)
    scope.attach(model.hf)
    steps = StreamOptions(batch_size=8, total_steps=STEPS, atom_tokens=64, seed=7, virtual_tokens=scope.virtual_tokens)
    stream = PackedStream(store, steps, make)  # type: ignore[arg-type]
    options = TrainerOptions(
        total_steps=STEPS, learning_rate=RATES[adapter], warmup_steps=1, checkpoint_every=STEPS + 1,
        score_rule=SCORES if adapter is AfloraSection else None,
    )  # fmt: skip
    recorder = Recorder()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as folder:
            checkpoints = CheckpointFolder(Path(folder), "golden")
            parts = (model, build_objective(section, shape, 7), scope, stream, options, checkpoints)
            Trainer(*parts, hooks=[recorder]).run()
    finally:
        torch.set_num_threads(threads)
    return [facts.loss for facts in recorder.facts]
