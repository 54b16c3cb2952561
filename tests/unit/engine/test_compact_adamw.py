"""AdamW with moments of one byte: the maps, the packing's bound, bitsandbytes and torch as oracles, refusal, state."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.loops import make_trainer
from tunesmith.engine import compact_adamw
from tunesmith.engine.blockwise import BLOCK, _on, blocks_of, pack, unpack, value_map
from tunesmith.engine.compact_adamw import SMALLEST, CompactAdamW
from tunesmith.engine.optim import Optimiser
from tunesmith.engine.options import TrainerOptions
from tunesmith.types import ParamGroup

RATE, DECAY, BETAS, EPS = 1e-2, 0.1, (0.9, 0.999), 1e-8
KEPT, REFUSED = torch.zeros(()), torch.ones(())


def draw(count: int, seed: int = 0, spread: float = 3.0) -> torch.Tensor:
    """Numbers whose sizes span some decades within a block, as gradients do."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, generator=generator) * torch.exp(spread * torch.randn(count, generator=generator))


def optimiser(parameter: nn.Parameter, *, eight_bit: bool = True, offload: bool = False) -> CompactAdamW:
    group = {"params": [parameter], "weight_decay": DECAY}
    return CompactAdamW([group], RATE, BETAS, EPS, eight_bit=eight_bit, offload=offload)


def stepped(made: torch.optim.Optimizer, parameter: nn.Parameter, gradients: list[torch.Tensor]) -> torch.Tensor:
    for gradient in gradients:
        parameter.grad = gradient.clone()
        made.step()
    return parameter.detach().clone()


