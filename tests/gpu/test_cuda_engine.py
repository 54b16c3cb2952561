"""The loop on one GPU: no waiting inside a step, refusals on the device, memory that runs out, saves beside training."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.gpu.test_cuda import trainer_on_gpu
from tests.tiny import batch
from tunesmith.engine.blockwise import pack
from tunesmith.engine.clipping import ZClipOptions
from tunesmith.engine.compact_adamw import CompactAdamW
from tunesmith.engine.numbers import DeferredNumbers
from tunesmith.engine.randomness import use_deterministic
from tunesmith.engine.recovery import GuardOptions
from tunesmith.engine.spikes import SpikeOptions
from tunesmith.engine.trainer import Trainer
from tunesmith.engine.windows import PrefixRule, ScoreRule, Timetable, Window
from tunesmith.errors import GuardStopped
from tunesmith.objectives.next_token import NextToken
from tunesmith.types import Loss

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA, which this machine does not have"),
]


class Spoiling(NextToken):
    """Multiplies the loss of chosen steps, without asking the device."""

    def __init__(self, factor: float, *indices: int) -> None:
        super().__init__()
        self.factor, self.indices = factor, indices

    def __call__(self, model: Any, batch: Any, seen: Any) -> Loss:
        loss = super().__call__(model, batch, seen)
        if batch.progress > 0 and round(batch.progress * 12) in self.indices:
            loss.totals["loss"] = loss.totals["loss"] * self.factor
        return loss


def with_objective(trainer: Trainer, objective: NextToken) -> Trainer:
    trainer.objective = trainer.gradients.objective = trainer.reckoning.objective = objective
    return trainer


@contextmanager
def no_waiting() -> Iterator[None]:
    """Within the context an operation that makes the host wait for the device is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says that the check is a prototype
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_the_sync_check_can_fail() -> None:
    value = torch.ones((), device="cuda")
    with no_waiting(), pytest.raises(RuntimeError, match="synchroniz"):
        value.item()


@pytest.mark.parametrize("scope", ["lora", "full"])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("guarded", [False, True])
def test_a_step_makes_the_host_wait_for_nothing(tmp_path: Path, scope: str, precision: str, guarded: bool) -> None:
    more: dict[str, Any] = (
        {"spikes": SpikeOptions(window=8, statistic="median"), "zclip": ZClipOptions()} if guarded else {}
    )
    trainer, _ = trainer_on_gpu(tmp_path, scope, precision=precision, **more)
    stream = iter(trainer.stream)
    trainer._one_step(next(stream))  # kernels are loaded and states made
    trainer._report(wait=True)
    with no_waiting():
        for _ in range(4):
            facts = trainer._one_step(next(stream))
            facts["seconds"] = 0.0
            trainer._report(wait=False)
    trainer._report(wait=True)
    assert trainer.reckoning.updates == 5


@pytest.mark.parametrize("scope", ["lora", "full", "aflora"])
@pytest.mark.parametrize(
    "more",
    [
        {"optimiser": "adamw_8bit"}, {"offload_optimiser": True}, {"optimiser": "adamw_8bit", "offload_optimiser": True},
        {"score_rule": ScoreRule(boundaries=((100, 1.0),), window=2)},
    ],
    ids=["8bit", "host", "8bit-host", "scores"],
)  # fmt: skip
def test_compact_moments_and_scores_make_the_host_wait_for_nothing(
    tmp_path: Path, scope: str, more: dict[str, Any]
) -> None:
    trainer, _ = trainer_on_gpu(tmp_path, scope, precision="bf16", **more)
    stream = iter(trainer.stream)
    trainer._one_step(next(stream))
    trainer._report(wait=True)
    with no_waiting():
        for _ in range(4):
            facts = trainer._one_step(next(stream))
            facts["seconds"] = 0.0
            trainer._report(wait=False)
    trainer._report(wait=True)
    assert trainer.reckoning.updates == 5


