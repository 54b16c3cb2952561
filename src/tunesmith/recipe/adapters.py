"""Which parameters train: a tagged union whose defaults are the vetted setting."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from tunesmith.errors import RecipeError
from tunesmith.recipe.section import Section


class FullSection(Section):
    """Every parameter trains."""

    type: Literal["full"] = "full"


class PartialSection(Section):
    """Some of the base's own parameters train; choices add up."""

    type: Literal["partial"] = "partial"
    last_layers: int = Field(default=0, ge=0)
    """Train the last k transformer layers."""
    first_layers: int = Field(default=0, ge=0)
    """Train the first k transformer layers."""
    every_nth: int = Field(default=0, ge=0)
    """Train every n-th transformer layer, counted from the input: 2 trains the second, the fourth and so on."""
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

    def chosen_layers(self, num_layers: int) -> list[int]:
        """Which of ``num_layers`` transformer layers train, counted from 0, in order.

        Raises:
            RecipeError: a number is larger than that of the layers.
        """
        for key in ("last_layers", "first_layers", "every_nth"):
            count = getattr(self, key)
            if count > num_layers:
                raise RecipeError(
                    f"`{key}` is {count}, the model has {num_layers} layers",
                    where=f"adapter.{key}",
                    hint=f"give at most {num_layers}, or `type: full` to train everything",
                )
        nth = self.every_nth
        return [
            layer
            for layer in range(num_layers)
            if layer >= num_layers - self.last_layers or layer < self.first_layers or (nth and (layer + 1) % nth == 0)
        ]


PARTIAL_CHOICES = ", ".join(f"`{name}`" for name in PartialSection.model_fields if name != "type")
"""The keys that choose parameters, for messages."""


def _as_patterns(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _as_tokens(value: Any) -> Any:
    tokens = value if isinstance(value, list) else [value]
    if not tokens or not all((isinstance(item, str) and item) or (type(item) is int and item >= 0) for item in tokens):
        raise ValueError("`train_tokens` is `auto`, `none`, or a list of token texts and ids")
    return value if isinstance(value, list) or value in ("auto", "none") else tokens


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
    train_tokens: Annotated[Literal["auto", "none"] | list[str | int], BeforeValidator(_as_tokens)] = "auto"
    """Tokens whose rows of the embedding and of the output head train beside the adapter, by text or id, while all other
    rows are frozen. ``auto``: those of the chat template's own tokens that were never trained; ``none``: none."""


def _default_type(value: Any) -> Any:
    return {"type": "lora", **value} if isinstance(value, dict) and "type" not in value else value


AdapterField = Annotated[
    FullSection | PartialSection | LoraSection, Field(discriminator="type"), BeforeValidator(_default_type)
]