@pytest.mark.parametrize("signed", [True, False])
def test_the_maps_are_those_of_bitsandbytes(signed: bool) -> None:
    functional = pytest.importorskip("bitsandbytes.functional", reason="needs the extra `quantise`")
    values = value_map(signed=signed)
    assert len(values) == 256
    assert bool((values.diff() > 0).all())
    torch.testing.assert_close(values, functional.create_dynamic_map(signed=signed), rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("count", [1, 255, 256, 257, 4096, 5000])
def test_packing_finds_the_nearest_value(signed: bool, count: int) -> None:
    """Searched for by hand; no number is off by more than half of the widest gap of the map, as a share of its block's largest."""
    numbers = draw(count) if signed else draw(count).abs()
    codes, scales = pack(numbers, signed=signed)
    assert (codes.shape, codes.dtype, scales.shape) == ((count,), torch.uint8, (blocks_of(count),))
    largest = torch.cat([part.abs().max().expand(len(part)) for part in numbers.split(BLOCK)])
    values = value_map(signed=signed)
    nearest = ((numbers / largest)[:, None] - values).abs().min(1).values
    found = unpack(codes, scales, signed=signed)
    torch.testing.assert_close((found / largest - numbers / largest).abs(), nearest, rtol=1e-4, atol=1e-6)
    gaps = values.diff().max() / 2 + (1 + float(values[0]) if signed else 0.0)
    assert bool(((found - numbers).abs() <= gaps * largest * (1 + 1e-6)).all())


@pytest.mark.parametrize("signed", [True, False])
def test_the_look_up_finds_what_a_search_does(signed: bool) -> None:
    """At every value and middle and their neighbours in fp32, and at random."""
    values = value_map(signed=signed)
    middles = (values[1:] + values[:-1]) / 2
    marks = torch.cat([values, middles, torch.tensor([0.0, -0.0, 1e-40, 1.0, -1.0 if signed else 0.5])])
    around = [marks, *(torch.nextafter(marks, torch.full_like(marks, end)) for end in (-1.0, 1.0))]
    generator = torch.Generator().manual_seed(1)
    drawn = (torch.rand(200_000, generator=generator) * 2 - 1) * torch.exp(
        -9 * torch.rand(200_000, generator=generator)
    )
    shares = torch.cat([*around, drawn]).clamp(-1, 1)
    shares = shares if signed else shares.abs()
    found = _on(torch.device("cpu"), signed).codes(shares)
    assert torch.equal(found.long(), torch.bucketize(shares, middles))


def test_packing_is_that_of_bitsandbytes_or_nearer() -> None:
    """Its kernel for CPUs takes values beside the nearest one, above all near zero; ours never does."""
    functional = pytest.importorskip("bitsandbytes.functional", reason="needs the extra `quantise`")
    for signed in (True, False):
        numbers = draw(5000) if signed else draw(5000).abs()
        theirs, state = functional.quantize_blockwise(
            numbers, code=functional.create_dynamic_map(signed=signed), blocksize=BLOCK
        )
        codes, scales = pack(numbers, signed=signed)
        torch.testing.assert_close(scales, state.absmax)
        ours_off = (unpack(codes, scales, signed=signed) - numbers).abs()
        theirs_off = (functional.dequantize_blockwise(theirs, state).view(-1) - numbers).abs()
        assert bool((ours_off <= theirs_off * (1 + 1e-4) + 1e-6 * numbers.abs()).all())


def test_zeros_stay_zeros() -> None:
    for signed in (True, False):
        assert torch.equal(unpack(*pack(torch.zeros(300), signed=signed), signed=signed), torch.zeros(300))


@pytest.mark.parametrize("count", [SMALLEST - 1, 3 * SMALLEST + 77])
def test_in_fp32_it_is_torchs_adamw(count: int) -> None:
    """With moments in fp32, which small tensors always have, and in the host's memory, which on a CPU is the same."""
    gradients = [draw(count, seed) for seed in range(5)]
    start = torch.randn(count, generator=torch.Generator().manual_seed(9))
    one, two = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    plain = torch.optim.AdamW([one], lr=RATE, betas=BETAS, eps=EPS, weight_decay=DECAY)
    ours = optimiser(two, eight_bit=count < SMALLEST, offload=count >= SMALLEST)
    torch.testing.assert_close(stepped(ours, two, gradients), stepped(plain, one, gradients), rtol=1e-5, atol=1e-6)
    m, v = ours.moments(two)
    torch.testing.assert_close(m, plain.state[one]["exp_avg"], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(v, plain.state[one]["exp_avg_sq"], rtol=1e-5, atol=1e-6)


def test_it_stays_as_near_to_fp32_as_bitsandbytes_adamw() -> None:
    """Decay is left out: theirs shrinks behind the update. A first step is equal, and later ones differ by what packing does."""
    bitsandbytes = pytest.importorskip("bitsandbytes", reason="needs the extra `quantise`")
    count = 2 * SMALLEST
    gradients = [draw(count, seed, spread=1.0) for seed in range(12)]
    start = torch.randn(count, generator=torch.Generator().manual_seed(9))
    parameters = [nn.Parameter(start.clone()) for _ in range(3)]
    made = [
        CompactAdamW(
            [{"params": [parameters[0]], "weight_decay": 0.0}], RATE, BETAS, EPS, eight_bit=True, offload=False
        ),
        bitsandbytes.optim.AdamW8bit([parameters[1]], lr=RATE, betas=BETAS, eps=EPS, weight_decay=0.0),
        torch.optim.AdamW([parameters[2]], lr=RATE, betas=BETAS, eps=EPS, weight_decay=0.0),
    ]
    ours, theirs, exact = (stepped(one, item, gradients[:1]) for one, item in zip(made, parameters, strict=True))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    ours, theirs, exact = (stepped(one, item, gradients[1:]) for one, item in zip(made, parameters, strict=True))
    assert (
        made[1].state[parameters[1]]["state1"].dtype
        == made[0].state[parameters[0]]["exp_avg_codes"].dtype
        == torch.uint8
    )
    moved = (exact - start).abs().mean()
    assert float((ours - exact).abs().mean()) <= 1.05 * float((theirs - exact).abs().mean())
    assert float((ours - theirs).abs().mean()) < 0.05 * float(moved)
    assert float((ours - exact).abs().mean()) < 0.05 * float(moved)


def test_two_steps_stay_within_what_packing_can_move() -> None:
    """The first step is exact, since moments of zero pack exactly. In the second, m and v of the first are off by half a gap around
    their codes at most, e_m and e_v: the update lies between its values at m ± b1 e_m and v ± b2 e_v."""
    count, (b1, b2) = SMALLEST, BETAS
    g1, g2 = draw(count, 1, spread=0.5), draw(count, 2, spread=0.5)
    one, two = nn.Parameter(torch.zeros(count)), nn.Parameter(torch.zeros(count))
    exact = torch.optim.AdamW([one], lr=RATE, betas=BETAS, eps=EPS, weight_decay=0.0)
    ours = CompactAdamW([{"params": [two], "weight_decay": 0.0}], RATE, BETAS, EPS, eight_bit=True, offload=False)
    torch.testing.assert_close(stepped(ours, two, [g1]), stepped(exact, one, [g1]), rtol=1e-5, atol=1e-8)
    m1, v1 = (1 - b1) * g1.double(), (1 - b2) * g1.double() ** 2
    m, v = b1 * m1 + (1 - b1) * g2.double(), b2 * v1 + (1 - b2) * g2.double() ** 2
    e_m, e_v = (b * _off(x.float(), signed) for b, x, signed in ((b1, m1, True), (b2, v1, False)))
    before = two.detach().clone().double()
    moved = (before - stepped(ours, two, [g2]).double()) / RATE
    root = lambda x: (x / (1 - b2**2)).sqrt() + EPS  # noqa: E731
    ends = [
        (m + sign * e_m) / (1 - b1**2) / root((v + other * e_v).clamp(min=(1 - b2) * g2.double() ** 2 * (1 - 1e-6)))
        for sign in (-1, 1)
        for other in (-1, 1)
    ]
    low, high = torch.stack(ends).amin(0), torch.stack(ends).amax(0)
    slack = 1e-4 * (1 + high.abs().maximum(low.abs()))
    assert bool(((moved >= low - slack) & (moved <= high + slack)).all())
    assert float((moved - m / (1 - b1**2) / root(v)).abs().max()) > 1e-4, "packing did move something"


def _off(numbers: torch.Tensor, signed: bool) -> torch.Tensor:
    """The most that packing can move each number: half a gap beside its code, or what is beyond the end of the map."""
    codes, scales = pack(numbers, signed=signed)
    values = value_map(signed=signed).double()
    gaps = values.diff() / 2
    below = torch.cat([(1 + values[:1]) if signed else torch.zeros(1), gaps])
    above = torch.cat([gaps, torch.zeros(1)])
    widest = torch.maximum(below, above)[codes.int()]
    return widest * scales.double().repeat_interleave(BLOCK)[: numbers.numel()]


def test_a_refused_step_changes_no_bit() -> None:
    count = SMALLEST + 300
    parameter = nn.Parameter(draw(count, 3))
    made = optimiser(parameter)
    stepped(made, parameter, [draw(count, 4), draw(count, 5)])
    before = {key: value.clone() for key, value in made.state[parameter].items()} | {"p": parameter.detach().clone()}
    made.found_inf = REFUSED
    stepped(made, parameter, [torch.full((count,), float("nan"))])
    after = made.state[parameter] | {"p": parameter.detach()}
    assert all(torch.equal(after[key], value) for key, value in before.items())
    made.found_inf = KEPT
    assert not torch.equal(stepped(made, parameter, [draw(count, 6)]), before["p"])


def test_a_first_step_that_is_refused_leaves_all_at_its_start() -> None:
    parameter = nn.Parameter(draw(SMALLEST, 3))
    start = parameter.detach().clone()
    made = optimiser(parameter)
    made.found_inf = REFUSED
    assert torch.equal(stepped(made, parameter, [torch.full((SMALLEST,), float("inf"))]), start)
    assert float(made.state[parameter]["step"]) == 0.0
    made.found_inf = KEPT
    assert bool(stepped(made, parameter, [draw(SMALLEST, 6)]).isfinite().all())


def test_pieces_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    count = 5 * SMALLEST + 10
    found = []
    for piece in (compact_adamw.PIECE, 2 * BLOCK):
        monkeypatch.setattr(compact_adamw, "PIECE", piece)
        parameter = nn.Parameter(draw(count, 1).view(2, -1))
        gradients = [draw(count, seed).view(2, -1) for seed in (2, 3)]
        found.append(stepped(optimiser(parameter), parameter, gradients))
    assert torch.equal(*found)


def test_weights_and_gradients_that_are_turned_in_memory() -> None:
    values, gradient = draw(SMALLEST, 1).view(64, -1), draw(SMALLEST, 2).view(64, -1)
    plain, turned = nn.Parameter(values.clone()), nn.Parameter(values.t().contiguous().t())
    assert not turned.is_contiguous()
    one, two = optimiser(plain), optimiser(turned)
    for parameter, made in ((plain, one), (turned, two)):
        parameter.grad = gradient.t().contiguous().t() if parameter is turned else gradient.clone()
        made.step()
    assert torch.equal(plain.detach(), turned.detach())


def _kept(**options: Any) -> tuple[Optimiser, list[nn.Parameter]]:
    parameters = [nn.Parameter(draw(size, size)) for size in (SMALLEST + 5, 10)]
    groups = [ParamGroup("all", tuple((f"p{index}", item) for index, item in enumerate(parameters)))]
    made = Optimiser(groups, TrainerOptions(10, RATE, 0, optimiser="adamw_8bit", **options))
    for parameter in parameters:
        parameter.grad = draw(parameter.numel(), 1)
    made.step(KEPT)
    return made, parameters


def test_the_state_has_one_byte_a_number_and_a_scale_a_block() -> None:
    made, _ = _kept()
    state = made.state()
    assert {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in state.items() if name.startswith("p0")} == {
        "p0/step": ((), torch.float32),
        "p0/exp_avg_codes": ((SMALLEST + 5,), torch.uint8), "p0/exp_avg_scales": ((17,), torch.float32),
        "p0/exp_avg_sq_codes": ((SMALLEST + 5,), torch.uint8), "p0/exp_avg_sq_scales": ((17,), torch.float32),
    }  # fmt: skip
    assert {name for name in state if name.startswith("p1")} == {"p1/step", "p1/exp_avg", "p1/exp_avg_sq"}
    assert made.fault(state) is None


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("p0/exp_avg_codes", torch.zeros(SMALLEST + 4, dtype=torch.uint8), "is torch.uint8"),
        ("p0/exp_avg_codes", torch.zeros(SMALLEST + 5), "not torch.uint8"),
        ("p0/exp_avg_scales", torch.full((17,), float("nan")), "no number"),
        ("p0/exp_avg_sq_scales", torch.full((17,), -1.0), "is negative"),
        ("p0/exp_avg", torch.zeros(SMALLEST + 5), "nothing that this run's optimiser keeps"),
        ("p1/exp_avg_codes", torch.zeros(10, dtype=torch.uint8), "nothing that this run's optimiser keeps"),
    ],
)
def test_a_strangers_state_is_refused(name: str, value: torch.Tensor, words: str) -> None:
    made, _ = _kept()
    assert words in str(made.fault({**made.state(), name: value}))


