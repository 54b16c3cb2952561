"""One base in memory and many adapters on it by name: stacked, switched for each request, swapped while it runs.

    board = open_switchboard("tunesmith-base-8m")
    board.load("desk", "runs/desk")
    board.load("bank", "exports/bank")
    board.logits([ids, ids, ids], ["desk", ("desk", "bank"), ()])

The base's weights are never changed for good, so an adapter that is loaded later, or in the place of another, gives the logits of a
fresh load to the bit. Requests of different adapters share passes where they can (``adapters.routing``). One thread at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tunesmith.adapters.added import AddedAdapter, activate, active_names, adapters_of
from tunesmith.adapters.peft_files import attach_read, read_adapter
from tunesmith.adapters.routing import routed
from tunesmith.data.loader import make_batch
from tunesmith.data.packing import pack
from tunesmith.data.rendering import Renderer
from tunesmith.errors import ModelError, UserError
from tunesmith.models.causal_lm import CausalLM
from tunesmith.models.encoder_lm import EncoderLM
from tunesmith.models.generation import Generator
from tunesmith.models.loading import load_model
from tunesmith.models.locate import ModelFolder, ModelRef, check_weights, locate
from tunesmith.models.routes import Routes, Stack
from tunesmith.records import Chat, Message
from tunesmith.registry.result import check_result
from tunesmith.types import Completion, Sampling
from tunesmith.workshop.blendable import adapter_reference
from tunesmith.workshop.machinery import assemble
from tunesmith.workshop.opening import packing_of, renderer_for, require_base, trained_on

Wanted = str | Sequence[str] | None
"""Adapters of a request: a name, names that stack, () for the base, None for what ``use`` chose."""


@dataclass(frozen=True)
class _Held:
    adapter: AddedAdapter
    inner: str
    renderer: Renderer
    stop_ids: frozenset[int]


class Switchboard:
    """Made by ``open_switchboard``.

    Args:
        base: the base model.
        model: it, loaded, without adapters.
        quantise: how its linear layers hold their weights.
        batch_tokens: most tokens of a pass.
    """

    def __init__(self, base: ModelFolder, model: CausalLM, quantise: str, batch_tokens: int) -> None:
        self.base, self.model = base, model
        self.renderer, self.context = renderer_for(ModelRef(base))
        self._quantise, self._batch_tokens = quantise, batch_tokens
        self._held: dict[str, _Held] = {}
        self._chosen: tuple[str, ...] = ()
        self._count = 0

    @property
    def names(self) -> tuple[str, ...]:
        """The adapters that are loaded."""
        return tuple(self._held)

    def load(self, name: str, source: str | Path) -> list[str]:
        """Put an adapter on the base under a name; what is in use stays so.

        Args:
            name: what requests call it.
            source: adapter folder, or a run that trained one.

        Returns:
            Sentences to say aloud.

        Raises:
            UserError: the name is taken.
            ModelError: no adapter, one with a head of its own, or one of another base: by the hash of its weights where the adapter
                has it, and by the places and shapes of its parts.
        """
        if name in self._held or not name:
            raise UserError(
                f"there is an adapter `{name}` already" if name else "an adapter needs a name",
                where="adapter name",
                hint=f"take another name, or `swap({name!r}, …)` to put this one in its place" if name else "give one",
            )
        self._held[name], notes = self._attached(str(source))
        return notes

    def swap(self, name: str, source: str | Path) -> list[str]:
        """Put another adapter in the place of a loaded one, which goes only when the new one is there. As ``load``."""
        old = self._of(name)
        new, notes = self._attached(str(source))
        self._held[name] = new
        try:
            self._activate(self._chosen)
        except UserError:
            self._held[name] = old
            new.adapter.detach()
            raise
        old.adapter.detach()
        return notes

    def unload(self, name: str) -> None:
        """Take an adapter off and free its memory. Raises UserError where it is unknown or in use."""
        held = self._of(name)
        if name in self._chosen:
            raise UserError(
                f"adapter `{name}` is in use", where="adapter name", hint="`use()` others, or nothing, before"
            )
        held.adapter.detach()
        del self._held[name]

    def use(self, *names: str) -> None:
        """Choose what requests without adapters of their own get: one, several whose updates are summed, or the base."""
        self._activate(names)
        self._chosen = names

    def logits(
        self, documents: Sequence[Sequence[int]], adapters: Sequence[Wanted] | None = None, *, mixed: bool = True
    ) -> list[Tensor]:
        """Logits of every position of each document ``[T, V]``, in fp32 on the base's device.

        Args:
            documents: token ids.
            adapters: of each document; None is what ``use`` chose.
            mixed: whether documents of different adapters may share a pass. What puts tokens in front, or has whole
                parameters of its own, never shares one.

        Raises:
            UserError: an unknown adapter, two that cannot stack, or a document that is empty or too long.
        """
        stacks = self._stacks(documents, adapters)
        found: dict[int, Tensor] = {}
        for group in self._groups(stacks, mixed=mixed):
            for members in pack([len(documents[index]) for index in group], self._batch_tokens):
                # Stacks lie together, so that a layer cuts the batch instead of gathering.
                ordered = sorted((group[member] for member in members), key=lambda index: stacks[index])
                found |= self._pass([documents[index] for index in ordered], ordered, stacks)
        return [found[index] for index in range(len(documents))]

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        how: Sampling,
        adapters: Sequence[Wanted] | None = None,
        *,
        mixed: bool = True,
    ) -> list[Completion]:
        """Answer each prompt through its own adapters, in order. Arguments and errors as ``logits``.

        What is drawn for a prompt depends on the seed and its place, not on its neighbours' adapters.
        """
        if isinstance(self.model, EncoderLM):
            raise ModelError(
                "an encoder writes no answers",
                where=str(self.base.path),
                hint="ask it for `logits`, or load a causal base",
            )
        stacks = self._stacks(prompts, adapters)
        found: dict[int, Completion] = {}
        by_stops: dict[frozenset[int], list[int]] = {}
        for index, stack in enumerate(stacks):
            by_stops.setdefault(self._stop_ids(stack), []).append(index)
        for stops, indices in by_stops.items():
            for group in self._groups({index: stacks[index] for index in indices}, mixed=mixed):
                found |= self._answers(prompts, group, stacks, stops, how)
        return [found[index] for index in range(len(prompts))]

    def prompt_ids(self, text: str, adapter: str | None = None) -> list[int]:
        """A question to ask, rendered as an adapter was trained to read it; None: as the base's template has it."""
        renderer = self.renderer if adapter is None else self._of(adapter).renderer
        return renderer.prompt_ids(Chat((Message("user", text), Message("assistant", ""))))

    def _attached(self, source: str) -> tuple[_Held, list[str]]:
        reference = self._reference(source)
        if reference.run is not None:
            check_result(reference.run)
        require_base(reference, self.base)
        assert reference.adapter is not None
        settings, state = read_adapter(reference.adapter)
        notes = []
        if not trained_on(reference):
            notes.append(f"the adapter in {source} names no hash of its base: places and shapes alone were compared")
        elif (packing := packing_of(reference)) != self._quantise:
            notes.append(
                f"the adapter was trained on a base with `quantise: {packing}`, this one has `{self._quantise}`"
            )
        self._count += 1
        inner = f"a{self._count}"
        before = active_names(self.model.hf)
        try:
            adapter = attach_read(self.model.hf, settings, state, inner)
        except BaseException:
            if inner in adapters_of(self.model.hf):
                adapters_of(self.model.hf)[inner].detach()
            raise
        finally:
            activate(self.model.hf, before)
        adapter.freeze()
        renderer, _ = renderer_for(reference)
        return _Held(adapter, inner, renderer, frozenset(renderer.stop_ids)), notes + adapter.notes

    def _reference(self, source: str) -> ModelRef:
        """The adapter that ``source`` means, on this board's base."""
        reference = adapter_reference(source, self.base)
        if reference.adapter is None:
            raise ModelError(
                "there is no adapter: a whole model was trained, or it was merged",
                where=source,
                hint="give an adapter folder, or a run with `adapter: {type: lora}` or its kin",
            )
        if reference.head is not None:
            raise ModelError(
                "the adapter has a head of its own, which answers with labels in place of tokens",
                where=source,
                hint="open it by itself: `tunesmith generate`",
            )
        return reference

    def _of(self, name: str) -> _Held:
        if name not in self._held:
            raise UserError(
                f"there is no adapter `{name}`",
                where="adapter name",
                hint=f"loaded are: {', '.join(self._held)}" if self._held else "none is loaded: `load(NAME, FOLDER)`",
            )
        return self._held[name]

    def _inner(self, names: Sequence[str]) -> Stack:
        return tuple(self._of(name).inner for name in names)

    def _activate(self, names: Sequence[str]) -> None:
        if len(set(names)) < len(names):
            twice = next(name for name in names if list(names).count(name) > 1)
            raise UserError(
                f"adapter `{twice}` stacks on itself", where="adapter name", hint="name it once; `blend` scales updates"
            )
        inner = self._inner(names)
        try:
            activate(self.model.hf, inner)
        except ValueError as error:
            said = str(error)
            for name in names:
                said = said.replace(f"`{self._held[name].inner}`", f"`{name}`")
            raise UserError(said, where="adapter name", hint="use one of them, or blend them into one") from None

    @contextmanager
    def _active(self, names: Sequence[str]) -> Iterator[None]:
        try:
            self._activate(names)
            yield
        finally:
            activate(self.model.hf, self._inner(self._chosen))

    def _stacks(self, documents: Sequence[Sequence[int]], adapters: Sequence[Wanted] | None) -> list[tuple[str, ...]]:
        """Adapters of each request by name, checked before the first pass."""
        given = [None] * len(documents) if adapters is None else list(adapters)
        if len(given) != len(documents):
            raise UserError(
                f"there are {len(documents)} requests and adapters for {len(given)}",
                where="adapters",
                hint="give an entry for each request: a name, several names, () for the base, None for what is in use",
            )
        stacks = [self._chosen if item is None else (item,) if isinstance(item, str) else tuple(item) for item in given]
        for stack in dict.fromkeys(stacks):
            with self._active(stack):
                pass
        for number, (document, stack) in enumerate(zip(documents, stacks, strict=True)):
            room = self._room(stack)
            if not 0 < len(document) <= room:
                raise UserError(
                    f"request {number} has {len(document)} tokens, the model takes 1 to {room}",
                    where="requests",
                    hint="give a shorter text" if document else "leave empty requests out",
                )
        return stacks

    def _room(self, stack: Sequence[str]) -> int:
        return self.context - sum(self._of(name).adapter.virtual_tokens for name in stack)

    def _stop_ids(self, stack: Sequence[str]) -> frozenset[int]:
        """What ends an answer: by the template of the stack's first adapter."""
        return self._of(stack[0]).stop_ids if stack else frozenset(self.renderer.stop_ids)

    def _groups(self, stacks: dict[int, tuple[str, ...]] | list[tuple[str, ...]], *, mixed: bool) -> list[list[int]]:
        """Requests that may share passes."""
        found: dict[tuple[str, ...] | None, list[int]] = {}
        for index, stack in stacks.items() if isinstance(stacks, dict) else enumerate(stacks):
            shares = (
                mixed and self.model.shares_passes and not any(self._of(name).adapter.why_alone() for name in stack)
            )
            found.setdefault(None if shares else stack, []).append(index)
        return list(found.values())

    @torch.no_grad()
    def _pass(
        self, documents: list[Sequence[int]], indices: list[int], stacks: Sequence[tuple[str, ...]]
    ) -> dict[int, Tensor]:
        """Logits of one pack by the requests' places."""
        lengths = [len(document) for document in documents]
        rows = [(np.asarray(item, dtype=np.uint32), np.zeros(len(item), dtype=np.bool_)) for item in documents]
        batch = make_batch(rows, range(len(rows))).to(self.model.device)
        own = [stacks[index] for index in indices]
        if len(set(own)) == 1:
            with self._active(own[0]):
                return dict(zip(indices, torch.split(self.model.logits(batch), lengths), strict=True))
        with routed(self.model.hf, [self._inner(stack) for stack in own], lengths):
            hidden_TH = self.model.states(batch)
        found: dict[int, Tensor] = {}
        for index, part_TH in zip(indices, torch.split(hidden_TH, lengths), strict=True):
            with self._active(stacks[index]):  # rows of the head are the adapter's own
                found[index] = self.model.logits_of(part_TH)
        return found

    def _answers(
        self,
        prompts: Sequence[Sequence[int]],
        group: list[int],
        stacks: Sequence[tuple[str, ...]],
        stops: frozenset[int],
        how: Sampling,
    ) -> dict[int, Completion]:
        own = [stacks[index] for index in group]
        generator = self._generator(self._room(own[0]), stops)
        chosen = [prompts[index] for index in group]
        if len(set(own)) == 1:
            with self._active(own[0]):
                return dict(zip(group, generator.sample(chosen, how, numbers=group), strict=True))

        @contextmanager
        def around(places: Sequence[int]) -> Iterator[Routes]:
            with routed(self.model.hf, [self._inner(own[place]) for place in places]) as routes:
                yield routes

        return dict(zip(group, generator.sample(chosen, how, around=around, numbers=group), strict=True))

    def _generator(self, context: int, stops: frozenset[int]) -> Generator:
        generator = assemble(self.model, self.renderer, context, self._batch_tokens).generator
        generator.stop_ids = stops
        return generator


def open_switchboard(
    base: str, *, device: str | None = None, quantise: str = "none", batch_tokens: int = 8192
) -> Switchboard:
    """Load a base for many adapters, in fp32 on the CPU and bf16 on CUDA.

    Args:
        base: embedded name, or folder of a model.
        device: where it goes; None is CUDA where there is some.
        quantise: how its linear layers hold their weights, as the recipe's ``model.quantise``.
        batch_tokens: most tokens of a pass.

    Raises:
        ModelError: no such model, or it does not load.
    """
    folder = locate(base)
    check_weights(folder.path)
    where = device or ("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if where == "cuda" else torch.float32
    model = load_model(folder.path, device=where, dtype=dtype, quantise=quantise)
    model.eval()
    return Switchboard(folder, model, quantise, batch_tokens)
