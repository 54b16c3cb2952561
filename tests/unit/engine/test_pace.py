"""Rates by depth, frozen depths, and what freezing leaves behind."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.loops import OPTIONS, make_trainer
from tests.tiny import batch
from tunesmith.engine.recovery import GuardOptions
from tunesmith.engine.schedules import rate_factor
from tunesmith.engine.windows import PrefixRule, Timetable, Window, lowest_kept, shown_depths
from tunesmith.models.causal_lm import CausalLM
from tunesmith.objectives.next_token import NextToken
from tunesmith.recipe.layers import LayerRatesSection
from tunesmith.types import Loss

UNFREEZE = Timetable({2: Window(first=3, warmup=2), 1: Window(first=6, warmup=2), 0: Window(first=9)}, num_layers=3)
FREEZE = Timetable({0: Window(end=3.5), 1: Window(end=6), 2: Window(end=9)}, num_layers=3)
"""Three layers at depths 1 to 3; norm and head at 4."""


def _trainer(folder: Path, timetable: Timetable | None, said: list[Any] | None = None, **more: Any) -> Any:
    def say(*words: str) -> None:
        if said is not None:
            said.append(words)

    return make_trainer(folder, scope="full", layers=3, timetable=timetable, say=say, **more)


class Watch:
    """Looks at the trainer after each step: which depths have moments, a gradient asked for, and their rates."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.moments: dict[int, set[int]] = {}
        self.required: dict[int, set[int]] = {}
        self.rates: dict[int, dict[int, float]] = {}
        self.weights: dict[int, dict[str, torch.Tensor]] = {0: self._weights()}

    def _weights(self) -> dict[str, torch.Tensor]:
        return {name: tensor.clone() for name, tensor in self.trainer.adapter.state().items()}

    def after_step(self, facts: Any) -> None:
        optimiser = self.trainer.optimiser
        groups = list(zip(optimiser.groups, optimiser.torch.param_groups, strict=True))
        have = {
            group.depth for group, _ in groups if any(item in optimiser.torch.state for _, item in group.parameters)
        }
        asked = {group.depth for group, _ in groups if any(item.requires_grad for _, item in group.parameters)}
        self.moments[facts.step], self.required[facts.step] = have, asked
        self.rates[facts.step] = {group.depth: settings["lr"] for group, settings in groups}
        self.weights[facts.step] = self._weights()

    def at_interval(self, step: int) -> str | None:
        return None

    def rewind(self, step: int) -> None:
        pass

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Any) -> None:
        pass


def _watched(folder: Path, timetable: Timetable | None, **more: Any) -> tuple[Watch, Any]:
    trainer, recorder = _trainer(folder, timetable, **more)
    watch = Watch(trainer)
    trainer.hooks.append(watch)
    trainer.run()
    return watch, recorder


def test_rates_by_layer_reach_the_optimiser_and_move_the_weights_so(tmp_path: Path) -> None:
    """Adam's first step moves every weight by its rate, whatever the gradient (Kingma and Ba 2014, §2.1)."""
    trainer, _ = make_trainer(
        tmp_path, scope="full", layers=3, rates=LayerRatesSection(decay=0.5), total_steps=1, warmup_steps=0, clip=None,
        weight_decay=0.0, learning_rate=1e-2,
    )  # fmt: skip
    before = {name: tensor.clone() for name, tensor in trainer.adapter.state().items()}
    trainer.run()
    after = trainer.adapter.state()
    for name, exponent in {"lm_head.weight": 0, "model.norm.weight": 0, "model.layers.2.mlp.up_proj.weight": 1,
                           "model.layers.1.input_layernorm.weight": 2, "model.layers.0.self_attn.q_proj.weight": 3,
                           "model.embed_tokens.weight": 4}.items():  # fmt: skip
        moved = (after[name] - before[name]).abs().max().item()
        assert moved == pytest.approx(1e-2 * 0.5**exponent, rel=1e-2), name


def test_a_decay_of_one_is_the_run_without(tmp_path: Path) -> None:
    one, _ = make_trainer(tmp_path / "1", scope="full", total_steps=4)
    other, _ = make_trainer(tmp_path / "2", scope="full", total_steps=4, rates=LayerRatesSection(decay=1.0))
    one.run()
    other.run()
    for name, tensor in one.adapter.state().items():
        torch.testing.assert_close(other.adapter.state()[name], tensor, rtol=1e-4, atol=1e-6)


