"""Every golden recipe loads, plans and trains two steps; on public data too where that is at hand."""

from __future__ import annotations

import json
import math
import tempfile
from pathlib import Path

import pytest

from tests.breadth.tiny_folder import write_tiny
from tests.recipes.stand_ins import ROWS, write_stand_in
from tests.tiny_encoders import write_encoder
from tunesmith.planning.plan import Plan
from tunesmith.recipe.codec import load
from tunesmith.recipe.data import SourceSection
from tunesmith.recipe.heads import HeadedSection
from tunesmith.recipe.root import Recipe
from tunesmith.registry.run_folder import RunFolder
from tunesmith.workshop.demo import demo_recipe
from tunesmith.workshop.planning import plan_recipe
from tunesmith.workshop.prepare import open_data
from tunesmith.workshop.train import train

RECIPES = sorted((Path(__file__).resolve().parents[2] / "recipes").glob("*.yaml"))
NAMES = [path.stem for path in RECIPES]
SHORT = (
    "training.epochs=null", "training.max_steps=2", "training.batch_size=4", "training.samples=1", "training.precision=fp32",
    "evaluation.tasks=[{type: loss, limit: 4}]", "evaluation.preserve=[]", "machine.threads=1", "machine.device=cpu",
)  # fmt: skip


def sources(recipe: Recipe) -> dict[str, SourceSection]:
    """Dotted key of each source to the source."""
    found = {f"data.train.{index}": source for index, source in enumerate(recipe.data.train)}
    for split in ("validation", "test"):
        held_out = getattr(recipe.data, split)
        if isinstance(held_out, list):
            found |= {f"data.{split}.{index}": source for index, source in enumerate(held_out)}
    return found


def overrides(path: Path, folder: Path | None, data: Path | None) -> list[str]:
    """Where the recipe's data lies here: public data at ``data``, or stand-ins below ``folder``; some rows of each."""
    found = [f"{key}.limit={ROWS}" for key in sources(load(path))]
    model = load(path).model.name
    if model.startswith("models/"):
        place = data.parent / model if data else (folder or Path()) / model
        if model == "models/t5":  # no real one is at hand
            place = (folder or Path(tempfile.mkdtemp(prefix="tunesmith-t5-"))) / model
            write_tiny(place, "encoder-decoder", "t5", {"n_positions": 512})
        elif not data:
            _stand_in_encoder(place)
        found.append(f"model.name={place}")
    for key, source in sources(load(path)).items():
        name = str(source.path)
        if name.startswith("data/"):
            place = data / name.removeprefix("data/") if data else write_stand_in(folder or Path(), name)
            found.append(f"{key}.path={place}")
    return found


def short(path: Path) -> list[str]:
    """Two steps and a few scored rows, of what the recipe's objective answers."""
    kinds = {"classify": "classification", "regress": "regression", "tag": "tagging"}
    task = kinds.get(load(path).objective.type, "loss")
    return [item.replace("type: loss", f"type: {task}") for item in SHORT]


def _stand_in_encoder(folder: Path) -> Path:
    """A random BERT whose tokenizer names a mask token."""
    write_encoder(folder, "bert")
    path = folder / "tokenizer_config.json"
    path.write_text(
        json.dumps(json.loads(path.read_text(encoding="utf-8")) | {"mask_token": "<|pad|>"}), encoding="utf-8"
    )
    return folder


def two_steps(path: Path, given: list[str], folder: Path) -> tuple[Plan, RunFolder]:
    plan = plan_recipe(load(path, *given, *short(path)))
    result = train(plan, folder)
    assert (result.status, result.steps) == ("done", 2)
    return plan, RunFolder.open(folder)


def check(run: RunFolder) -> None:
    losses = [line["loss"] for line in run.metrics() if "loss" in line]
    assert len(losses) == 2
    assert all(0 < loss < math.log(8192) * 2 for loss in losses)
    assert (run.path / "report.html").stat().st_size > 1000


def test_the_recipes_are_those_that_were_promised() -> None:
    promised = {"banking77-lora", "banking77-full", "banking77-partial", "helpdesk-lora", "instructions-alpaca"}
    promised |= {"instructions-sharegpt", "tools-glaive", "continued-pretraining"}
    promised |= {"helpdesk-last-layers", "helpdesk-unfreezing", "helpdesk-freezeout"}
    assert promised <= set(NAMES)


@pytest.mark.parametrize("path", RECIPES, ids=NAMES)
def test_a_recipe_says_what_it_is_and_what_to_expect(path: Path) -> None:
    head = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    assert len(head) >= 2
    assert any(line.startswith("# expected: ") for line in head)
    assert load(path).name == path.stem
    for source in sources(load(path)).values():
        assert not Path(str(source.path)).is_absolute()


def test_the_help_desk_is_the_demo() -> None:
    ours, demo = load(RECIPES[NAMES.index("helpdesk-lora")]), demo_recipe()
    for section in ("model", "objective", "adapter", "training", "evaluation", "seed"):
        assert getattr(ours, section) == getattr(demo, section), section
    for key, source in sources(ours).items():
        wanted = sources(demo)[key]
        assert (ours.folder / str(source.path)).resolve() == (demo.folder / str(wanted.path)).resolve()
        assert (source.format, source.columns) == (wanted.format, wanted.columns)


@pytest.mark.parametrize("path", RECIPES, ids=NAMES)
def test_a_recipe_plans_and_trains_two_steps(path: Path, tmp_path: Path) -> None:
    plan, run = two_steps(path, overrides(path, tmp_path, None), tmp_path / "run")
    assert plan.memory.fits
    check(run)


@pytest.mark.parametrize("path", RECIPES, ids=NAMES)
def test_a_recipe_reads_the_public_data_and_accounts_for_every_row(path: Path, shared: Path) -> None:
    given = overrides(path, None, shared / "data")
    if isinstance(load(path).objective, HeadedSection):  # files in the order of their labels begin with one alone
        given = [item.replace(f"limit={ROWS}", f"limit={10 * ROWS}") for item in given]
    recipe = load(path, *given)
    ledger = open_data(recipe)[0].ledger
    assert ledger.rows_in == ledger.trained + ledger.held_out + sum(ledger.rejected.values())
    assert ledger.trained >= ROWS // 2
    assert 0 < ledger.trained_tokens < ledger.tokens
