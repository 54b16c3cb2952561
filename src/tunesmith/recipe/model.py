"""Which model to tune."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from tunesmith.recipe.section import Section


class ModelSection(Section):
    """The base model. A bare string is its ``name``."""

    name: str = Field(min_length=1)
    """Embedded name, local folder in Hugging Face layout, or hub id with ``@revision``."""
    context: int | None = Field(default=None, gt=0)
    """Longest example in tokens; unset means the model's own limit (at most 4,096)."""
    chat_template: str | None = None
    """Path of a Jinja chat template that replaces the model's own."""
    date: str = "2026-01-01"
    """Day shown to templates that ask for the clock, ISO format; never today's."""


def _from_name(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


ModelField = Annotated[ModelSection, BeforeValidator(_from_name, json_schema_input_type=str | ModelSection)]
