"""One GPU: the variable-length kernel, mixed precision, determinism, resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.loops import LENGTHS, OPTIONS, MemoryStore, Recorder
from tests.tiny import batch, family
from tunesmith.adapters import build
from tunesmith.adapters.depths import by_depth
from tunesmith.data.loader import PackedStream, StreamOptions
from tunesmith.engine.checkpoint import CheckpointFolder
from tunesmith.engine.randomness import use_deterministic
from tunesmith.engine.trainer import Trainer
from tunesmith.models.causal_lm import CausalLM
from tunesmith.objectives.next_token import NextToken
from tunesmith.recipe.adapters import FullSection, LoraSection
from tunesmith.recipe.low_rank import AfloraSection
from tunesmith.recipe.prompts import PrefixSection, PromptSection

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA, which this machine does not have"),
]


def trainer_on_gpu(folder: Path, scope: str, steps: int = 12, **changes: Any) -> tuple[Trainer, Recorder]:
    from dataclasses import replace

    options = replace(OPTIONS, **changes)
    model = CausalLM(family("llama"))
    lora = LoraSection(rank=4, alpha=8.0, dropout=0.1)
    section = {"full": FullSection(), "aflora": AfloraSection()}.get(scope, lora)
    adapter = build(section, 3)
    adapter.attach(model.hf)
    model.to("cuda")
    stream = PackedStream(MemoryStore(LENGTHS), StreamOptions(8, steps, 4096, options.seed))  # type: ignore[arg-type]
    recorder = Recorder()
    checkpoints = CheckpointFolder(folder, "run", keep=options.keep_checkpoints)
    arrange = (lambda groups: by_depth(groups, 2, None)) if options.timetable else list
    trainer = Trainer(model, NextToken(), adapter, stream, options, checkpoints, hooks=[recorder], arrange=arrange)
    return trainer, recorder


@pytest.mark.parametrize("name", ["llama", "qwen3", "mistral"])
def test_the_varlen_kernel_agrees_with_fp32_on_the_cpu(name: str) -> None:
    pack = batch((7, 1, 13, 40, 22))
    model = CausalLM(family(name))
    with torch.no_grad():
        expected = model(pack).logprob_S
        model.to("cuda")
        with torch.autocast("cuda", dtype=torch.bfloat16):
            found = model(pack.to("cuda")).logprob_S
    assert expected is not None
    assert found is not None
    assert (found.cpu() - expected).abs().mean() < 0.05


@pytest.mark.parametrize("name", ["llama", "qwen3", "mistral"])
@pytest.mark.parametrize(
    "section", [PrefixSection(num_tokens=6), PromptSection(num_tokens=6)], ids=["prefix", "prompt"]
)
def test_virtual_tokens_in_the_varlen_kernel_agree_with_fp32_on_the_cpu(name: str, section: Any) -> None:
    pack = batch((7, 1, 13, 40, 22))
    model = CausalLM(family(name))
    adapter = build(section, 3)
    adapter.attach(model.hf)
    model(pack).logprob_S.sum().backward()  # type: ignore[union-attr]
    (part,) = adapter.groups()[0].parameters
    expected, slope = model(pack).logprob_S, part[1].grad.clone()  # type: ignore[union-attr]
    part[1].grad = None
    model.to("cuda")
    with torch.autocast("cuda", dtype=torch.bfloat16):
        found = model(pack.to("cuda")).logprob_S
    assert expected is not None
    assert found is not None
    found.sum().backward()
    (part,) = adapter.groups()[0].parameters
    assert (found.cpu() - expected).abs().mean() < 0.05
    assert torch.nn.functional.cosine_similarity(part[1].grad.cpu().flatten(), slope.flatten(), dim=0) > 0.98  # type: ignore[union-attr]


@pytest.mark.parametrize("scope", ["lora", "full"])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_training_lowers_the_loss_in_every_precision(tmp_path: Path, scope: str, precision: str) -> None:
    trainer, recorder = trainer_on_gpu(
        tmp_path, scope, 30, total_steps=30, precision=precision, checkpoint_every=30, learning_rate=1e-2
    )
    trainer.run()
    assert recorder.facts[-1].loss < 0.9 * recorder.facts[0].loss


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_deterministic_mode_gives_the_same_bits_twice_and_after_a_resume(tmp_path: Path, precision: str) -> None:
    use_deterministic(True)
    try:
        losses = []
        for number in range(2):
            trainer, recorder = trainer_on_gpu(tmp_path / str(number), "lora", precision=precision)
            trainer.run()
            losses.append([facts.loss for facts in recorder.facts])
        cut, _ = trainer_on_gpu(tmp_path / "cut", "lora", 6, precision=precision)
        cut.run()
        again, recorder = trainer_on_gpu(tmp_path / "cut", "lora", precision=precision)
        checkpoint = again.checkpoints.newest()
        assert checkpoint is not None
        again.restore(checkpoint)
        again.run()
    finally:
        use_deterministic(False)
    assert losses[0] == losses[1]
    assert [facts.loss for facts in recorder.facts] == losses[0][checkpoint.step :]