@pytest.mark.parametrize("optimiser", ["adamw", "adamw_8bit"])
def test_moments_on_the_host_are_those_on_the_card(optimiser: str) -> None:
    """To the bit, over several pieces, with a refused step between; codes packed on the card are those of the CPU."""
    count, found = (1 << 22) + 5000, {}
    for place, offload in {"card": False, "host": True}.items():
        generator = torch.Generator("cuda").manual_seed(1)
        parameter = torch.nn.Parameter(torch.randn(count, generator=generator, device="cuda"))
        group = {"params": [parameter], "weight_decay": 0.1}
        made = CompactAdamW([group], 1e-2, (0.9, 0.999), 1e-8, eight_bit=optimiser == "adamw_8bit", offload=offload)
        for refused in (0.0, 0.0, 1.0, 0.0):
            parameter.grad = torch.randn(count, generator=generator, device="cuda")
            made.found_inf = torch.full((), refused, device="cuda")
            made.step()
        torch.cuda.synchronize()
        state = made.state[parameter]
        assert all(value.is_pinned() == offload for key, value in state.items() if key != "step")
        found[place] = {key: value.cpu() for key, value in state.items()} | {"p": parameter.detach().cpu()}
    assert found["card"].keys() == found["host"].keys()
    assert all(torch.equal(found["card"][key], value) for key, value in found["host"].items())
    numbers = torch.randn(10_000)
    for signed in (True, False):
        drawn = numbers if signed else numbers.abs()
        codes, scales = pack(drawn.to("cuda"), signed=signed)
        expected = pack(drawn, signed=signed)
        assert torch.equal(scales.cpu(), expected[1])
        assert float((codes.cpu() != expected[0]).float().mean()) < 1e-4


@pytest.mark.parametrize(
    "more",
    [{"optimiser": "adamw_8bit"}, {"optimiser": "adamw_8bit", "offload_optimiser": True}, {"offload_optimiser": True}],
    ids=str,
)
def test_compact_moments_resume_to_the_bit(tmp_path: Path, more: dict[str, Any]) -> None:
    use_deterministic(True)
    try:
        whole, _ = trainer_on_gpu(tmp_path / "whole", "full", **more)
        whole.run()
        cut, _ = trainer_on_gpu(tmp_path / "cut", "full", 6, **more)
        cut.run()
        again, _ = trainer_on_gpu(tmp_path / "cut", "full", **more)
        checkpoint = again.checkpoints.newest()
        assert checkpoint is not None
        again.restore(checkpoint)
        again.run()
    finally:
        use_deterministic(False)
    state, other = whole.optimiser.state(), again.optimiser.state()
    assert state.keys() == other.keys()
    assert all(torch.equal(state[name].cpu(), tensor.cpu()) for name, tensor in other.items())
    assert all(torch.equal(whole.adapter.state()[name], tensor) for name, tensor in again.adapter.state().items())


def test_packed_moments_leave_memory_free() -> None:
    """32 Mi numbers: 256 MiB of moments in fp32, 65 MiB packed; unpacked at a time are 4 Mi numbers."""
    peaks = {}
    for name, eight_bit in {"fp32": False, "packed": True}.items():
        parameter = torch.nn.Parameter(torch.zeros(1 << 25, device="cuda"))
        parameter.grad = torch.ones_like(parameter)
        made = CompactAdamW(
            [{"params": [parameter], "weight_decay": 0.0}], 1e-3, (0.9, 0.999), 1e-8, eight_bit=eight_bit, offload=False
        )
        made.step()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        made.step()
        peaks[name] = (before, torch.cuda.max_memory_allocated() - before)
        del parameter, made
    assert peaks["fp32"][0] - peaks["packed"][0] > 180 << 20
    assert peaks["packed"][1] < 32 * (1 << 22) * 1.25


@pytest.mark.parametrize(
    "table",
    [
        Timetable({0: Window(end=2), 1: Window(end=3), 2: Window(first=2, warmup=2)}, num_layers=2),
        Timetable(rule=PrefixRule(interval=100, percentile=50, top=3), num_layers=2),
    ],
    ids=["windows", "rule"],
)
def test_freezing_and_unfreezing_make_the_host_wait_for_nothing(tmp_path: Path, table: Timetable) -> None:
    trainer, _ = trainer_on_gpu(tmp_path, "full", timetable=table)
    stream = iter(trainer.stream)
    trainer._one_step(next(stream))
    trainer._report(wait=True)
    with no_waiting():
        for _ in range(4):
            facts = trainer._one_step(next(stream))
            facts["seconds"] = 0.0
            trainer._report(wait=False)
    trainer._report(wait=True)
    assert trainer.reckoning.updates == 5
    assert trainer.pace.frozen == frozenset({0, 1} if table.windows else ())


def test_numbers_arrive_in_order_and_are_those_of_their_step() -> None:
    numbers = DeferredNumbers(torch.device("cuda"))
    value = torch.zeros((), device="cuda")
    found = []
    for index in range(200):
        value = value + 1
        torch.randn(512, 512, device="cuda").matmul(torch.randn(512, 512, device="cuda"))
        numbers.push({"index": index}, {"value": value})
        found += numbers.ready(wait=False)
    found += numbers.ready(wait=True)
    assert [(item.facts["index"], item.scalars["value"]) for item in found] == [(i, i + 1.0) for i in range(200)]


