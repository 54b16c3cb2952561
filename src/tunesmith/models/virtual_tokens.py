"""Virtual tokens: what adapters put in front of every document, as embedded tokens or as keys and values of each layer.

    batch ──facade──> [front][document 0][front][document 1] … ──base──> states of the documents alone

A batch knows nothing of them. The facade, generation and scoring lay them in where they run the model, so one batch serves the
tuned model and, with the adapter off, the exact base; no state of theirs comes back, so none is ever scored. A document's
positions start behind them, whichever kind they are, as in PEFT.

Shapes: V virtual tokens, H hidden width, D documents, T tokens of a pack, B rows of a batch, K key/value heads, W head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import Tensor, nn

from tunesmith.models.attention import Cached, PackLayout, interleaved, layout_of, moved
from tunesmith.models.names import VIRTUAL
from tunesmith.types import Batch

NAME = VIRTUAL
"""Name of the child of a model that holds its adapters' virtual tokens."""


class Source(Protocol):
    """Virtual tokens of one adapter. Exactly one of the two is not None."""

    def embedded(self) -> Tensor | None:
        """What stands in the place of an embedding's output ``[V, H]``, fp32."""
        ...

    def cached(self) -> list[tuple[Tensor, Tensor]] | None:
        """Keys and values of each layer ``[V, K, W]``, fp32, as a cache holds them: positions are in them already."""
        ...


class VirtualTokens(nn.Module):
    """The child that holds the sources; it is never called. ``added`` and ``added_active`` are those of an adapters' site."""

    added_active: tuple[str, ...] = ()

    def sources(self) -> list[Source]:
        """Those that are active, in order."""
        return [cast(Source, cast(Any, self).added[name]) for name in self.added_active]


def holder_of(hf: nn.Module) -> VirtualTokens:
    """The model's holder; a new one, not yet the model's, where it has none."""
    return cast(VirtualTokens, getattr(hf, NAME, None) or VirtualTokens())


@dataclass(frozen=True)
class Laid:
    """A pack as the base takes it: ids or embedded tokens ``[1, T, …]``, positions, layout for attention, and where the
    documents' own tokens lie in what comes back; None: everywhere.
    """

    tokens: dict[str, Tensor]
    positions_T: Tensor
    pack: PackLayout
    own_T: Tensor | None


@dataclass(frozen=True)
class Front:
    """What stands in front of every document: first keys and values, then embedded tokens; either may be missing."""

    embedded_VH: Tensor | None
    cached: Cached | None

    @property
    def num_embedded(self) -> int:
        """Virtual tokens that run through the layers."""
        return 0 if self.embedded_VH is None else len(self.embedded_VH)

    @property
    def num_cached(self) -> int:
        """Virtual tokens that are keys and values only."""
        return 0 if self.cached is None else self.cached.num_tokens

    @property
    def num_tokens(self) -> int:
        """Positions that they take of the context."""
        return self.num_embedded + self.num_cached

    def lay(self, batch: Batch, embedding: nn.Module) -> Laid:
        """A pack with the virtual tokens in it."""
        positions_T = batch.positions_T + self.num_cached
        if self.embedded_VH is None:
            pack = layout_of(batch.starts_D1, batch.lengths, self.cached)
            return Laid({"input_ids": batch.input_ids_T[None]}, positions_T, pack, None)
        count, device = self.num_embedded, batch.input_ids_T.device
        lengths = tuple(length + count for length in batch.lengths)
        ends = np.cumsum(lengths)
        places = [np.arange(count, length) + end - length for length, end in zip(lengths, ends.tolist(), strict=True)]
        positions = np.concatenate([np.arange(length) for length in lengths]) + self.num_cached
        steps_D1 = torch.arange(len(lengths) + 1, dtype=batch.starts_D1.dtype, device=device) * count
        embedded_TH = embedding(batch.input_ids_T[None])[0]
        return Laid(
            {"inputs_embeds": interleaved(self.embedded_VH, embedded_TH, batch.lengths)[None]},
            moved(positions, device),
            layout_of(batch.starts_D1 + steps_D1, lengths, self.cached),
            moved(np.concatenate(places), device),
        )

    def fill(self, cache: Any, rows: int, dtype: torch.dtype) -> None:
        """Put keys and values into an empty cache of transformers, the same for each row."""
        for layer, (keys_VKW, values_VKW) in enumerate(self.cached.layers if self.cached else ()):
            both = (item.transpose(0, 1)[None].expand(rows, -1, -1, -1).to(dtype) for item in (keys_VKW, values_VKW))
            cache.update(*both, layer)

    def embed(self, hf: Any, ids_BT: Tensor, firsts_B: Sequence[int]) -> dict[str, Tensor]:
        """What a model of transformers takes for padded rows; the virtual tokens stand from ``firsts_B`` on. No gradient."""
        if self.embedded_VH is None:
            return {"input_ids": ids_BT}
        embedded_BTH = hf.get_input_embeddings()(ids_BT).clone()
        for row, first in enumerate(firsts_B):
            embedded_BTH[row, first : first + self.num_embedded] = self.embedded_VH.to(embedded_BTH.dtype)
        return {"inputs_embeds": embedded_BTH}


NOTHING = Front(None, None)


def front_of(hf: nn.Module) -> Front:
    """What the model's active adapters put in front of a document, with gradients where they train; several follow each other."""
    holder = getattr(hf, NAME, None)
    sources = holder.sources() if holder is not None else []
    if not sources:
        return NOTHING
    with torch.autocast(next(hf.parameters()).device.type, enabled=False):
        embedded = [item for item in (source.embedded() for source in sources) if item is not None]
        cached = [item for item in (source.cached() for source in sources) if item is not None]
    return Front(torch.cat(embedded) if embedded else None, Cached.joined(cached) if cached else None)
