"""Modules that carry the parts of adapters: a linear layer, an embedding, a block.

A site is changed in place: it keeps its identity, name, weights and hooks, and gets a subclass of its own type whose
``forward`` lets the active parts change what the module gives. Names of the base's parameters therefore stay as they
were, parts are called ``SITE.added.ADAPTER.…``, and with no part active the forward is the base's own, bit for bit.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from typing import Any, cast

from torch import Tensor, nn

from tunesmith.models.routes import Routes

CHILD = "added"
"""Name of the child of a site that holds its parts."""


class Part(nn.Module):
    """What one adapter adds at one site. Its numbers are fp32 whatever the base's type."""

    def forward(self, x: Tensor, y: Tensor, base_y: Tensor, site: Any) -> Tensor:
        """Return the site's output with this part's change, in the type of ``y``.

        Args:
            x: the site's first input.
            y: the output so far: the base's, changed by the parts before this one.
            base_y: the base's output.
            site: the module itself, for its weights.
        """
        raise NotImplementedError

    def named(self) -> dict[str, Tensor]:
        """All numbers of the part by the ending of their name in an adapter's state, such as ``lora_A.weight``."""
        raise NotImplementedError

    def rebase(self, site: nn.Module) -> None:
        """The base's weights at the site have changed: another adapter was merged into them."""

    def trained(self) -> dict[str, nn.Parameter]:
        """Those of them that train."""
        return {ending: item for ending, item in self.named().items() if isinstance(item, nn.Parameter)}


def add_part(site: nn.Module, name: str, part: Part) -> None:
    """Give ``site`` an adapter's part; it is inactive until ``set_active``."""
    if not is_wrapped(site):
        setattr(site, CHILD, nn.ModuleDict())
        site.__class__ = _site_class(cast(Any, type(site)))
        set_active(site, ())
    own = next(
        itertools.chain(site.parameters(recurse=False), site.buffers(recurse=False), site.parameters(), site.buffers()),
        None,
    )
    parts(site)[name] = (part if own is None else part.to(own.device)).train(site.training)


def remove_part(site: nn.Module, name: str) -> None:
    """Take an adapter's part away; with the last one the site gets its own class back."""
    set_active(site, tuple(other for other in cast(Any, site).added_active if other != name))
    del parts(site)[name]
    if not len(parts(site)):
        delattr(site, CHILD)
        del site.added_active
        vars(site).pop("added_routes", None)
        site.__class__ = cast(Any, site).added_base_class


def parts(site: nn.Module) -> nn.ModuleDict:
    """Adapter name -> part of a wrapped module."""
    return cast(nn.ModuleDict, getattr(site, CHILD))


def set_active(site: nn.Module, names: tuple[str, ...]) -> None:
    """Choose the parts that the forward asks, in this order."""
    cast(Any, site).added_active = names


def set_routes(site: nn.Module, routes: Routes | None) -> None:
    """Let each row of a batch go through parts of its own, in place of the active ones; None ends it."""
    cast(Any, site).added_routes = routes


def is_wrapped(module: nn.Module) -> bool:
    """Whether the module has parts of any adapter."""
    return hasattr(type(module), "added_base_class")


@functools.cache
def _site_class(base_class: Any) -> type[nn.Module]:
    @functools.wraps(base_class.forward)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        found = base_class.forward(self, *args, **kwargs)
        if not self.added_active and self.added_routes is None:
            return found
        x = args[0] if args else next(iter(kwargs.values()))
        base_y = found[0] if isinstance(found, tuple) else found
        if self.added_routes is not None:
            y = _routed(self, self.added_routes, x, base_y)
        else:
            y = _changed(self, self.added_active, x, base_y)
        return (y, *found[1:]) if isinstance(found, tuple) else y

    members = {
        "forward": forward, "added_base_class": base_class, "added_routes": None, "__module__": base_class.__module__
    }  # fmt: skip
    return type(f"Adapted{base_class.__name__}", (base_class,), members)


def _changed(site: Any, names: Sequence[str], x: Tensor, base_y: Tensor) -> Tensor:
    y = base_y
    for name in names:
        y = site.added[name](x, y, base_y, site)
    return y


def _routed(site: Any, routes: Routes, x: Tensor, base_y: Tensor) -> Tensor:
    """What each row's own parts make of it: a stack reads and writes its tokens only."""
    flat_x, flat_y = x.reshape(-1, x.shape[-1]), base_y.reshape(-1, base_y.shape[-1])
    result = flat_y.clone()
    for stack, places in routes.places(len(flat_y), flat_y.device):
        names = [name for name in stack if name in site.added]
        if names:
            result[places] = _changed(site, names, flat_x[places], flat_y[places])
    return result.view(base_y.shape)
