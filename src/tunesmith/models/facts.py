"""Sizes of a model from its config.json and the headers of its weight files. Torch-free; no weight is read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path
from typing import Any

from tunesmith.errors import ModelError
from tunesmith.models import config_file, names
from tunesmith.models.dropout import dropout_rates
from tunesmith.models.families import (
    BASE_PREFIX,
    ENCODER_DECODER,
    ENCODER_DECODERS,
    ENCODERS,
    POSITIONS_AFTER_PADDING,
    SHARED_LAYERS,
    UNPACKED,
    WITHOUT_HEADS,
    Unpacked,
)
from tunesmith.models.weights import TensorInfo, read_tensors

MOST_SIZE = 1 << 40
"""The largest size that a config may state; the largest known, a context of 10 million tokens, is far below."""

_BUFFERS = re.compile(
    r"^final_logits_bias$|rotary_emb\.inv_freq$|\.masked_bias$|position_ids$|rotary_pos_emb\.inv_freq$"
)
_SHORT_TYPES = {"F32": "fp32", "BF16": "bf16", "F16": "fp16"}
_UNSTATED_CONTEXT = 2048
_HIDDEN = ("hidden_size", "n_embd", "d_model", "dim", "emb_dim")
_HEADS = (
    "num_attention_heads",
    "n_head",
    "num_heads",
    "n_heads",
    "decoder_attention_heads",
    "num_decoder_attention_heads",
    "attention_heads",
)
_LAYERS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers", "decoder_layers", "num_decoder_layers")
_CONTEXT = (
    "max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "n_ctx", "max_target_positions",
    "max_decoder_position_embeddings",
)  # fmt: skip
"""Names of sizes, in the order in which they are believed."""
_HEAD_WEIGHT = re.compile(r"^[^.]+\.weight$|\.decoder\.weight$")
"""The matrix of a language head that a tied embedding stands in for; encoders have other layers in theirs."""
_TIED_BIASES = ("predictions.decoder.bias", "lm_head.decoder.bias")


@dataclass(frozen=True)
class ModelFacts:
    """What the files say of a model, without loading it.

    ``tensors`` maps parameter names as transformers' module has them to shapes; a tied head and buffers are left out, so
    ``num_parameters`` counts each parameter once. ``dtype`` is ``fp32``, ``bf16`` or ``fp16``, that of most bytes.
    ``embedding_rows`` is what a token id may reach at most, minus one. ``dropped_fields`` of config.json are not obeyed.
    ``dropout`` maps the kinds that the family has (``attention``, ``hidden``, ``embedding``) to the configuration's rates.
    ``headless`` where the language head is left out of all this; ``has_pooler`` where an encoder's files hold a layer that was
    trained on its first token.
    """

    architecture: str
    model_type: str
    num_parameters: int
    weights_bytes: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    embedding_rows: int
    context: int
    context_stated: bool
    tied: bool
    dtype: str
    activation: str
    gated: bool
    sliding_window: int | None
    tensors: Mapping[str, tuple[int, ...]]
    dropped_fields: tuple[str, ...]
    dropout: Mapping[str, float] = field(default_factory=dict)
    headless: bool = False
    has_pooler: bool = False

    @property
    def is_encoder(self) -> bool:
        """Whether each token sees those before and those behind it."""
        named = any(word in self.architecture for word in ("MaskedLM", "WithLMHeadModel"))
        return self.model_type in ENCODERS and (named or not self.is_causal_lm)

    @property
    def unpacked(self) -> Unpacked | None:
        """Why documents of this family cannot lie in one row; None where they can."""
        return ENCODER_DECODER if self.is_encoder_decoder else UNPACKED.get(self.model_type)

    @property
    def is_encoder_decoder(self) -> bool:
        """Whether an encoder reads the prompt and a decoder writes the answer."""
        return self.model_type in ENCODER_DECODERS and "CausalLM" not in self.architecture

    @property
    def logit_rows(self) -> int:
        """Tokens that the language head tells apart; 1 where there is none."""
        return 1 if self.headless else self.embedding_rows

    @property
    def base_prefix(self) -> str:
        """First part of the names of the base model's own parameters."""
        return BASE_PREFIX.get(self.model_type, "model")

    @property
    def is_causal_lm(self) -> bool:
        """Whether the architecture predicts the next token, by its name."""
        words = ("CausalLM", "LMHeadModel", "GenerationDecoder", "ForConditionalGeneration")
        return not self.is_encoder_decoder and any(word in self.architecture for word in words)

    @property
    def shape_name(self) -> str:
        """Short name of the shape; models that share it cost the same."""
        return (
            f"{self.model_type}-h{self.hidden_size}-l{self.num_layers}-q{self.num_heads}x{self.head_dim}"
            f"-kv{self.num_kv_heads}-f{self.intermediate_size}-v{self.embedding_rows}"
        )


