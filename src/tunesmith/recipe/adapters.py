"""Which parameters train: a tagged union whose defaults are the vetted setting."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from tunesmith.errors import RecipeError
from tunesmith.recipe.bottleneck import BottleneckSection
from tunesmith.recipe.low_rank import AfloraSection, GraloraSection, LoraSection
from tunesmith.recipe.prompts import PrefixSection, PromptSection, PTuningSection
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


class HeadOnlySection(Section):
    """No parameter of the base trains: only the head that the objective puts on it."""

    type: Literal["head"] = "head"
    cache_features: bool = True
    """Run the frozen base once over the training rows and keep what the head reads on disk; every epoch reads it from there."""


def _default_type(value: Any) -> Any:
    return {"type": "lora", **value} if isinstance(value, dict) and "type" not in value else value


AdapterSection = (
    FullSection
    | PartialSection
    | HeadOnlySection
    | LoraSection
    | GraloraSection
    | AfloraSection
    | BottleneckSection
    | PromptSection
    | PTuningSection
    | PrefixSection
)

AdapterField = Annotated[AdapterSection, Field(discriminator="type"), BeforeValidator(_default_type)]
