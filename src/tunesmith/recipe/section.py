"""The base of every recipe section: frozen, strict, torch-free data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, ValidationError

from tunesmith.recipe.explain import explain
from tunesmith.recipe.syntax import Written


class Section(BaseModel):
    """A frozen part of a recipe. Unknown keys are errors; numbers are not made from strings."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    if not TYPE_CHECKING:  # type checkers read the keys of a section from its fields

        def __init__(self, **values: Any) -> None:
            """Take the section's keys.

            Raises:
                RecipeError: a key is unknown, missing or wrong.
            """
            try:
                super().__init__(**values)
            except ValidationError as error:
                kind = type(self)
                raise explain(error, values, Written(kind.__name__), kind) from None

        # Pydantic builds sections within sections, and those of files, past this method: their errors come with a line.
        __init__.__pydantic_base_init__ = True
