"""PEFT's adapter folders, written and read: ``adapter_config.json`` and ``adapter_model.safetensors``.

LoRA, DoRA and GraLoRA are read (``peft_methods``), and methods with virtual tokens (``stored_prompts``). Whatever else a folder says (another method, a variant, weights in pickle) is refused by name:
an adapter that loads must give the logits it gave where it was trained.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn

from tunesmith.adapters import bottleneck_layout, lora_layer, peft_patterns, stored, stored_prompts, targets
from tunesmith.adapters.added import AddedAdapter
from tunesmith.adapters.bottleneck_files import read_bottleneck
from tunesmith.adapters.peft_layout import PREFIX, ROWS_KEY
from tunesmith.adapters.peft_methods import METHODS, PeftMethod
from tunesmith.adapters.stored import CONFIGURATION, MERGE_THERE, SAVE_AGAIN, WEIGHTS, Rows, StoredAdapter
from tunesmith.adapters.trained_tokens import SUFFIX
from tunesmith.errors import ModelError, RecipeError
from tunesmith.files import write_bytes, write_json
from tunesmith.models.links import refuse_links_out
from tunesmith.recipe.low_rank import AddedSection, LowRankSection

__all__ = ["CONFIGURATION", "WEIGHTS", "AdapterSettings", "attach_read", "read_adapter", "write_adapter"]

_PLAIN_STARTS = (True, False, None, "gaussian", "eva")
"""Starts that leave the base weights alone; a loaded adapter overwrites A and B."""
_OBEYED = frozenset(["peft_type", "init_lora_weights", "trainable_token_indices"])
_WITHOUT_EFFECT = frozenset(
    [
        "task_type",
        "base_model_name_or_path",
        "revision",
        "inference_mode",
        "auto_mapping",
        "peft_version",
        "runtime_config",
        "target_modules",
        "exclude_modules",
        "layers_to_transform",
        "layers_pattern",
        "modules_to_save",
        "ensure_weight_tying",
        "bias",
        "fan_in_fan_out",
        "megatron_core",
        "megatron_config",
        "qalora_group_size",
        "loftq_config",
        "eva_config",
    ]
)
"""Keys that only say which modules there are, which the tensors' names say again, or that matter while training."""


@dataclass(frozen=True, kw_only=True)
class AdapterSettings(StoredAdapter):
    """A read adapter on linear layers: ``method`` is PEFT's, ``ranks`` has the truth per layer, (rank, alpha)."""

    section: LowRankSection
    ranks: dict[str, tuple[int, float]]
    method: PeftMethod = METHODS["LORA"]

    def require_fit(self, model: nn.Module, state: Mapping[str, Tensor]) -> None:
        """Each layer must be there, and as wide as the parts."""
        layers = targets.linear_layers(model)
        for layer, (rank, _) in self.ranks.items():
            if layer not in layers:
                raise ModelError(
                    f"the adapter has a part for `{layer}`, which is no adaptable layer of this model",
                    where=self.source,
                    hint=f"it was trained on `{self.base or 'another model'}`; output heads cannot carry LoRA here",
                )
            shapes = self.method.shapes(self.section, rank, *lora_layer.widths(layers[layer]))
            for ending, shape in shapes.items():
                stored.check_shape(self, layer + ending, state, shape)

    def build(self, section: AddedSection, rows: Rows) -> AddedAdapter:
        """The method's adapter with the ranks that were read."""
        return self.method.build(cast(LowRankSection, section), self.ranks, rows)


def write_adapter(
    folder: Path, adapter: AddedAdapter, base_name: str, base_sha256: str = "", quantise: str = "none"
) -> list[str]:
    """Write an attached adapter as PEFT reads it.

    Args:
        folder: exists.
        adapter: attached.
        base_name: what the recipe calls the base.
        base_sha256: hash of the base's weights, by which another base is refused; empty where it is not known.
        quantise: how the base held its linear layers: a base that holds them otherwise answers otherwise.

    Returns:
        Sentences on what PEFT cannot express, for the user.
    """
    layout = adapter.layout()
    configuration = layout.configuration
    if getattr(getattr(adapter.model, "config", None), "is_encoder_decoder", False):
        configuration["task_type"] = "SEQ_2_SEQ_LM"
    configuration["base_model_name_or_path"] = base_name
    plain = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in layout.tensors.items()}
    write_bytes(folder / WEIGHTS, stored.to_bytes(plain, base_sha256, quantise))
    write_json(folder / CONFIGURATION, configuration)
    return layout.notes


def read_adapter(folder: Path) -> tuple[StoredAdapter, dict[str, Tensor]]:
    """Read an adapter folder, ours or PEFT's.

    Returns:
        Settings, and the tensors by the names of the adapter's ``state``: ``LAYER.lora_A.weight`` and the like,
        ``MATRIX.token_rows``, and fully trained parameters by their names in the model, tied ones once per name.

    Raises:
        ModelError: no adapter there, torn files, pickled weights, or another method.
    """
    refuse_links_out(folder)
    configuration = stored.read_configuration(folder / CONFIGURATION)
    read = READERS.get(str(configuration.get("peft_type")), _read_linear)
    settings, state = read(folder, configuration)
    return replace(settings, base_sha256=stored.read_base_sha256(folder)), state


