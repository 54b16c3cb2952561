"""Whether several adapters are of one base."""

from __future__ import annotations

from collections.abc import Mapping

from tunesmith.errors import UserError
from tunesmith.models.locate import ModelFolder, ModelRef
from tunesmith.registry.result import check_result
from tunesmith.workshop.opening import recipe_of, require_base, trained_on


def one_base(references: Mapping[str, ModelRef]) -> tuple[ModelFolder, str, list[str]]:
    """The base of adapters, how its layers hold their weights where they were trained, and sentences to say aloud.

    Args:
        references: by the names that people wrote.

    Raises:
        UserError: bases quantised in different ways.
        ModelError: another base, by the hash of its weights.
    """
    base = next(iter(references.values())).base
    notes = []
    for name, reference in references.items():
        if reference.run is not None:
            check_result(reference.run)
        require_base(reference, base)
        if not trained_on(reference):
            notes.append(f"the adapter in {name} names no hash of its base: places and shapes alone were compared")
    kinds = {recipe_of(reference).model.quantise for reference in references.values() if reference.run}
    if len(kinds) > 1:
        raise UserError(
            f"the adapters were trained on the base quantised in different ways: {', '.join(sorted(kinds))}",
            where="ADAPTER",
            hint="take adapters that were trained with one `model.quantise`",
        )
    return base, next(iter(kinds), "none"), notes
