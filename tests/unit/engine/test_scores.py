"""Matrices frozen by a score: the score in closed form, both procedures on gradients made by hand, state, ranks."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.loops import make_trainer
from tunesmith.engine.optim import Optimiser
from tunesmith.engine.options import TrainerOptions
from tunesmith.engine.ranks import Ranks
from tunesmith.engine.recovery import GuardOptions
from tunesmith.engine.scores import Scores, below_quantile, lowest
from tunesmith.engine.windows import ScoreRule
from tunesmith.objectives.next_token import NextToken
from tunesmith.types import Loss, ParamGroup

KEPT, REFUSED = torch.zeros(()), torch.ones(())


def scores_of(rule: ScoreRule, shapes: dict[str, tuple[int, ...]]) -> Scores:
    parameters = tuple((name, nn.Parameter(torch.ones(shape))) for name, shape in shapes.items())
    vector = (("vector", nn.Parameter(torch.ones(3))),)
    groups = [ParamGroup("matrices", parameters, scored=True), ParamGroup("vectors", vector)]
    return Scores(Optimiser(groups, TrainerOptions(100, 1e-3, 0)), rule, Ranks())


def feed(scores: Scores, step: int, gradients: dict[str, Any], refused: torch.Tensor = KEPT) -> list[str]:
    """One step: what is frozen before it, then its gradients."""
    chosen = scores.begin(step)
    for name, parameter in scores.all.items():
        parameter.grad = None if name in scores.frozen else torch.as_tensor(gradients[name]).float()
    scores.watch(refused)
    return chosen


def test_the_score_of_a_constant_gradient_in_closed_form() -> None:
    """level_n = c (1 - b1^n); spread_n = (1 - b2) c Σ b2^(n-k) b1^k = (1 - b2) c b1 (b1^n - b2^n) / (b1 - b2)."""
    c, b1, b2, n = 0.3, 0.85, 0.95, 7
    scores = scores_of(ScoreRule(boundaries=((1000, 1.0),), window=4), {"A": (2, 3)})
    for step in range(4 * n + 1):
        sign = 1.0 if step % 2 else -1.0
        feed(scores, step, {"A": torch.full((2, 3), sign * c)})
    level = scores._beside["score_level"][scores.all["A"]]
    spread = scores._beside["score_spread"][scores.all["A"]]
    torch.testing.assert_close(level, torch.full((2, 3), c * (1 - b1**n)))
    torch.testing.assert_close(spread, torch.full((2, 3), (1 - b2) * c * b1 * (b1**n - b2**n) / (b1 - b2)))


def reference(
    gradients: list[dict[str, np.ndarray]], boundaries: dict[int, float], window: int, paper: bool
) -> dict[str, int]:
    """§2.2 and §2.3 written out, element by element in float64: matrix -> step from which it is frozen."""
    names = list(gradients[0])
    level = {name: np.zeros_like(gradients[0][name], dtype=np.float64) for name in names}
    spread = {name: np.zeros_like(level[name]) for name in names}
    frozen: dict[str, int] = {}
    for step in range(len(gradients) + 1):
        if step and step % window == 0:
            for name in names:
                if name in frozen:
                    continue
                seen = np.mean([np.abs(g[name].astype(np.float64)) for g in gradients[step - window : step]], axis=0)
                level[name] = 0.85 * level[name] + 0.15 * seen
                spread[name] = 0.95 * spread[name] + 0.05 * np.abs(seen - level[name])
        if step not in boundaries:
            continue
        share, left = boundaries[step], [name for name in names if name not in frozen]
        mean = {name: float((level[name] * spread[name]).mean()) for name in left}
        if share == 1.0:
            gone = left
        elif paper:
            gone = sorted(left, key=mean.__getitem__)[: max(0, round(share * len(names)) - len(frozen))]
        else:
            pool = sorted(value for name in left for value in (level[name] * spread[name]).flatten())
            place = int(len(pool) * share)
            gone = [name for name in left if place and mean[name] < pool[place - 1]]
        frozen |= dict.fromkeys(gone, step)
    return frozen


@pytest.mark.parametrize("paper", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_both_procedures_are_those_written_out(paper: bool, seed: int) -> None:
    rng = np.random.default_rng(seed)
    shapes = {f"{name}{layer}": shape for layer in range(5) for name, shape in (("A", (2, 8)), ("B", (12, 2)))}
    sizes = {name: float(rng.uniform(0.2, 3.0)) for name in shapes}
    gradients = [
        {name: (rng.standard_normal(shape) * sizes[name]).astype(np.float32) for name, shape in shapes.items()}
        for _ in range(24)
    ]
    boundaries = {6: 0.3, 12: 0.6, 18: 0.8, 24: 1.0}
    rule = ScoreRule(boundaries=tuple(boundaries.items()), pooled=not paper, window=3)
    scores, found = scores_of(rule, shapes), dict[str, int]()
    for step, one in enumerate([*gradients, gradients[0]]):
        found |= dict.fromkeys(feed(scores, step, one), step)
    expected = reference(gradients, boundaries, 3, paper)
    assert found == expected
    assert len(set(found.values())) > 1, "not all at once"
    if paper:
        counts = [sum(at <= step for at in found.values()) for step in boundaries]
        assert counts == [3, 6, 8, 10]


def test_the_released_quantile_is_over_elements_and_the_means_are_held_against_it() -> None:
    """Ten elements, one of them heavy: the mean of its matrix, 10.1, is above the sixth smallest, 1, as the others' are not."""
    products = {"steady": torch.full((5,), 0.5), "heavy": torch.tensor([1.0, 1.0, 1.0, 1.0, 46.5])}
    means = {name: float(product.mean()) for name, product in products.items()}
    assert below_quantile(products, means, 0.6) == ["steady"]
    assert below_quantile(products, means, 0.5) == []  # the fifth smallest is 0.5: not below it
    assert below_quantile(products, means, 0.05) == []  # int(10 · 0.05) is none of them
    assert below_quantile(products, means, 0.99) == ["steady"]