def _read_linear(folder: Path, configuration: Mapping[str, Any]) -> tuple[StoredAdapter, dict[str, Tensor]]:
    """A method of ``METHODS``; refuses others."""
    where = str(folder / CONFIGURATION)
    method = _method(configuration, where)
    state, layers = _sort(stored.read_adapter_tensors(folder), method, configuration, str(folder / WEIGHTS))
    beside = [key for key in state if not key.endswith((*method.endings(configuration), SUFFIX))]
    rows = stored.read_rows(configuration.get("trainable_token_indices"), state, f"{where} [trainable_token_indices]")
    try:
        section = method.section_type(
            rank=configuration.get("r", 8),
            alpha=configuration.get(method.alpha, 8),
            dropout=configuration.get(method.dropout) or 0.0,
            targets=sorted(layers),
            also_train=beside,
            train_tokens=sorted({token for ids in rows.values() for token in ids}) or "none",
            **method.section(configuration),
        )
    except RecipeError as error:
        raise ModelError(f"a value of the adapter cannot be used: {error.what}", where=where, hint=SAVE_AGAIN) from None
    alphas = _alphas(configuration.get("alpha_pattern"), layers, section.alpha, where)
    ranks = {layer: (rank, alphas[layer]) for layer, rank in layers.items()}
    base = str(configuration.get("base_model_name_or_path") or "")
    settings = AdapterSettings(
        section=section, ranks=ranks, base=base, source=str(folder / WEIGHTS), rows=rows, method=method
    )
    return settings, state


def attach_read(
    model: nn.Module, settings: StoredAdapter, state: Mapping[str, Tensor], name: str = "default"
) -> AddedAdapter:
    """Attach a read adapter to a model; with it active the logits are those of PEFT.

    Raises:
        ModelError: the adapter belongs to another model (layers or shapes differ), or unties weights that are tied here.
    """
    return stored.attach_stored(model, settings, state, name)


def _method(configuration: Mapping[str, Any], where: str) -> PeftMethod:
    """The folder's method; refuses others, and variants that are not known."""
    method = METHODS.get(str(configuration.get("peft_type")))
    if method is None:
        raise ModelError(
            f"the adapter's method is `{configuration.get('peft_type')}`, only {', '.join(f'`{name}`' for name in [*METHODS, *READERS])} are read",
            where=f"{where} [peft_type]",
            hint=MERGE_THERE,
        )
    start = configuration.get("init_lora_weights", True)
    if start not in _PLAIN_STARTS:
        raise ModelError(
            f"the adapter was started with `{start}`, which may change the base weights themselves",
            where=f"{where} [init_lora_weights]",
            hint="convert it with PEFT (`save_pretrained(..., path_initial_model_for_weight_conversion=...)`), or merge it there",
        )
    for key, value in configuration.items():
        if key in _OBEYED | method.keys or key in _WITHOUT_EFFECT or value in (None, False, 0, "", [], {}):
            continue
        raise ModelError(
            f"the adapter uses `{key}`, which Tunesmith's {method.title} does not have",
            where=f"{where} [{key}]",
            hint=MERGE_THERE,
        )
    return method


def _sort(
    tensors: Mapping[str, Tensor], method: PeftMethod, configuration: Mapping[str, Any], where: str
) -> tuple[dict[str, Tensor], dict[str, int]]:
    """Strip PEFT's prefix; find the layers and their ranks."""
    state: dict[str, Tensor] = {}
    layers: dict[str, int] = {}
    endings = method.endings(configuration)
    dimensions = {**method.dimensions, SUFFIX: 2}
    for full, tensor in tensors.items():
        key = full.removeprefix(PREFIX).replace(ROWS_KEY, SUFFIX).replace(".base_layer.", ".")
        ending = next((item for item in dimensions if key.endswith(item)), None)
        if len(key) > peft_patterns.MOST_NAME or (
            ending is not None and (tensor.dim() != dimensions[ending] or not tensor.numel())
        ):
            raise ModelError(
                f"`{key[:80]}` of shape {tuple(tensor.shape)} is no part of a {method.title} adapter",
                where=where,
                hint=SAVE_AGAIN,
            )
        if ending == endings[0]:
            layers[key.removesuffix(ending)] = method.rank(tensor)
        elif method.mark in key and ending not in endings:
            raise ModelError(
                f"the adapter holds `{full}`, which {method.title} on linear layers does not have",
                where=where,
                hint=MERGE_THERE,
            )
        state[key] = tensor
    if not layers:
        raise ModelError(
            f"the adapter holds no {method.title} tensors",
            where=where,
            hint="a folder of whole weights is a model: give it a config.json",
        )
    named = layers.keys() | {key.removesuffix(end) for key in state for end in endings if key.endswith(end)}
    torn = sorted(layer for layer in named for ending in endings if layer + ending not in state)
    if torn:
        raise ModelError(
            f"`{torn[0]}` has only some of {', '.join(endings)}",
            where=where,
            hint="the file is incomplete: save it again",
        )
    return state, layers


def _alphas(patterns: Any, layers: Mapping[str, int], default: float, where: str) -> dict[str, float]:
    """The alpha of each layer."""
    try:
        known = peft_patterns.compiled(patterns or {})
        if len(known) * len(layers) > peft_patterns.MOST_TRIES:
            raise peft_patterns.DangerousPattern(f"it has {len(known):,} patterns for {len(layers):,} layers")
    except peft_patterns.DangerousPattern as error:
        raise ModelError(
            f"the alphas of the adapter's layers cannot be read: {error}",
            where=f"{where} [alpha_pattern]",
            hint="name the layers in full there, or merge the adapter with PEFT and load the merged model",
        ) from None
    return {layer: peft_patterns.first_match(known, layer, default) for layer in layers}


READERS: dict[str, Callable[[Path, Mapping[str, Any]], tuple[StoredAdapter, dict[str, Tensor]]]] = {
    bottleneck_layout.TYPE: read_bottleneck,
    **dict.fromkeys(stored_prompts.METHODS, stored_prompts.read),
}
"""``peft_type`` of methods that are not on linear layers -> what reads their folder, given its configuration."""
