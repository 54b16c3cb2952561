"""What a run is asked to measure: free to change until it is done, and then measured for base and result alike. Torch-free."""

from __future__ import annotations

from tunesmith.files import read_json, write_json
from tunesmith.recipe.fingerprint import differences
from tunesmith.recipe.root import Recipe
from tunesmith.registry.runs import RunFolder


def suite_changes(run: RunFolder, recipe: Recipe) -> list[str]:
    """Keys of the evaluation that differ between the run's recipe and this one, as ``key: run -> recipe`` lines.

    Raises:
        RunError: the recipe of the run is torn.
    """
    return differences(run.recipe().evaluation.suite(), recipe.evaluation.suite(), "evaluation")


def adopt_suite(run: RunFolder, recipe: Recipe) -> str | None:
    """Write the evaluation that a resume asks for into the run's recipe; the sentence to say where it is another.

    Raises:
        RunError: the recipe of the run is torn.
        OSError: it cannot be written.
    """
    changed = suite_changes(run, recipe)
    if not changed:
        return None
    values = read_json(run.recipe_path)
    write_json(run.recipe_path, {**values, "evaluation": recipe.evaluation.model_dump(mode="json")})
    return f"the evaluation is another than before ({'; '.join(changed)}): base and result are scored on it"


def unmeasured_note(run: RunFolder, recipe: Recipe) -> str | None:
    """What to say of a finished run that was scored on another evaluation than the recipe asks for."""
    changed = suite_changes(run, recipe)
    if not changed:
        return None
    return (
        f"the recipe asks for another evaluation than this run was scored on ({'; '.join(changed)}): the scores are those "
        f"of the run; `tunesmith eval {run.path} RECIPE --against {recipe.model.name}` measures what a recipe file asks for"
    )