def test_what_lacks_a_part_is_refused() -> None:
    made, _ = _kept()
    state = made.state()
    del state["p0/exp_avg_scales"]
    assert "lacks 1 of 5 values" in str(made.fault(state))


def test_the_last_update_is_told_from_packed_moments() -> None:
    """After one step m / (1 - b1) is g and v / (1 - b2) is g²: the update is the rate, where packing left something of g."""
    made, (large, _) = _kept()
    clear = large.grad.abs() > 0.05 * large.grad.abs().max()  # type: ignore[union-attr]
    torch.testing.assert_close(
        made.last_update(large)[clear].abs(), torch.full((int(clear.sum()),), RATE), rtol=0.15, atol=0.0
    )


@pytest.mark.parametrize("scope", ["full", "lora"])
def test_losses_stay_with_those_of_fp32_moments(tmp_path: Path, scope: str) -> None:
    """Of a random model over twelve steps; moments in fp32 through the same code give torch's losses."""
    found = {}
    for name, more in {
        "torch": {}, "8 bits": {"optimiser": "adamw_8bit"}, "on the host": {"offload_optimiser": True},
    }.items():  # fmt: skip
        trainer, recorder = make_trainer(tmp_path / name, scope=scope, **more)
        trainer.run()
        found[name] = [facts.loss for facts in recorder.facts]
    assert found["on the host"] == pytest.approx(found["torch"], rel=1e-4)
    assert found["8 bits"] == pytest.approx(found["torch"], rel=2e-2)
    fell = found["torch"][0] - found["torch"][-1]
    assert abs(found["8 bits"][-1] - found["torch"][-1]) < 0.1 * abs(fell) + 1e-3
