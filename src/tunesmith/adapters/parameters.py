"""A model's own parameters by stable name: matching by glob, decay groups, checked loading.

A tied weight is one parameter with several names; the first name, in module order, is its stable name.
Parameters that an adapter added are not the model's own and never appear here.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from tunesmith.adapters.sites import Part
from tunesmith.errors import RecipeError, RunError
from tunesmith.models.names import matches
from tunesmith.models.quantised import QuantisedLinear
from tunesmith.models.token_rows import TokenRows
from tunesmith.types import ParamGroup

_SHOWN = 40


def own_names(model: nn.Module) -> dict[str, nn.Parameter]:
    """Every name of every parameter of the model itself, tied names included, in module order."""
    parts = [module for module in model.modules() if isinstance(module, Part | TokenRows)]
    added = {id(parameter) for part in parts for parameter in part.parameters()}
    return {name: part for name, part in model.named_parameters(remove_duplicate=False) if id(part) not in added}


def weight_names(model: nn.Module) -> list[str]:
    """Names of the model's own parameters, and of weights that are packed and so no parameters."""
    packed = [f"{name}.weight" for name, module in model.named_modules() if isinstance(module, QuantisedLinear)]
    return [*own_names(model), *packed]


def own_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Stable name -> parameter, each parameter once."""
    seen: set[int] = set()
    result: dict[str, nn.Parameter] = {}
    for name, parameter in own_names(model).items():
        if id(parameter) not in seen:
            seen.add(id(parameter))
            result[name] = parameter
    return result


def aliases(model: nn.Module, parameter: nn.Parameter) -> list[str]:
    """All names of one parameter, the stable one first."""
    return [name for name, other in own_names(model).items() if other is parameter]


def match_parameters(model: nn.Module, patterns: Sequence[str], where: str) -> dict[str, nn.Parameter]:
    """Parameters whose name, or tied name, fits any of the globs, by stable name in module order.

    Raises:
        RecipeError: a glob fits nothing (lists what exists), or fits integer parameters, which cannot train.
    """
    names = own_names(model)
    wanted: set[int] = set()
    for pattern in patterns:
        found = [parameter for name, parameter in names.items() if matches(name, pattern)]
        if not found:
            raise RecipeError(
                f"`{pattern}` matches no parameter of the model", where=where, hint=_parameter_hint(model, pattern)
            )
        wanted.update(id(parameter) for parameter in found)
    chosen = {name: parameter for name, parameter in own_parameters(model).items() if id(parameter) in wanted}
    require_trainable(chosen, where)
    return chosen


def require_trainable(chosen: Mapping[str, nn.Parameter], where: str) -> None:
    """Refuse parameters that hold no floating-point numbers, such as packed quantised weights."""
    for name, parameter in chosen.items():
        if not parameter.is_floating_point():
            raise RecipeError(
                f"`{name}` holds {parameter.dtype} values and cannot train",
                where=where,
                hint="load the base unquantised, or train an adapter on it",
            )


def list_parameters(model: nn.Module) -> str:
    """The model's parameters by their last two components, with counts and shapes."""
    return summarise((_tail(name), "×".join(map(str, part.shape))) for name, part in own_parameters(model).items())


def summarise(items: Iterable[tuple[str, str]]) -> str:
    """Distinct names with counts and shapes: ``q_proj (4 of 256→256), …``; at most 40 names."""
    table: dict[str, dict[str, int]] = {}
    for name, shape in items:
        counts = table.setdefault(name, {})
        counts[shape] = counts.get(shape, 0) + 1
    lines = [
        f"{name} ({', '.join(f'{n} of {shape}' for shape, n in counts.items())})" for name, counts in table.items()
    ]
    more = f", and {len(lines) - _SHOWN} more" if len(lines) > _SHOWN else ""
    return ", ".join(lines[:_SHOWN]) + more


def suggest(pattern: str, names: Iterable[str]) -> str:
    """``did you mean …? `` for the nearest name, or nothing."""
    bare = pattern.strip("*?.").rpartition("*")[2] or pattern
    close = difflib.get_close_matches(bare, list(dict.fromkeys(names)), n=1, cutoff=0.6)
    return f"did you mean `{close[0]}`? " if close else ""


def decay_groups(model: nn.Module, chosen: Mapping[str, nn.Parameter], *, prefix: str = "") -> list[ParamGroup]:
    """Split into matrices, which decay, and vectors and embeddings, which do not. Empty groups are left out."""
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    decayed: list[tuple[str, nn.Parameter]] = []
    kept: list[tuple[str, nn.Parameter]] = []
    for name, parameter in chosen.items():
        is_matrix = parameter.ndim >= 2 and id(parameter) not in embeddings
        (decayed if is_matrix else kept).append((name, parameter))
    groups = [
        ParamGroup(f"{prefix}matrices", tuple(decayed), decay=True),
        ParamGroup(f"{prefix}vectors and embeddings", tuple(kept), decay=False),
    ]
    return [group for group in groups if group.parameters]


@torch.no_grad()
def load_tensors(targets: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    """Copy ``state`` into ``targets`` in place.

    Raises:
        RunError: a name is missing or unknown, or a shape or dtype differs; nothing is copied then.
    """
    missing = [name for name in targets if name not in state]
    unknown = [name for name in state if name not in targets]
    if missing or unknown:
        raise RunError(
            f"the saved state does not fit: {len(missing)} tensors missing, {len(unknown)} unknown "
            f"(first: {', '.join((missing + unknown)[:3])})",
            where="saved state of what trains",
            hint="it was saved with another model or adapter section",
        )
    for name, target in targets.items():
        saved = state[name]
        if saved.shape != target.shape or saved.dtype != target.dtype:
            raise RunError(
                f"saved tensor `{name}` is {saved.dtype} {tuple(saved.shape)}, the model has {target.dtype} {tuple(target.shape)}",
                where="saved state of what trains",
                hint="it was saved with another model, rank or precision",
            )
    for name, target in targets.items():
        target.copy_(state[name])


def _tail(name: str) -> str:
    return ".".join(part for part in name.split(".")[-2:] if not part.isdigit())


def _parameter_hint(model: nn.Module, pattern: str) -> str:
    names = own_names(model)
    candidates = [*names, *(_tail(name) for name in names)]
    return f"{suggest(pattern, candidates)}parameters here: {list_parameters(model)}"
