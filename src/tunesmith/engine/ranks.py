"""Processes that train one model together: each takes its share of a step's passes, and sums are taken over all of them.

    rank r takes passes r, r + W, … of a step of any number of passes; who has none still joins every sum
    counts, surveys ── summed before the first backward        gradients, loss, metrics ── summed once after the last

Every rank holds the whole model and the whole stream, and comes to the same weights and the same verdicts, since all are
made of summed numbers. Rank 0, the main one, evaluates, saves and speaks. One process is a world of one: nothing is sent.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from tunesmith.engine.interrupts import Asked
from tunesmith.engine.stopwatch import Stopwatch
from tunesmith.errors import GuardStopped, UserError
from tunesmith.launcher import VARIABLES, num_ranks
from tunesmith.types import Batch, Mean

T = TypeVar("T")
_PATIENCE = timedelta(days=30)
"""Ranks wait for the main one while it scores and evaluates."""
_BUCKET_ELEMENTS = 1 << 23


class Ranks:
    """A world of one process."""

    rank, size = 0, 1
    times: Stopwatch | None = None
    """Hears how long sums take, as the host sees it; on CUDA a sum is queued and the host goes on."""

    @property
    def is_main(self) -> bool:
        """Whether this rank evaluates, saves and speaks."""
        return self.rank == 0

    def share(self, passes: Sequence[Batch]) -> list[tuple[int, Batch]]:
        """The rank's passes with their numbers in the step, which seed their randomness."""
        return list(enumerate(passes))[self.rank :: self.size]

    def sum(self, kind: str, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Sums of scalars over all ranks, by name; a rank without passes may lack names. ``kind`` tells sets of names apart."""
        return dict(values)

    def sum_means(self, kind: str, means: Mapping[str, Mean]) -> dict[str, Mean]:
        """The same for totals and counts."""
        parts = {f"{name}/total": mean.total for name, mean in means.items()}
        found = self.sum(kind, parts | {f"{name}/count": mean.count for name, mean in means.items()})
        names = [name.removesuffix("/total") for name in found if name.endswith("/total")]
        return {name: Mean(found[f"{name}/total"], found[f"{name}/count"]) for name in names}

    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Replace each gradient by its sum over all ranks."""

    def largest(self, values: Sequence[int]) -> list[int]:
        """The largest of each value over all ranks; the hosts wait for each other, not for a device."""
        return list(values)

    def told(self, value: Any) -> Any:
        """What the main rank says; plain values. The others' ``value`` is not looked at."""
        return value

    def main_says(self, act: Callable[[], T]) -> T:
        """What the main rank finds by ``act``; the others wait. A signal that ends it ends it on all."""
        return act()


class World(Ranks):
    """Several processes, joined by torch.distributed.

    Args:
        device: where models and gradients lie.
    """

    def __init__(self, device: torch.device) -> None:
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self.device = device
        # Words between hosts must wait neither for a device nor for its time limits.
        self._hosts = dist.new_group(backend="gloo", timeout=_PATIENCE) if dist.get_backend() != "gloo" else None
        self._names: dict[str, list[str]] = {}

    def sum(self, kind: str, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """As the base class says; in float64."""
        if kind not in self._names:
            self._names[kind] = list(self.told(list(values)))
        names = self._names[kind]
        if unknown := values.keys() - set(names):
            raise RuntimeError(f"rank {self.rank} sums `{min(unknown)}`, the main rank does not")
        if not names:
            return {}
        zero = torch.zeros((), dtype=torch.float64, device=self.device)
        sums = torch.stack([values.get(name, zero).detach().to(torch.float64).reshape(()) for name in names])
        with self._together():
            dist.all_reduce(sums)
        return dict(zip(names, sums.to(torch.float32).unbind(), strict=True))

    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """As the base class says; which parameters have one is what the main rank, which always has a pass, says at first."""
        mine = [str(int(item.grad is not None)) for item in parameters]
        key = f"gradients of {','.join(str(id(item)) for item in parameters)}"  # what trains may change on the way
        if key not in self._names:
            self._names[key] = self.told(mine)
        pattern = self._names[key]
        if any(one == "1" and other == "0" for one, other in zip(mine, pattern, strict=True)):
            raise RuntimeError(f"rank {self.rank} has a gradient that the main rank lacks")
        chosen = [item for item, has in zip(parameters, pattern, strict=True) if has == "1"]
        for item in chosen:
            if item.grad is None:
                item.grad = torch.zeros_like(item)
        for bucket in _buckets([item.grad for item in chosen if item.grad is not None]):
            flat = torch.cat([gradient.reshape(-1) for gradient in bucket])
            with self._together():
                dist.all_reduce(flat)
            sizes = [item.numel() for item in bucket]
            for gradient, part in zip(bucket, torch.split(flat, sizes), strict=True):
                gradient.copy_(part.view_as(gradient))

    def largest(self, values: Sequence[int]) -> list[int]:
        """As the base class says."""
        found = torch.tensor(values, dtype=torch.int64)
        with self._together():
            dist.all_reduce(found, dist.ReduceOp.MAX, group=self._hosts)
        return [int(value) for value in found.tolist()]

    def told(self, value: Any) -> Any:
        """As the base class says; sent as JSON."""
        payload = json.dumps(value).encode() if self.is_main else b""
        size = torch.tensor([len(payload)], dtype=torch.int64)
        with self._together():
            dist.broadcast(size, 0, group=self._hosts)
            text = (
                torch.frombuffer(bytearray(payload), dtype=torch.uint8)
                if payload
                else torch.empty(int(size), dtype=torch.uint8)
            )
            dist.broadcast(text, 0, group=self._hosts)
        return json.loads(bytes(text.tolist()))

    def main_says(self, act: Callable[[], T]) -> T:
        """As the base class says."""
        said: dict[str, Any] = {}
        if self.is_main:
            try:
                said = {"value": act()}
            except Asked:
                self.told({"asked": True})
                raise
        said = self.told(said)
        if "asked" in said:
            raise Asked
        value: T = said["value"]
        return value

    @contextmanager
    def _together(self) -> Iterator[None]:
        """A rank that is gone ends the others in words."""
        try:
            with self.times.part("communication") if self.times else nullcontext():
                yield
        except RuntimeError as error:
            raise GuardStopped(
                f"another rank of this run has ended ({str(error).splitlines()[0]})",
                where=f"rank {self.rank} of {self.size}",
                hint="see what the other rank said; the same command goes on from the newest checkpoint, with any number of ranks",
            ) from error


def _buckets(gradients: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Gradients of one type and place together, a few million numbers each."""
    for dtype in dict.fromkeys(item.dtype for item in gradients):
        bucket: list[Tensor] = []
        for gradient in gradients:
            if gradient.dtype != dtype:
                continue
            if bucket and sum(item.numel() for item in bucket) + gradient.numel() > _BUCKET_ELEMENTS:
                yield bucket
                bucket = []
            bucket.append(gradient)
        if bucket:
            yield bucket


@contextmanager
def joined(device: str) -> Iterator[Ranks]:
    """Within the context the processes that a launcher such as torchrun started are one world; without one it is a world of one.

    Args:
        device: ``cuda`` gives each process the card of its local rank.

    Raises:
        UserError: the launcher's environment is incomplete, or it started more processes than the machine has cards.
        GuardStopped: the others do not come.
    """
    if num_ranks() == 1:
        yield Ranks()
        return
    missing = [name for name in VARIABLES if name not in os.environ]
    if missing:
        raise UserError(
            f"WORLD_SIZE asks for {num_ranks()} ranks, and {', '.join(missing)} is not set",
            where="environment variables",
            hint="start it with `torchrun --nproc-per-node N -m -- tunesmith train RECIPE`, or unset WORLD_SIZE",
        )
    on_cuda = device == "cuda"
    if on_cuda:
        _take_card(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if on_cuda else "gloo", timeout=None if on_cuda else _PATIENCE)
    try:
        yield World(torch.device("cuda", torch.cuda.current_device()) if on_cuda else torch.device("cpu"))
    finally:
        dist.destroy_process_group()


def _take_card(local_rank: int) -> None:
    cards = torch.cuda.device_count()
    if local_rank >= cards:
        raise UserError(
            f"the launcher started {local_rank + 1} or more ranks on this machine, and it has {cards} cards",
            where="environment variable LOCAL_RANK",
            hint=f"start it with `torchrun --nproc-per-node {cards}` or fewer, or set machine.device=cpu",
        )
    torch.cuda.set_device(local_rank)
