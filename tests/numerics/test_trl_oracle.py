"""One optimiser step of ours has the loss and the gradients of TRL's SFTTrainer: same rows, completions only, fp32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, TrainerCallback

from tests.loops import Recorder
from tests.tiny import VOCABULARY, family
from tunesmith.adapters import build
from tunesmith.data.loader import make_batch
from tunesmith.embedded import DEFAULT_MODEL, ROOT
from tunesmith.engine.checkpoint import CheckpointFolder
from tunesmith.engine.options import TrainerOptions
from tunesmith.engine.trainer import Trainer
from tunesmith.models.causal_lm import CausalLM
from tunesmith.objectives import build as build_objective
from tunesmith.recipe.adapters import FullSection
from tunesmith.recipe.objectives import SftSection
from tunesmith.types import ParamGroup

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning"),
]
LENGTHS = (9, 14, 5, 30, 7, 21)
PROMPTS = (3, 10, 2, 6, 6, 20)
"""Unlike prompts and answers, so that a mean of means would differ from the mean over tokens."""


def rows() -> list[tuple[np.ndarray, np.ndarray]]:
    generator = np.random.default_rng(5)
    return [
        (generator.integers(3, VOCABULARY, length).astype(np.uint32), np.arange(length) >= prompt)
        for length, prompt in zip(LENGTHS, PROMPTS, strict=True)
    ]


class Gradients(TrainerCallback):
    """Copies the gradients that the optimiser sees."""

    def __init__(self) -> None:
        self.seen: dict[str, torch.Tensor] = {}

    def keep(self, named: Any) -> None:
        self.seen = {name: parameter.grad.clone() for name, parameter in named}

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.keep(kwargs["model"].named_parameters())

    name, on_refusal = "gradients", "stop"

    def after_backward(self, step: int, loss: Any, grad_norm: Any, groups: list[ParamGroup]) -> None:
        self.keep(item for group in groups for item in group.parameters)

    def after_step(self, step: int, groups: list[ParamGroup]) -> None:
        pass

    def state_dict(self) -> dict[str, Any]:
        return {}


def theirs(folder: Path) -> tuple[float, dict[str, torch.Tensor]]:
    """TRL's step over two micro-batches of three rows."""
    trl = pytest.importorskip("trl")
    datasets = pytest.importorskip("datasets")
    data = {
        "input_ids": [ids.tolist() for ids, _ in rows()],
        "completion_mask": [mask.astype(int).tolist() for _, mask in rows()],
    }
    config = trl.SFTConfig(
        output_dir=str(folder), max_steps=1, per_device_train_batch_size=3, gradient_accumulation_steps=2,
        completion_only_loss=True, loss_type="nll", max_length=None, packing=False, learning_rate=1e-3, max_grad_norm=0.0,
        logging_steps=1, report_to=[], use_cpu=True, bf16=False, fp16=False, save_strategy="no", disable_tqdm=True,
        gradient_checkpointing=False, eos_token=None,
    )  # fmt: skip
    gradients = Gradients()
    trainer = trl.SFTTrainer(
        model=family("llama"), args=config, train_dataset=datasets.Dataset.from_dict(data),
        processing_class=AutoTokenizer.from_pretrained(ROOT / DEFAULT_MODEL), callbacks=[gradients],
    )  # fmt: skip
    trainer.train()
    return trainer.state.log_history[0]["loss"], gradients.seen


def ours(folder: Path) -> tuple[float, dict[str, torch.Tensor]]:
    """Our step over two packs, cut elsewhere than TRL's batches."""
    documents = rows()
    scope = build(FullSection(), 0)
    model = CausalLM(family("llama"))
    scope.attach(model.hf)

    class Stream:
        def __iter__(self) -> Any:
            yield [make_batch(documents[:4], range(4)), make_batch(documents[4:], (4, 5))]

        def heaviest(self) -> None:
            return None

        def state_dict(self) -> dict[str, Any]:
            return {}

    recorder, gradients = Recorder(), Gradients()
    options = TrainerOptions(total_steps=1, learning_rate=1e-3, warmup_steps=0, clip=None)
    objective = build_objective(SftSection())
    stream: Any = Stream()
    checkpoints = CheckpointFolder(folder, "oracle")
    Trainer(model, objective, scope, stream, options, checkpoints, hooks=[recorder], controls=[gradients]).run()  # type: ignore[list-item]
    return recorder.facts[0].loss, gradients.seen


def test_a_step_has_trls_loss_and_gradients(tmp_path: Path) -> None:
    their_loss, their_gradients = theirs(tmp_path / "trl")
    our_loss, our_gradients = ours(tmp_path / "ours")
    assert our_loss == pytest.approx(their_loss, rel=1e-5)
    assert our_gradients.keys() == their_gradients.keys()
    largest = max(float(gradient.abs().max()) for gradient in their_gradients.values())
    for name, gradient in their_gradients.items():
        assert float((our_gradients[name] - gradient).abs().max()) <= 1e-5 * largest, name
        assert float(gradient.abs().max()) > 0, name
