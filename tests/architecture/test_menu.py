"""The menu is whole: every method of the recipe has builder, golden numbers, page, golden recipe and a flat example."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import pytest

from tests.numerics.golden_runs import cases, name_of
from tunesmith.adapters import ADAPTERS
from tunesmith.objectives import OBJECTIVES
from tunesmith.recipe.adapters import AdapterField
from tunesmith.recipe.codec import load
from tunesmith.recipe.objectives import ObjectiveField
from tunesmith.recipe.section import Section

ROOT = Path(__file__).resolve().parents[2]
FAMILIES = {
    "mlm": "clm_full_loop", "classify": "classify_head_loop", "regress": "classify_head_loop",
    "tag": "classify_head_loop", "sum": "sft_lora_loop", "head": "classify_head_loop",
    "sft": "sft_lora_loop", "clm": "clm_full_loop", "lora": "sft_lora_loop", "gralora": "sft_lora_loop", "aflora": "sft_lora_loop", "bottleneck": "bottleneck_loop",
    "prompt": "prompt_loop", "p-tuning": "prompt_loop", "prefix": "prompt_loop", "full": "clm_full_loop", "partial": "clm_full_loop",
}  # fmt: skip
"""Type of a section -> the flat example of its family; a variant is shown as the changed line on its page."""


def variants(field: Any) -> list[type[Section]]:
    """Section types of a tagged union."""
    return list(get_args(get_args(field)[0]))


def type_of(section: type[Section]) -> str:
    return str(section.model_fields["type"].default)


MENU = [*variants(ObjectiveField), *variants(AdapterField)]
NAMES = [type_of(section) for section in MENU]


def test_the_tables_hold_the_sections_of_the_recipe() -> None:
    assert set(OBJECTIVES) == set(variants(ObjectiveField))
    assert set(ADAPTERS) == set(variants(AdapterField))
    assert len(set(NAMES)) == len(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_method_has_golden_numbers(name: str) -> None:
    golden = json.loads((ROOT / "tests" / "numerics" / "golden.json").read_text(encoding="utf-8"))
    objectives, adapters = ([type_of(item) for item in table] for table in (OBJECTIVES, ADAPTERS))
    pairs = {name_of(*case) for case in cases()}
    partners = adapters if name in objectives else objectives
    wanted = {f"{name}-{partner}" if name in objectives else f"{partner}-{name}" for partner in partners} & pairs
    assert wanted
    assert wanted <= set(golden), "`python tools/write_golden.py` writes them"


@pytest.mark.parametrize("name", NAMES)
def test_a_method_has_a_page(name: str) -> None:
    page = ROOT / "docs" / "methods" / f"{name}.md"
    assert page.is_file(), f"write {page.relative_to(ROOT)}"
    assert len(page.read_text(encoding="utf-8").split()) > 50


@pytest.mark.parametrize("name", NAMES)
def test_a_method_has_a_golden_recipe(name: str) -> None:
    recipes = [load(path) for path in sorted((ROOT / "recipes").glob("*.yaml"))]
    assert name in {recipe.objective.type for recipe in recipes} | {recipe.adapter.type for recipe in recipes}


@pytest.mark.parametrize("name", NAMES)
def test_a_family_has_a_flat_example(name: str) -> None:
    assert name in FAMILIES, "name the flat loop of this method's family"
    assert (ROOT / "examples" / f"{FAMILIES[name]}.py").is_file()
