"""A trainer over a tiny model and a store in memory, for tests of the loop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from tests.tiny import documents, family
from tunesmith.adapters import build
from tunesmith.adapters.depths import by_depth
from tunesmith.data.loader import PackedStream, StreamOptions
from tunesmith.engine.checkpoint import CheckpointFolder
from tunesmith.engine.hooks import StepFacts
from tunesmith.engine.options import TrainerOptions
from tunesmith.engine.trainer import Trainer
from tunesmith.models.causal_lm import CausalLM
from tunesmith.objectives.next_token import NextToken
from tunesmith.recipe.adapters import FullSection, LoraSection
from tunesmith.recipe.bottleneck import BottleneckSection
from tunesmith.recipe.layers import LayerRatesSection
from tunesmith.recipe.low_rank import AfloraSection
from tunesmith.recipe.prompts import PrefixSection, PromptSection, PTuningSection
from tunesmith.recipe.section import Section
from tunesmith.types import Batch


class MemoryStore:
    """A token store without files."""

    def __init__(self, lengths: Sequence[int], seed: int = 0, trained_from: int = 1) -> None:
        self._documents = documents(lengths, seed, trained_from)
        self.lengths = np.asarray(lengths, dtype=np.int64)
        self.num_rows = len(lengths)
        self.sources = np.zeros(self.num_rows, dtype=np.int16)
        self.weights = np.ones(self.num_rows, dtype=np.float32)

    def row(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Token ids and trained flags."""
        return self._documents[index]


class Recorder:
    """Keeps the facts of each step; may raise at one."""

    def __init__(self) -> None:
        self.facts: list[StepFacts] = []

    def after_step(self, facts: StepFacts) -> None:
        self.facts.append(facts)

    def at_interval(self, step: int) -> str | None:
        return None

    def rewind(self, step: int) -> None:
        self.facts = [facts for facts in self.facts if facts.step <= step]

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Any) -> None:
        pass


class Cut(Exception):
    """A crash, as far as the loop can tell."""


class CutStream(PackedStream):
    """Fails when it is asked for the step after ``stop_after``."""

    stop_after = 0

    def atoms(self, step: int) -> list[Batch]:
        if step == self.stop_after:
            raise Cut(step)
        return super().atoms(step)


OPTIONS = TrainerOptions(total_steps=12, learning_rate=5e-3, warmup_steps=2, checkpoint_every=4, evaluate_every=100)
LENGTHS = [5, 9, 17, 3, 30, 8, 12, 21, 6, 11, 14, 4, 25, 7, 10, 19, 13, 2, 16, 28, 9, 5, 33, 8]
TOKENS = [5, 40, 41]
VIRTUAL: dict[str, Section] = {
    "prompt": PromptSection(num_tokens=4, train_tokens=TOKENS),
    "p-tuning": PTuningSection(num_tokens=4, encoder="lstm", encoder_width=8, dropout=0.0),
    "prefix": PrefixSection(num_tokens=4, train_tokens=TOKENS),
    "projected prefix": PrefixSection(num_tokens=4, projection=True, projection_width=8),
}
"""Adapters with virtual tokens, by what tests call them."""


def make_trainer(
    folder: Path,
    *,
    scope: str = "lora",
    dropout: float = 0.0,
    options: TrainerOptions = OPTIONS,
    atom_tokens: int = 4096,
    micro_batch_size: int | None = None,
    stop_after: int | None = None,
    objective: Any = None,
    say: Any = lambda kind, text: None,
    ranks: Any = None,
    layers: int = 2,
    rates: LayerRatesSection | None = None,
    **changes: Any,
) -> tuple[Trainer, Recorder]:
    """A trainer on a random Llama; with ``stop_after`` its ``run`` raises ``Cut`` after that step.

    ``scope`` is ``lora``, ``lora with tokens`` (rows of the embedding and of the head train too), ``aflora``, ``bottleneck``, one of ``VIRTUAL`` or
    ``full``; with ``rates`` or a ``timetable`` groups are told apart by depth.
    """
    options = replace(options, **changes)
    model = CausalLM(family("llama", num_hidden_layers=layers))
    tokens = {"train_tokens": TOKENS} if scope == "lora with tokens" else {}
    sections = VIRTUAL | {
        "full": FullSection(),
        "aflora": AfloraSection(dropout=dropout),
        "bottleneck": BottleneckSection(placement="hybrid", reduction=4, layer_norm="before", dropout=dropout),
    }
    section = sections.get(scope) or LoraSection(rank=4, alpha=8.0, dropout=dropout, **tokens)
    adapter = build(section, 3)
    adapter.attach(model.hf)
    stream_options = StreamOptions(
        batch_size=8, total_steps=options.total_steps, atom_tokens=atom_tokens, seed=options.seed,
        micro_batch_size=micro_batch_size, virtual_tokens=adapter.virtual_tokens,
    )  # fmt: skip
    stream = (CutStream if stop_after else PackedStream)(MemoryStore(LENGTHS), stream_options)  # type: ignore[arg-type]
    if isinstance(stream, CutStream):
        stream.stop_after = stop_after or 0
    recorder = Recorder()
    trainer = Trainer(
        model, objective or NextToken(), adapter, stream, options,
        CheckpointFolder(folder, "run", keep=options.keep_checkpoints, say=say), hooks=[recorder], say=say, ranks=ranks,
        arrange=(lambda groups: by_depth(groups, layers, rates)) if rates or options.timetable else list,
    )  # fmt: skip
    return trainer, recorder
