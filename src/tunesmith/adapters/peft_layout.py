"""An adapter in PEFT's words: configuration and tensors as PEFT 0.21 reads them. Touches no files.

PEFT matches ``target_modules`` by whole dotted suffix, over every module of the model; ``modules_to_save`` by plain
string suffix, and copies the whole module, tied ones only when asked (``ensure_weight_tying``, for modules it knows as
embeddings by name).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from tunesmith.adapters.lora_layer import is_linear, is_transposed
from tunesmith.adapters.parameters import aliases, own_names
from tunesmith.adapters.sites import is_wrapped
from tunesmith.adapters.targets import output_head
from tunesmith.adapters.trained_tokens import SUFFIX
from tunesmith.models.token_rows import CHILD as ROWS_CHILD
from tunesmith.recipe.low_rank import LoraSection

PREFIX = "base_model.model."
ROWS_KEY = ".token_adapter.trainable_tokens_delta"
_ENDINGS = (".lora_A.weight", ".lora_B.weight", ".lora_magnitude_vector")
_KNOWN_EMBEDDINGS = frozenset(["embed_tokens", "lm_head"])


@dataclass
class Layout:
    """What goes into ``adapter_config.json`` and ``adapter_model.safetensors``, and what PEFT cannot say."""

    configuration: dict[str, Any]
    tensors: dict[str, Tensor]
    notes: list[str] = field(default_factory=list)


def layout(
    model: nn.Module,
    section: LoraSection,
    ranks: Mapping[str, tuple[int, float]],
    rows: Mapping[str, Sequence[int]],
    state: Mapping[str, Tensor],
) -> Layout:
    """Lay an attached adapter out.

    Args:
        model: the model the adapter is on.
        section: its settings.
        ranks: layer -> (rank, alpha).
        rows: embedding or head -> token ids whose rows train.
        state: what the adapter's ``state`` gives.
    """
    tensors: dict[str, Tensor] = {}
    others: dict[str, Tensor] = {}
    for key, tensor in state.items():
        if key.endswith(_ENDINGS):
            tensors[PREFIX + key] = tensor
        else:
            others[key] = tensor
    configuration: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": None,
        "revision": None,
        "inference_mode": True,
        "r": section.rank,
        "lora_alpha": number(section.alpha),
        "lora_dropout": section.dropout,
        "use_rslora": section.rslora,
        "use_dora": section.dora,
        "bias": "none",
        "fan_in_fan_out": any(is_transposed(model.get_submodule(layer)) for layer in ranks),
        "init_lora_weights": True,
        "target_modules": suffixes([name for name, _ in model.named_modules()], ranks),
        "rank_pattern": {layer: rank for layer, (rank, _) in ranks.items() if rank != section.rank},
        "alpha_pattern": {layer: number(alpha) for layer, (_, alpha) in ranks.items() if alpha != section.alpha},
        "modules_to_save": None,
    }
    result = Layout(configuration, tensors)
    lay_out_beside(model, rows, others, result)
    return result


def lay_out_beside(
    model: nn.Module,
    rows: Mapping[str, Sequence[int]],
    state: Mapping[str, Tensor],
    result: Layout,
    *,
    knows_rows: bool = True,
) -> None:
    """Add what trains beside the parts: token rows, then whole parameters.

    Args:
        model: the model the adapter is on.
        rows: embedding or head -> token ids whose rows train.
        state: an adapter's state without its parts.
        result: gets tensors, keys and notes.
        knows_rows: whether PEFT's class for the method has token rows and tied copies; only LoRA's has.
    """
    beside = {key: tensor for key, tensor in state.items() if not key.endswith(SUFFIX)}
    _lay_out_rows(model, rows, state, beside, result, knows_rows)
    _lay_out_whole(model, beside, result, knows_rows)


def suffixes(names: Collection[str], wanted: Collection[str]) -> list[str]:
    """The shortest dotted suffixes that select exactly ``wanted`` among ``names``, sorted.

    A layer is written by its last component where every module so named is wanted, else with its parent, and so on up
    to its full name.
    """
    chosen: set[str] = set()
    owners: dict[str, bool] = {}
    wanted = set(wanted)
    for name in names:
        for suffix in _ends(name):
            owners[suffix] = owners.get(suffix, True) and name in wanted
    for name in wanted:
        chosen.add(next((suffix for suffix in _ends(name) if owners.get(suffix)), name))
    return sorted(chosen)


def _ends(name: str) -> list[str]:
    components = name.split(".")
    return [".".join(components[start:]) for start in range(len(components) - 1, -1, -1)]


def number(value: float) -> float | int:
    """Whole numbers without a point, as PEFT writes them."""
    return int(value) if float(value).is_integer() else value


def _lay_out_whole(model: nn.Module, beside: Mapping[str, Tensor], result: Layout, may_tie: bool) -> None:
    """Put fully trained parameters into ``modules_to_save``, or beside it with a note."""
    names = own_names(model)
    values = {id(names[key]): tensor for key, tensor in beside.items()}
    saved: list[str] = []
    for key in beside:
        for alias in aliases(model, names[key]):
            owner = alias.rpartition(".")[0]
            module = model.get_submodule(owner)
            if not _can_save(model, owner, module):
                stored = f"{owner}.base_layer.{alias.rpartition('.')[2]}" if is_wrapped(module) else alias
                result.tensors[PREFIX + stored] = beside[key]
                result.notes.append(
                    f"`{alias}` trains beside the adapter, which PEFT has no word for: PEFT loads it into the base, "
                    "and its `disable_adapter` will not undo it"
                )
                continue
            if owner not in saved:
                saved.append(owner)
            # A tied weight goes in under each of its names: PEFT looks them all up, and fails where one is missing.
            for own, parameter in module.named_parameters(recurse=False):
                result.tensors[f"{PREFIX}{owner}.{own}"] = values.get(id(parameter), parameter.detach())
    if not saved:
        return
    tied = [owner for owner in saved if _is_tied(model, owner)]
    if may_tie and tied and tied[0].rpartition(".")[2] in _KNOWN_EMBEDDINGS:
        result.configuration["ensure_weight_tying"] = True
        saved = [owner for owner in saved if owner not in tied[1:]]
    elif tied:
        result.notes.append(f"{', '.join(tied)} share one weight here; PEFT loads them as separate, equal copies")
    result.configuration["modules_to_save"] = saved


def _lay_out_rows(
    model: nn.Module,
    rows: Mapping[str, Sequence[int]],
    state: Mapping[str, Tensor],
    beside: dict[str, Tensor],
    result: Layout,
    knows_rows: bool,
) -> None:
    """Put token rows into ``trainable_token_indices``; where PEFT would get them wrong, the whole matrix goes beside.

    PEFT's head with trained rows leaves out the head's bias, so a head that has one is stored whole.
    """
    head = output_head(model)
    weight = None if head is None or getattr(head, "bias", None) is None else head.weight
    indices: dict[str, list[int]] = {}
    for module, ids in rows.items():
        values_NH = state[module + SUFFIX]
        matrix = own_names(model)[f"{module}.weight"]
        if matrix is weight or not knows_rows:
            whole_VH = matrix.detach().clone()
            whole_VH[list(ids)] = values_NH.to(whole_VH.dtype)
            beside[f"{module}.weight"] = whole_VH
            result.notes.append(
                f"PEFT forgets the bias of `{module}` where single rows of it train: the whole matrix is stored"
                if knows_rows
                else f"PEFT trains no single rows of `{module}` beside this method: the whole matrix is stored"
            )
            continue
        result.tensors[f"{PREFIX}{module}{ROWS_KEY}"] = values_NH
        indices[module] = list(ids)
    if indices:
        result.configuration["trainable_token_indices"] = indices


def _can_save(model: nn.Module, owner: str, module: nn.Module) -> bool:
    """Whether PEFT's ``modules_to_save`` can name this module and no other by its full name."""
    if is_wrapped(module) or any(name != ROWS_CHILD for name, _ in module.named_children()) or not owner:
        return False
    known = isinstance(module, nn.Embedding) or is_linear(module) or "norm" in type(module).__name__.lower()
    names = [name for name, _ in model.named_modules(remove_duplicate=False) if not f"{name}.".startswith(f"{owner}.")]
    return known and not any(name.endswith(owner) or f".{owner}." in f".{name}." for name in names)


def _is_tied(model: nn.Module, owner: str) -> bool:
    return any(len(aliases(model, parameter)) > 1 for parameter in model.get_submodule(owner).parameters())
