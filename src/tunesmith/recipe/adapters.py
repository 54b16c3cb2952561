"""Which parameters train: a tagged union whose defaults are the vetted setting."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from tunesmith.recipe.section import Section


class FullSection(Section):
    """Every parameter trains."""

    type: Literal["full"] = "full"


class PartialSection(Section):
    """Some of the base's own parameters train; choices add up."""

    type: Literal["partial"] = "partial"
    last_layers: int = Field(default=0, ge=0)
    """Train the last k transformer layers."""
    patterns: list[str] = Field(default_factory=list)
    """Train parameters whose name matches any of these globs, such as ``*.mlp.*``."""
    norms: bool = False
    """Train every normalisation weight."""
    biases: bool = False
    """Train every bias."""
    embeddings: bool = False
    """Train the input embedding (and the head, where they are tied)."""
    head: bool = False
    """Train the output head."""


def _as_patterns(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


class LoraSection(Section):
    """Low-rank adaptation (Hu et al. 2021): W + alpha/r · B A with A random and B zero at the start."""

    type: Literal["lora"] = "lora"
    rank: int = Field(default=16, gt=0)
    """Inner width r."""
    alpha: float = Field(default=32.0, gt=0)
    """Scale numerator; the update is multiplied by alpha / rank, or alpha / sqrt(rank) with rslora."""
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Dropout on the input of A."""
    targets: Annotated[
        list[str], BeforeValidator(_as_patterns, json_schema_input_type=str | list[str]), Field(min_length=1)
    ] = Field(default_factory=lambda: ["all-linear"])
    """``all-linear``, ``attention``, ``feed-forward``, or globs over module names."""
    rslora: bool = False
    """Scale by 1/sqrt(rank) (Kalajdzievski 2023)."""
    also_train: list[str] = Field(default_factory=list)
    """Globs over parameter names that train fully beside the adapter, such as ``*embed_tokens*``."""


def _default_type(value: Any) -> Any:
    return {"type": "lora", **value} if isinstance(value, dict) and "type" not in value else value


AdapterField = Annotated[
    FullSection | PartialSection | LoraSection, Field(discriminator="type"), BeforeValidator(_default_type)
]
