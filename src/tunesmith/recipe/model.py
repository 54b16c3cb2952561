"""Which model to tune."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from tunesmith.recipe.section import Section


class DropoutSection(Section):
    """Dropout of the base while it trains, in place of what its configuration says. A family has some of the kinds, or none."""

    attention: float | None = Field(default=None, ge=0.0, lt=1.0)
    """On attention weights; unset leaves the model's own rate."""
    hidden: float | None = Field(default=None, ge=0.0, lt=1.0)
    """On what each layer adds to the residual stream; unset leaves the model's own rate."""
    embedding: float | None = Field(default=None, ge=0.0, lt=1.0)
    """On the embedded tokens; unset leaves the model's own rate."""

    def rates(self) -> dict[str, float]:
        """Kind to rate, those that are given."""
        return {kind: rate for kind, rate in self.model_dump().items() if rate is not None}


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
    quantise: Literal["none", "nf4", "int8", "fp8"] = "none"
    """Hold the frozen base's linear layers in fewer bits: ``nf4`` (QLoRA, half a byte a weight), ``int8`` or ``fp8`` (one byte);
    an adapter trains on it."""
    dropout: DropoutSection = DropoutSection()
    """Rates of dropout in training; what is unset is as the model's configuration says."""
    init: Literal["pretrained", "random"] = "pretrained"
    """``random`` takes the model's shape, tokenizer and template and starts from random weights, drawn from ``seed``; with
    ``adapter: {type: full}`` alone."""


def _from_name(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


ModelField = Annotated[ModelSection, BeforeValidator(_from_name, json_schema_input_type=str | ModelSection)]
