"""Bottleneck adapters: small networks of two layers after, or beside, the sub-layers of each transformer layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from tunesmith.errors import RecipeError
from tunesmith.recipe.low_rank import AddedSection
from tunesmith.recipe.section import Section

Target = Literal["attention", "feed-forward"]
Activation = Literal["relu", "gelu", "silu", "tanh"]

_PRESETS: Mapping[str, Mapping[str, Any]] = {
    "houlsby": {"placement": "sequential", "targets": ["attention", "feed-forward"], "activation": "silu"},
    "pfeiffer": {"placement": "sequential", "targets": ["feed-forward"], "activation": "relu"},
    "parallel": {"placement": "parallel", "targets": ["feed-forward"], "activation": "relu"},
}
_HYBRID: Mapping[str, Any] = {"targets": ["attention", "feed-forward"], "activation": "relu"}
_PRESET_OF: Mapping[str, str] = {"sequential": "pfeiffer", "parallel": "parallel"}
_REDUCTION: Mapping[str, float] = {"sequential": 16.0, "parallel": 2.0}
_SCALING: Mapping[str, float] = {"sequential": 1.0, "parallel": 4.0}


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


class BottleneckPart(Section):
    """One adapter at one sub-layer, with nothing left open."""

    placement: Literal["sequential", "parallel"]
    """After the sub-layer, on its output, or beside it, on its input."""
    width: int = Field(gt=0, le=1 << 24)
    """Inner width r."""
    activation: Activation
    """Non-linearity."""
    scaling: float = Field(gt=0)
    """Factor of what is added."""
    layer_norm: Literal["none", "before", "after"] = "none"
    """A layer norm of the adapter's own."""
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Dropout on the inner values."""

    def num_parameters(self, hidden: int) -> int:
        """2 d r + r + d, and 2 d for a layer norm, at model width d."""
        norm = 0 if self.layer_norm == "none" else 2 * hidden
        return 2 * hidden * self.width + self.width + hidden + norm


class BottleneckSection(AddedSection):
    """Bottleneck adapters (Houlsby et al. 2019; Pfeiffer et al. 2021; He et al. 2022): down-projection, non-linearity,
    up-projection and residual, after or beside attention and feed-forward. What is left out follows ``preset``, or ``placement``.
    """

    merges: ClassVar[bool] = False

    type: Literal["bottleneck"] = "bottleneck"
    preset: Literal["houlsby", "pfeiffer", "parallel"] | None = None
    """Published values of the keys that are left out. ``houlsby``: sequential after attention and feed-forward, silu;
    ``pfeiffer``: sequential after the feed-forward, relu; ``parallel`` (He et al.): beside the feed-forward, relu."""
    placement: Literal["sequential", "parallel", "hybrid"] | None = None
    """``sequential``: h + s · up(f(down(h))) on a sub-layer's output h; ``parallel``: h + s · up(f(down(x))) on its input x;
    ``hybrid``: sequential after attention, parallel beside the feed-forward. Left out: the preset's, else ``parallel``."""
    targets: Annotated[list[Target], Field(min_length=1), BeforeValidator(_as_list)] | None = None
    """Sub-layers that get an adapter: ``attention``, ``feed-forward``. Left out: the preset's; without one the
    feed-forward, and both for ``hybrid``."""
    reduction: float | None = Field(default=None, ge=0.0625)
    """Model width over inner width. Left out: 16 for sequential, 2 for parallel adapters."""
    activation: Activation | None = None
    """Non-linearity f. Left out: the preset's, else ``relu``."""
    scaling: float | None = Field(default=None, gt=0)
    """Factor s of what is added. Left out: 1 for sequential, 4 for parallel adapters."""
    layer_norm: Literal["none", "before", "after"] = "none"
    """A layer norm of the adapter's own: ``before`` the down-projection, or ``after`` the up-projection, where its gain
    starts at zero in place of the up-projection."""
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Dropout on the inner values, after f."""

    @field_validator("targets")
    @classmethod
    def _once(cls, targets: list[Target] | None) -> list[Target] | None:
        if targets is not None and len(set(targets)) != len(targets):
            raise ValueError("`targets` names a sub-layer twice")
        return targets

    @model_validator(mode="after")
    def _agrees(self) -> BottleneckSection:
        if self.preset and self.placement and _PRESETS[self.preset]["placement"] != self.placement:
            own = _PRESETS[self.preset]["placement"]
            raise ValueError(f"`preset: {self.preset}` is {own}: leave out `preset` or `placement: {self.placement}`")
        if self.placement == "hybrid" and self.targets and len(self.targets) < 2:
            raise ValueError(
                "`placement: hybrid` is about both sub-layers: leave `targets` out, or choose another placement"
            )
        return self

    def parts(self, hidden: int) -> dict[Target, BottleneckPart]:
        """What each kind of sub-layer gets in a model of width ``hidden``, with presets and defaults filled in.

        Raises:
            RecipeError: the reduction leaves no inner value.
        """
        placement = self.placement or (_PRESETS[self.preset]["placement"] if self.preset else "parallel")
        preset = _HYBRID if placement == "hybrid" else _PRESETS[self.preset or _PRESET_OF[placement]]
        found: dict[Target, BottleneckPart] = {}
        for target in self.targets or preset["targets"]:
            is_parallel = placement == "parallel" or (placement == "hybrid" and target == "feed-forward")
            own: Literal["sequential", "parallel"] = "parallel" if is_parallel else "sequential"
            reduction = self.reduction or _REDUCTION[own]
            if reduction > hidden:
                raise RecipeError(
                    f"`reduction` is {reduction:g}, the model is {hidden} wide: no inner value is left",
                    where="adapter.reduction",
                    hint=f"give at most {hidden}; 2 to 64 are usual",
                )
            found[target] = BottleneckPart(
                placement=own,
                width=int(hidden / reduction),
                activation=self.activation or preset["activation"],
                scaling=self.scaling or _SCALING[own],
                layer_norm=self.layer_norm,
                dropout=self.dropout,
            )
        return found
