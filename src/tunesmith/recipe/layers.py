"""Which layers learn when, and how fast: rates by layer, and schedules that unfreeze or freeze layers on the way."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from tunesmith.recipe.section import Section


class LayerRatesSection(Section):
    """Layer-wise decay: each layer learns more slowly than the one above it (Howard and Ruder 2018; Clark et al. 2020)."""

    decay: float = Field(default=0.9, gt=0.0, le=1.0)
    """Rate of a layer as a share of the rate of the one above; the head has the whole rate, the embeddings, below all
    layers, the least. 0.9 to 0.95 are usual for encoders; 0.385 (1/2.6) is ULMFiT's."""

    def share(self, depth: int, num_layers: int) -> float:
        """Rate of a depth (0 the embeddings, 1 to ``num_layers`` the layers, then the head) as a share of the head's.

        With layers l from 0 to L - 1 it is decay^(L - l), and decay^(L + 1) for the embeddings.
        """
        return float(self.decay ** (num_layers + 1 - depth))


class GradualUnfreezingSection(Section):
    """Train the topmost layers first and unfreeze the others from the top down (ULMFiT, Howard and Ruder 2018, §3.3)."""

    type: Literal["unfreeze_gradually"] = "unfreeze_gradually"
    every: Literal["epoch"] | Annotated[int, Field(gt=0)] = "epoch"
    """When more is unfrozen: at each epoch, or every so many steps."""
    layers: int = Field(default=1, gt=0)
    """Layers unfrozen each time; the embeddings count as the lowest."""
    start: int = Field(default=1, gt=0)
    """Layers that train from the first step, beside what follows the layers (final norm, head)."""
    warmup: int = Field(default=10, ge=0)
    """Steps in which the rate of newly unfrozen layers rises from nothing: AdamW's first steps from empty moments are as
    large as the rate, whatever the gradient."""


class FreezeOutSection(Section):
    """Freeze layers from the input up, each after a cosine to zero of its own (FreezeOut, Brock et al. 2017)."""

    type: Literal["freezeout"] = "freezeout"
    first: float = Field(default=0.8, gt=0.0, le=1.0)
    """Share of the steps after warm-up at which the lowest layer is frozen, before cubing; the topmost trains to the end,
    those between lie evenly."""
    cubed: bool = True
    """Cube the shares: lower layers freeze earlier still (0.8 becomes 0.512)."""
    scale_rates: bool = True
    """Divide each layer's rate by its share, so that all have the same area under their curve."""


class AutoFreezeSection(Section):
    """Freeze layers from the input up when their gradients hardly change any more (AutoFreeze, Liu et al. 2021)."""

    type: Literal["autofreeze"] = "autofreeze"
    intervals: int = Field(default=10, ge=2)
    """Parts of the run; after each but the first the layers' gradients are held against those of the part before."""
    percentile: float = Field(default=50.0, ge=0.0, le=100.0)
    """Layers below the lowest one whose change reaches this percentile of all changes are frozen."""


FreezingField = Annotated[GradualUnfreezingSection | FreezeOutSection | AutoFreezeSection, Field(discriminator="type")]
