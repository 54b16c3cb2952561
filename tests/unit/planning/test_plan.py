"""The whole plan of a small recipe on a machine that is not this one."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from tunesmith.errors import DataError, GateRefused, ModelError, RecipeError
from tunesmith.planning.plan import Plan, make_plan, plan_rows, require_fit
from tunesmith.planning.settings import Counts
from tunesmith.planning.speeds import record
from tunesmith.recipe.codec import load, parse
from tunesmith.recipe.root import Recipe

COUNTS = Counts(rows=560, tokens=50_000, trained_tokens=9_000, longest=200, attended=110.0)


def unset(value: object, path: str = "") -> list[str]:
    """Keys without a value."""
    if isinstance(value, dict):
        return [key for name, item in value.items() for key in unset(item, f"{path}.{name}" if path else name)]
    return [path] if value is None else []


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    lines = [json.dumps({"prompt": f"What is {i} and {i}?", "completion": f"It is {2 * i}."}) for i in range(200)]
    (tmp_path / "train.jsonl").write_text("\n".join(lines))
    return parse({"name": "r", "model": "tunesmith-base-8m", "data": {"train": ["train.jsonl"]}}).placed(tmp_path)


def changed(recipe: Recipe, **sections) -> Recipe:
    values = json.loads(recipe.model_dump_json(exclude_unset=True))
    return parse({**values, **sections}).placed(recipe.folder)


def test_round_trip_and_nothing_unset(recipe: Recipe, cpu) -> None:
    plan = make_plan(recipe, cpu, COUNTS)
    values = json.loads(json.dumps(plan.to_json()))
    assert Plan.from_json(values) == plan
    assert parse(plan.recipe).placed(recipe.folder) == plan.resolved
    assert plan.resolved.folder == recipe.folder
    allowed = {
        "model.chat_template", "model.dropout.attention", "model.dropout.hidden", "model.dropout.embedding",
        "training.neftune_alpha", "training.max_steps", "training.micro_batch_size", "training.early_stopping",
        "training.layer_rates", "training.freezing", "training.adaptive_clip", "training.guards.spikes",
        "training.guards.stall_minutes",
        "data.validation.group_by", "data.test.group_by",
        "evaluation.tasks", "machine.memory_gib", "machine.tflops", "machine.watts", "machine.price_per_hour",
    }  # fmt: skip
    assert set(unset(plan.recipe)) <= allowed
    assert all(item.reason for item in plan.values.values())


def test_values_of_the_embedded_model_on_a_cpu(recipe: Recipe, cpu) -> None:
    plan = make_plan(recipe, cpu, COUNTS)
    settings = plan.settings
    assert (settings.steps_per_epoch, settings.total_steps, settings.warmup_steps) == (18, 54, 2)
    assert (settings.learning_rate, settings.precision, settings.context) == (2.5e-3, "fp32", 1024)
    assert (settings.checkpoint_every, settings.evaluate_every, settings.atom_tokens) == (6, 6, 4096)
    assert (settings.deterministic, settings.recompute, settings.overlong) == (True, False, "error")
    assert plan.parameters.trainable == 598_016 + 2 * 256  # LoRA, and the rows of two chat tokens
    assert plan.memory.fits
    assert plan.total_tokens == 150_000
    assert "decided after the data is read" in plan.values["evaluation.tasks"].reason
    assert plan.to_json()["steps"] == 54


def test_resolved_recipe_plans_the_same(recipe: Recipe, cpu) -> None:
    plan = make_plan(recipe, cpu, COUNTS)
    again = make_plan(plan.resolved, cpu, COUNTS)
    assert again.settings == plan.settings
    assert again.identity == plan.identity
    assert again.recipe == plan.recipe


def test_budget_in_steps_stays_a_budget_in_steps(recipe: Recipe, cpu) -> None:
    plan = make_plan(changed(recipe, training={"max_steps": 20}), cpu, COUNTS)
    assert plan.settings.total_steps == plan.recipe["training"]["max_steps"] == 20
    assert plan.recipe["training"]["epochs"] is None
    assert plan.total_tokens == round(50_000 * 20 / 18)


def test_estimate_from_the_files(recipe: Recipe, cpu) -> None:
    plan = make_plan(recipe, cpu)
    assert not plan.data.exact
    assert plan.data.rows == 170  # 200 rows without 5 % validation and 10 % test
    assert plan.data.low <= plan.data.tokens <= plan.data.high
    assert any("data check" in note for note in plan.notes)
    assert not any("data check" in note for note in make_plan(recipe, cpu, COUNTS).notes)


def test_stranger_does_not_know_the_time_and_says_how_to_find_out(recipe: Recipe, cpu, tmp_path: Path) -> None:
    plan = make_plan(recipe, cpu, COUNTS, speeds_file=tmp_path / "none.json")
    assert plan.time is plan.energy is plan.price is None
    assert any("not known yet" in note and "max_steps=20" in note and "tflops" in note for note in plan.notes)
    assert plan.to_json()["time"] is None
    row = next(row for row in plan_rows(plan) if row[:2] == ("cost", "time"))
    assert row[2] == "not known yet"


def test_time_from_a_measured_speed(recipe: Recipe, cpu, tmp_path: Path) -> None:
    path = tmp_path / "speeds.json"
    plan = make_plan(recipe, cpu, COUNTS, speeds_file=path)
    record(plan.speed_key, plan.flops / 100, path)
    timed = make_plan(recipe, cpu, COUNTS, speeds_file=path)
    assert timed.time is not None
    assert timed.time.seconds == pytest.approx(100)
    assert timed.time.low < 100 < timed.time.high
    assert "measured once on this machine" in timed.time.basis
    other = make_plan(recipe, replace(cpu, name="Other CPU"), COUNTS, speeds_file=path)
    assert other.time is None


def test_stated_speed_power_and_price(recipe: Recipe, cpu) -> None:
    stated = changed(recipe, machine={"tflops": 0.1, "watts": 100.0, "price_per_hour": 3.6})
    plan = make_plan(stated, cpu, COUNTS)
    assert plan.time is not None
    assert plan.time.seconds == pytest.approx(plan.flops / 1e11)
    assert plan.to_json()["energy_wh"] == pytest.approx(plan.time.seconds / 36)
    assert plan.to_json()["cost"] == pytest.approx(plan.time.seconds / 1000)
    assert "as stated" in plan.time.basis


def test_what_does_not_fit_is_said_and_refused(recipe: Recipe, cpu) -> None:
    plan = make_plan(recipe, replace(cpu, available_bytes=1 << 28), COUNTS)
    assert not plan.memory.fits
    assert plan.settings.recompute
    assert plan.settings.atom_tokens == plan.settings.context
    assert any("Does not fit" in note for note in plan.notes)
    with pytest.raises(GateRefused):
        require_fit(plan)
    require_fit(make_plan(recipe, cpu, COUNTS))


def test_rows_for_the_terminal_come_section_by_section(recipe: Recipe, cpu) -> None:
    rows = plan_rows(make_plan(recipe, cpu, COUNTS))
    sections = [row[0] for row in rows]
    assert len(dict.fromkeys(sections)) == 1 + sum(a != b for a, b in pairwise(sections))
    assert {"model", "training", "memory", "disk", "data", "cost", "parameters"} <= set(sections)
    assert ("training", "learning_rate", "0.0025") in {row[:3] for row in rows}


def test_errors_of_the_user_come_through(recipe: Recipe, cpu, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no model"):
        make_plan(changed(recipe, model="nothing-there"), cpu)
    with pytest.raises(RecipeError, match="matches no linear layer"):
        make_plan(changed(recipe, adapter={"type": "lora", "targets": ["nope"]}), cpu)
    with pytest.raises(DataError):
        make_plan(changed(recipe, data={"train": ["gone.jsonl"]}), cpu)


def test_encoder_is_refused(recipe: Recipe, cpu, shared: Path) -> None:
    folder = shared / "models" / "tunesmith-encoder-8m"
    with pytest.raises(ModelError, match="`BertForMaskedLM` is not a causal language model"):
        make_plan(changed(recipe, model=str(folder)), cpu, COUNTS)


def test_planning_imports_nothing_heavy(recipe: Recipe) -> None:
    values = json.dumps(json.loads(recipe.model_dump_json(exclude_unset=True)))
    (recipe.folder / "r.json").write_text(values)
    code = (
        "import sys, time\n"
        "from tunesmith.recipe.codec import load\n"
        "from tunesmith.planning.plan import make_plan\n"
        "make_plan(load(sys.argv[1]))\n"
        "heavy = {'torch', 'transformers', 'pyarrow', 'scipy', 'pandas'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "print(time.process_time())\n"
    )
    command = [sys.executable, "-c", code, str(recipe.folder / "r.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    # CPU time of the whole process, so that a busy machine does not fail the test.
    assert float(done.stdout) < 1.0


def test_overrides_reach_the_plan(recipe: Recipe, cpu) -> None:
    (recipe.folder / "r.json").write_text(json.dumps(json.loads(recipe.model_dump_json(exclude_unset=True))))
    made = load(recipe.folder / "r.json", "training.batch_size=10", "training.epochs=1")
    assert make_plan(made, cpu, COUNTS).settings.total_steps == 56


NARROW = {"k_proj (8 of width 128)", "v_proj (8 of width 128)"}


@pytest.mark.parametrize(("rank", "kinds"), [(129, NARROW), (256, NARROW)])
def test_a_rank_beyond_a_layers_width_is_said(recipe: Recipe, cpu, rank: int, kinds: set[str]) -> None:
    """Keys and values of the embedded model have 128 outputs, all else is at least 256 wide."""
    (note,) = [
        note
        for note in make_plan(changed(recipe, adapter={"type": "lora", "rank": rank}), cpu, COUNTS).notes
        if "`adapter.rank`" in note
    ]
    assert f"`adapter.rank` is {rank}, more than" in note
    listed = note.partition("smaller side of ")[2].partition(":")[0]
    assert set(listed.split(", ")) == kinds


@pytest.mark.parametrize("adapter", [{"type": "lora", "rank": 128}, {"type": "full"}])
def test_a_rank_that_fits_is_not_talked_about(recipe: Recipe, cpu, adapter: dict) -> None:
    assert not any("`adapter.rank`" in note for note in make_plan(changed(recipe, adapter=adapter), cpu, COUNTS).notes)


def test_rdrop_is_planned_as_two_passes_and_needs_dropout(recipe: Recipe, cpu) -> None:
    dropped = changed(recipe, adapter={"type": "lora", "dropout": 0.1})
    twice = changed(dropped, objective={"type": "sft", "rdrop_alpha": 1.0})
    one, two = make_plan(dropped, cpu, COUNTS), make_plan(twice, cpu, COUNTS)
    assert two.flops == 2 * one.flops
    assert any("rdrop_alpha 1" in note for note in two.notes)
    with pytest.raises(RecipeError, match="nothing drops out"):
        make_plan(changed(recipe, objective={"type": "sft", "rdrop_alpha": 1.0}), cpu, COUNTS)


def test_dropout_of_the_base_is_told_and_refused_where_there_is_none(recipe: Recipe, cpu) -> None:
    plan = make_plan(changed(recipe, model={"name": "tunesmith-base-8m", "dropout": {"attention": 0.1}}), cpu, COUNTS)
    assert "dropout of the base in training: attention 0.1 (model.dropout)" in plan.notes
    with pytest.raises(RecipeError, match="have no hidden dropout"):
        make_plan(changed(recipe, model={"name": "tunesmith-base-8m", "dropout": {"hidden": 0.1}}), cpu, COUNTS)
