"""Prefix tuning (Li and Liang 2021, arXiv 2101.00190): keys and values of every layer that stand in front of each document.

    attention(q, [P_k; k], [P_v; v])        P_k, P_v of each layer train

With ``projection`` a network makes them of a table while training, as the paper has it; without, they train as they are (P-tuning
v2). They are cached keys: a rotation by position is in them already. The start is what the base caches when it reads a text,
so that the first step's model is exactly the base behind that text.

Shapes: V virtual tokens, L layers, K key/value heads, W head width, M inner width of the network.
"""

from __future__ import annotations

import inspect
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from tunesmith.adapters.prompts import Dense, VirtualAdapter, VirtualPart, require_room, table_of
from tunesmith.errors import RecipeError

Shape = tuple[int, int, int]
"""L, K and W."""


class KeyValues(VirtualPart):
    """Keys and values by layer, of a table whose rows have them one behind the other: keys of layer 0, its values, and so on."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape

    def table(self) -> Tensor:
        """``[V, 2 · L · K · W]``."""
        raise NotImplementedError

    def cached(self) -> list[tuple[Tensor, Tensor]] | None:
        """The table's rows taken apart."""
        layers, heads, width = self.shape
        parts = self.table().view(-1, 2 * layers, heads, width).unbind(1)
        return [(parts[2 * layer], parts[2 * layer + 1]) for layer in range(layers)]


class PlainKeyValues(KeyValues):
    """A table that trains as it is."""

    def __init__(self, shape: Shape, values: Tensor) -> None:
        super().__init__(shape)
        self.embedding = table_of(values)

    def table(self) -> Tensor:
        """The table."""
        return self.embedding.weight


class ProjectedKeyValues(KeyValues):
    """A smaller table and a network of two layers; starts as PEFT's does."""

    def __init__(self, shape: Shape, count: int, inner: int) -> None:
        super().__init__(shape)
        layers, heads, width = shape
        self.embedding = nn.Embedding(count, heads * width)
        self.transform = nn.Sequential(Dense(heads * width, inner), nn.Tanh(), Dense(inner, 2 * layers * heads * width))

    def table(self) -> Tensor:
        """The network's output."""
        return cast(Tensor, self.transform(self.embedding.weight))


class PrefixAdapter(VirtualAdapter):
    """Prefix tuning by a recipe's section. Follows ``types.Adapter``."""

    def require_taken(self, host: Any) -> None:
        """Raise RecipeError where the model's layers cache no keys and values that could stand in front."""
        require_room(host, self.section.num_tokens)
        shape_of(host)

    def started(self, host: Any) -> VirtualPart:
        """What the base caches of the start text, or of random tokens; with a network, random."""
        shape = shape_of(host)
        if self.section.projection:
            return ProjectedKeyValues(shape, self.section.num_tokens, self.section.projection_width)
        layers = cached_by(host, self.start_ids(host))
        rows = [item[0].transpose(0, 1).flatten(1) for layer in layers for item in layer]
        return PlainKeyValues(shape, torch.cat(rows, dim=1))

    def folded(self, host: Any) -> VirtualPart:
        """A table of zeros."""
        return PlainKeyValues(shape_of(host), torch.zeros(self.section.num_tokens, self.folded_width(host)))

    def folded_width(self, host: Any) -> int:
        """Numbers of a virtual token: keys and values of all layers."""
        self.require_taken(host)
        layers, heads, width = shape_of(host)
        return 2 * layers * heads * width


def shape_of(model: Any) -> Shape:
    """Layers, key/value heads and head width of what a model caches, found out by reading one token.

    Raises:
        RecipeError: the layers cache nothing, or not all of them keys and values of one shape.
    """
    shapes: set[tuple[int, ...]] = set()
    layers: list[tuple[Tensor, Tensor]] = []
    if "past_key_values" in inspect.signature(_base(model).forward).parameters:
        try:
            layers = cached_by(model, torch.zeros(1, dtype=torch.long, device=next(model.parameters()).device))
        except Exception:  # what has another kind of cache fails in every way there is
            layers = []
        shapes = {tuple(item.shape) for layer in layers for item in layer}
    if len(shapes) != 1 or len(layers) != model.config.get_text_config().num_hidden_layers:
        raise RecipeError(
            f"`{type(model).__name__}` cannot take prefixes: its layers do not all cache keys and values of one shape",
            where="adapter.type",
            hint="use `adapter.type: prompt`, which puts its tokens into the input only",
        )
    _, heads, _, width = next(iter(shapes))
    return len(layers), heads, width


@torch.no_grad()
def cached_by(model: Any, ids_V: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Keys and values ``[1, K, V, W]`` of each layer after reading tokens from position 0 on."""
    was_training = model.training
    model.eval()
    cache: Any = DynamicCache()
    positions_V = torch.arange(len(ids_V), device=ids_V.device)
    try:
        _base(model)(input_ids=ids_V[None], position_ids=positions_V[None], past_key_values=cache, use_cache=True)
    finally:
        model.train(was_training)
    return [(layer.keys, layer.values) for layer in cache.layers]


def _base(model: Any) -> Any:
    return getattr(model, model.base_model_prefix)
