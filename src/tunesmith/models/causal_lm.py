"""The facade over a causal language model of transformers: packs in, wanted quantities out.

The base of the model runs with our packed attention; its head runs fused with the loss, inside ``forward``.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from tunesmith.models.attention import NAME
from tunesmith.models.divergence import symmetric_divergence
from tunesmith.models.embedding_noise import EmbeddingNoise
from tunesmith.models.facade_check import check_facade
from tunesmith.models.families import POSITIONS_AFTER_PADDING, Unpacked
from tunesmith.models.head import Head, token_logprob
from tunesmith.models.head_inputs import HeadInputs
from tunesmith.models.packs import in_rectangles
from tunesmith.models.token_rows import trained_rows
from tunesmith.models.virtual_tokens import front_of
from tunesmith.types import Batch, Outputs


class CausalLM(nn.Module):
    """A causal language model as objectives see it.

    Args:
        hf: the module of transformers; adapters attach to it and its parameter names are the names everywhere.
        unpacked: why its documents cannot lie in one row; None where they can.
    """

    is_causal = True
    """Whether a token sees those before it only."""

    def __init__(self, hf: nn.Module, unpacked: Unpacked | None = None) -> None:
        super().__init__()
        self.hf: Any = hf
        self.unpacked = unpacked
        self.noise: EmbeddingNoise | None = None
        self._head_inputs: HeadInputs | None = None
        self._plain = plain_attention_of(type(hf))
        self.use_packs()

    @property
    def device(self) -> torch.device:
        """Device of the parameters."""
        device: torch.device = next(self.hf.parameters()).device
        return device

    def use_packs(self) -> None:
        """Run attention over packs (training, scoring); a model that cannot pack keeps its own."""
        _set_attention(self.hf, self._plain if self.unpacked else NAME)

    @property
    def packing(self) -> str:
        """How the documents of a batch run, in words."""
        return "documents in one row" if self.unpacked is None else self.unpacked.how

    @property
    def shares_passes(self) -> bool:
        """Whether each layer sees every token of a batch, once, and the head is read outside of the model."""
        return self.unpacked is None and self._head_inputs is None

    @property
    def takes_trees(self) -> bool:
        """Whether the base takes a mask of our own and gives what the head reads (candidates as a tree)."""
        return self.shares_passes and self._plain == "sdpa" and not self.first_position

    @property
    def first_position(self) -> int:
        """Number of a document's first position."""
        config = self.hf.config.get_text_config()
        return int(config.pad_token_id) + 1 if config.model_type in POSITIONS_AFTER_PADDING else 0

    @property
    def catches_head_inputs(self) -> bool:
        """Whether the model itself leads to its output layer."""
        return self._head_inputs is not None

    def catch_head_inputs(self) -> bool:
        """From here on let the model itself lead to its output layer; False where it did already or there is none."""
        layer = self.hf.get_output_embeddings()
        if self._head_inputs is not None or layer is None:
            return False
        self._head_inputs = HeadInputs(layer)
        return True

    def add_embedding_noise(self, alpha: float) -> None:
        """From here on passes in training mode read their tokens with noise (NEFTune)."""
        self.noise = EmbeddingNoise(self.hf.get_input_embeddings(), alpha)

    def base(self) -> Any:
        """The model without its language head."""
        return base_of(self.hf)

    @property
    def is_headless(self) -> bool:
        """Whether the language head was dropped."""
        return self.hf.get_output_embeddings() is None

    def drop_head(self) -> None:
        """Take away the language head, so that nothing trains, adapts or saves it."""
        base = self.base()
        for name, _ in list(self.hf.named_children()):
            if getattr(self.hf, name) is not base:
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
        """Within the context ``hf`` is an ordinary model of transformers with its own attention (generation with a cache)."""
        was_training = self.hf.training
        _set_attention(self.hf, self._plain)
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
        return self._states(batch, layer, of_head=False)

    def _states(self, batch: Batch, layer: int | None, *, of_head: bool) -> Tensor:
        """Hidden states, or with ``of_head`` what the head is read from."""
        if self.noise is not None:
            self.noise.lengths = batch.lengths if self.hf.training else None
        front = front_of(self.hf)
        laid = front.lay(batch, self.hf.get_input_embeddings())
        caught = self._head_inputs if of_head else None
        if self.unpacked is None:
            given = self._inputs(laid.tokens, laid.positions_T[None]) | {"pack": laid.pack}
            hidden_TH = self._run(given, layer, caught)[0]
        else:
            even = self.unpacked.even
            hidden_TH = in_rectangles(laid.tokens, laid.pack, lambda rows: self._run(rows, layer, caught), even=even)
        if self.noise is not None:  # generation reads the same embedding
            self.noise.lengths = None
        if front.cached is not None:
            front.cached.require_all_asked(self.hf)
        return hidden_TH if laid.own_T is None else hidden_TH.index_select(0, laid.own_T)

    def _run(self, given: dict[str, Any], layer: int | None, caught: HeadInputs | None) -> Tensor:
        """States ``[N, L, H]`` of rows, or of a pack as one row."""
        module = self.hf if caught else self.base()
        if "use_cache" in _parameters_of(module):
            given = given | {"use_cache": False}
        if caught is not None:
            return caught.of(module, given)
        if layer is None:
            return module(**given).last_hidden_state  # type: ignore[no-any-return]
        return module(**given, output_hidden_states=True).hidden_states[layer]  # type: ignore[no-any-return]

    def _inputs(self, tokens: dict[str, Tensor], positions: Tensor) -> dict[str, Any]:
        """What the base's forward takes of a pack; ``tokens`` has ``input_ids`` or ``inputs_embeds``."""
        given: dict[str, Any] = {**tokens, "position_ids": positions + self.first_position}
        has_types = getattr(self.hf.config, "type_vocab_size", 0) and "token_type_ids" in _parameters_of(self.base())
        return given | ({"token_type_ids": torch.zeros_like(positions)} if has_types else {})

    def logits(self, batch: Batch) -> Tensor:
        """Logits of every position of a pack ``[T, V]``, in fp32."""
        return self.logits_of(self.states(batch))

    def states(self, batch: Batch) -> Tensor:
        """What ``logits_of`` reads of every position of a pack ``[T, H]``: hidden states, or what the output layer is given."""
        return self._states(batch, None, of_head=True)

    def logits_of(self, hidden_SH: Tensor) -> Tensor:
        """Logits behind ``states`` ``[S, V]``, in fp32."""
        return self.head().logits(self._before_head(hidden_SH))

    def last_logits(self, batch: Batch) -> Tensor:
        """Logits behind the last token of each document of a pack ``[D, V]``, in fp32."""
        return self.logits_of(self.states(batch).index_select(0, batch.starts_D1[1:].long() - 1))

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
        only_hidden = set(want) <= {"hidden"}
        hidden_TH = self._states(batch, layer, of_head=not only_hidden)
        if only_hidden:
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

    def check_facade(self, where: str = "") -> None:
        """Compare our head and attention with the model's own forward on a dozen tokens.

        Args:
            where: the model's folder, for errors.

        Raises:
            ModelError: values are not finite, documents of a pack see each other, or the model does something to hidden states or
                logits that the facade does not know.
        """
        check_facade(self, where)

    def checked(self, batch: Batch) -> Tensor:
        """What the check compares ``[T, …]``: logits, or states where there is no language head."""
        return self.hidden(batch).float() if self.is_headless else self.logits(batch)

    def plainly(self, ids_T: Tensor) -> Tensor:
        """The same of one document by the model's own forward."""
        if self.is_headless:
            return self.base()(input_ids=ids_T[None]).last_hidden_state[0].float()  # type: ignore[no-any-return]
        return self.hf(input_ids=ids_T[None]).logits[0].float()  # type: ignore[no-any-return]


def base_of(hf: Any) -> Any:
    """The model without its language head: by its prefix, else the child that holds the embedding of tokens."""
    base = getattr(hf, hf.base_model_prefix, None)
    if base is not None:
        return base
    embedding = hf.get_input_embeddings()
    return next(child for child in hf.children() if any(module is embedding for module in child.modules()))


def _parameters_of(module: nn.Module) -> frozenset[str]:
    """Names of what a module's forward takes."""
    return frozenset(inspect.signature(module.forward).parameters)


def _set_attention(hf: Any, name: str) -> None:
    """Switch every attention layer; they share the model's configuration object."""
    for config in {id(item): item for item in (hf.config, hf.config.get_text_config())}.values():
        config._attn_implementation = name


def plain_attention_of(kind: Any) -> str:
    """The attention of transformers that a class of models runs with, where packs are not asked for."""
    return "sdpa" if getattr(kind, "_supports_sdpa", False) else "eager"
