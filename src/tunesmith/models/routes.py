"""Which tokens of a batch are whose: one pass serves requests of several adapters.

    pack       [ request 0 ][ request 1 ][ request 2 ]        T tokens, cut by lengths
    padded     B rows of L tokens; rows that ended leave      B·L tokens, L from B and what a layer sees

A layer that adapters change sees the batch whole, whatever its leading dimensions, and asks here for the places of each stack.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from tunesmith.errors import ModelError

Stack = tuple[str, ...]
"""Names of adapters whose updates are summed; () is the base."""

Places = list[tuple[Stack, Tensor | slice]]


class Routes:
    """The stacks of a batch's rows.

    Args:
        stacks: of each row, in order.
        lengths: tokens of each row of a pack; None for padded rows.
    """

    def __init__(self, stacks: Sequence[Stack], lengths: Sequence[int] | None = None) -> None:
        self.stacks = list(stacks)
        self.lengths = None if lengths is None else list(lengths)
        self._known: dict[int, Places] = {}

    def keep(self, rows: Sequence[int]) -> None:
        """Only these rows go on, in this order."""
        self.stacks = [self.stacks[row] for row in rows]
        self.lengths = None if self.lengths is None else [self.lengths[row] for row in rows]
        self._known.clear()

    def places(self, num_tokens: int, device: torch.device) -> Places:
        """Each stack that is not empty, and its tokens among ``num_tokens``: a slice where they lie together.

        Raises:
            ModelError: a layer sees another number of tokens than the batch has, as experts of a mixture do.
        """
        if num_tokens not in self._known:
            self._known[num_tokens] = self._found(num_tokens, device)
        return self._known[num_tokens]

    def _found(self, num_tokens: int, device: torch.device) -> Places:
        lengths = self.lengths
        if lengths is None:
            lengths = [num_tokens // len(self.stacks)] * len(self.stacks)
        if sum(lengths) != num_tokens:
            raise ModelError(
                f"a layer sees {num_tokens} tokens of a batch of {sum(lengths)}: this model sends tokens on ways of their own",
                where="a batch with several adapters",
                hint="give the requests of each adapter a pass of their own (`mixed=False`)",
            )
        ends = list(accumulate(lengths))
        found: dict[Stack, list[int]] = {}
        for row, stack in enumerate(self.stacks):
            if stack:
                found.setdefault(stack, []).append(row)
        result: Places = []
        for stack, rows in found.items():
            if rows == list(range(rows[0], rows[-1] + 1)):
                result.append((stack, slice(ends[rows[0]] - lengths[rows[0]], ends[rows[-1]])))
                continue
            pieces = [torch.arange(ends[row] - lengths[row], ends[row]) for row in rows]
            result.append((stack, torch.cat(pieces).to(device)))
        return result
