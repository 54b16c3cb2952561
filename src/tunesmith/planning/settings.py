"""Everything the trainer needs to know, as plain values, and each derived value with its reason."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Generic, TypeVar

from pydantic import TypeAdapter

T = TypeVar("T")
GIVEN = "given in the recipe"


@dataclass(frozen=True)
class Derived(Generic[T]):
    """A value and why it is what it is."""

    value: T
    reason: str

    @classmethod
    def given(cls, value: T) -> Derived[T]:
        """A value that the recipe states."""
        return cls(value, GIVEN)


def typed(kind: type[T], values: Any) -> T:
    """A dataclass from plain values of a file, each of the type that its field has.

    Raises:
        ValueError: a field is missing, or its value is of another type.
    """
    return TypeAdapter(kind).validate_python(values)


@dataclass(frozen=True)
class Settings:
    """One run, nothing unset. Cadences are in steps, sizes in tokens.

    ``weights_dtype`` is the type of the base's weights in memory, fp32 wherever any of them trains; adapters are fp32;
    ``quantise`` is how its linear layers are packed; ``precision`` is the type of forward and backward (autocast).
    ``atom_tokens`` is the most tokens of one forward pass.
    """

    learning_rate: float
    total_steps: int
    steps_per_epoch: int
    epochs: float
    warmup_steps: int
    batch_size: int
    micro_batch_size: int | None
    atom_tokens: int
    precision: str
    weights_dtype: str
    device: str
    threads: int
    deterministic: bool
    recompute: bool
    checkpoint_every: int
    keep_checkpoints: int
    evaluate_every: int
    log_every: int
    context: int
    overlong: str
    seed: int
    clip: float | None
    weight_decay: float
    schedule: str
    decay_share: float
    optimiser: str
    betas: tuple[float, float]
    momentum: float
    freezing: str | None = None
    head_factor: float = 1.0
    quantise: str = "none"
    offload_optimiser: bool = False

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "betas": list(self.betas)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Settings:
        """Inverse of ``to_json``."""
        return typed(cls, values)


@dataclass(frozen=True)
class Counts:
    """Rows and tokens of one epoch.

    Attributes:
        rows: examples of an epoch, windows of long documents and source weights included.
        tokens: their tokens; ``low`` and ``high`` bound them at 95 % (equal when exact).
        trained_tokens: those that are targets of the loss.
        exact: counted, not estimated.
        longest: most tokens of one example, as far as seen.
        attended: mean length that a token's document has, sum of squared lengths over sum of lengths; 0 when unknown.
        stored_tokens: tokens of all splits in the cache; 0 when unknown.
        sampled: examples that the estimate rests on; 0 when exact.
        notes: sentences to say aloud.
        labels: distinct labels of the training rows; 0 where there are none, or they are not known.
    """

    rows: int
    tokens: int
    trained_tokens: int
    exact: bool = True
    low: int = -1
    high: int = -1
    longest: int | None = None
    attended: float = 0.0
    stored_tokens: int = 0
    sampled: int = 0
    notes: tuple[str, ...] = ()
    labels: int = 0

    def __post_init__(self) -> None:
        """Without bounds both are the tokens themselves."""
        for bound in ("low", "high"):
            if getattr(self, bound) < 0:
                object.__setattr__(self, bound, self.tokens)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "notes": list(self.notes)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Counts:
        """Inverse of ``to_json``."""
        return typed(cls, values)


def counts_of_lengths(lengths: Any, trained_tokens: int, *, weights: Any = None, stored_tokens: int = 0) -> Counts:
    """Exact counts from the lengths of all training examples.

    Args:
        lengths: tokens of each example, any sequence numpy takes.
        trained_tokens: targets of the loss over all examples, each counted once.
        weights: how often each example is seen in an epoch; None is once.
        stored_tokens: tokens of all splits in the cache.
    """
    import numpy as np

    length = np.asarray(lengths, dtype=np.float64)
    weight = np.ones_like(length) if weights is None else np.asarray(weights, dtype=np.float64)
    tokens = float((length * weight).sum())
    plain = float(length.sum())
    return Counts(
        rows=round(float(weight.sum())),
        tokens=round(tokens),
        trained_tokens=round(trained_tokens * (tokens / plain if plain else 1.0)),
        longest=int(length.max()) if len(length) else 0,
        attended=float((length * length * weight).sum() / tokens) if tokens else 0.0,
        stored_tokens=stored_tokens or round(plain),
    )