def test_the_papers_ranking_takes_as_many_as_are_asked() -> None:
    scores = {"a": 2.0, "b": 1.0, "c": 1.0, "d": 3.0}
    assert [lowest(scores, count) for count in (-1, 0, 1, 3, 9)] == [
        [], [], ["b"], ["b", "c", "a"], ["b", "c", "a", "d"],
    ]  # fmt: skip


def test_refused_steps_are_no_part_of_the_mean() -> None:
    """Of a window the others count; a window of refused steps alone leaves the score as it was."""
    scores = scores_of(ScoreRule(boundaries=((1000, 1.0),), window=4), {"A": (2,)})
    values = [2.0, math.nan, 4.0, math.inf, math.nan, math.nan, math.nan, math.nan, 0.0]
    for step, value in enumerate(values):
        refused = REFUSED if not math.isfinite(value) else KEPT
        feed(scores, step, {"A": [value, -value]}, refused)
    level = scores._beside["score_level"][scores.all["A"]]
    torch.testing.assert_close(level, torch.full((2,), 0.15 * 3.0))


def test_steps_that_a_rollback_goes_around_miss_no_boundary() -> None:
    """The boundary of step 4 and the end of a window fall on steps that never begin: both are made up for at the next."""
    rule = ScoreRule(boundaries=((4, 0.5), (9, 1.0)), pooled=False, window=2)
    scores = scores_of(rule, {"small": (2,), "large": (2,)})
    gradients = {"small": [0.1, 0.1], "large": [1.0, 1.0]}
    assert [feed(scores, step, gradients) for step in (0, 1, 2, 6, 7)] == [[], [], [], ["small"], []]
    assert feed(scores, 11, gradients) == ["large"]


def test_a_boundary_before_the_first_window_freezes_nothing_but_all() -> None:
    rule = ScoreRule(boundaries=((1, 0.5), (2, 1.0)), window=10)
    scores = scores_of(rule, {"A": (2,), "B": (2,)})
    gradients = {"A": [1.0, 1.0], "B": [1.0, 1.0]}
    assert [feed(scores, step, gradients) for step in range(3)] == [[], [], ["A", "B"]]


def test_the_main_ranks_choice_holds() -> None:
    class Told(Ranks):
        def told(self, value: Any) -> Any:
            return ["B"]

    scores = scores_of(ScoreRule(boundaries=((2, 0.5),), pooled=False, window=1), {"A": (2,), "B": (2,)})
    scores.ranks = Told()
    for step in range(2):
        feed(scores, step, {"A": [0.1, 0.1], "B": [1.0, 1.0]})
    assert scores.begin(2) == ["B"]
    assert list(scores.training) == ["A"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"frozen": ["vector"]}, "no score"), ({"frozen": ["\x1b[31m"]}, "x1b"), ({"begun": 9}, "has not begun after 5")],
)
def test_a_strangers_state_is_refused(changes: dict[str, Any], words: str) -> None:
    scores = scores_of(ScoreRule(boundaries=((9, 1.0),)), {"A": (2,)})
    state = {"frozen": ["A"], "begun": 4}
    assert scores.fault(state, 5) is None
    assert words in str(scores.fault(state | changes, 5))


RULE = ScoreRule(boundaries=((4, 0.5), (8, 1.0)), pooled=False, window=2)


