"""The same work from Python: what each function takes from the one before."""

from __future__ import annotations

from pathlib import Path

import tunesmith
from tests.e2e.desk import Write


def test_from_a_recipe_to_a_page(desk: Path, write: Write) -> None:
    recipe = tunesmith.load(write(), adapter__rank=3)
    run = tunesmith.train(tunesmith.make_plan(recipe), Path("runs/first"))
    assert (run.status, run.steps) == ("done", 2)
    tuned, base = tunesmith.evaluate(run.folder, recipe), tunesmith.evaluate(recipe.model.name, recipe)
    comparison = tunesmith.compare(base, tuned)
    written = tunesmith.compare(
        *(tunesmith.Scorecard.load(run.folder / "scorecards", name) for name in ("base", "tuned"))
    )
    assert isinstance(comparison, tunesmith.Comparison)
    assert comparison.claimed_on == written.claimed_on == "loss.loss"
    page = tunesmith.report(run.folder)
    assert page.path == Path("runs/first/report.html")
    assert page.path.is_file()
    assert (page.verdict, page.sentence) == ("No evidence of a difference", written.sentence)