def test_a_refused_step_stops_with_the_weights_of_the_step_before(tmp_path: Path) -> None:
    good, _ = trainer_on_gpu(tmp_path / "good", "lora", 5, total_steps=12)
    good.run()
    bad, recorder = trainer_on_gpu(tmp_path / "bad", "lora")
    with_objective(bad, Spoiling(math.nan, 5))
    with pytest.raises(GuardStopped) as raised:
        bad.run()
    assert "at step 6" in raised.value.what
    assert len(recorder.facts) == 5
    for name, tensor in good.adapter.state().items():
        assert torch.equal(tensor, bad.adapter.state()[name]), "later steps were on their way and must not be applied"


def test_skip_and_rollback_on_the_device(tmp_path: Path) -> None:
    skipping, recorder = trainer_on_gpu(tmp_path / "skip", "full", guards=GuardOptions(non_finite="skip"))
    with_objective(skipping, Spoiling(math.inf, 3, 7)).run()
    assert [facts.step for facts in recorder.facts if not facts.applied] == [4, 8]
    assert math.isfinite(recorder.facts[-1].loss)
    rolling, recorder = trainer_on_gpu(tmp_path / "roll", "full", guards=GuardOptions(non_finite="rollback"))
    with_objective(rolling, Spoiling(math.nan, 6)).run()
    assert rolling.recovery.left_out == {4, 5, 6}
    assert [facts.step for facts in recorder.facts] == list(range(1, 13))
    assert [facts.step for facts in recorder.facts if not facts.applied] == [5, 6, 7]


def test_an_fp16_overflow_is_skipped_and_halves_the_scale(tmp_path: Path) -> None:
    trainer, recorder = trainer_on_gpu(tmp_path, "lora", precision="fp16")
    before = trainer.precision.state_dict()["scale"]
    with_objective(trainer, Spoiling(math.inf, 2)).run()
    assert [(facts.step, facts.refused_by) for facts in recorder.facts if not facts.applied] == [(3, "overflow")]
    assert trainer.precision.state_dict()["scale"] == before / 2


def test_a_background_save_is_of_its_step_though_training_goes_on(tmp_path: Path) -> None:
    states: dict[int, dict[str, torch.Tensor]] = {}
    trainer, _ = trainer_on_gpu(tmp_path, "full", checkpoint_every=2, keep_checkpoints=9)
    save = trainer.save

    def keep_and_save() -> None:
        states[trainer.step] = {name: tensor.cpu().clone() for name, tensor in trainer.adapter.state().items()}
        save()

    trainer.save = keep_and_save  # type: ignore[method-assign]
    trainer.run()
    assert trainer.checkpoints.steps() == [2, 4, 6, 8, 10, 12]
    for step in trainer.checkpoints.steps():
        checkpoint = trainer.checkpoints.load(step)
        assert checkpoint is not None
        for name, tensor in states[step].items():
            assert torch.equal(checkpoint.trained[f"adapter/{name}"], tensor), (step, name)


class Hungry(NextToken):
    """Takes so many bytes a token while it runs: a real allocation that a limited device refuses."""

    def __init__(self, bytes_per_token: int) -> None:
        super().__init__()
        self.bytes_per_token = bytes_per_token

    def __call__(self, model: Any, batch: Any, seen: Any) -> Loss:
        room = torch.empty(self.bytes_per_token * batch.num_tokens, dtype=torch.uint8, device=model.device)
        loss = super().__call__(model, batch, seen)
        del room
        return loss


def test_memory_that_really_runs_out_cuts_the_passes_and_keeps_the_numbers(tmp_path: Path) -> None:
    plain, plain_facts = trainer_on_gpu(tmp_path / "plain", "full", 6, total_steps=6)
    plain.run()
    tight, tight_facts = trainer_on_gpu(tmp_path / "tight", "full", 6, total_steps=6)
    said: list[str] = []
    tight.relief.say = lambda kind, text: said.append(kind)
    total = torch.cuda.get_device_properties(0).total_memory
    gib = 1 << 30
    torch.cuda.empty_cache()
    used = torch.cuda.memory_reserved()
    torch.cuda.set_per_process_memory_fraction((used + 2 * gib) / total)
    try:
        with_objective(tight, Hungry(2 * gib // 80)).run()  # 80 tokens at most; steps have up to 140
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert said[0] == "recompute_on"
    assert "passes_cut" in said
    for ours, theirs in zip(tight_facts.facts, plain_facts.facts, strict=True):
        assert ours.loss == pytest.approx(theirs.loss, rel=1e-4)
        assert ours.tokens == theirs.tokens


def test_packs_move_to_the_device_whole() -> None:
    pack = batch((5, 9, 3)).to("cuda")
    assert pack.input_ids_T.is_cuda
    assert pack.lengths == (5, 9, 3)
