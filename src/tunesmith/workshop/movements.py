"""Where an adapter moves the model: the next-token predictions of base and tuned model, position by position over some texts.

    KL(base ‖ tuned) = Σ_v p_v (ln p_v − ln q_v)      in nats, p the base's prediction, q the tuned model's

Shapes: T tokens of a text, V vocabulary, C positions of a chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tunesmith.adapters.added import activate
from tunesmith.data.loader import make_batch
from tunesmith.models.causal_lm import CausalLM
from tunesmith.workshop.parity import Document

_CHUNK = 128
_ALTERNATIVES = 3
_CONTEXT_TOKENS = 12
MOST_POSITIONS = 4096

Decode = Callable[[Sequence[int]], str]


@dataclass(frozen=True)
class Moved:
    """One position: where it is, what was predicted there before and after, and what really follows."""

    text: int
    position: int
    context: str
    follows: str
    kl: float
    before: tuple[tuple[str, float], ...]
    after: tuple[tuple[str, float], ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "text": self.text,
            "position": self.position,
            "context": self.context,
            "follows": self.follows,
            "kl_nats": self.kl,
            "before": [{"token": token, "probability": share} for token, share in self.before],
            "after": [{"token": token, "probability": share} for token, share in self.after],
        }


@dataclass(frozen=True)
class Movement:
    """An adapter's effect on some texts.

    Attributes:
        on: what the texts are.
        texts: how many.
        kl: of each position, in nats.
        same_first: share of positions whose likeliest token stayed.
        moved: the positions that moved most, most first.
        up: tokens whose mean probability over all positions grew most, with the growth.
        down: those whose mean probability shrank most.
    """

    on: str
    texts: int
    kl: np.ndarray
    same_first: float
    moved: tuple[Moved, ...]
    up: tuple[tuple[str, float], ...]
    down: tuple[tuple[str, float], ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "on": self.on,
            "texts": self.texts,
            "positions": len(self.kl),
            "mean_kl_nats": float(self.kl.mean()),
            "median_kl_nats": float(np.median(self.kl)),
            "kl_nats_90": float(np.quantile(self.kl, 0.9)),
            "same_first": self.same_first,
            "moved": [item.to_json() for item in self.moved],
            "up": [{"token": token, "change": change} for token, change in self.up],
            "down": [{"token": token, "change": change} for token, change in self.down],
        }


@torch.no_grad()
def movement(
    model: CausalLM, name: str, on: str, documents: Sequence[Document], decode: Decode, top: int
) -> Movement | None:
    """Compare the base and one of its adapters; None where no document has a position to compare.

    Args:
        model: with the adapter attached.
        name: of the adapter on the model.
        on: what the documents are.
        documents: token ids, and which tokens are looked at: the predictions of these.
        decode: token ids to text.
        top: how many positions and tokens are shown.
    """
    model.eval()
    kls: list[Tensor] = []
    places: list[tuple[int, int]] = []
    same, change_V, best = 0, None, []
    for number, (ids, wanted) in enumerate(documents):
        positions = np.flatnonzero(wanted[1:])[: MOST_POSITIONS - len(places)]
        if not len(positions):
            continue
        hidden = _hidden(model, name, ids, positions)
        for start in range(0, len(positions), _CHUNK):
            pair = _log_shares(model, name, [part[start : start + _CHUNK] for part in hidden])
            p, q = (part.exp() for part in pair)
            kl_C = torch.where(p > 0, p * (pair[0] - pair[1]), 0.0).sum(-1).clamp(min=0)
            same += int((pair[0].argmax(-1) == pair[1].argmax(-1)).sum())
            change_V = (q - p).sum(0).double() if change_V is None else change_V + (q - p).sum(0).double()
            for row in kl_C.topk(min(top, len(kl_C))).indices.tolist():
                tops = tuple(_likeliest(part[row]) for part in (p, q))
                best.append((float(kl_C[row]), number, int(positions[start + row]), tops))
            kls.append(kl_C)
        places += [(number, int(position)) for position in positions]
    if change_V is None:
        return None
    moved = [_moved(documents, decode, *item) for item in sorted(best, key=lambda item: -item[0])[:top]]
    change_V = change_V / len(places)
    up, down = change_V.topk(min(top, len(change_V))), (-change_V).topk(min(top, len(change_V)))
    return Movement(
        on, len(documents), torch.cat(kls).double().cpu().numpy(), same / len(places), tuple(moved),
        tuple((decode([token]), value) for value, token in zip(*(part.tolist() for part in up), strict=True)),
        tuple((decode([token]), -value) for value, token in zip(*(part.tolist() for part in down), strict=True)),
    )  # fmt: skip


def _hidden(model: CausalLM, name: str, ids: np.ndarray, positions: np.ndarray) -> list[Tensor]:
    """Hidden states of base and tuned model at the positions."""
    batch = make_batch([(ids, np.zeros(len(ids), dtype=np.bool_))], [0]).to(model.device)
    index = torch.from_numpy(positions).to(model.device)
    found = []
    for names in ((), (name,)):
        activate(model.hf, names)
        found.append(model.hidden(batch).index_select(0, index))
    return found


def _log_shares(model: CausalLM, name: str, hidden: Sequence[Tensor]) -> list[Tensor]:
    """Log-probabilities behind each, through the head that each has."""
    found = []
    for names, part_CH in zip(((), (name,)), hidden, strict=True):
        activate(model.hf, names)
        found.append(model.logits_of(part_CH).log_softmax(-1))
    return found


def _likeliest(share_V: Tensor) -> tuple[tuple[int, float], ...]:
    found = share_V.topk(min(_ALTERNATIVES, len(share_V)))
    return tuple(zip(found.indices.tolist(), found.values.tolist(), strict=True))


def _moved(
    documents: Sequence[Document], decode: Decode, kl: float, number: int, position: int,
    tops: tuple[tuple[tuple[int, float], ...], ...],
) -> Moved:  # fmt: skip
    ids = documents[number][0].tolist()
    before, after = (tuple((decode([token]), share) for token, share in part) for part in tops)
    context = decode(ids[max(0, position + 1 - _CONTEXT_TOKENS) : position + 1])
    return Moved(number, position, context, decode([ids[position + 1]]), kl, before, after)
