"""A frozen base in fewer bits: its linear layers hold packed weights, which each product unpacks for a moment.

    nf4    4-bit NormalFloat in blocks of 64 with doubly quantised scales (Dettmers et al. 2023, QLoRA §3), 0.516 bytes a weight
    int8   8-bit integers, one scale a row
    fp8    float8 (e4m3), one scale a row

What is multiplied is the unpacked weight, in the type of the pass: forward and backward are those of a plain layer with that
weight, bit for bit. Embeddings, norms and the output head stay as they are.

Shapes: I inputs, O outputs, T tokens.
"""

from __future__ import annotations

import logging
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from tunesmith.errors import ModelError
from tunesmith.models import names

KINDS = ("nf4", "int8", "fp8")
_BLOCK = 64
_LARGEST = {"int8": 127.0, "fp8": 448.0}


class QuantisedLinear(nn.Linear):
    """A frozen linear layer that holds its weight packed.

    ``weight`` unpacks it anew at each look, so that what asks for a weight gets the one that is multiplied; it is no parameter.
    A ``Conv1D`` becomes one of these too, its weight turned to OI.

    Args:
        weight_OI: the weight to pack.
        bias: kept as it is.
        kind: one of ``KINDS``.
        dtype: of ``weight``.
        was_transposed: whether the layer was a ``Conv1D``.
    """

    packed: Tensor
    scales: Tensor

    def __init__(
        self,
        weight_OI: Tensor,
        bias: nn.Parameter | None,
        kind: str,
        dtype: torch.dtype,
        *,
        was_transposed: bool = False,
    ) -> None:
        nn.Module.__init__(self)
        self.out_features, self.in_features = weight_OI.shape
        self.kind, self.dtype, self.was_transposed = kind, dtype, was_transposed
        self.register_parameter("bias", bias)
        if kind == "nf4":
            self._pack_nf4(weight_OI)
        else:
            self._pack_rows(weight_OI)

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """The unpacked weight, OI."""
        return self.unpacked(self.dtype)

    def unpacked(self, dtype: torch.dtype) -> Tensor:
        """The weight in a type; made anew."""
        if self.kind == "nf4":
            return self._unpack_nf4().to(dtype)
        return (self.packed.to(torch.float32) * self.scales[:, None]).to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        """X Wᵀ + b in autocast's type, or else in that of x."""
        device = x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        y = cast(Tensor, _Product.apply(x.to(dtype), self))  # type: ignore[no-untyped-call]
        return y if self.bias is None else y + self.bias.to(dtype)

    def extra_repr(self) -> str:
        """Show widths and kind in the module's printout."""
        return f"in_features={self.in_features}, out_features={self.out_features}, kind={self.kind}"

    def _pack_rows(self, weight_OI: Tensor) -> None:
        values = weight_OI.detach().float()
        scales_O = values.abs().amax(1).clamp(min=torch.finfo(torch.float32).tiny) / _LARGEST[self.kind]
        scaled = values / scales_O[:, None]
        packed = scaled.round().to(torch.int8) if self.kind == "int8" else scaled.to(torch.float8_e4m3fn)
        self.register_buffer("packed", packed)
        self.register_buffer("scales", scales_O)

    def _pack_nf4(self, weight_OI: Tensor) -> None:
        packed, state = bits().functional.quantize_4bit(
            weight_OI.detach().contiguous(), blocksize=_BLOCK, compress_statistics=True, quant_type="nf4"
        )
        self.register_buffer("packed", packed)
        self.register_buffer("scales", state.absmax)
        for name, tensor in (
            ("levels", state.code), ("offset", state.offset),
            ("outer_scales", state.state2.absmax), ("outer_levels", state.state2.code),
        ):  # fmt: skip
            self.register_buffer(name, tensor)
        self._outer_block = state.state2.blocksize

    def _unpack_nf4(self) -> Tensor:
        functional_4bit = bits().functional
        outer = functional_4bit.QuantState(
            absmax=self.outer_scales, code=self.outer_levels, blocksize=self._outer_block, dtype=torch.float32
        )
        state = functional_4bit.QuantState(
            absmax=self.scales, shape=torch.Size((self.out_features, self.in_features)), code=self.levels,
            blocksize=_BLOCK, quant_type="nf4", dtype=self.dtype, offset=self.offset, state2=outer,
        )  # fmt: skip
        return cast(Tensor, functional_4bit.dequantize_4bit(self.packed, state))


