"""The facade over encoders that read in both directions: BERT, RoBERTa and ModernBERT.

Everything is as for a causal model, but the attention of a pack has no direction, and the head of the masked language model
has layers of its own before the one that is fused with the loss.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tunesmith.errors import ModelError
from tunesmith.models.causal_lm import CausalLM
from tunesmith.models.head import Head
from tunesmith.models.token_rows import trained_rows
from tunesmith.types import Batch

_TOLERANCE = {torch.float32: 2e-4}
_TOLERANCE_16_BIT = 5e-2
_CHECKED_LENGTHS = (7, 5)


class EncoderLM(CausalLM):
    """An encoder as objectives see it; see ``CausalLM``."""

    def head(self) -> Head:
        """The layer of the masked language model's head that is fused with the loss."""
        layer = self.hf.get_output_embeddings()
        return Head(layer.weight, layer.bias, 1.0, None, trained_rows(layer))

    def _before_head(self, hidden_SH: Tensor) -> Tensor:
        hf = self.hf
        if hasattr(hf, "cls"):
            return hf.cls.predictions.transform(hidden_SH)  # type: ignore[no-any-return]
        if hasattr(hf, "lm_head"):
            return hf.lm_head.layer_norm(torch.nn.functional.gelu(hf.lm_head.dense(hidden_SH)))  # type: ignore[no-any-return]
        return hf.head(hidden_SH)  # type: ignore[no-any-return]

    def _inputs(self, tokens: dict[str, Tensor], positions: Tensor) -> dict[str, Any]:
        """What the base's forward takes; RoBERTa counts positions from behind the padding token's id."""
        config = self.hf.config
        if config.model_type == "modernbert":
            return {**tokens, "position_ids": positions}
        if config.model_type != "bert":
            positions = positions + config.pad_token_id + 1
        return {**tokens, "position_ids": positions, "token_type_ids": torch.zeros_like(positions)}

    @torch.no_grad()
    def check_facade(self, where: str = "") -> None:
        """Compare two documents in one pack with each by itself in the model's own forward.

        Args:
            where: the model's folder, for errors.

        Raises:
            ModelError: values are not finite, or the model does something that the facade does not know.
        """
        size = self.hf.get_input_embeddings().weight.shape[0]
        lengths, total = _CHECKED_LENGTHS, sum(_CHECKED_LENGTHS)
        ids_T = 3 + (torch.arange(total, device=self.device) * 7) % (size - 3)
        training = self.hf.training
        self.hf.eval()
        ours_TX = self._checked(self.hidden(_pack(ids_T, lengths)))
        with self.plain_attention():
            parts = ids_T.split(list(lengths))
            theirs_TX = torch.cat([self._plainly(part) for part in parts])
        self.hf.train(training)
        _compare(ours_TX, theirs_TX, self.hf, where)

    def _checked(self, hidden_TH: Tensor) -> Tensor:
        return hidden_TH.float() if self.is_headless else self.head().logits(self._before_head(hidden_TH))

    def _plainly(self, ids_T: Tensor) -> Tensor:
        if self.is_headless:
            return self.base()(input_ids=ids_T[None]).last_hidden_state[0].float()  # type: ignore[no-any-return]
        return self.hf(input_ids=ids_T[None]).logits[0].float()  # type: ignore[no-any-return]


def _pack(ids_T: Tensor, lengths: tuple[int, ...]) -> Batch:
    device, total = ids_T.device, len(ids_T)
    starts = torch.tensor([0, *lengths], device=device).cumsum(0)
    positions = torch.cat([torch.arange(length, device=device) for length in lengths])
    every = torch.arange(total, device=device)
    documents = torch.repeat_interleave(torch.arange(len(lengths), device=device), torch.tensor(lengths, device=device))
    return Batch(
        input_ids_T=ids_T, positions_T=positions, starts_D1=starts.int(), lengths=lengths, scored_S=every,
        targets_S=ids_T, weights_S=torch.ones(total, device=device), document_S=documents, rows=tuple(range(len(lengths))),
    )  # fmt: skip


def _compare(ours: Tensor, theirs: Tensor, hf: Any, where: str) -> None:
    if not bool(theirs.isfinite().all()):
        raise ModelError(
            "the model's weights give values that are not finite",
            where=where,
            hint="the weights are damaged or were saved from a run that diverged: copy them again",
        )
    gap = (ours - theirs).abs().max().item()
    bound = _TOLERANCE.get(hf.dtype, _TOLERANCE_16_BIT) * max(1.0, theirs.abs().max().item())
    if not gap <= bound:
        raise ModelError(
            f"this encoder ({type(hf).__name__}) computes in a way Tunesmith does not know: largest difference {gap:.3g} "
            f"against {bound:.3g} allowed",
            where=where,
            hint="tested encoders: BERT, RoBERTa, ModernBERT",
        )
