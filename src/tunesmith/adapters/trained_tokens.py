"""Rows of single tokens that train beside a LoRA adapter, in the input embedding and in the output head.

A tied matrix has one set of rows, which gets its gradient from both uses; untied matrices have a set each.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import cast

from torch import Tensor, nn

from tunesmith.adapters import parameters
from tunesmith.adapters.targets import input_embedding, output_head
from tunesmith.errors import RecipeError
from tunesmith.models import token_rows
from tunesmith.models.token_rows import TokenRows
from tunesmith.types import ParamGroup

WHERE = "adapter.train_tokens"
SUFFIX = ".token_rows"
RELATIVE_RATE = 50.0
"""Rate of the rows over that of the adapter, for a matrix whose numbers have a root mean square of 1.

Adam's step is about the rate, whatever the gradient, so the rows move by this many rates relative to their size. Slower
ones (5 and below) lag behind the adapter, which meanwhile bends the hidden states: general text suffers tenfold.
"""
_SAMPLED_ROWS = 1024


class TrainedTokens:
    """The rows of one adapter on one model.

    Args:
        model: the model.
        name: of the adapter.
        ids: matrix module by full name -> rows to train; a tied matrix under its first name only.
    """

    def __init__(self, model: nn.Module, name: str, ids: Mapping[str, Sequence[int]]) -> None:
        self.name = name
        self.ids = {module: tuple(rows) for module, rows in ids.items()}
        self.rows: dict[str, TokenRows] = {}
        self.layers: dict[str, list[nn.Module]] = {}
        self.rate_factors: dict[str, float] = {}
        for module, rows in self.ids.items():
            layers = token_matrices(model)[module]
            part = TokenRows(_weight(layers[0]), rows)
            for layer in layers:
                token_rows.add_rows(layer, name, part)
            self.rows[module], self.layers[module] = part, layers
            self.rate_factors[module] = RELATIVE_RATE * _root_mean_square(_weight(layers[0]))

    def state(self) -> dict[str, Tensor]:
        """``MODULE.token_rows`` -> values of the rows, fp32; shares memory with the model."""
        return {module + SUFFIX: part.rows.detach() for module, part in self.rows.items()}

    def groups(self) -> list[ParamGroup]:
        """A group for each matrix, without decay, which would pull the rows to zero; the rate fits the matrix's size."""
        return [
            ParamGroup(
                f"lora rows of {module}", ((module + SUFFIX, part.rows),), self.rate_factors[module], decay=False
            )
            for module, part in self.rows.items()
        ]

    def parameters(self) -> list[nn.Parameter]:
        """The values of the rows."""
        return [part.rows for part in self.rows.values()]

    def changes(self) -> dict[str, tuple[tuple[int, ...], Tensor]]:
        """Matrix -> token ids, and what their rows are beyond the base's, fp32."""
        return {
            module: (self.ids[module], (part.rows - part.originals_NH.float()).detach())
            for module, part in self.rows.items()
        }

    def write(self) -> None:
        """Put the trained values into the matrices."""
        for weight, part in self._pairs():
            part.write(weight)

    def restore(self) -> None:
        """Put the base's values back."""
        for weight, part in self._pairs():
            part.restore(weight)

    def remove(self) -> None:
        """Take the rows off; the matrices stay as they are."""
        for layers in self.layers.values():
            for layer in layers:
                token_rows.remove_rows(layer, self.name)
        self.ids, self.rows, self.layers = {}, {}, {}

    def all_layers(self) -> list[nn.Module]:
        """Every layer that has rows."""
        return [layer for layers in self.layers.values() for layer in layers]

    def _pairs(self) -> Iterator[tuple[Tensor, TokenRows]]:
        for module, part in self.rows.items():
            yield _weight(self.layers[module][0]), part


def token_matrices(model: nn.Module) -> dict[str, list[nn.Module]]:
    """Embedding and output head by module name; where they are tied both stand under the first one's name."""
    names = {id(module): name for name, module in model.named_modules()}
    found: dict[int, tuple[str, list[nn.Module]]] = {}
    for module in (input_embedding(model), output_head(model)):
        if module is not None and isinstance(getattr(module, "weight", None), nn.Parameter):
            found.setdefault(id(module.weight), (names[id(module)], []))[1].append(module)
    return dict(found.values())


def chosen_rows(
    model: nn.Module, tokens: str | Sequence[str | int], beside: Mapping[str, nn.Parameter]
) -> dict[str, tuple[int, ...]]:
    """Matrix module -> rows, for a recipe's ``train_tokens``, which the plan has made ids; ``auto`` unplanned is none.

    Args:
        model: the model.
        tokens: the recipe's value.
        beside: parameters that train fully; their rows train anyway.

    Raises:
        RecipeError: a matrix has no such row or is quantised, or all of them train fully.
        ModelError: the arithmetic of the embedding or the head is not known.
    """
    if isinstance(tokens, str):
        return {}
    ids = [token for token in dict.fromkeys(tokens) if isinstance(token, int)]
    if len(ids) < len(set(tokens)):
        raise ValueError(f"token texts must be made ids before an adapter is attached: {tokens}")
    fully = {id(parameter) for parameter in beside.values()}
    frozen = {name: layers for name, layers in token_matrices(model).items() if id(layers[0].weight) not in fully}
    if not frozen:
        raise RecipeError(
            "the embedding and the head train fully already",
            where=WHERE,
            hint="leave `train_tokens` out, or narrow `also_train`",
        )
    require_rows(frozen, dict.fromkeys(frozen, ids))
    return {name: tuple(ids) for name in frozen}


def require_rows(matrices: Mapping[str, Sequence[nn.Module]], ids: Mapping[str, Sequence[int]]) -> None:
    """Check that rows can train.

    Raises:
        RecipeError: there is no such row, or the matrix is quantised.
        ModelError: the layer's arithmetic is not known.
    """
    for module, rows in ids.items():
        for layer in matrices[module]:
            weight = _weight(layer)
            parameters.require_trainable({f"{module}.weight": weight}, WHERE)
            if max(rows) >= len(weight):
                raise RecipeError(
                    f"there is no token {max(rows)}: `{module}` has {len(weight):,} rows",
                    where=WHERE,
                    hint=f"give ids below {len(weight)}",
                )
            token_rows.require_known(layer, rows)


def clash(
    first: Mapping[str, Collection[int] | None], second: Mapping[str, Collection[int] | None], *, rows: bool = True
) -> str | None:
    """The first parameter that two adapters both have values for; a value of None claims the whole parameter.

    Args:
        first: parameter -> rows, of one adapter.
        second: of the other.
        rows: whether rows that both have are a clash.
    """
    for name in first.keys() & second.keys():
        one, other = first[name], second[name]
        if one is None or other is None or (rows and set(one) & set(other)):
            return name
    return None


def _root_mean_square(weight_VH: Tensor) -> float:
    """Of the numbers of a thousand rows, evenly spread."""
    sample = weight_VH.detach()[:: max(1, len(weight_VH) // _SAMPLED_ROWS)].float()
    return float(sample.square().mean().sqrt())


def _weight(layer: nn.Module) -> nn.Parameter:
    return cast(nn.Parameter, layer.weight)
