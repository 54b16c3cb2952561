"""Rows of a token matrix (input embedding, output head, or both where they are tied) that train while the rest is frozen.

Each forward writes the trained rows into the matrix, cast to its type: n × H numbers. So all that reads the matrix sees
them, be it the fused head, transformers' own forward or generation with a cache, and there is no second matrix. The
matrix itself stays frozen; the rows get their gradient where a listed token is read, and where its logit is used.

Shapes: n trained rows, H hidden width, V vocabulary, T tokens.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from tunesmith.errors import ModelError
from tunesmith.models.routes import Routes

CHILD = "token_rows"
"""Name of the child of an embedding or a head that holds the rows of its adapters."""
_WRAPPED = "token_rows_base_class"


class TokenRows(nn.Module):
    """Trained rows of one matrix for one adapter, in fp32 whatever the matrix's type; they start as they are there.

    Args:
        weight_VH: the matrix.
        ids: rows to train, each once.
    """

    ids_N: Tensor
    originals_NH: Tensor

    def __init__(self, weight_VH: Tensor, ids: Sequence[int]) -> None:
        super().__init__()
        ids_N = torch.tensor(ids, dtype=torch.long, device=weight_VH.device)
        self.ids = tuple(ids)
        originals_NH = weight_VH.detach()[ids_N].clone()
        self.rows = nn.Parameter(originals_NH.float().clone())
        self.register_buffer("ids_N", ids_N, persistent=False)
        self.register_buffer("originals_NH", originals_NH, persistent=False)

    def write(self, weight_VH: Tensor) -> None:
        """Put the trained values into the matrix."""
        weight_VH.data.index_copy_(0, self.ids_N, self.rows.detach().to(weight_VH.dtype))

    def restore(self, weight_VH: Tensor) -> None:
        """Put back the values from before, bit for bit."""
        weight_VH.data.index_copy_(0, self.ids_N, self.originals_NH)

    def extra_repr(self) -> str:
        """Show which tokens in the module's printout."""
        return f"ids={list(self.ids)}"


@torch.no_grad()
def summed(found: Sequence[TokenRows]) -> tuple[Tensor, Tensor]:
    """Ids ``[n]`` and values ``[n, H]`` in fp32 of several adapters' rows: the base's and the sum of all changes of it.

    A row that one adapter alone has keeps its bits.
    """
    if len(found) == 1:
        return found[0].ids_N, found[0].rows.detach()
    holders: dict[int, list[tuple[TokenRows, int]]] = {}
    for rows in found:
        for place, token in enumerate(rows.ids):
            holders.setdefault(token, []).append((rows, place))
    values = []
    for (first, place), *others in holders.values():
        value = first.rows[place]
        for rows, other in others:
            value = value + (rows.rows[other] - rows.originals_NH[other].float())
        values.append(value)
    return torch.tensor(list(holders), device=found[0].ids_N.device), torch.stack(values).detach()


@torch.no_grad()
def require_known(layer: nn.Module, ids: Sequence[int]) -> None:
    """Refuse an embedding or a head whose arithmetic is not known here, since its rows would get wrong gradients.

    Raises:
        ModelError: no plain linear head, or an embedding that changes its rows otherwise than by a scale.
    """
    weight_VH = cast(Tensor, layer.weight)
    if isinstance(layer, nn.Embedding):
        ids_N = torch.tensor(ids, device=weight_VH.device)
        expected_NH = weight_VH[ids_N].float() * _scale_of(layer)
        known = torch.allclose(layer(ids_N).float(), expected_NH, rtol=1e-2, atol=1e-6)
    else:
        known = isinstance(layer, nn.Linear)
    if not known:
        raise ModelError(
            f"single rows of a {type(layer).__name__} cannot train: it uses them in a way Tunesmith does not know",
            where="adapter.train_tokens",
            hint="set `train_tokens: none`; `also_train` trains the whole matrix",
        )


def add_rows(layer: nn.Module, name: str, rows: TokenRows) -> None:
    """Give an embedding or a head an adapter's rows; they are inactive until ``set_active``."""
    if not hasattr(type(layer), _WRAPPED):
        layer.token_rows = nn.ModuleDict()
        layer.__class__ = _wrapped_class(cast(Any, type(layer)))
        set_active(layer, ())
    cast(nn.ModuleDict, layer.token_rows)[name] = rows


def remove_rows(layer: nn.Module, name: str) -> None:
    """Take an adapter's rows away, leaving the matrix as it is; with the last ones the layer gets its own class back."""
    set_active(layer, tuple(other for other in cast(Any, layer).token_rows_active if other != name))
    held = cast(nn.ModuleDict, layer.token_rows)
    del held[name]
    if not len(held):
        del layer.token_rows, layer.token_rows_active
        vars(layer).pop("token_rows_routes", None)
        layer.__class__ = getattr(type(layer), _WRAPPED)


def set_active(layer: nn.Module, names: tuple[str, ...]) -> None:
    """Choose the adapters whose rows the layer has."""
    cast(Any, layer).token_rows_active = names


