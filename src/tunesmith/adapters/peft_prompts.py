"""Virtual tokens in PEFT's words: configuration and tensors as PEFT 0.21 reads them. Touches no files.

PEFT saves what its networks give, as ``prompt_embeddings``, and reads that: a folder holds no network. It knows nothing that trains
beside virtual tokens; such parameters go in under the names that its model has for the base's, where it loads them into the base.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from tunesmith.adapters.parameters import aliases, own_names
from tunesmith.adapters.peft_layout import Layout
from tunesmith.adapters.trained_tokens import SUFFIX
from tunesmith.recipe.prompts import PrefixSection, PTuningSection, VirtualSection

KEY = "prompt_embeddings"
PREFIX = "base_model."


def layout(
    model: Any,
    section: VirtualSection,
    table: Tensor,
    rows: Mapping[str, Sequence[int]],
    state: Mapping[str, Tensor],
) -> Layout:
    """Lay an attached adapter out.

    Args:
        model: the model the adapter is on.
        section: its settings.
        table: its virtual tokens as files have them, a row each.
        rows: embedding or head -> token ids whose rows train.
        state: what trains beside: token rows, then whole parameters.
    """
    config = model.config.get_text_config()
    configuration: dict[str, Any] = {
        "peft_type": "PROMPT_TUNING",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": None,
        "revision": None,
        "inference_mode": True,
        "num_virtual_tokens": section.num_tokens,
        "token_dim": table.shape[1],
        "num_transformer_submodules": 1,
        "num_attention_heads": config.num_attention_heads,
        "num_layers": config.num_hidden_layers,
    }
    if isinstance(section, PTuningSection):
        configuration |= {
            "peft_type": "P_TUNING",
            "encoder_reparameterization_type": section.encoder.upper(),
            "encoder_hidden_size": section.encoder_width or table.shape[1],
            "encoder_num_layers": section.encoder_layers if section.encoder == "lstm" else 2,
            "encoder_dropout": section.dropout,
        }
    elif isinstance(section, PrefixSection):
        width = table.shape[1] // (2 * config.num_hidden_layers)
        configuration |= {
            "peft_type": "PREFIX_TUNING",
            "token_dim": width,
            "num_attention_heads": getattr(config, "num_key_value_heads", None) or config.num_attention_heads,
            "encoder_hidden_size": section.projection_width if section.projection else width,
            "prefix_projection": False,
        }
    else:
        configuration["prompt_tuning_init"] = "RANDOM"
    result = Layout(configuration, {KEY: table.detach()})
    lay_out_beside(model, rows, state, result)
    return result


def lay_out_beside(
    model: nn.Module, rows: Mapping[str, Sequence[int]], state: Mapping[str, Tensor], result: Layout
) -> None:
    """Add what trains beside, token rows as whole matrices, with a note on each."""
    names = own_names(model)
    for key, trained in state.items():
        name, values = key, trained
        if key.endswith(SUFFIX):
            module = key.removesuffix(SUFFIX)
            name = f"{module}.weight"
            values = names[name].detach().clone()
            values[list(rows[module])] = trained.to(values.dtype)
        for alias in aliases(model, names[name]):
            result.tensors[PREFIX + alias] = values
        result.notes.append(
            f"`{name}` trains beside the virtual tokens, which PEFT has no word for: PEFT loads it into the base, whole, and its "
            "`disable_adapter` will not undo it"
        )