def test_saved_state_is_by_parameter_whatever_the_groups(tmp_path: Path) -> None:
    trainer, _ = make_trainer(tmp_path, scope="full", total_steps=4)
    trainer.run()
    again, _ = make_trainer(tmp_path, scope="full", total_steps=4, rates=LayerRatesSection())
    again.restore(again.checkpoints.newest())
    found = again.optimiser.state()
    assert found.keys() == trainer.optimiser.state().keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in trainer.optimiser.state().items())


def test_a_layer_that_is_meant_to_move_little_is_not_called_vanishing(tmp_path: Path) -> None:
    """0.385^5 is 0.0085, 0.1^5 is 1e-5: far below a thousandth of the median layer's, as it was asked to be."""
    said: list[tuple[str, str]] = []
    trainer, _ = make_trainer(
        tmp_path, scope="full", layers=4, rates=LayerRatesSection(decay=0.1), evaluate_every=2, total_steps=4,
        say=lambda *words: said.append(words),
    )  # fmt: skip
    trainer.run()
    assert [kind for kind, _ in said if kind == "layer_fault"] == []


def test_windows_freeze_and_leave_nothing_behind(tmp_path: Path) -> None:
    watch, recorder = _watched(tmp_path, FREEZE, weight_decay=0.1)
    expected = {step: {0, 1, 2, 3, 4} for step in range(1, 5)}
    expected |= {step: {1, 2, 3, 4} for step in (5, 6)} | {step: {2, 3, 4} for step in (7, 8, 9)}
    expected |= {step: {3, 4} for step in (10, 11, 12)}
    assert watch.required == watch.moments == expected
    sizes = {facts.step: facts.trained_parameters for facts in recorder.facts}
    for step in (1, 5, 7, 10):
        trained = [
            item for group in watch.trainer.groups if group.depth in expected[step] for _, item in group.parameters
        ]
        assert sizes[step] == sum(item.numel() for item in trained)
    for name in ("model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight"):
        last = 4 if "embed" in name else 6
        assert not torch.equal(watch.weights[last][name], watch.weights[last - 1][name])
        for step in range(last + 1, 13):  # neither decay nor old moments move what is frozen
            assert torch.equal(watch.weights[step][name], watch.weights[last][name])


def test_windows_unfreeze_with_empty_moments_and_a_warm_up_of_their_own(tmp_path: Path) -> None:
    watch, _ = _watched(tmp_path, UNFREEZE)
    expected = {step: {3, 4} for step in (1, 2, 3)} | {step: {2, 3, 4} for step in (4, 5, 6)}
    expected |= {step: {1, 2, 3, 4} for step in (7, 8, 9)} | {step: {0, 1, 2, 3, 4} for step in (10, 11, 12)}
    assert watch.required == watch.moments == expected
    plain = {step: OPTIONS.learning_rate * rate_factor(step - 1, OPTIONS) for step in range(1, 13)}
    assert [watch.rates[step][2] for step in (4, 5, 6)] == pytest.approx([plain[4] / 2, plain[5], plain[6]])
    assert [watch.rates[step][0] for step in (9, 10)] == pytest.approx([0.0, plain[10]])
    assert all(watch.rates[step][4] == pytest.approx(plain[step]) for step in plain)
    counts = {name: int(tensor) for name, tensor in watch.trainer.optimiser.state().items() if name.endswith("/step")}
    assert counts["model.layers.0.mlp.up_proj.weight/step"] == 6
    assert counts["model.layers.2.mlp.up_proj.weight/step"] == 12


def test_each_change_is_said_with_step_and_layers(tmp_path: Path) -> None:
    said: list[tuple[str, str]] = []
    trainer, _ = _trainer(tmp_path, UNFREEZE, said)
    trainer.run()
    assert [(kind, text.partition(";")[0]) for kind, text in said] == [
        ("layers_frozen", "frozen from step 1 on: the embeddings, layers 0 to 1"),
        ("layers_unfrozen", "trained from step 4 on: layer 1"),
        ("layers_unfrozen", "trained from step 7 on: layer 0"),
        ("layers_unfrozen", "trained from step 10 on: the embeddings"),
    ]
    assert said[-1][1].endswith(f"; {sum(item.numel() for item in trainer.model.hf.parameters()):,} parameters train")


