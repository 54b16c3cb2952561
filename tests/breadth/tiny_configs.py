"""A tiny configuration of any language model that transformers can build: every size field shrunk by its name.

A configuration is the class's own default with small numbers in place of large ones. What a name does not tell is in ``SPECIAL``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
)

VOCABULARY = 264
CONTEXT = 128
KINDS: dict[str, tuple[Mapping[str, str], Any]] = {
    "causal": (MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, AutoModelForCausalLM),
    "encoder": (MODEL_FOR_MASKED_LM_MAPPING_NAMES, AutoModelForMaskedLM),
    "encoder-decoder": (MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES, AutoModelForSeq2SeqLM),
}
"""Kind -> model type to class name, and the class that builds it."""

HIDDEN, HEADS, HEAD, INNER, LAYERS, EXPERTS = 32, 4, 8, 64, 2, 4
_SIZES: tuple[tuple[int, tuple[str, ...]], ...] = (
    (HIDDEN, ("hidden_size", "d_model", "n_embd", "dim", "emb_dim", "embedding_size", "word_embed_proj_dim", "model_dim",
             "dim_model", "moe_latent_size", "attention_hidden_size", "lru_width", "rotary_dim_model", "hidden_dim_model")),
    (HEADS, ("num_attention_heads", "n_head", "n_heads", "num_heads", "encoder_attention_heads", "decoder_attention_heads",
            "num_encoder_attention_heads", "num_decoder_attention_heads", "linear_num_value_heads", "mamba_n_heads",
            "mamba_num_heads", "num_mem_heads", "index_n_heads")),
    (2, ("num_key_value_heads", "num_kv_heads", "n_head_kv", "linear_num_key_heads", "num_global_key_value_heads",
        "num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", "top_k_experts", "num_selected_experts",
        "num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "decoder_layers", "num_decoder_layers",
        "num_encoder_layers", "num_hidden_groups_")),
    (1, ("n_group", "num_group", "topk_group", "n_groups", "mamba_n_groups", "n_shared_experts", "num_shared_experts", "first_k_dense_replace",
        "moe_layer_start_index", "num_nextn_predict_layers_")),
    (HEAD, ("head_dim", "attention_head_dim", "d_kv", "v_head_dim", "qk_nope_head_dim", "qk_rope_head_dim", "kv_channels",
           "linear_key_head_dim", "linear_value_head_dim", "global_head_dim", "mamba_d_head", "mamba_head_dim", "index_head_dim",
           "dim_head", "swa_head_dim", "swa_v_head_dim")),
    (INNER, ("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size", "d_ff", "d_inner", "encoder_ffn_dim", "decoder_ffn_dim",
            "moe_intermediate_size", "shared_expert_intermediate_size", "moe_shared_expert_intermediate_size", "dim_ff",
            "intermediate_size_mlp", "hidden_dim", "ffn_size", "pooler_hidden_size_", "mamba_d_ssm", "expert_ffn_hidden_size",
            "mlp_hidden_size", "shared_intermediate_size", "dense_intermediate_size", "block_ff_dim")),
    (16, ("q_lora_rank", "kv_lora_rank", "state_size", "mamba_d_state", "ssm_state_size", "time_step_rank", "mamba_dt_rank",
         "index_topk", "o_lora_rank")),
    (EXPERTS, ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")),
    (VOCABULARY, ("vocab_size", "decoder_vocab_size", "src_vocab_size", "tgt_vocab_size", "vocab_size_per_layer_input")),
    (CONTEXT, ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "max_sequence_length", "max_target_positions",
              "max_source_positions", "max_encoder_position_embeddings", "max_decoder_position_embeddings", "seq_length",
              "original_max_position_embeddings")),
    (24, ("sliding_window", "local_attention", "attention_window_size", "window_size", "sliding_window_size")),
)  # fmt: skip
_SIZE_OF = {name: size for size, names in _SIZES for name in names}
_LAYER_COUNTS = (
    "num_hidden_layers",
    "n_layer",
    "n_layers",
    "num_layers",
    "encoder_layers",
    "decoder_layers",
    "num_decoder_layers",
)
_IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 0, "cls_token_id": 1,
        "sep_token_id": 2, "mask_token_id": 3, "unk_token_id": 0, "forced_eos_token_id": None, "forced_bos_token_id": None}  # fmt: skip

_DECODER: dict[str, Any] = {"is_decoder": True}
_READS_BACK = ("bert", "bert-generation", "big_bird", "camembert", "data2vec-text", "electra", "ernie", "megatron-bert", "reformer",
               "rembert", "roberta", "roberta-prelayernorm", "roc_bert", "roformer", "xlm-roberta", "xlm-roberta-xl", "xmod")  # fmt: skip
_REFORMER = {"axial_pos_embds_dim": [8, 24], "axial_pos_shape": [8, 16], "local_attn_chunk_length": 8, "lsh_attn_chunk_length": 8,
             "attn_layers": ["local", "local"], "num_hidden_layers": 2}  # fmt: skip
SPECIAL: dict[str, dict[str, Any]] = {
    "bailing_hybrid": {"num_group": 1},
    "bamba": {"mamba_d_head": 16, "attn_layer_indices": [1]},
    "codegen": {"rotary_dim": 4},
    "dbrx": {"attn_config": {"kv_n_heads": 2, "clip_qkv": None}, "ffn_config": {"ffn_hidden_size": 64, "moe_top_k": 2}},
    "dots1": {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1, "n_group": 1, "topk_group": 1},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "esm": {"vocab_size": VOCABULARY, "mask_token_id": 3, "token_dropout": False, "position_embedding_type": "absolute"},
    "esmc": {"num_key_value_heads": HEADS},
    "falcon_h1": {"mamba_d_ssm": 64, "mamba_d_head": 16},
    "gemma3n_text": {"num_kv_shared_layers": 0, "vocab_size_per_layer_input": VOCABULARY, "hidden_size_per_layer_input": 8,
                     "laurel_rank": 8, "activation_sparsity_pattern": [0.0, 0.0]},
    "gemma4_text": {"num_kv_shared_layers": 0, "hidden_size_per_layer_input": 8},
    "gemma4_unified_text": {"num_kv_shared_layers": 0, "hidden_size_per_layer_input": 8},
    "gptj": {"rotary_dim": 4},
    "granitemoehybrid": {"mamba_d_head": 16, "layer_types": ["mamba", "attention"], "num_local_experts": 2},
    "hunyuan_v1_dense": {"head_dim": HEAD},
    "hunyuan_v1_moe": {"head_dim": HEAD, "moe_topk": [2, 2]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1},
    **{name: {"decoder_start_token_id": 0} for name in ("longt5", "mt5", "switch_transformers", "t5", "umt5")},
    "led": {"attention_window": [8, 8]},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "longcat_flash": {"qk_head_dim": 16, "zero_expert_num": 2, "n_routed_experts": 4},
    "luke": {"entity_vocab_size": 32, "entity_emb_size": 16},
    "mamba2": {"num_heads": 8, "head_dim": 8},
    "ministral": {"head_dim": HEAD, "num_key_value_heads": 2},
    "mbart": {"decoder_start_token_id": 2},
    "mpnet": {"pad_token_id": 1},
    "nemotron": {"num_key_value_heads": 2},
    "neomme": {"head_dim": 16},
    "recurrent_gemma": {"num_hidden_layers": 3, "block_types": ["recurrent", "recurrent", "attention"]},
    "reformer": _REFORMER,
    "plbart": {"decoder_start_token_id": 2},
    "roc_bert": {"shape_vocab_size": 32, "pronunciation_vocab_size": 32, "shape_embed_dim": 16, "pronunciation_embed_dim": 16},
    "xlnet": {"d_head": HEAD},
    "xmod": {"default_language": "en_XX"},
    "zaya": {"num_experts_per_tok": 1},
    **{f"causal:{name}": _DECODER for name in _READS_BACK},
}  # fmt: skip
"""Model type, with its kind before it where only that is meant -> fields that a name does not tell."""


class NoTinyModel(Exception):
    """The model type has no tiny text model; the sentence says why."""


def tiny_config(kind: str, model_type: str, changes: Mapping[str, Any] | None = None) -> Any:
    """A configuration of a model of some thousand parameters, as transformers makes it.

    Raises:
        NoTinyModel: its default cannot be made.
    """
    cls = CONFIG_MAPPING[model_type]
    try:
        values = cls().to_dict()
    except Exception as error:
        raise NoTinyModel(f"its configuration has no default: {first(error)}") from error
    for key in ("transformers_version", "model_type", "architectures", "dtype"):
        values.pop(key, None)
    small = shrunk(values)
    for key in ("layer_types", "mlp_layer_types"):
        small.pop(key, None) if not isinstance(small.get(key), list) else None
    for special in (SPECIAL.get(model_type, {}), SPECIAL.get(f"{kind}:{model_type}", {}), changes or {}):
        _merge(small, special)
    return cls(**small)


def shrunk(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a configuration with every size small, inner configurations included."""
    layers = next((values[key] for key in _LAYER_COUNTS if isinstance(values.get(key), int)), None)
    kinds, keep = values.get("layer_types"), list(range(LAYERS))
    if isinstance(kinds, list) and kinds:
        firsts = [kinds.index(kind) for kind in dict.fromkeys(kinds)]
        keep = sorted({*firsts, *range(max(0, LAYERS - len(firsts)))}) if len(firsts) > 1 else keep
        keep = keep if len(keep) >= LAYERS else [0, 1]
    found: dict[str, Any] = {}
    for key, value in values.items():
        if key == "per_layer_config":  # what single layers have otherwise, by their numbers in the large model
            continue
        found[key] = _small(key, value, layers, keep)
    if "kv_lora_rank" in values and "num_key_value_heads" in found:
        found["num_key_value_heads"] = HEADS
    return found


def _small(key: str, value: Any, layers: int | None, keep: list[int]) -> Any:
    if isinstance(value, Mapping):
        return shrunk(value) if not key.startswith(("rope", "id2label", "label2id")) else dict(value)
    if isinstance(value, list) and layers is not None and len(value) == layers and layers > LAYERS:
        return [value[place] for place in keep]
    if key in _LAYER_COUNTS and isinstance(value, int) and value > 0:
        return len(keep)
    if key in _IDS:
        return _IDS[key] if value is not None or key in ("pad_token_id", "bos_token_id", "eos_token_id") else None
    if isinstance(value, bool) or not isinstance(value, int) or key not in _SIZE_OF:
        return 0.0 if isinstance(value, float) and ("dropout" in key or key.endswith(("pdrop", "layerdrop"))) else value
    return _SIZE_OF[key]


def _merge(values: dict[str, Any], changes: Mapping[str, Any]) -> None:
    for key, value in changes.items():
        if isinstance(value, Mapping) and isinstance(values.get(key), dict):
            _merge(values[key], value)
        else:
            values[key] = value


def first(error: BaseException) -> str:
    """First line of an error with its kind."""
    text = str(error).strip() or "no message"
    return f"{type(error).__name__}: {text.splitlines()[0][:160]}"
