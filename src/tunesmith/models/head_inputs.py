"""What a model's output layer is given, caught on its way: transformations before the head are then the model's own."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


class HeadInputs:
    """Runs a model up to its output layer, which sees one position only, so that no tensor of all logits exists.

    Args:
        layer: the output layer.
    """

    def __init__(self, layer: nn.Module) -> None:
        self._caught: list[Tensor] | None = None
        layer.register_forward_pre_hook(self._catch)

    def of(self, model: Any, given: dict[str, Any]) -> Tensor:
        """What the layer is given ``[N, L, H]`` when the model runs on ``given``."""
        self._caught = []
        try:
            model(**given)
            if len(self._caught) != 1:
                raise RuntimeError("the output layer was not called once")
            return self._caught[0]
        finally:
            self._caught = None

    def _catch(self, layer: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if self._caught is None:
            return None
        self._caught.append(given[0])
        return (given[0][:, :1], *given[1:])
