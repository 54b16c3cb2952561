"""What parity is measured on, and by: general texts, logits of every position, and the gates over them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from tunesmith.data.loader import make_batch
from tunesmith.data.tokenizer import Tokenizer
from tunesmith.evaluation.probes import general_texts
from tunesmith.models.causal_lm import CausalLM
from tunesmith.workshop.gates import GateResult, gate_b

NUM_TEXTS = 24
_MOST_LOGITS = 1 << 26
Document = tuple[np.ndarray, np.ndarray]
"""Token ids, and which of them are trained."""


def general_documents(tokenizer: Tokenizer, context: int) -> list[Document]:
    """The first general texts of the package, cut to the context."""
    found = []
    for text in islice(general_texts(), NUM_TEXTS):
        ids = np.asarray(tokenizer.encode_document(text.text)[:context], dtype=np.uint32)
        found.append((ids, np.ones(len(ids), dtype=np.bool_)))
    return found


def within(documents: Sequence[Document], vocab_size: int) -> list[Document]:
    """Documents from both ends of the list, cut so that their logits fit into memory."""
    kept: list[Document] = []
    budget = max(64, _MOST_LOGITS // vocab_size)
    for ids, trained in [*documents[::-2], *documents[len(documents) % 2 :: 2]]:
        room = budget - sum(len(item) for item, _ in kept)
        if room < 2:
            break
        kept.append((ids[:room], trained[:room]))
    return kept


@torch.inference_mode()
def logits_of(model: CausalLM, documents: Sequence[Document]) -> Tensor:
    """Logits of every position of every document ``[N, V]``, in fp32."""
    model.eval()
    parts: list[Tensor] = []
    for number, (ids, trained) in enumerate(documents):
        batch = make_batch([(ids, np.ones_like(trained))], [number]).to(model.device)
        parts.append(model.logits(batch))
    return torch.cat(parts)


def on_file(written_NV: Tensor, trained_NV: Tensor, what: str, dtype: torch.dtype) -> GateResult:
    """Gate B of what was written in ``dtype`` against what was trained."""
    return gate_b(trained_NV.log_softmax(-1), written_NV.log_softmax(-1), f"{what} written in {name_of(dtype)}")


def name_of(dtype: torch.dtype) -> str:
    """``float32`` and the like."""
    return str(dtype).removeprefix("torch.")