def test_a_cosine_that_ends_with_the_run_is_the_schedule_itself(tmp_path: Path) -> None:
    """FreezeOut with all shares 1 and nothing scaled is cosine annealing of the whole model (Brock et al. 2017, §3)."""
    window = Window(end=12, falls_from=OPTIONS.warmup_steps)
    table = Timetable({depth: window for depth in range(5)}, num_layers=3)
    watch, recorder = _watched(tmp_path / "1", table, schedule="constant")
    plain, facts = _watched(tmp_path / "2", None, schedule="cosine")
    assert [item.learning_rate for item in recorder.facts] == pytest.approx(
        [item.learning_rate for item in facts.facts]
    )
    for name, tensor in plain.weights[12].items():
        torch.testing.assert_close(watch.weights[12][name], tensor, rtol=1e-4, atol=1e-5)


def test_the_head_of_a_task_goes_with_what_is_topmost(tmp_path: Path) -> None:
    """Parts of an objective have no depth in the model: they are never frozen, and fall by the last layer's cosine."""

    class Headed(NextToken):
        def __init__(self) -> None:
            super().__init__()
            self.parts = torch.nn.Linear(2, 2)

    windows = {depth: Window(end=4 + 2 * depth, falls_from=0) for depth in range(4)} | {4: Window(end=12, falls_from=0)}
    trainer, _ = _trainer(tmp_path, Timetable(windows, num_layers=3), objective=Headed(), schedule="constant")
    trainer.pace.begin(9)
    rates = {group["depth"]: group["lr"] for group in trainer.optimiser.torch.param_groups}
    assert rates[None] == rates[4] == pytest.approx(OPTIONS.learning_rate * windows[4].share(9))
    assert rates[3] == pytest.approx(OPTIONS.learning_rate * windows[3].share(9))
    assert all(parameter.requires_grad for parameter in trainer.objective.parts.parameters())


def test_below_the_lowest_trained_layer_there_is_no_graph(tmp_path: Path) -> None:
    """Nothing is saved for the backward pass while frozen layers at the bottom run, and their outputs have no history."""
    trainer, _ = _trainer(tmp_path, FREEZE)
    model: CausalLM = trainer.model
    saved: dict[str, int] = {}
    history: dict[str, bool] = {}
    layers = {f"layer {index}": layer for index, layer in enumerate(model.hf.model.layers)}
    layers["embeddings"] = model.hf.model.embed_tokens
    now = [""]
    for name, layer in layers.items():
        layer.register_forward_pre_hook(lambda module, args, name=name: now.__setitem__(0, name))
        layer.register_forward_hook(
            lambda module, args, out, name=name: history.update(
                {name: (out[0] if isinstance(out, tuple) else out).requires_grad}
            )
        )

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        saved[now[0]] = saved.get(now[0], 0) + 1
        return tensor

    for step, frozen in (
        (0, []),
        (4, ["embeddings"]),
        (6, ["embeddings", "layer 0"]),
        (9, ["embeddings", "layer 0", "layer 1"]),
    ):
        trainer.pace.begin(step)
        saved.clear()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            logprob_S = model(batch([9, 5])).logprob_S
        assert logprob_S is not None
        assert logprob_S.requires_grad
        for name in layers:
            assert history[name] == (name not in frozen), (step, name)
            assert (name not in saved) == (name in frozen), (step, name)


def test_activations_that_are_computed_twice_change_nothing(tmp_path: Path) -> None:
    """Checkpointed layers above a frozen prefix get their gradients all the same."""
    plain, _ = _watched(tmp_path / "1", FREEZE)
    trainer, _ = _trainer(tmp_path / "2", FREEZE)
    trainer.model.recompute_activations()
    trainer.run()
    for name, tensor in plain.weights[12].items():
        torch.testing.assert_close(trainer.adapter.state()[name], tensor, rtol=1e-5, atol=1e-6)


def test_what_comes_later_is_tried_at_the_start(tmp_path: Path) -> None:
    """The first pass, which tries the memory, runs with all that will ever train, and leaves no gradient."""
    trainer, _ = _trainer(tmp_path, UNFREEZE)
    seen: list[set[int]] = []
    of_step = trainer.gradients.of_step

    def spy(*args: Any) -> Any:
        seen.append({group.depth for group in trainer.groups if group.parameters[0][1].requires_grad})
        return of_step(*args)

    trainer.gradients.of_step = spy
    trainer.stream.heaviest = lambda: batch([20, 30])
    trainer.run()
    assert seen[:2] == [{0, 1, 2, 3, 4}, {3, 4}]
    again, _ = _trainer(tmp_path / "again", FREEZE)
    again.pace.begin(9)
    with again.pace.heaviest(9):
        assert {group.depth for group in again.groups if group.parameters[0][1].requires_grad} == {3, 4}