class Watch:
    """After each step: which scored matrices have moments, scores, a gradient asked for; and their values."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.asked: list[set[str]] = []
        self.moments: list[set[str]] = []
        self.kept: list[set[str]] = []
        self.values: list[dict[str, torch.Tensor]] = []

    def after_step(self, facts: Any) -> None:
        scores, state = self.trainer.pace.scores, self.trainer.optimiser.state()
        assert all(parameter.grad is None for parameter in scores.all.values())
        self.asked.append({name for name, item in scores.all.items() if item.requires_grad})
        self.moments.append({name for name in scores.all if f"{name}/exp_avg" in state})
        self.kept.append(
            {name for name in scores.all if any(f"{name}/score_{end}" in state for end in ("sum", "level"))}
        )
        self.values.append({name: item.detach().clone() for name, item in scores.all.items()})

    def at_interval(self, step: int) -> str | None:
        return None

    def rewind(self, step: int) -> None:
        pass

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Any) -> None:
        pass


def test_what_is_frozen_has_no_gradient_no_state_and_does_not_move(tmp_path: Path) -> None:
    """With decay: what an optimiser still holds would shrink. The vectors go on training, and the numbers are told."""
    said: list[tuple[str, str]] = []
    trainer, recorder = make_trainer(
        tmp_path, scope="aflora", score_rule=RULE, weight_decay=0.1, say=lambda *words: said.append(words)
    )
    watch = Watch(trainer)
    trainer.hooks.append(watch)
    trainer.run()
    total = len(trainer.pace.scores.all)
    assert total == 2 * 3 * 2
    expected = [total] * 4 + [total // 2] * 4 + [0] * 4
    assert [len(names) for names in watch.asked] == expected
    assert watch.asked == watch.moments == watch.kept
    for step in range(1, 12):
        for name in trainer.pace.scores.all:
            same = torch.equal(watch.values[step][name], watch.values[step - 1][name])
            assert same == (name not in watch.asked[step]), (step, name)
    sizes = {name: item.numel() for name, item in trainer.pace.scores.all.items()}
    everything = sum(item.numel() for item in trainer.optimiser.parameters)
    assert [facts.trained_parameters for facts in recorder.facts] == [
        everything - sum(sizes[name] for name in sizes if name not in asked) for asked in watch.asked
    ]
    assert [kind for kind, _ in said] == ["matrices_frozen"] * 2
    assert said[0][1].startswith("frozen from step 5 on: 6 matrices (")
    assert said[1][1].endswith(f"0 of 12 still train, {everything - sum(sizes.values()):,} parameters in all")


def _decisions(folder: Path, **more: Any) -> tuple[list[set[str]], list[float]]:
    trainer, recorder = make_trainer(folder, scope="aflora", score_rule=RULE, **more)
    watch = Watch(trainer)
    trainer.hooks.append(watch)
    trainer.run()
    return watch.asked, [facts.loss for facts in recorder.facts]


def test_the_cutting_of_a_step_and_clipping_have_no_say(tmp_path: Path) -> None:
    """Micro-batches and packs sum to the same gradients; clipping comes after they were looked at."""
    whole, losses = _decisions(tmp_path / "whole")
    for name, settings in {"micro": {"micro_batch_size": 2}, "packs": {"atom_tokens": 40}}.items():
        asked, found = _decisions(tmp_path / name, **settings)
        assert asked == whole
        assert found == pytest.approx(losses, rel=1e-5)
    one, _ = make_trainer(tmp_path / "a", scope="aflora", score_rule=RULE, total_steps=1)
    two, _ = make_trainer(tmp_path / "b", scope="aflora", score_rule=RULE, total_steps=1, clip=1e-6)
    one.run()
    two.run()
    state, other = one.optimiser.state(), two.optimiser.state()
    sums = [name for name in state if name.endswith("/score_sum")]
    assert sums
    assert all(torch.equal(state[name], other[name]) for name in sums)


def test_a_step_that_is_not_finite_leaves_scores_finite(tmp_path: Path) -> None:
    class Poisoned(NextToken):
        def __call__(self, model: Any, batch: Any, seen: Any) -> Loss:
            loss = super().__call__(model, batch, seen)
            return Loss({"loss": loss.totals["loss"] * (math.nan if trainer.step == 1 else 1.0)})

    trainer, _ = make_trainer(
        tmp_path,
        scope="aflora",
        score_rule=RULE,
        objective=Poisoned(),
        guards=GuardOptions(non_finite="skip"),
        total_steps=3,
    )
    trainer.run()
    tensors = [tensor for name, tensor in trainer.optimiser.state().items() if "/score_" in name]
    assert tensors
    assert all(bool(tensor.isfinite().all()) for tensor in tensors)
