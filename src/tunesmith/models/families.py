"""What is known of families of models beyond their sizes, by the model type of their configuration. Torch-free, data only.

Whether a family packs is measured (``docs/reference/models.md``), and what cannot is named here: a family that is not named and does
not keep the documents of a pack apart is refused when it is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

BASE_PREFIX: Mapping[str, str] = {
    "longt5": "", "mt5": "", "switch_transformers": "", "t5": "", "umt5": "",
    "albert": "albert", "bert": "bert", "bert-generation": "bert", "big_bird": "bert", "biogpt": "biogpt", "bloom": "transformer",
    "camembert": "roberta", "codegen": "transformer", "convbert": "convbert", "cpmant": "cpmant", "ctrl": "transformer",
    "data2vec-text": "data2vec_text", "deberta": "deberta", "deberta-v2": "deberta", "distilbert": "distilbert",
    "electra": "electra", "ernie": "ernie", "falcon": "transformer", "falcon_mamba": "backbone", "flaubert": "transformer",
    "fnet": "fnet", "funnel": "funnel", "gpt2": "transformer", "gpt_bigcode": "transformer", "gpt_neo": "transformer",
    "gpt_neox": "gpt_neox", "gpt_neox_japanese": "gpt_neox_japanese", "gptj": "transformer", "gte": "gte", "ibert": "ibert",
    "jina_embeddings_v3": "roberta", "layoutlm": "layoutlm", "led": "led", "longformer": "longformer", "luke": "luke",
    "mamba": "backbone", "mamba2": "backbone", "megatron-bert": "bert", "mobilebert": "mobilebert", "mpnet": "mpnet",
    "mpt": "transformer", "mra": "mra", "nomic_bert": "nomic_bert", "nystromformer": "nystromformer",
    "openai-gpt": "transformer", "prophetnet": "prophetnet", "rembert": "rembert", "roberta": "roberta",
    "roberta-prelayernorm": "roberta_prelayernorm", "roc_bert": "roc_bert", "roformer": "roformer", "rwkv": "rwkv",
    "squeezebert": "transformer", "tapas": "tapas", "xlm": "transformer", "xlm-roberta": "roberta", "xlm-roberta-xl": "roberta",
    "xlnet": "transformer", "xlstm": "backbone", "xmod": "roberta", "yoso": "yoso",
}  # fmt: skip
"""First part of the names of the base model's own parameters, where it is not ``model``; empty where they have none."""

ENCODERS = frozenset({
    "albert", "bert", "big_bird", "camembert", "convbert", "data2vec-text", "deberta", "deberta-v2", "distilbert", "electra",
    "ernie", "esm", "esmc", "eurobert", "flaubert", "fnet", "funnel", "gte", "ibert", "jina_embeddings_v3", "layoutlm", "longformer",
    "luke", "megatron-bert", "mobilebert", "modernbert", "mpnet", "mra", "neomme", "nomic_bert", "nystromformer", "rembert",
    "roberta", "roberta-prelayernorm", "roc_bert", "roformer", "squeezebert", "tapas", "ultrabert", "xlm", "xlm-roberta",
    "xlm-roberta-xl", "xmod", "yoso",
})  # fmt: skip
"""Model types that read in both directions and that the encoders' facade knows."""

ENCODER_DECODERS = frozenset({
    "bart", "bigbird_pegasus", "blenderbot", "blenderbot-small", "led", "longt5", "m2m_100", "marian", "mbart", "mt5", "mvp",
    "nllb-moe", "pegasus", "pegasus_x", "plbart", "prophetnet", "switch_transformers", "t5", "t5gemma", "umt5",
})  # fmt: skip
"""Model types whose conditional generation reads with an encoder and writes with a decoder."""

OWN_HEADS = frozenset({"bert", "roberta", "xlm-roberta", "camembert", "modernbert"})
"""Encoders whose classes for labels in transformers can hold a head of ours."""

POSITIONS_AFTER_PADDING = frozenset({
    "roberta", "xlm-roberta", "camembert", "data2vec-text", "roberta-prelayernorm", "xlm-roberta-xl", "xmod", "ibert", "esm",
    "mpnet", "longformer", "luke",
})  # fmt: skip
"""Families whose first position is the one after the padding token's id."""

WITHOUT_HEADS = frozenset({"mamba", "mamba2", "falcon_mamba", "rwkv", "fnet"})
"""Families whose configuration has no number of attention heads, for they have none."""

SHARED_LAYERS = frozenset({"albert"})
"""Families whose layers share one set of weights, so that files hold fewer layers than the configuration says."""


@dataclass(frozen=True)
class Unpacked:
    """Why documents of a family cannot lie in one row, and how they run instead.

    ``reason`` goes on a sentence that begins with the model type. ``even`` where padding reaches what is real, so that only
    documents of one length run side by side; ``cached`` where answers are made with a cache all the same.
    """

    reason: str
    even: bool = False
    cached: bool = False

    @property
    def how(self) -> str:
        """In words."""
        return "documents of one length run side by side" if self.even else "documents run side by side, padded"


ENCODER_DECODER = Unpacked("reads a prompt with its encoder and writes the answer with its decoder", cached=True)

_STATE = Unpacked("keeps a state that runs on from token to token")
_STATE_EVEN = Unpacked(_STATE.reason, even=True)
_OWN = Unpacked("computes attention by itself")
_OWN_EVEN = Unpacked(_OWN.reason, even=True)
_COUNTS = Unpacked("counts the positions of its tokens by itself")

UNPACKED: Mapping[str, Unpacked] = {
    **dict.fromkeys((
        "bailing_hybrid", "bamba", "falcon_h1", "falcon_mamba", "granitemoehybrid", "jamba", "kimi_linear", "lfm2", "lfm2_moe", "lfm3", "mamba", "mamba2", "minimax", "nemotron_h",
        "olmo_hybrid", "qwen3_5", "qwen3_5_text", "qwen3_5_moe", "qwen3_5_moe_text", "qwen3_next", "rwkv",
        "xlstm", "zamba", "zamba2", "zaya", "inkling_text", "inkling2_text"), _STATE),
    "recurrent_gemma": _STATE_EVEN,
    **dict.fromkeys(("convbert", "fnet", "funnel", "nystromformer", "yoso"), _OWN_EVEN),
    **dict.fromkeys((
        "axk2", "big_bird", "bloom", "codegen", "deberta", "deberta-v2", "deepseek_v32", "deepseek_v4", "falcon", "flaubert",
        "git", "glm_moe_dsa", "gpt_neo", "gpt_neox_japanese", "gptj", "hy_v4", "ibert", "layoutlm",
        "longformer", "luke", "megatron-bert", "mpnet", "mpt", "mra", "nemotron", "openai-gpt", "rembert", "roformer",
        "squeezebert", "stablelm", "tapas", "xglm", "xlm"), _OWN),
    **dict.fromkeys((
        "bart", "bigbird_pegasus", "blenderbot", "blenderbot-small", "marian", "mbart", "mvp", "pegasus", "plbart", "trocr"), _COUNTS),
}  # fmt: skip
"""Model type -> why it cannot pack."""
