"""Bottleneck adapters: a small network of two layers after a sub-layer, or beside it.

    sequential   h + s · up(f(down(h)))      h the sub-layer's output (Houlsby et al. 2019, arXiv 1902.00751)
    parallel     h + s · up(f(down(x)))      x the sub-layer's input (He et al. 2022, arXiv 2110.04366, table 1)

before the sum with the residual stream. up starts at zero, down at random (as LoRA's B and A): the first step is the exact base,
and gradients flow. With a layer norm after ``up`` its gain starts at zero in place of ``up``: normalising what is nearly zero
would throw the model from its start at the first update.

Shapes: d model width, r inner width, T tokens.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tunesmith.adapters import bottleneck_layout, lora_layer, parameters
from tunesmith.adapters.added import AddedAdapter
from tunesmith.adapters.peft_layout import Layout
from tunesmith.adapters.sites import Part
from tunesmith.adapters.starts import start_generator
from tunesmith.errors import RecipeError
from tunesmith.models.blocks import bottleneck_parts
from tunesmith.recipe.bottleneck import BottleneckPart, BottleneckSection

_ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "relu": functional.relu,
    "gelu": functional.gelu,
    "silu": functional.silu,
    "tanh": torch.tanh,
}
_EPSILON = 1e-5


class Bottleneck(Part):
    """One adapter at one sub-layer, in fp32.

    Args:
        settings: placement, width, activation, scaling, layer norm, dropout.
        down: rd.
        up: dr.
    """

    def __init__(self, settings: BottleneckPart, down: Tensor, up: Tensor) -> None:
        super().__init__()
        self.settings = settings
        self.down = nn.Parameter(down)
        self.down_bias = nn.Parameter(torch.zeros(down.shape[0]))
        self.up = nn.Parameter(up)
        self.up_bias = nn.Parameter(torch.zeros(up.shape[0]))
        self.norm: nn.Parameter | None = None
        self.norm_bias: nn.Parameter | None = None
        if settings.layer_norm != "none":
            start = torch.ones if settings.layer_norm == "before" else torch.zeros
            self.norm = nn.Parameter(start(up.shape[0]))
            self.norm_bias = nn.Parameter(torch.zeros(up.shape[0]))

    def forward(self, x: Tensor, y: Tensor, base_y: Tensor, site: Any) -> Tensor:
        """Return ``y`` plus what the adapter adds, in y's dtype; products run in that dtype too, norms in fp32."""
        settings, dtype = self.settings, y.dtype
        read = y if settings.placement == "sequential" else x
        if settings.layer_norm == "before":
            read = self._normalised(read)
        inner_Tr = functional.linear(read.to(dtype), self.down.to(dtype), self.down_bias.to(dtype))
        inner_Tr = _ACTIVATIONS[settings.activation](inner_Tr)
        if settings.dropout:
            inner_Tr = functional.dropout(inner_Tr, settings.dropout, self.training)
        s = settings.scaling
        if settings.layer_norm == "after":
            added = functional.linear(inner_Tr, self.up.to(dtype), self.up_bias.to(dtype))
            return (y + s * self._normalised(added)).to(dtype)
        # The scale goes onto the weights, so that nothing else of y's size is written.
        added = functional.linear(inner_Tr, (self.up * s).to(dtype), (self.up_bias * s).to(dtype))
        return (y + added).to(dtype)

    def named(self) -> dict[str, Tensor]:
        """All numbers by the endings of their names in files."""
        found: dict[str, Tensor] = {
            "down.weight": self.down,
            "down.bias": self.down_bias,
            "up.weight": self.up,
            "up.bias": self.up_bias,
        }
        if self.norm is not None and self.norm_bias is not None:
            found |= {"norm.weight": self.norm, "norm.bias": self.norm_bias}
        return found

    def extra_repr(self) -> str:
        """Show the settings in the module's printout."""
        return ", ".join(f"{key}={value}" for key, value in self.settings.model_dump().items())

    def _normalised(self, values: Tensor) -> Tensor:
        """Layer norm in fp32."""
        return functional.layer_norm(values.float(), values.shape[-1:], self.norm, self.norm_bias, _EPSILON)


class BottleneckAdapter(AddedAdapter):
    """Bottlenecks by a recipe's section. Follows ``types.Adapter``.

    Args:
        section: the recipe's.
        seed: with a site's name it fixes that site's start.
        parts: site -> settings, in place of the section's; for adapters read from files.
        rows: embedding or head -> token ids, in place of the section's ``train_tokens``; for adapters read from files.
    """

    def __init__(
        self,
        section: BottleneckSection,
        seed: int,
        parts: Mapping[str, BottleneckPart] | None = None,
        rows: Mapping[str, Sequence[int]] | None = None,
    ) -> None:
        super().__init__(section, seed, rows)
        self.parts: dict[str, BottleneckPart] = dict(parts or {})
        self._are_given = parts is not None
        self._width = 0

    def choose_sites(self, model: nn.Module) -> dict[str, nn.Module]:
        """Sub-layers of the section's kinds, or those that were given."""
        if not self._are_given:
            self.parts = bottleneck_parts(parameters.weight_names(model), self.section, width_of(model))
        self._width = width_of(model)
        sites = {name: model.get_submodule(name) for name in self.parts}
        for name, site in sites.items():
            _require_no_residual(name, site)
        return sites

    def new_part(self, name: str, site: nn.Module) -> Part:
        """The part of a sub-layer, drawn from seed and name."""
        settings, width = self.parts[name], self._width
        generator = start_generator(self.seed, name, "down")
        down = lora_layer.uniform_matrix(generator, settings.width, width)
        up = torch.zeros(width, settings.width)
        if settings.layer_norm == "after":
            up = lora_layer.uniform_matrix(generator, width, settings.width)
        return Bottleneck(settings, down, up)

    def layout(self) -> Layout:
        """In a format of our own: PEFT has no such method."""
        configuration, tensors = bottleneck_layout.layout(self.model, self.parts, self._tokens.ids, self.state())
        return Layout(configuration, tensors, ["PEFT has no bottleneck adapters: Tunesmith alone reads this folder"])


def width_of(model: nn.Module) -> int:
    """Width of the stream between layers."""
    config: Any = model.config
    return int(config.get_text_config().hidden_size)


def _require_no_residual(name: str, site: nn.Module) -> None:
    """Some families (Bloom, MPT) add the stream inside the sub-layer, where no adapter comes before the sum."""
    if "residual" in inspect.signature(site.forward).parameters:
        raise RecipeError(
            f"`{name}` adds the residual stream itself, so that no adapter fits between it and the sum",
            where="adapter.targets",
            hint="take `adapter: {type: lora}` for this family",
        )