class _Product(torch.autograd.Function):
    """X Wᵀ that keeps nothing for the backward pass but the layer: the weight is unpacked again there."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: QuantisedLinear) -> Tensor:
        ctx.layer = layer
        return functional.linear(x, layer.unpacked(x.dtype))

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None]:
        (grad,) = grads
        return grad @ ctx.layer.unpacked(grad.dtype), None


def bits() -> Any:
    """The library for 4 bits, bitsandbytes. Raises ModelError where it is not installed."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it tells which faster kernels it would like to fetch
    try:
        import bitsandbytes
    except ImportError as error:
        raise ModelError(
            "`quantise: nf4` needs bitsandbytes, which is not installed",
            where="model.quantise",
            hint="pip install 'tunesmith[quantise]', or take `int8` or `fp8`, which need nothing",
        ) from error
    return bitsandbytes


def quantise(hf: nn.Module, kind: str, dtype: torch.dtype, device: str | torch.device = "cpu") -> int:
    """Pack the linear layers of a model in place, one after the other on ``device``; the rest is not moved.

    Args:
        hf: with weights in the type that they are stored in, so that the same folder packs alike everywhere.
        kind: one of ``KINDS``.
        dtype: of the unpacked weights.
        device: where the packed weights go.

    Returns:
        How many weights were packed.

    Raises:
        ModelError: what the kind needs is not installed, or there is nothing to pack.
    """
    count = 0
    for name, layer in [item for item in hf.named_modules() if is_packable(*item)]:
        weight = cast(Tensor, layer.weight).to(device)
        weight_OI = weight.t().contiguous() if isinstance(layer, Conv1D) else weight
        bias = cast(nn.Parameter | None, layer.bias)
        packed = QuantisedLinear(weight_OI, bias, kind, dtype, was_transposed=isinstance(layer, Conv1D))
        parent, _, child = name.rpartition(".")
        setattr(hf.get_submodule(parent), child, packed.train(layer.training))
        count += weight.numel()
    if not count:
        raise ModelError(
            "the model has no linear layers that can be packed", where="model.quantise", hint="take `quantise: none`"
        )
    return count


def dequantise(hf: nn.Module) -> None:
    """Put plain layers with the unpacked weights in fp32 in place of packed ones, for merging.

    A ``Conv1D`` comes back as such.
    """
    for name, layer in [item for item in hf.named_modules() if isinstance(item[1], QuantisedLinear)]:
        weight_OI = layer.unpacked(torch.float32)
        plain: nn.Module
        if layer.was_transposed:
            plain = Conv1D(layer.out_features, layer.in_features)
            plain.weight = nn.Parameter(weight_OI.t().contiguous())
            plain.bias = layer.bias
        else:
            plain = nn.Linear(layer.in_features, layer.out_features, bias=False, device="meta")
            plain.weight = nn.Parameter(weight_OI)
            plain.register_parameter("bias", layer.bias)
        parent, _, child = name.rpartition(".")
        setattr(hf.get_submodule(parent), child, plain.train(layer.training))


def is_packable(name: str, module: nn.Module) -> bool:
    """Whether a module is a linear layer of a block: no head, no router."""
    if not isinstance(module, nn.Linear | Conv1D) or isinstance(module, QuantisedLinear):
        return False
    return names.is_linear(f"{name}.weight", tuple(cast(Tensor, module.weight).shape))
