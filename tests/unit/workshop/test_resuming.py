"""What a resume takes from the run, and what from the recipe."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tunesmith.errors import HardwareMissing
from tunesmith.planning.plan import Plan, make_plan
from tunesmith.planning.settings import counts_of_lengths
from tunesmith.recipe.codec import parse
from tunesmith.registry.runs import RunFolder
from tunesmith.workshop.resuming import resumed_plan

RUN = RunFolder(Path("runs/a"))


def _recipe(**changes: Any) -> Any:
    return parse({"name": "a", "model": "tunesmith-base-8m", "data": {"train": "rows.jsonl"}, **changes})


def _plan(recipe: Any, **settings: Any) -> Plan:
    made = make_plan(recipe, counts=counts_of_lengths([30] * 100, 1000))
    return replace(made, settings=replace(made.settings, **{"atom_tokens": 4096, "threads": 1, **settings}))


@pytest.mark.parametrize(
    ("before", "here", "expected"),
    [
        ((4096, False), (8192, False), (4096, False)),
        ((4096, True), (4096, False), (4096, True)),
        ((4096, False), (2048, False), (2048, False)),
        ((4096, False), (8192, True), (8192, True)),
    ],
)
def test_passes_stay_where_memory_holds_them(before: Any, here: Any, expected: Any) -> None:
    recipe = _recipe()
    plans = [_plan(recipe, atom_tokens=tokens, recompute=again) for tokens, again in (before, here)]
    resumed, said = resumed_plan(*plans, recipe, RUN)
    assert (resumed.settings.atom_tokens, resumed.settings.recompute) == expected
    assert bool(said) == (expected != before)


def test_threads_stay_unless_stated_or_not_there() -> None:
    free, stated = _recipe(), _recipe(machine={"threads": 3})
    cores = _plan(free).machine.cores
    assert resumed_plan(_plan(free), _plan(free, threads=2), free, RUN)[0].settings.threads == 1
    assert resumed_plan(_plan(free), _plan(free, threads=3), stated, RUN)[0].settings.threads == 3
    assert resumed_plan(_plan(free, threads=cores + 1), _plan(free), free, RUN)[0].settings.threads == 1


def test_what_the_run_derived_stays_and_cadences_are_free() -> None:
    recipe = _recipe()
    here = _plan(recipe, learning_rate=0.5, total_steps=9, checkpoint_every=3, micro_batch_size=2)
    resumed, _ = resumed_plan(_plan(recipe), here, recipe, RUN)
    before = _plan(recipe).settings
    assert resumed.settings == replace(before, checkpoint_every=3, micro_batch_size=2)


def test_a_run_of_a_gpu_is_not_gone_on_with_on_a_cpu() -> None:
    recipe = _recipe(machine={"device": "cpu"})
    with pytest.raises(HardwareMissing) as raised:
        resumed_plan(_plan(recipe, device="cuda"), _plan(recipe), recipe, RUN)
    assert "--fork runs/a" in raised.value.hint
    assert raised.value.where == "runs/a"
