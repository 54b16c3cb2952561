"""Several adapters in one pass: each row of a batch goes through the adapters of its own request.

The base's layers run once over the whole batch; each stack of adapters then changes its own tokens. What is no change of single
tokens cannot be routed: virtual tokens, and whole parameters of the base that an adapter brings values of.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import nn

from tunesmith.adapters import sites
from tunesmith.adapters.added import activate, active_names, adapters_of
from tunesmith.models import token_rows
from tunesmith.models.routes import Routes, Stack


@contextmanager
def routed(model: nn.Module, stacks: Sequence[Stack], lengths: Sequence[int] | None = None) -> Iterator[Routes]:
    """Within the context the rows of the batch have these stacks, whatever was active before.

    Args:
        model: with its adapters attached.
        stacks: names of adapters for each row, () for the base.
        lengths: tokens of each row where the batch is a pack; None for padded rows.

    Raises:
        ValueError: an unknown name, or an adapter that cannot share a pass.
    """
    adapters = adapters_of(model)
    for name in dict.fromkeys(name for stack in stacks for name in stack):
        if name not in adapters:
            raise ValueError(f"the model has no adapter `{name}`; it has: {', '.join(adapters) or 'none'}")
        if why := adapters[name].why_alone():
            raise ValueError(f"adapter `{name}` cannot share a pass: it {why}")
    before, routes = active_names(model), Routes(stacks, lengths)
    activate(model, ())
    _set(model, routes)
    try:
        yield routes
    finally:
        _set(model, None)
        activate(model, before)


def _set(model: nn.Module, routes: Routes | None) -> None:
    for adapter in adapters_of(model).values():
        for site in adapter.carriers().values():
            sites.set_routes(site, routes)
        for layer in adapter.token_layers():
            token_rows.set_routes(layer, routes)
