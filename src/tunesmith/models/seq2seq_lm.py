"""The facade over encoder–decoder models (T5, BART): the encoder reads what precedes the first token asked for, the decoder writes the rest.

    pack       [ prompt 0 | answer 0 ][ prompt 1 | answer 1 ]      documents as for any other model
    encoder      prompt 0 ····          prompt 1                   side by side, padded; the padding is masked
    decoder      start answer 0         start answer 1             what is read at a place predicts the next token of the answer

So a batch, its mask, its ledger and whoever scores it know nothing of the two halves. The state of a pack's position is that which
predicts the token behind it; positions within a prompt have none, and are zero.

Shapes: T tokens of a pack, N documents of a group, H hidden width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from transformers import DynamicCache, EncoderDecoderCache

from tunesmith.errors import ModelError
from tunesmith.models.attention import like_lengths, moved
from tunesmith.models.causal_lm import CausalLM
from tunesmith.models.families import ENCODER_DECODER, Unpacked
from tunesmith.models.head import Head
from tunesmith.types import Batch

_CHECKED_PROMPT = 4


@dataclass(frozen=True)
class _Halves:
    """Where each document of a pack begins, where its answer begins, and how long it is."""

    starts: npt.NDArray[np.int64]
    prompts: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int64]


class Seq2SeqLM(CausalLM):
    """An encoder–decoder model as objectives see it; see ``CausalLM``.

    Raises:
        ModelError: the configuration does not say which token a decoder starts with.
    """

    is_causal = False

    def __init__(self, hf: nn.Module, unpacked: Unpacked | None = ENCODER_DECODER) -> None:
        super().__init__(hf, unpacked)
        config: Any = self.hf.config
        start_id = getattr(config, "decoder_start_token_id", None)
        if not isinstance(start_id, int):
            raise ModelError(
                f"{type(hf).__name__} does not say which token its decoder starts with",
                where=str(config.name_or_path),
                hint="add `decoder_start_token_id` to config.json: of T5 that of padding, of mBART the code of the target language",
            )
        self.start_id: int = start_id
        self.pad_id: int = config.pad_token_id if isinstance(config.pad_token_id, int) else start_id
        self.catch_head_inputs()

    def head(self) -> Head:
        """The output layer, with the bias that BART and its kin keep beside it."""
        head = super().head()
        bias = getattr(self.hf, "final_logits_bias", None)
        return head if bias is None else replace(head, bias_V=bias[0])

    def checked(self, batch: Batch) -> Tensor:
        """Logits from behind a prompt of four tokens of each document."""
        starts = np.cumsum(batch.lengths) - np.asarray(batch.lengths)
        lengths = zip(starts.tolist(), batch.lengths, strict=True)
        scored = [np.arange(start + _CHECKED_PROMPT - 1, start + length) for start, length in lengths]
        counts = [len(item) for item in scored]
        scored_S = torch.from_numpy(np.concatenate(scored)).to(self.device)
        documents_S = torch.from_numpy(np.repeat(np.arange(len(counts)), counts)).to(self.device)
        states_TH = self.states(replace(batch, scored_S=scored_S, document_S=documents_S))
        return self.logits_of(states_TH.index_select(0, scored_S))

    def plainly(self, ids_T: Tensor) -> Tensor:
        """The same of one document by the model's own forward."""
        read, written = ids_T[:_CHECKED_PROMPT], ids_T[_CHECKED_PROMPT:]
        start = torch.tensor([self.start_id], device=ids_T.device)
        given = {"input_ids": read[None], "decoder_input_ids": torch.cat([start, written])[None], "use_cache": False}
        return self.hf(**given).logits[0].float()  # type: ignore[no-any-return]

    def _states(self, batch: Batch, layer: int | None, *, of_head: bool) -> Tensor:
        caught = self._head_inputs
        if layer is not None or not of_head or caught is None:
            raise ModelError(
                "an encoder–decoder model gives no features of a layer",
                where=type(self.hf).__name__,
                hint="take an encoder or a causal language model for a head",
            )
        halves = _halves(batch)
        total = len(batch.input_ids_T)
        pieces, places = [], []
        for members in like_lengths(halves.lengths):
            rows = _Rectangle(batch.input_ids_T, halves, members)
            found_NMH = caught.of(self.hf, {**rows.given(self.start_id, self.pad_id), "use_cache": False})
            pieces.append(found_NMH.flatten(0, 1).index_select(0, moved(rows.real, batch.input_ids_T.device)))
            places.append(rows.places)
        states_RH = torch.cat(pieces)
        states_TH = states_RH.new_zeros(total, states_RH.shape[1])
        return states_TH.index_copy(0, moved(np.concatenate(places), states_RH.device), states_RH)


