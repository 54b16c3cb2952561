"""What the names of parameters and modules say: layer, part, kind. Torch-free, for planning and for adapters.

Names are those of the module in transformers: ``model.layers.7.self_attn.q_proj.weight``, ``transformer.h.7.mlp.c_fc.weight``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from fnmatch import fnmatchcase

_LAYER = re.compile(r"(?:^|\.)(?:layers|layer|h|blocks|block|attentions|ffns)\.(\d{1,9})\.")
_ATTENTION = frozenset(
    [
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "qkv_proj",
        "c_attn",
        "query_key_value",
        "out_proj",
        "Wqkv",
        "in_proj",
        "q_a_proj",
        "q_b_proj",
        "kv_a_proj_with_mqa",
        "kv_b_proj",
        "query",
        "key",
        "value",
    ]
)
_FEED_FORWARD_PARENTS = frozenset(
    [
        "mlp",
        "ffn",
        "feed_forward",
        "feedforward",
        "experts",
        "shared_expert",
        "shared_experts",
        "block_sparse_moe",
        "intermediate",
        "output",
    ]
)
_FEED_FORWARD = frozenset(
    [
        "gate_proj",
        "up_proj",
        "down_proj",
        "gate_up_proj",
        "c_fc",
        "fc1",
        "fc2",
        "fc_in",
        "fc_out",
        "dense_h_to_4h",
        "dense_4h_to_h",
        "w1",
        "w2",
        "w3",
        "wi",
        "wo",
        "wi_0",
        "wi_1",
    ]
)
_ROUTERS = frozenset(("gate", "router", "shared_expert_gate"))
_EMBEDDINGS = frozenset(
    ("embed_tokens", "wte", "word_embeddings", "embed_in", "tok_embeddings", "shared", "tokens_embed", "word_embedding",
     "input_embedding")
)  # fmt: skip
_ONLY_EMBEDDINGS = frozenset(("embeddings", "w"))
"""Names of an embedding of tokens where they are the whole module: elsewhere they are its parent's."""
_POSITIONS = frozenset(("wpe", "embed_positions", "position_embeddings", "token_type_embeddings"))
_HEADS = frozenset(
    ("lm_head", "embed_out", "output_projection", "proj_out", "pred_layer", "generator_lm_head", "vocab_projector")
)
_BIASES = frozenset(("relative_attention_bias", "global_relative_attention_bias"))
"""Embeddings of distances, whose values are added to the scores of attention."""
_OUTPUT = re.compile(
    r"(?:^|\.)(?:lm_head|embed_out|output_projection|proj_out|head|output)\.weight$|\.decoder\.weight$|\.proj\.weight$"
)
_ENDS_OF_HEADS = ("predictions.decoder.weight",)
_BARE_HEADS = frozenset(("head.weight", "output.weight"))
_MAPS = re.compile(r"proj|map|hidden|transform")
_NORM = re.compile(r"norm|(?:^|_)ln(?:_|$)|^ln\d?$")

VIRTUAL = "virtual_tokens"
"""Child of a model that holds the virtual tokens of its adapters, and their place in a plan."""


def first_fit(name: str, patterns: Iterable[str]) -> str | None:
    """The first glob that fits a module's name, or None."""
    return next((pattern for pattern in patterns if matches(name, pattern)), None)


def matches(name: str, pattern: str) -> bool:
    """Whether a glob fits the full dotted name, or as many of its last components as the glob has."""
    components = pattern.count(".") + 1
    return fnmatchcase(name, pattern) or fnmatchcase(".".join(name.split(".")[-components:]), pattern)


def layer_index(name: str) -> int | None:
    """Number of the transformer layer that a parameter or module is in, or None outside the layers."""
    found = _LAYER.search(f"{name}.")
    return int(found.group(1)) if found else None


def num_layers(names: Iterable[str]) -> int:
    """Transformer layers that the names of a model's parameters speak of."""
    return 1 + max((index for name in names if (index := layer_index(name)) is not None), default=-1)


def depth(name: str, num_layers: int) -> int:
    """Place of a parameter: 0 before the layers (embeddings and their norms, virtual tokens), 1 to ``num_layers`` in one, then what follows."""
    index = layer_index(name)
    if index is not None:
        return index + 1
    before = is_embedding(name) or is_position_embedding(name) or is_virtual(name) or "embeddings" in name.split(".")
    return 0 if before and not is_head(name) else num_layers + 1


def is_virtual(name: str) -> bool:
    """Whether a name is that of an adapter's virtual tokens."""
    return name.split(".", maxsplit=1)[0] == VIRTUAL


def in_attention(module: str) -> bool:
    """Whether a linear layer of this dotted name belongs to attention; the parents' names tell first."""
    *parents, last = module.split(".")
    if any("attn" in parent.lower() or "attention" in parent.lower() for parent in parents):
        return True
    return last in _ATTENTION and _FEED_FORWARD_PARENTS.isdisjoint(parents)


def in_feed_forward(module: str) -> bool:
    """Whether a linear layer of this dotted name belongs to a feed-forward block; routers of experts do not."""
    *parents, last = module.split(".")
    if in_attention(module) or last in _ROUTERS:
        return False
    return last in _FEED_FORWARD or not _FEED_FORWARD_PARENTS.isdisjoint(parents)


def is_norm(parameter: str) -> bool:
    """Whether a parameter (weight or bias) belongs to a normalisation."""
    parts = parameter.split(".")
    return len(parts) >= 2 and _NORM.search(parts[-2].lower()) is not None


def is_bias(parameter: str) -> bool:
    """Whether a parameter is a bias."""
    return parameter.rsplit(".", 1)[-1] == "bias"


def is_embedding(parameter: str) -> bool:
    """Whether a parameter is the input embedding of tokens."""
    parts = parameter.split(".")
    return not _EMBEDDINGS.isdisjoint(parts) or (
        parts[-1] == "weight" and parts[-2:-1] != [] and parts[-2] in _ONLY_EMBEDDINGS
    )


def is_position_embedding(parameter: str) -> bool:
    """Whether a parameter is a learnt embedding of positions or of segments."""
    return not _POSITIONS.isdisjoint(parameter.split("."))


def is_head(parameter: str) -> bool:
    """Whether a parameter belongs to the output head."""
    return not _HEADS.isdisjoint(parameter.split("."))


def is_router(module: str) -> bool:
    """Whether a module of this dotted name sends tokens to experts."""
    parts = module.split(".")
    return parts[-1] == "gate" or "router" in parts


def is_output(parameter: str) -> bool:
    """Whether a parameter is the matrix of the output layer; encoders have other layers in their head."""
    return is_head(parameter) and _OUTPUT.search(parameter) is not None


def is_linear(parameter: str, shape: tuple[int, ...]) -> bool:
    """Whether a parameter is the matrix of a linear layer (``Linear`` or GPT-2's ``Conv1D``) that adapters may go on.

    The output layer, embeddings and routers are none. Experts of a mixture are left out: transformers fuses them into one
    three-dimensional parameter.
    """
    module = parameter.removesuffix(".weight")
    if len(shape) != 2 or module == parameter or ".experts." in parameter or is_router(module):
        return False
    last = module.rpartition(".")[2]
    if is_embedding(parameter) or is_position_embedding(parameter) or is_norm(parameter) or last in _BIASES:
        return False
    if is_output(parameter) or parameter.endswith(_ENDS_OF_HEADS) or parameter in _BARE_HEADS:
        return False
    return "embed" not in last or _MAPS.search(last) is not None
