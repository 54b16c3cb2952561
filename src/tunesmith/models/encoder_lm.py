"""The facade over encoders that read in both directions.

Everything is as for a causal model, but the attention of a pack has no direction, and the head of the masked language model
has layers of its own before the one that is fused with the loss. Those of BERT, RoBERTa and ModernBERT run here, on scored positions
alone; other encoders lead to their output layer themselves.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from tunesmith.models.causal_lm import CausalLM
from tunesmith.models.families import OWN_HEADS, Unpacked
from tunesmith.models.head import Head
from tunesmith.models.token_rows import trained_rows


class EncoderLM(CausalLM):
    """An encoder as objectives see it; see ``CausalLM``."""

    is_causal = False

    def __init__(self, hf: nn.Module, unpacked: Unpacked | None = None) -> None:
        super().__init__(hf, unpacked)
        if self.hf.config.model_type not in OWN_HEADS:
            self.catch_head_inputs()

    def head(self) -> Head:
        """The layer of the masked language model's head that is fused with the loss."""
        layer = self.hf.get_output_embeddings()
        return Head(layer.weight, layer.bias, 1.0, None, trained_rows(layer))

    def _before_head(self, hidden_SH: Tensor) -> Tensor:
        hf = self.hf
        if self.catches_head_inputs:
            return hidden_SH
        if hasattr(hf, "cls"):
            return hf.cls.predictions.transform(hidden_SH)  # type: ignore[no-any-return]
        if hasattr(hf, "lm_head"):
            return hf.lm_head.layer_norm(F.gelu(hf.lm_head.dense(hidden_SH)))  # type: ignore[no-any-return]
        return hf.head(hidden_SH)  # type: ignore[no-any-return]