def _halves(batch: Batch) -> _Halves:
    lengths = np.asarray(batch.lengths, dtype=np.int64)
    starts = np.cumsum(lengths) - lengths
    scored, documents = (item.cpu().numpy() for item in (batch.scored_S, batch.document_S))
    first = starts + np.maximum(lengths - 2, 0)
    asked, where = np.unique(documents, return_index=True)
    first[asked] = scored[where]
    return _Halves(starts, np.clip(first - starts + 1, 1, np.maximum(lengths, 1)), lengths)


class _Rectangle:
    """Documents of a group as padded rows of both halves.

    ``real`` are the cells of the decoder's rows, flattened, that stand for a position of the pack, and ``places`` those positions.
    """

    def __init__(self, ids_T: Tensor, halves: _Halves, members: npt.NDArray[np.int64]) -> None:
        self.ids_T = ids_T
        self.starts, self.read = halves.starts[members], halves.prompts[members]
        self.written = halves.lengths[members] - self.read
        self.width = int(self.written.max()) + 1
        columns = np.arange(self.width)[None]
        real_NM = columns <= self.written[:, None]
        self.real = np.flatnonzero(real_NM)
        self.places = ((self.starts + self.read - 1)[:, None] + columns)[real_NM]

    def given(self, start_id: int, pad_id: int) -> dict[str, Tensor]:
        """What the model takes."""
        answers_NM = self._rows(self.starts + self.read, self.written, pad_id)
        start_N1 = answers_NM.new_full((len(self.read), 1), start_id)
        prompts_NL = self._rows(self.starts, self.read, pad_id)
        seen_NL = np.arange(int(self.read.max()))[None] < self.read[:, None]
        return {
            "input_ids": prompts_NL,
            "attention_mask": moved(seen_NL.astype(np.int64), self.ids_T.device),
            "decoder_input_ids": torch.cat([start_N1, answers_NM], dim=1),
        }

    def _rows(self, starts: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64], pad_id: int) -> Tensor:
        columns = np.arange(int(lengths.max()))[None]
        real_NL = columns < lengths[:, None]
        take_NL = np.where(real_NL, starts[:, None] + columns, 0)
        rows_NL = self.ids_T[moved(take_NL, self.ids_T.device)]
        return rows_NL.masked_fill(~moved(real_NL.astype(np.int64), self.ids_T.device).bool(), pad_id)


class Answering:
    """Answers of a batch of prompts as they grow: the prompts are read once, and the decoder keeps its cache.

    Args:
        model: the facade.
        prompts: token ids of each.
    """

    def __init__(self, model: Seq2SeqLM, prompts: Sequence[Sequence[int]]) -> None:
        self.hf, device = model.hf, model.device
        longest = max(len(prompt) for prompt in prompts)
        ids = [[*prompt, *[model.pad_id] * (longest - len(prompt))] for prompt in prompts]
        seen = [[1] * len(prompt) + [0] * (longest - len(prompt)) for prompt in prompts]
        self.mask_BL = torch.tensor(seen, device=device)
        encoder = self.hf.get_encoder()
        self.read = encoder(input_ids=torch.tensor(ids, device=device), attention_mask=self.mask_BL)
        self.cache: Any = EncoderDecoderCache(DynamicCache(), DynamicCache())
        self.logits_BV = self._forward(torch.full((len(prompts),), model.start_id, device=device))

    def _forward(self, tokens_B: Tensor) -> Tensor:
        result = self.hf(
            encoder_outputs=self.read, attention_mask=self.mask_BL, decoder_input_ids=tokens_B[:, None],
            past_key_values=self.cache, use_cache=True,
        )  # fmt: skip
        logits_BV: Tensor = result.logits[:, -1].float()
        return logits_BV

    def keep(self, rows: list[int]) -> None:
        """Drop the answers that ended."""
        index = torch.tensor(rows, device=self.mask_BL.device)
        self.cache.batch_select_indices(index)
        self.mask_BL = self.mask_BL[index]
        self.read.last_hidden_state = self.read.last_hidden_state[index]

    def advance(self, tokens_B: Tensor) -> None:
        """Append a token to each answer."""
        self.logits_BV = self._forward(tokens_B)
