"""The tensor vocabulary and the plugs. Every method is a stream of batches and an objective.

Shapes: T tokens of a pack, D documents in it, S scored positions (those with a target), H hidden width, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


@dataclass(frozen=True)
class Batch:
    """An atom: one forward call over a pack of documents that never see each other.

    Positions restart with each document; ``starts_D1`` are cumulative lengths, as varlen attention takes them.
    ``lengths`` repeats them on the host, so that nothing asks the device. Scored position s predicts ``targets_S[s]``
    from the hidden state at ``scored_S[s]`` and counts ``weights_S[s]`` in the loss.
    """

    input_ids_T: Tensor
    positions_T: Tensor
    starts_D1: Tensor
    lengths: tuple[int, ...]
    scored_S: Tensor
    targets_S: Tensor
    weights_S: Tensor
    document_S: Tensor
    rows: tuple[int, ...]
    progress: float = 0.0
    extras: dict[str, Tensor] = field(default_factory=dict)

    @property
    def num_tokens(self) -> int:
        """Tokens of the pack, trained or not."""
        return sum(self.lengths)

    def to(self, device: torch.device | str) -> Batch:
        """Return the same batch with every tensor on ``device``."""
        moved: dict[str, Any] = {}
        for item in fields(self):
            value = getattr(self, item.name)
            if hasattr(value, "to"):
                moved[item.name] = value.to(device, non_blocking=True)
        extras = {name: value.to(device, non_blocking=True) for name, value in self.extras.items()}
        return replace(self, **moved, extras=extras)

    def part(self, first: int, last: int) -> Batch:
        """The documents from ``first`` up to ``last``, which is left out; on the CPU, since it asks for values.

        Tensors in ``extras`` are cut by the suffix of their name: ``_T`` tokens, ``_D`` documents, ``_S`` scored positions.
        """
        start, end = sum(self.lengths[:first]), sum(self.lengths[:last])
        chosen_S = (self.document_S >= first) & (self.document_S < last)
        cuts: dict[str, Any] = {"T": slice(start, end), "D": slice(first, last), "S": chosen_S}
        return replace(
            self,
            input_ids_T=self.input_ids_T[start:end],
            positions_T=self.positions_T[start:end],
            starts_D1=self.starts_D1[first : last + 1] - start,
            lengths=self.lengths[first:last],
            scored_S=self.scored_S[chosen_S] - start,
            targets_S=self.targets_S[chosen_S],
            weights_S=self.weights_S[chosen_S],
            document_S=self.document_S[chosen_S] - first,
            rows=self.rows[first:last],
            extras={name: value[cuts[name.rpartition("_")[2]]] for name, value in self.extras.items()},
        )


Step = Sequence[Batch]
"""The atoms of one optimiser step."""


@dataclass(frozen=True)
class Mean:
    """A mean kept as its parts, so that sums over atoms and ranks stay exact. Both are scalars."""

    total: Tensor
    count: Tensor


@dataclass(frozen=True)
class Loss:
    """What an objective returns: sums, never means; the engine divides once by the global counts."""

    totals: dict[str, Tensor]
    metrics: dict[str, Mean] = field(default_factory=dict)


@dataclass(frozen=True)
class Outputs:
    """What the facade returns; only what was wanted is set. Log-probabilities and entropies are fp32, in nats.

    ``mean_logprob_S`` is the mean over the whole vocabulary of the log-probability at each scored position;
    ``divergence_S`` the symmetric Kullback-Leibler divergence from another pass.
    """

    logprob_S: Tensor | None = None
    entropy_S: Tensor | None = None
    correct_S: Tensor | None = None
    mean_logprob_S: Tensor | None = None
    hidden_TH: Tensor | None = None
    divergence_S: Tensor | None = None


@dataclass(frozen=True)
class ParamGroup:
    """Trained parameters that share a rate factor and a decay choice.

    ``depth`` is their place in a model of L layers: 0 what stands before the layers, 1 to L the layers, L + 1 what follows;
    None where groups are not told apart by it. ``depth_factor`` multiplies the rate because of that place.
    ``scored`` parameters may be frozen one by one, where there is a rule that scores their gradients.
    """

    name: str
    parameters: tuple[tuple[str, nn.Parameter], ...]
    rate_factor: float = 1.0
    decay: bool = True
    depth: int | None = None
    depth_factor: float = 1.0
    scored: bool = False


@dataclass(frozen=True)
class Completion:
    """An answer: text without the end token, its ids, their log-probabilities, and whether it ended by itself."""

    text: str
    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    ended: bool


LEAST_TEMPERATURE = 1e-3
"""Below it, logits divided by the temperature overflow; the likeliest token is all that is left anyway."""


@dataclass(frozen=True)
class Sampling:
    """How to answer. Temperature 0 is greedy.

    Raises:
        ValueError: a number is none (NaN, an infinity) or out of its range.
    """

    max_new_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse numbers that would make noise of every answer: no comparison with NaN is true, so none stops it later."""
        if not (self.temperature == 0 or LEAST_TEMPERATURE <= self.temperature < math.inf):
            raise ValueError(f"a temperature of {self.temperature} is neither 0 nor at least {LEAST_TEMPERATURE}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"a top_p of {self.top_p} is no share")
        if self.max_new_tokens < 1 or self.top_k < 0 or not 0 <= self.seed < 1 << 63:
            raise ValueError("max_new_tokens, top_k and seed are whole numbers from 1, 0 and 0 on")


@dataclass(frozen=True)
class LogProb:
    """Log-probability of a continuation in nats, its length in tokens, and whether greedy decoding would give it."""

    total: float
    num_tokens: int
    greedy: bool


class LanguageModel(Protocol):
    """The facade objectives call: head and fused loss run inside its forward."""

    def __call__(
        self,
        batch: Batch,
        want: Collection[str] = ("logprob",),
        against: Tensor | None = None,
        layer: int | None = None,
    ) -> Outputs:
        """Run the pack; ``want`` holds any of ``logprob``, ``mean_logprob``, ``entropy``, ``correct``, ``hidden``, ``divergence``.

        ``against`` are the hidden states of another pass over the same pack, for ``divergence``; ``layer`` is whose output
        ``hidden`` is, None the last.
        """
        ...


class Objective(Protocol):
    """What to minimise: knows no ranks, optimisers, files."""

    parts: nn.Module

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """Per term, its denominator in this atom: tokens, pairs or examples."""
        ...

    def survey(self, model: LanguageModel, batch: Batch) -> dict[str, Mean]:
        """Return ``{}``, or statistics of a pass without gradient over the step, reduced globally."""
        ...

    def __call__(self, model: LanguageModel, batch: Batch, seen: Mapping[str, Mean]) -> Loss:
        """Sums per term over this atom."""
        ...

    def penalty(self, model: LanguageModel) -> Tensor | None:
        """Once a step: a term that does not depend on the batch."""
        ...


class Stream(Protocol):
    """Steps of atoms; step k is a function of the recipe and k, or of the saved state."""

    def __iter__(self) -> Iterator[Step]:
        """Yield steps from the current state on."""
        ...

    def heaviest(self) -> Batch | None:
        """An atom at least as large as any to come, to try the memory with; None where it cannot be told."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """JSON-able state."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where ``state`` was taken."""
        ...


class Adapter(Protocol):
    """A small trained part on a base (full and partial scopes included)."""

    virtual_tokens: int
    """Positions that it takes in front of every document; batches do not hold them."""

    def attach(self, model: nn.Module, name: str = "default") -> None:
        """Change the model in place and choose what trains; everything else is frozen."""
        ...

    def groups(self) -> list[ParamGroup]:
        """Trained parameters with rate factors and decay choices."""
        ...

    def active(self, names: Collection[str]) -> AbstractContextManager[None]:
        """Within the context only these are active; ``()`` is the exact base. Raises NoBase where none is kept."""
        ...

    def state(self) -> dict[str, Tensor]:
        """All that trains and all that attach changed, by name."""
        ...

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Inverse of ``state``."""
        ...

    def export(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Configuration and tensors in PEFT's layout where PEFT has the method."""
        ...

    def merge(self, model: nn.Module) -> None:
        """Fold into the base weights in place, in fp32. Raises CannotMerge where impossible."""
        ...


Refusal = Literal["stop", "skip", "rollback"]
"""What follows a step that was refused: the run ends, goes on without it, or goes back to a checkpoint and around it."""


class Control(Protocol):
    """Steers training: freeze, rates, refuse a step. Each act is an event. The host must not wait for the device."""

    name: str
    on_refusal: Refusal

    def after_backward(self, step: int, loss: Tensor, grad_norm: Tensor, groups: Sequence[ParamGroup]) -> Tensor | None:
        """Called once a step before the optimiser; a scalar on the device that is 1 refuses the step, None never does.

        Args:
            step: from 0.
            loss: of the whole step, detached, a scalar on the device.
            grad_norm: global norm before clipping, the same.
            groups: what trains.
        """
        ...

    def after_step(self, step: int, groups: Sequence[ParamGroup]) -> None:
        """Called once a step after the optimiser; ``step`` counts finished ones."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """JSON-able state."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Inverse of ``state_dict``."""
        ...


class Sampler(Protocol):
    """Anything that answers."""

    def sample(self, prompts: Sequence[Sequence[int]], how: Sampling) -> list[Completion]:
        """Answer each prompt (token ids), in order."""
        ...


class Scorer(Protocol):
    """Anything that scores."""

    def score(self, contexts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]]) -> list[LogProb]:
        """Log-probability of each continuation after its context (token ids), in order."""
        ...

    def rank(self, contexts: Sequence[Sequence[int]], candidates: Sequence[Sequence[int]]) -> list[list[float]]:
        """Log-probability in nats of every candidate after every context: ``[context][candidate]``."""
        ...


class NoBase(RuntimeError):
    """The scope keeps no exact base (full and partial fine-tuning)."""


class CannotMerge(RuntimeError):
    """The adapter cannot be folded into the base weights."""
