"""How far each layer moves in a step: the size of its update beside the size of its weights."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from tunesmith.engine.checkpoint import Say
from tunesmith.engine.optim import Optimiser

_LAYER = re.compile(r"^(.*?\.\d+)\.")
_VANISHING = 1e-3
"""A layer whose ratio is below this share of the median layer's is called vanishing."""


@dataclass(frozen=True)
class LayerVital:
    """One layer at one step. ``ratio`` is the norm of the update over the norm of the weights; usual is about 1e-3.

    ``share`` is the share of the rate that the layer has because of its place in the model.
    """

    layer: str
    update_norm: float
    weight_norm: float
    grad_norm: float
    share: float = 1.0

    @property
    def ratio(self) -> float:
        """Update over weights; weights that are all zero count as the smallest that are not."""
        return self.update_norm / max(self.weight_norm, torch.finfo(torch.float32).tiny)


def layer_of(name: str) -> str:
    """The layer a parameter belongs to: the name up to its first number, else without its last part."""
    found = _LAYER.match(name)
    return found[1] if found else name.rpartition(".")[0] or name


@torch.no_grad()
def measure(optimiser: Optimiser) -> list[LayerVital]:
    """Vitals of every layer, right after an update and before the gradients are dropped. The host waits for the device.

    The update is taken from the optimiser's own state, so that no copy of the weights is needed; decay is not counted.
    """
    squares: dict[str, Tensor] = {}
    shares: dict[str, float] = {}
    for name, parameter in zip(optimiser.names, optimiser.parameters, strict=True):
        if parameter.grad is None:
            continue
        update = optimiser.last_update(parameter)
        parts = (update, parameter.detach(), parameter.grad)
        now_3 = torch.stack([part.float().square().sum() for part in parts])
        layer = layer_of(name)
        shares[layer] = optimiser.share(parameter)
        squares[layer] = squares[layer] + now_3 if layer in squares else now_3
    if not squares:
        return []
    norms = torch.stack(list(squares.values())).sqrt().tolist()
    return [
        LayerVital(layer, update, weight, gradient, shares[layer])
        for layer, (update, weight, gradient) in zip(squares, norms, strict=True)
    ]


def faults(vitals: list[LayerVital]) -> dict[str, str]:
    """What is wrong with a layer, by layer: ``dead`` gets no gradient at all, ``vanishing`` moves far less than the others.

    A layer that is meant to move less, by the share of the rate that it has, is held to that.
    """
    ratios = sorted(item.ratio / item.share for item in vitals)
    usual = ratios[len(ratios) // 2] if ratios else 0.0
    found = {}
    for item in vitals:
        if item.grad_norm == 0.0:
            found[item.layer] = "dead: no gradient reaches it"
        elif item.ratio < _VANISHING * usual * item.share:
            found[item.layer] = (
                f"vanishing: its update is {item.ratio:.1e} of its weights, the median layer's {usual:.1e}"
            )
    return found


class LayerWatch:
    """Tells of layers that turn out faulty, once each.

    Args:
        say: where a fault is told.
        tell: takes the step and every layer's vitals.
    """

    def __init__(self, say: Say, tell: Callable[[int, list[LayerVital]], None]) -> None:
        self.say = say
        self.tell = tell
        self.faulty: dict[str, str] = {}

    def look(self, step: int, vitals: list[LayerVital]) -> None:
        """Take the vitals at the end of ``step``."""
        found = faults(vitals)
        for layer, fault in found.items():
            if self.faulty.get(layer, "").partition(":")[0] != fault.partition(":")[0]:
                self.say("layer_fault", f"layer {layer} at step {step} is {fault}")
        self.faulty = found
        self.tell(step, vitals)