def read_facts(folder: Path) -> ModelFacts:
    """Read config.json and the safetensors headers of a model folder.

    Raises:
        ModelError: config.json missing, broken or without a size; weights missing, torn, pickled or quantised; config
            and weights that do not belong together.
    """
    whole = config_file.read_config(folder)
    inner = whole.get("text_config")
    config = {**whole, **inner} if isinstance(inner, dict) and "hidden_size" not in whole else whole
    stored = read_tensors(folder)
    _refuse_quantised(folder, whole, stored)
    model_type = str(config.get("model_type", "unknown"))
    tied = _is_tied(config, stored)
    kept = _parameters(stored, model_type, tied)
    shapes = {name: item.shape for name, item in kept.items()}
    size = _Sizes(folder, config)
    hidden = size.need(*_HIDDEN)
    heads = 1 if model_type in WITHOUT_HEADS else size.need(*_HEADS)
    vocabulary = size.need("vocab_size")
    rows = next(
        (shape[0] for name, shape in shapes.items() if names.is_embedding(name) and len(shape) == 2), vocabulary
    )
    context = size.get(*_CONTEXT)
    facts = ModelFacts(
        architecture=_architecture(whole),
        model_type=model_type,
        num_parameters=sum(item.num_elements for item in kept.values()),
        weights_bytes=sum(item.num_bytes for item in kept.values()),
        hidden_size=hidden,
        num_layers=size.length("layers_block_type") or size.need(*_LAYERS),
        num_heads=heads,
        num_kv_heads=_kv_heads(config, size, heads),
        head_dim=size.get("head_dim", "d_kv") or max(1, hidden // heads),
        intermediate_size=size.get(
            "intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size", "d_ff", "decoder_ffn_dim"
        )
        or 4 * hidden,
        vocab_size=vocabulary,
        embedding_rows=rows,
        context=(context or _UNSTATED_CONTEXT) - _lost_positions(config, model_type),
        context_stated=context is not None,
        tied=tied,
        dtype=_main_dtype(kept),
        activation=str(config.get("hidden_act") or config.get("activation_function") or "gelu"),
        gated=any(re.search(r"gate_proj|gate_up_proj|\.w3\.", name) for name in shapes),
        sliding_window=_sliding_window(config, size),
        tensors=shapes,
        dropped_fields=config_file.dropped(whole),
        dropout=dropout_rates(config, model_type),
        has_pooler=any(name.endswith("pooler.dense.weight") for name in stored),
    )
    _check_together(folder, facts)
    return facts


def headless(facts: ModelFacts) -> ModelFacts:
    """The same model without its language head, as a head of another kind reads it."""
    kept = {name: shape for name, shape in facts.tensors.items() if name.startswith(f"{facts.base_prefix}.")}
    left = sum(prod(shape) for shape in kept.values())
    share = left / facts.num_parameters if facts.num_parameters else 1.0
    return replace(
        facts,
        tensors=kept,
        num_parameters=left,
        weights_bytes=round(facts.weights_bytes * share),
        tied=False,
        headless=True,
    )


def _architecture(config: Mapping[str, Any]) -> str:
    named = config.get("architectures")
    return str(named[0]) if isinstance(named, list) and named else "unknown"


class _Sizes:
    """Positive whole numbers of a config under any of their names; enormous ones are refused."""

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        self.folder = folder
        self.config = config

    def get(self, *keys: str) -> int | None:
        for key in keys:
            value = self.config.get(key)
            if isinstance(value, list) and value and all(isinstance(item, int) for item in value):
                value = max(value)
            if isinstance(value, int) and not isinstance(value, bool) and value > 0:
                return self._believable(key, value)
        return None

    def length(self, key: str) -> int | None:
        """Length of a list that has an entry for each layer."""
        value = self.config.get(key)
        return self._believable(key, len(value)) if isinstance(value, list) and value else None

    def need(self, *keys: str) -> int:
        value = self.get(*keys)
        if value is None:
            where = str(self.folder / "config.json")
            raise ModelError(f"config.json does not say `{keys[0]}`", where=where, hint="copy the file again")
        return value

    def _believable(self, key: str, value: int) -> int:
        if value > MOST_SIZE:
            raise ModelError(
                f"config.json states a `{key}` beyond {MOST_SIZE:,}, which no model has",
                where=f"{self.folder / config_file.NAME} [{key}]",
                hint="copy the file again from where the model came from",
            )
        return value


def _kv_heads(config: Mapping[str, Any], size: _Sizes, heads: int) -> int:
    if config.get("multi_query") is True and not config.get("new_decoder_architecture"):
        return 1
    return size.get("num_key_value_heads", "num_kv_heads") or heads


def _lost_positions(config: Mapping[str, Any], model_type: str) -> int:
    """Rows of the position embedding that no token of a text ever has."""
    if model_type not in POSITIONS_AFTER_PADDING:
        return 0
    pad = config.get("pad_token_id")
    return (pad if isinstance(pad, int) and not isinstance(pad, bool) else 1) + 1


def _is_tied(config: Mapping[str, Any], stored: Mapping[str, TensorInfo]) -> bool:
    """What config.json says; where it is silent a file without a head means tied, as transformers saves it."""
    stated = config.get("tie_word_embeddings")
    if isinstance(stated, bool):
        return stated
    return not any(names.is_head(name) for name in stored)


def _parameters(stored: Mapping[str, TensorInfo], model_type: str, tied: bool) -> dict[str, TensorInfo]:
    """Stored tensors that are parameters, under the names of the causal language model's module."""
    prefix = BASE_PREFIX.get(model_type, "model")
    bare = bool(prefix) and not any(
        name.startswith((f"{prefix}.", "model.", "transformer.", "language_model.")) for name in stored
    )
    kept: dict[str, TensorInfo] = {}
    for name, item in stored.items():
        is_causal_mask = name.endswith(("attn.bias", "attention.bias")) and len(item.shape) == 4
        is_tied_copy = (tied and names.is_head(name) and _HEAD_WEIGHT.search(name)) or name.endswith(_TIED_BIASES)
        if is_causal_mask or is_tied_copy or _BUFFERS.search(name):
            continue
        kept[f"{prefix}.{name}" if bare and not names.is_head(name) else name] = item
    return kept


def _main_dtype(kept: Mapping[str, TensorInfo]) -> str:
    sizes: dict[str, int] = {}
    for item in kept.values():
        sizes[item.dtype] = sizes.get(item.dtype, 0) + item.num_bytes
    main = max(sizes, key=lambda dtype: sizes[dtype]) if sizes else "F32"
    return _SHORT_TYPES.get(main, main.lower())


def _sliding_window(config: Mapping[str, Any], size: _Sizes) -> int | None:
    """Width of the window where every layer has it; with some full layers the window saves no memory at the peak."""
    window = size.get("sliding_window")
    if window is None or config.get("use_sliding_window") is False:
        return None
    kinds = config.get("layer_types")
    return None if isinstance(kinds, list) and "full_attention" in kinds else window


def _refuse_quantised(folder: Path, config: Mapping[str, Any], stored: Mapping[str, TensorInfo]) -> None:
    odd = {item.dtype for item in stored.values() if len(item.shape) >= 2} - {"F64", *_SHORT_TYPES, "BOOL"}
    quantised = config.get("quantization_config")
    if quantised is None or not odd:
        return
    method = quantised.get("quant_method", "unknown") if isinstance(quantised, dict) else "unknown"
    raise ModelError(
        f"the weights are quantised ({method}, stored as {', '.join(sorted(odd))}); tuning starts from 16- or 32-bit weights",
        where=str(folder),
        hint="give the folder of the model before quantisation",
    )


def _check_together(folder: Path, facts: ModelFacts) -> None:
    layers = {index for name in facts.tensors if (index := names.layer_index(name)) is not None}
    missing = next((index for index in range(facts.num_layers) if index not in layers), None)
    again = "config.json and the weights do not belong together: copy the whole folder again"
    if missing is not None and facts.model_type not in SHARED_LAYERS:
        raise ModelError(
            f"config.json says {facts.num_layers} layers, the weight files lack layer {missing}",
            where=str(folder),
            hint=again,
        )
    if facts.embedding_rows != facts.vocab_size:
        raise ModelError(
            f"config.json says a vocabulary of {facts.vocab_size:,}, the embedding has {facts.embedding_rows:,} rows",
            where=str(folder),
            hint=again,
        )