def test_etas_and_the_lowest_layer_kept() -> None:
    """Liu et al. 2021: below the first layer that reaches the median all is frozen, what lies above it is not."""
    assert lowest_kept({0: 0.1, 1: 0.2, 2: 0.9, 3: 0.1, 4: 0.8}, 50) == 1
    assert lowest_kept({0: 0.1, 1: 0.2, 2: 0.9, 3: 0.8}, 50) == 2
    assert lowest_kept({0: 0.9, 1: 0.2, 2: 0.3}, 50) == 0
    assert lowest_kept({2: 0.1, 3: 0.1}, 50) == 2
    assert lowest_kept({5: 0.0}, 50) == 5
    assert lowest_kept({0: 0.1, 1: 0.2, 2: math.inf, 3: math.inf}, 75) == 2
    assert lowest_kept({0: 0.1, 1: 0.2, 2: 0.3}, 100) == 2
    assert lowest_kept({0: 0.1, 1: 0.2, 2: 0.3}, 0) == 0


RULE = Timetable(rule=PrefixRule(interval=3, percentile=90, top=4), num_layers=3)


def test_the_prefix_rule_freezes_by_the_sums_of_whole_intervals(tmp_path: Path) -> None:
    """The etas are made again here from the gradients of each step, as clipping has not touched them yet."""
    said: list[tuple[str, str]] = []
    trainer, _ = _trainer(tmp_path, RULE, said, clip=0.1)
    steps: list[dict[int, torch.Tensor]] = []
    watch = trainer.pace.watch

    def spy(refused: torch.Tensor) -> None:
        steps.append(
            {
                group.depth: torch.cat([item.grad.flatten() for one in trainer.groups if one.depth == group.depth
                                        for _, item in one.parameters])
                for group in trainer.groups if group.parameters[0][1].grad is not None
            }
        )  # fmt: skip
        watch(refused)

    trainer.pace.watch = spy
    trainer.run()
    norms = []
    for start in (0, 3, 6):
        part = steps[start : start + 3]
        norms.append({depth: float(sum(step[depth] for step in part).abs().sum()) for depth in part[0] if depth < 4})
    lowest = 0
    for before, now in ((0, 1), (1, 2)):
        etas = {depth: abs(norms[before][depth] - norm) / norms[before][depth] for depth, norm in norms[now].items()}
        lowest = lowest_kept(etas, 90)
        after = 6 if now == 1 else 9
        assert set(steps[after]) == set(range(lowest, 5))
    assert lowest > 0
    assert {kind for kind, _ in said} == {"layers_frozen"}
    assert trainer.pace.state_dict()["lowest"] == lowest


def test_a_refused_step_does_not_count_for_the_rule(tmp_path: Path) -> None:
    class Poisoned(NextToken):
        def __call__(self, model: Any, batch: Any, seen: Any) -> Loss:
            loss = super().__call__(model, batch, seen)
            factor = math.nan if trainer.step == 1 else 1.0
            return Loss({"loss": loss.totals["loss"] * factor})

    trainer, _ = _trainer(tmp_path, RULE, objective=Poisoned(), guards=GuardOptions(non_finite="skip"), total_steps=3)
    trainer.run()
    sums = trainer.optimiser.sums
    assert sums
    assert all(bool(tensor.isfinite().all()) for tensor in sums.values())


def test_options_without_a_timetable_ask_nothing_of_groups(tmp_path: Path) -> None:
    trainer, _ = make_trainer(tmp_path)
    assert {group.depth for group in trainer.groups} == {None}
    assert trainer.pace.begin(0) == OPTIONS.learning_rate * rate_factor(0, replace(OPTIONS))


@pytest.mark.parametrize(
    ("depths", "words"),
    [
        ([0], "the embeddings"),
        ([1, 2, 3], "layers 0 to 2"),
        ([0, 1, 3, 4, 6], "the embeddings, layer 0, layers 2 to 3, layer 5"),
        ([8, 9], "layer 7, what follows the layers"),
    ],
)
def test_depths_in_words(depths: list[int], words: str) -> None:
    assert shown_depths(depths, 8) == words