def set_routes(layer: nn.Module, routes: Routes | None) -> None:
    """Give each row of a batch the token rows of its own adapters, in place of the active ones; None ends it."""
    cast(Any, layer).token_rows_routes = routes


def width(layer: nn.Module) -> int:
    """Numbers in a row of the layer's matrix."""
    return int(cast(Tensor, layer.weight).shape[1])


def has_rows(layer: nn.Module, name: str) -> bool:
    """Whether the layer has rows of this adapter."""
    return name in cast(nn.ModuleDict, layer.token_rows)


def active_rows(layer: nn.Module) -> list[TokenRows]:
    """Rows that the layer has at present; none for a layer without any."""
    names = getattr(layer, "token_rows_active", ())
    return [cast(TokenRows, cast(nn.ModuleDict, layer.token_rows)[name]) for name in names]


def trained_rows(layer: nn.Module) -> TokenRows | None:
    """The rows of a layer that need a gradient; brings the matrix up to date. At most one adapter trains."""
    found = active_rows(layer)
    if len(found) == 1:
        found[0].write(cast(Tensor, layer.weight))
    elif found:
        weight_VH, (ids_N, values_NH) = cast(Tensor, layer.weight), summed(found)
        weight_VH.data.index_copy_(0, ids_N, values_NH.to(weight_VH.dtype))
    return next((rows for rows in found if rows.rows.requires_grad), None)


class _ReadRows(torch.autograd.Function):
    """The embedding's output as it is; backward sums its gradient over the places of each listed token."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, rows_NH: Tensor, ids_N: Tensor, tokens: Tensor, scale: Tensor | float) -> Tensor:
        ctx.save_for_backward(ids_N, tokens)
        ctx.scale = scale
        return y.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        ids_N, tokens = ctx.saved_tensors
        hits_NT = (ids_N[:, None] == tokens.reshape(1, -1)).to(torch.float32)
        return grad, (hits_NT @ grad.reshape(-1, grad.shape[-1]).float()) * ctx.scale, None, None, None


class _UsedRows(torch.autograd.Function):
    """The head's logits as they are; backward gives each listed token's row its gradient."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, rows_NH: Tensor, ids_N: Tensor, hidden: Tensor) -> Tensor:
        ctx.save_for_backward(ids_N, hidden)
        return y.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        ids_N, hidden = ctx.saved_tensors
        columns_TN = grad.index_select(-1, ids_N).reshape(-1, len(ids_N)).float()
        return grad, columns_TN.T @ hidden.reshape(-1, hidden.shape[-1]).float(), None, None


def _scale_of(layer: nn.Module) -> Tensor | float:
    """What an embedding multiplies its rows with, in the type of its rows, as the Gemma family does."""
    scale = getattr(layer, "embed_scale", 1.0)
    return scale.to(cast(Tensor, layer.weight).dtype).float() if isinstance(scale, Tensor) else float(scale)


@functools.cache
def _wrapped_class(base_class: Any) -> type[nn.Module]:
    def forward(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if self.token_rows_routes is not None:
            return _routed(self, self.token_rows_routes, x, base_class.forward(self, x, *args, **kwargs))
        rows = trained_rows(self)
        y = cast(Tensor, base_class.forward(self, x, *args, **kwargs))
        if rows is None or not torch.is_grad_enabled():
            return y
        if isinstance(self, nn.Embedding):
            return cast(Tensor, _ReadRows.apply(y, rows.rows, rows.ids_N, x, _scale_of(self)))  # type: ignore[no-untyped-call]
        return cast(Tensor, _UsedRows.apply(y, rows.rows, rows.ids_N, x.detach()))  # type: ignore[no-untyped-call]

    members = {
        "forward": forward, _WRAPPED: base_class, "token_rows_routes": None, "__module__": base_class.__module__
    }  # fmt: skip
    return type(f"TokenRows{base_class.__name__}", (base_class,), members)


@torch.no_grad()
def _routed(layer: Any, routes: Routes, x: Tensor, y: Tensor) -> Tensor:
    """The base's output with the rows of each stack put in at the places of its tokens."""
    is_embedding, dtype = isinstance(layer, nn.Embedding), layer.weight.dtype
    given = x.reshape(-1) if is_embedding else x.reshape(-1, x.shape[-1])
    result = y.reshape(-1, y.shape[-1]).clone()
    for stack, places in routes.places(len(given), result.device):
        found = [cast(TokenRows, layer.token_rows[name]) for name in stack if name in layer.token_rows]
        if not found:
            continue
        ids_N, values_NH = summed(found)
        if is_embedding:
            hits_TN = given[places][:, None] == ids_N
            scaled_NH = values_NH.to(dtype) * torch.as_tensor(_scale_of(layer), dtype=dtype, device=values_NH.device)
            own_TH = scaled_NH[hits_TN.int().argmax(1)]
            result[places] = torch.where(hits_TN.any(1)[:, None], own_TH, result[places])
            continue
        own_TN = given[places] @ values_NH.to(dtype).T
        if layer.bias is not None:
            own_TN = own_TN + layer.bias[ids_N]
        result[places] = result[places].index_copy(1, ids_N, own_TN.to(result.dtype))
    return result.view(y.shape)
