"""Update-to-weight ratios: from the optimiser's state, against the weights themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.loops import make_trainer
from tunesmith.engine.vitals import LayerVital, faults, layer_of


@pytest.mark.parametrize(
    "settings",
    [{"optimiser": "adamw"}, {"offload_optimiser": True}, {"optimiser": "sgd"}, {"optimiser": "sgd", "momentum": 0.0}],
)
def test_updates_are_those_that_the_weights_made(tmp_path: Path, settings: dict[str, Any]) -> None:
    told: dict[int, list[LayerVital]] = {}
    states: dict[int, dict[str, torch.Tensor]] = {}
    trainer, recorder = make_trainer(
        tmp_path, scope="full", weight_decay=0.0, evaluate_every=3, total_steps=6, learning_rate=1e-2, **settings
    )
    trainer.layers.tell = lambda step, vitals: told.update({step: vitals})
    after = recorder.after_step

    def keep(facts: Any) -> None:
        states[facts.step] = {name: tensor.double().clone() for name, tensor in trainer.adapter.state().items()}
        after(facts)

    recorder.after_step = keep  # type: ignore[method-assign]
    trainer.run()
    assert sorted(told) == [3, 6]
    for step, vitals in told.items():
        assert {item.layer for item in vitals} == {
            "model.layers.0", "model.layers.1", "model.embed_tokens", "model.norm", "lm_head",
        }  # fmt: skip
        for item in vitals:
            members = [name for name in states[step] if layer_of(name) == item.layer]
            moved = sum(float((states[step][name] - states[step - 1][name]).square().sum()) for name in members) ** 0.5
            size = sum(float(states[step][name].square().sum()) for name in members) ** 0.5
            # weights are fp32: their difference carries the rounding of each, 6e-8 of its size
            assert item.update_norm == pytest.approx(moved, rel=1e-3, abs=3e-7 * size)
            assert item.weight_norm == pytest.approx(size, rel=1e-5)
            assert item.ratio == pytest.approx(item.update_norm / item.weight_norm)


def test_layers_without_gradient_and_with_far_too_little_are_named() -> None:
    usual = [LayerVital(f"layers.{index}", 1e-3, 1.0, 0.5) for index in range(5)]
    assert faults(usual) == {}
    found = faults([*usual, LayerVital("layers.5", 0.0, 1.0, 0.0), LayerVital("layers.6", 1e-8, 1.0, 1e-9)])
    assert found["layers.5"] == "dead: no gradient reaches it"
    assert found["layers.6"].startswith("vanishing: its update is 1.0e-08 of its weights")
    assert set(found) == {"layers.5", "layers.6"}


def test_a_dead_layer_is_said_once_with_layer_and_step(tmp_path: Path) -> None:
    """A layer whose output is multiplied by zero passes its input on and gets no gradient."""
    said: list[str] = []
    trainer, _ = make_trainer(
        tmp_path, scope="full", evaluate_every=4, say=lambda kind, text: said.append(f"{kind}: {text}")
    )
    layer = trainer.model.hf.model.layers[1]

    def passes_on(module: Any, args: Any, kwargs: Any, output: Any) -> Any:
        hidden = args[0] if args else kwargs["hidden_states"]
        result = output[0] if isinstance(output, tuple) else output
        kept = hidden + (result - hidden) * 0.0
        return (kept, *output[1:]) if isinstance(output, tuple) else kept

    layer.register_forward_hook(passes_on, with_kwargs=True)
    trainer.run()
    assert said == ["layer_fault: layer model.layers.1 at step 4 is dead: no gradient reaches it"]


def test_names_of_layers() -> None:
    assert layer_of("model.layers.3.mlp.up_proj.weight") == "model.layers.3"
    assert layer_of("transformer.h.11.attn.c_attn.lora_A.weight") == "transformer.h.11"
    assert layer_of("model.embed_tokens.weight") == "model.embed_tokens"
    assert layer_of("weight") == "weight"
