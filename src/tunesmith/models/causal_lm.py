"""The facade over a causal language model of transformers: packs in, wanted quantities out.

The base of the model runs with our packed attention; its head runs fused with the loss, inside ``forward``.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from tunesmith.errors import ModelError
from tunesmith.models.attention import NAME
from tunesmith.models.divergence import symmetric_divergence
from tunesmith.models.embedding_noise import EmbeddingNoise
from tunesmith.models.head import Head, token_logprob
from tunesmith.models.token_rows import trained_rows
from tunesmith.models.virtual_tokens import front_of
from tunesmith.types import Batch, Outputs


class CausalLM(nn.Module):
    """A causal language model as objectives see it.

    ``hf`` is the module of transformers; adapters attach to it and its parameter names are the names everywhere.
    """

    def __init__(self, hf: nn.Module) -> None:
        super().__init__()
        self.hf: Any = hf
        self.noise: EmbeddingNoise | None = None
        self.use_packs()

    @property
    def device(self) -> torch.device:
        """Device of the parameters."""
        device: torch.device = next(self.hf.parameters()).device
        return device

    def use_packs(self) -> None:
        """Run attention over packs (training, scoring)."""
        _set_attention(self.hf, NAME)

    def add_embedding_noise(self, alpha: float) -> None:
        """From here on passes in training mode read their tokens with noise (NEFTune)."""
        self.noise = EmbeddingNoise(self.hf.get_input_embeddings(), alpha)

    def base(self) -> Any:
        """The model without its language head."""
        return getattr(self.hf, self.hf.base_model_prefix)

    @property
    def is_headless(self) -> bool:
        """Whether the language head was dropped."""
        return self.hf.get_output_embeddings() is None

    def drop_head(self) -> None:
        """Take away the language head, so that nothing trains, adapts or saves it."""
        for name, _ in list(self.hf.named_children()):
            if name != self.hf.base_model_prefix:
                setattr(self.hf, name, None)
        self.hf.get_output_embeddings = lambda: None

    def train(self, mode: bool = True) -> CausalLM:
        """Set the mode of the layers; a base that is frozen whole stays in evaluation mode, since nothing learns from noise."""
        super().train(mode and any(parameter.requires_grad for parameter in self.parameters()))
        return self

    def recompute_activations(self) -> None:
        """Keep only each layer's input and run the layer again in the backward pass."""
        enable = getattr(self.hf, "activation_checkpointing_enable", None) or self.hf.gradient_checkpointing_enable
        enable({"use_reentrant": False})

    @contextmanager
    def plain_attention(self) -> Iterator[Any]:
        """Within the context ``hf`` is an ordinary model of transformers with SDPA (generation with a cache)."""
        was_training = self.hf.training
        _set_attention(self.hf, "sdpa")
        self.hf.eval()
        try:
            yield self.hf
        finally:
            self.hf.train(was_training)
            self.use_packs()

    def head(self) -> Head:
        """The output head as tensors, with what the model does to its logits."""
        layer = self.hf.get_output_embeddings()
        config = self.hf.config.get_text_config()
        scale = float(getattr(config, "logit_scale", None) or 1.0)
        if getattr(config, "logits_scaling", None):
            scale /= float(config.logits_scaling)
        cap = getattr(config, "final_logit_softcapping", None)
        return Head(layer.weight, getattr(layer, "bias", None), scale, cap, trained_rows(layer))

    def hidden(self, batch: Batch, layer: int | None = None) -> Tensor:
        """Hidden states ``[T, H]`` of a pack: behind the final norm, or of layer ``layer`` where 0 is the embedding.

        Virtual tokens of adapters go in here and leave no state.
        """
        if self.noise is not None:
            self.noise.lengths = batch.lengths if self.hf.training else None
        front = front_of(self.hf)
        laid = front.lay(batch, self.hf.get_input_embeddings())
        result = self.base()(
            **self._inputs(laid.tokens, laid.positions_T[None]), pack=laid.pack, output_hidden_states=layer is not None
        )
        if self.noise is not None:  # generation reads the same embedding
            self.noise.lengths = None
        if front.cached is not None:
            front.cached.require_all_asked(self.hf)
        hidden_TH: Tensor = (result.last_hidden_state if layer is None else result.hidden_states[layer])[0]
        return hidden_TH if laid.own_T is None else hidden_TH.index_select(0, laid.own_T)

    def _inputs(self, tokens: dict[str, Tensor], positions: Tensor) -> dict[str, Any]:
        """What the base's forward takes; ``tokens`` has ``input_ids`` or ``inputs_embeds``."""
        return {**tokens, "position_ids": positions, "use_cache": False}

    def logits(self, batch: Batch) -> Tensor:
        """Logits of every position of a pack ``[T, V]``, in fp32."""
        return self.logits_of(self.hidden(batch))

    def logits_of(self, hidden_SH: Tensor) -> Tensor:
        """Logits behind hidden states of the last layer ``[S, V]``, in fp32."""
        return self.head().logits(self._before_head(hidden_SH))

    def _before_head(self, hidden_SH: Tensor) -> Tensor:
        """What the fused head reads."""
        return hidden_SH

    def forward(
        self,
        batch: Batch,
        want: Collection[str] = ("logprob",),
        against: Tensor | None = None,
        layer: int | None = None,
    ) -> Outputs:
        """Run the pack.

        Args:
            batch: the pack, on the model's device.
            want: any of ``logprob``, ``mean_logprob``, ``entropy``, ``correct``, ``hidden``, ``divergence``.
            against: hidden states ``[T, H]`` of another pass over the pack, which ``divergence`` is measured from.
            layer: whose output ``hidden`` is, where nothing else is wanted; None is the last.

        Returns:
            What was wanted; log-probabilities in fp32 nats at scored positions.
        """
        hidden_TH = self.hidden(batch, layer)
        if set(want) <= {"hidden"}:
            return Outputs(hidden_TH=hidden_TH)
        more = "entropy" in want or "correct" in want
        scored_SH = self._before_head(hidden_TH.index_select(0, batch.scored_S))
        mean = "mean_logprob" in want
        scored = token_logprob(scored_SH, self.head(), batch.targets_S, want_more=more, want_mean=mean)
        return Outputs(
            logprob_S=scored.logprob_S,
            entropy_S=scored.entropy_S if more else None,
            correct_S=scored.correct_S if more else None,
            mean_logprob_S=scored.mean_S if mean else None,
            hidden_TH=hidden_TH if "hidden" in want else None,
            divergence_S=self._divergence(scored_SH, against, batch) if "divergence" in want else None,
        )

    def _divergence(self, scored_SH: Tensor, against: Tensor | None, batch: Batch) -> Tensor:
        if against is None:
            raise ValueError("`divergence` is measured from the hidden states `against` of another pass")
        return symmetric_divergence(scored_SH, against.index_select(0, batch.scored_S), self.head())

    @torch.no_grad()
    def check_facade(self, where: str = "") -> None:
        """Compare our head and packed attention with the model's own forward on a dozen tokens.

        Args:
            where: the model's folder, for errors.

        Raises:
            ModelError: values are not finite, or the model does something to hidden states or logits that the facade
                does not know.
        """
        size = self.hf.get_input_embeddings().weight.shape[0]
        ids_T = (torch.arange(12, device=self.device) * 7 + 3) % size
        batch = Batch(
            input_ids_T=ids_T, positions_T=torch.arange(12, device=self.device),
            starts_D1=torch.tensor([0, 12], dtype=torch.int32, device=self.device), lengths=(12,),
            scored_S=torch.arange(12, device=self.device), targets_S=ids_T,
            weights_S=torch.ones(12, device=self.device), document_S=torch.zeros(12, dtype=torch.long, device=self.device),
            rows=(0,),
        )  # fmt: skip
        training = self.hf.training
        self.hf.eval()
        hidden_TH = self.hidden(batch)
        ours_TV = hidden_TH.float() if self.is_headless else self.head().logits(hidden_TH)
        self.hf.train(training)
        with self.plain_attention() as hf:
            if self.is_headless:
                theirs_TV = self.base()(input_ids=ids_T[None], use_cache=False).last_hidden_state[0].float()
            else:
                theirs_TV = hf(input_ids=ids_T[None], use_cache=False).logits[0].float()
        if not bool(theirs_TV.isfinite().all()):
            raise ModelError(
                "the model's weights give values that are not finite",
                where=where,
                hint="the weights are damaged or were saved from a run that diverged: copy them again",
            )
        gap = (ours_TV - theirs_TV).abs().max().item()
        bound = (2e-4 if self.hf.dtype == torch.float32 else 5e-2) * max(1.0, theirs_TV.abs().max().item())
        if not gap <= bound:
            raise ModelError(
                f"this architecture ({type(self.hf).__name__}) computes its logits in a way Tunesmith does not know: "
                f"largest difference {gap:.3g} against {bound:.3g} allowed",
                where=where,
                hint="tested families: Llama, Qwen 2 and 3, Mistral, Gemma, Phi, GPT-2",
            )


def _set_attention(hf: Any, name: str) -> None:
    """Switch every attention layer; they share the model's configuration object."""
    for config in {id(item): item for item in (hf.config, hf.config.get_text_config())}.values():
        config._attn_implementation = name
