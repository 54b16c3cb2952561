"""Dropout that a family of models has of its own: the kinds, the keys of its configuration, and the rates. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

KINDS = ("attention", "hidden", "embedding")
"""On attention weights, on what a layer adds to the residual stream, on the embedded tokens."""

_ATTENTION = {"attention": "attention_dropout"}
_BERT = {"attention": "attention_probs_dropout_prob", "hidden": "hidden_dropout_prob"}
"""``hidden`` is on the embedded tokens too."""
_GPT2 = {"attention": "attn_pdrop", "hidden": "resid_pdrop", "embedding": "embd_pdrop"}
_KEYS: dict[str, dict[str, str]] = {
    "llama": _ATTENTION, "mistral": _ATTENTION, "qwen2": _ATTENTION, "qwen3": _ATTENTION, "gemma": _ATTENTION,
    "gemma2": _ATTENTION, "gemma3_text": _ATTENTION, "smollm3": _ATTENTION, "olmo2": _ATTENTION, "granite": _ATTENTION,
    "phi3": {"attention": "attention_dropout", "hidden": "resid_pdrop"},
    "phi": {"attention": "attention_dropout", "hidden": "resid_pdrop", "embedding": "embd_pdrop"},
    "gpt2": _GPT2, "gpt_bigcode": _GPT2, "gptj": _GPT2, "bert": _BERT, "roberta": _BERT,
    "modernbert": {"attention": "attention_dropout", "hidden": "mlp_dropout", "embedding": "embedding_dropout"},
}  # fmt: skip
"""Model type to the key of each kind that its layers obey."""

_UNSTATED = {"gpt2": 0.1, "gpt_bigcode": 0.1, "bert": 0.1, "roberta": 0.1}
"""Rates that a configuration means where it does not state them; 0 elsewhere."""


def dropout_keys(model_type: str) -> dict[str, str]:
    """Kind to key of the configuration; empty for a family that is not known here."""
    return dict(_KEYS.get(model_type, {}))


def dropout_rates(config: Mapping[str, Any], model_type: str) -> dict[str, float]:
    """Kind to rate, as a configuration has it, for the kinds that the family has."""
    unstated = _UNSTATED.get(model_type, 0.0)
    rates = {kind: config.get(key, unstated) for kind, key in dropout_keys(model_type).items()}
    return {kind: float(rate) if isinstance(rate, int | float) else 0.0 for kind, rate in rates.items()}
