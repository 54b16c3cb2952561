"""Folders of PEFT's methods with virtual tokens, read. A folder holds what its network gave, so the adapter comes without one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn

from tunesmith.adapters import stored
from tunesmith.adapters.added import AddedAdapter
from tunesmith.adapters.peft_prompts import KEY, PREFIX
from tunesmith.adapters.prefixes import PrefixAdapter
from tunesmith.adapters.prompts import PromptAdapter, PTuningAdapter, VirtualAdapter
from tunesmith.adapters.stored import CONFIGURATION, SAVE_AGAIN, WEIGHTS, Rows, StoredAdapter
from tunesmith.errors import ModelError, RecipeError
from tunesmith.models.virtual_tokens import NAME
from tunesmith.recipe.low_rank import AddedSection
from tunesmith.recipe.prompts import PrefixSection, PromptSection, PTuningSection, VirtualSection

_STATE_KEY = f"{NAME}.embedding.weight"
_SHARED = frozenset(
    [
        "peft_type",
        "num_virtual_tokens",
        "token_dim",
        "num_transformer_submodules",
        "num_attention_heads",
        "num_layers",
        "task_type",
        "base_model_name_or_path",
        "revision",
        "inference_mode",
        "auto_mapping",
        "peft_version",
        "runtime_config",
    ]
)
_PROMPT = frozenset(["prompt_tuning_init", "prompt_tuning_init_text", "tokenizer_name_or_path", "tokenizer_kwargs"])
_ENCODER = frozenset(
    ["encoder_reparameterization_type", "encoder_hidden_size", "encoder_num_layers", "encoder_dropout"]
)

_PREFIX = frozenset(["encoder_hidden_size", "prefix_projection", "init_weights"])


@dataclass(frozen=True)
class Method:
    """One of PEFT's methods with virtual tokens.

    Attributes:
        title: in sentences.
        section: of a recipe.
        adapter: class to build.
        keys: of the configuration that are known beside the shared ones; none changes what a folded adapter does.
    """

    title: str
    section: Callable[..., VirtualSection]
    adapter: type[VirtualAdapter]
    keys: frozenset[str]


METHODS: dict[str, Method] = {
    "PROMPT_TUNING": Method("prompt tuning", PromptSection, PromptAdapter, _PROMPT),
    "PREFIX_TUNING": Method("prefix tuning", PrefixSection, PrefixAdapter, _PREFIX),
    "P_TUNING": Method("P-tuning", PTuningSection, PTuningAdapter, _ENCODER),
}
"""PEFT's name of a method -> what its folders hold."""


@dataclass(frozen=True, kw_only=True)
class StoredPrompt(StoredAdapter):
    """A read adapter with virtual tokens."""

    method: Method

    def require_fit(self, model: nn.Module, state: Mapping[str, Tensor]) -> None:
        """The table must be as wide as what the model takes."""
        adapter = self.method.adapter(cast(VirtualSection, self.section), 0, folded=True)
        try:
            width = adapter.folded_width(model)
        except RecipeError as error:
            raise ModelError(f"the adapter does not fit: {error.what}", where=self.source, hint=error.hint) from None
        stored.check_shape(self, _STATE_KEY, state, (len(state[_STATE_KEY]), width))

    def build(self, section: AddedSection, rows: Rows) -> AddedAdapter:
        """The method's adapter, to be loaded with the table."""
        return self.method.adapter(cast(VirtualSection, section), 0, rows, folded=True)


def read(folder: Path, configuration: Mapping[str, Any]) -> tuple[StoredAdapter, dict[str, Tensor]]:
    """Read a folder, ours or PEFT's.

    Raises:
        ModelError: a key that is not known here, or tensors that are no such adapter.
    """
    where, source = str(folder / CONFIGURATION), str(folder / WEIGHTS)
    method = METHODS[str(configuration["peft_type"])]
    for key, value in configuration.items():
        if key not in _SHARED | method.keys and value not in (None, False, 0, "", [], {}):
            raise ModelError(
                f"the adapter uses `{key}`, which Tunesmith's {method.title} does not have",
                where=f"{where} [{key}]",
                hint="train it again here; virtual tokens cannot be merged into a model",
            )
    if configuration.get("num_transformer_submodules") not in (None, 1):
        raise ModelError(
            "the adapter has virtual tokens for an encoder and for a decoder",
            where=f"{where} [num_transformer_submodules]",
            hint="only those of decoders are read",
        )
    tensors = stored.read_adapter_tensors(folder)
    table, count = tensors.pop(KEY, None), configuration.get("num_virtual_tokens")
    if table is None or table.dim() != 2 or not table.numel() or len(table) != count:
        found = "there is no such tensor" if table is None else f"it has the shape {tuple(table.shape)}"
        raise ModelError(
            f"{method.title} of {count} virtual tokens has a table `{KEY}` of as many rows; {found}",
            where=source,
            hint=SAVE_AGAIN,
        )
    state = {key.removeprefix(PREFIX): value for key, value in tensors.items()}
    try:
        section = method.section(num_tokens=count, also_train=list(state), train_tokens="none")
    except RecipeError as error:
        raise ModelError(f"a value of the adapter cannot be used: {error.what}", where=where, hint=SAVE_AGAIN) from None
    base = str(configuration.get("base_model_name_or_path") or "")
    return StoredPrompt(section=section, base=base, source=source, method=method), {**state, _STATE_KEY: table.float()}
