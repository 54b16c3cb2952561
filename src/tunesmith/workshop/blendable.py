"""What can be blended how: all that is known before a model is loaded. Torch-free."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tunesmith.errors import ModelError, UserError
from tunesmith.files import sha256_of
from tunesmith.foreign import read_object
from tunesmith.models.head_shape import has_head
from tunesmith.models.locate import ModelFolder, ModelRef, locate, open_model

METHODS = ("linear", "ties", "dare", "dare-ties")
DENSITY = 0.5
LEAST_LOST = 1e-5
"""Share of an update below which a rank leaves nothing out: fp32 knows no less."""

CONFIGURATION, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_NO_WEIGHTS = {
    "TUNESMITH_BOTTLENECK": "adds layers of its own",
    "PROMPT_TUNING": "puts trained tokens in front of the input",
    "P_TUNING": "puts trained tokens in front of the input",
    "PREFIX_TUNING": "puts trained keys and values in front of each layer's own",
}
_WITH_MERGE = "leave it out, or leave --merge out"


@dataclass(frozen=True)
class Source:
    """An adapter of a blend.

    Attributes:
        name: as it was written.
        reference: to its folder, its run and its base.
        sha256: of the file of its tensors.
        weight: its share, or its factor.
    """

    name: str
    reference: ModelRef
    sha256: str
    weight: float

    @property
    def folder(self) -> Path:
        """Where the adapter lies."""
        assert self.reference.adapter is not None
        return self.reference.adapter


@dataclass(frozen=True)
class BlendOptions:
    """How to blend.

    Attributes:
        weights: one for each source; None is equal shares.
        method: ``linear``, ``ties``, ``dare`` or ``dare-ties``.
        density: share of entries that TIES and DARE keep; None is 0.5.
        seed: of what DARE drops; None is 0.
        rank: most columns of a layer's factors; None keeps a sum whole, and gives anything else the sum of its sources' ranks.
        normalise: whether weights are shares, divided by their sum.
        base: the base of adapter folders whose own name for it leads nowhere.
        merge: write the base with the blend folded in instead of an adapter.
        dtype: number format of a merged model; None is the base's own.
    """

    weights: Sequence[float] | None = None
    method: str = "linear"
    density: float | None = None
    seed: int | None = None
    rank: int | None = None
    normalise: bool = True
    base: str | None = None
    merge: bool = False
    dtype: str | None = None

    @property
    def share(self) -> float:
        """The density in use."""
        return DENSITY if self.density is None else self.density


def check_blend(names: Sequence[str], out: Path, how: BlendOptions) -> tuple[Source, ...]:
    """Refuse a blend that cannot be, before anything is loaded; returns its sources.

    Args:
        names: adapter folders, or runs that trained one.
        out: must not exist, or be empty.
        how: the settings.

    Raises:
        UserError: settings that do not fit each other, weights that cannot be shares, or a folder that is taken.
        ModelError: no adapter, one that is no change of weights, or one with a head of its own.
    """
    _check_settings(how)
    found = [_source(name, how.base, weight) for name, weight in zip(names, _weights(len(names), how), strict=True)]
    for number, source in enumerate(found):
        for other in found[:number]:
            if source.sha256 == other.sha256:
                raise UserError(
                    f"`{source.name}` is the same adapter as `{other.name}`",
                    where="ADAPTER",
                    hint="name each adapter once; --weights says how much of it",
                )
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(
            "the folder to write to is not empty", where=str(out), hint="name a folder that does not exist yet"
        )
    return tuple(found)


def _check_settings(how: BlendOptions) -> None:
    method = how.method
    if method not in METHODS:
        raise UserError(f"`{method}` is no method", where="--method", hint=f"one of: {', '.join(METHODS)}")
    if how.density is not None and method == "linear":
        raise UserError(
            "`linear` drops nothing, so it has no density", where="--density", hint="leave it out, or take ties or dare"
        )
    if not 0 < how.share <= 1:
        raise UserError(
            f"a density of {how.share:g} is no share", where="--density", hint="above 0 and at most 1; 0.5 is usual"
        )
    if how.seed is not None and not method.startswith("dare"):
        raise UserError(f"`{method}` draws nothing, so it has no seed", where="--seed", hint="leave it out")
    if how.rank is not None and how.rank < 1:
        raise UserError(f"a rank of {how.rank} holds nothing", where="--rank", hint="give at least 1")
    if how.rank is not None and how.merge:
        raise UserError("a merged model holds the whole blend, of no rank", where="--rank", hint=_WITH_MERGE)
    if how.dtype is not None and not how.merge:
        raise UserError(
            "an adapter is written in fp32: `--dtype` is the number format of a whole model",
            where="--dtype",
            hint="add --merge, or leave --dtype out",
        )


def _weights(count: int, how: BlendOptions) -> list[float]:
    """Weights that the method can use."""
    if count < (2 if how.normalise else 1):
        raise UserError(
            f"there {'is one adapter' if count else 'are no adapters'} to blend",
            where="ADAPTER...",
            hint="give two or more; one alone can be scaled: `--weights 0.5 --no-normalise`",
        )
    weights = [1.0 / count] * count if how.weights is None else [float(weight) for weight in how.weights]
    if len(weights) != count:
        raise UserError(
            f"there are {count} adapters and {len(weights)} weights",
            where="--weights",
            hint="give one weight for each adapter, in their order: `--weights 0.7,0.3`",
        )
    for weight in weights:
        if not math.isfinite(weight):
            raise UserError(f"a weight of {weight} is no number", where="--weights", hint="give finite numbers")
    if not any(weights):
        raise UserError("all weights are zero: nothing would be left", where="--weights", hint="give other weights")
    if not how.normalise:
        return weights
    if abs(math.fsum(weights)) <= 1e-9 * max(map(abs, weights)):
        raise UserError(
            "the weights sum to zero, so they cannot be shares of a blend",
            where="--weights",
            hint="give other weights; to subtract one update from another take them as they are: --no-normalise",
        )
    if how.method.endswith("ties") and min(weights) < 0:
        raise UserError(
            f"`{how.method}` takes a weighted mean of those that agree, where a weight of {min(weights):g} has no meaning",
            where="--weights",
            hint="give positive weights, or take them as factors of the updates: --no-normalise",
        )
    return weights


def _source(name: str, base: str | None, weight: float) -> Source:
    reference = adapter_reference(name, base)
    folder = reference.adapter
    if folder is None:
        raise ModelError(
            "there is no adapter to blend: a whole model was trained, or it was merged",
            where=name,
            hint="give an adapter folder, or a run with `adapter: {type: lora}` or its kin",
        )
    if reference.head is not None:
        raise ModelError(
            "the adapter has a head of its own, and heads of different trainings cannot be blended",
            where=name,
            hint="blend adapters of the language model, or train both tasks together",
        )
    kind = str(read_object(folder / CONFIGURATION).get("peft_type"))
    if kind in _NO_WEIGHTS:
        raise ModelError(
            f"the adapter {_NO_WEIGHTS[kind]}, which is no change of weights: it cannot be blended",
            where=str(folder / CONFIGURATION),
            hint="stack it instead (`tunesmith.open_switchboard`), or train LoRA or its kin",
        )
    weights = folder / WEIGHTS
    return Source(name, reference, sha256_of(weights) if weights.is_file() else "", weight)


def adapter_reference(name: str, base: str | ModelFolder | None) -> ModelRef:
    """What an adapter's name means: a run, or a folder, on the base it names or on a given one.

    Raises:
        ModelError: nothing there, or a base that cannot be found.
    """
    folder = Path(name).expanduser()
    if base is None or not (folder / CONFIGURATION).is_file():
        return open_model(name)
    found = base if isinstance(base, ModelFolder) else locate(base)
    return ModelRef(found, adapter=folder.resolve(), head=folder if has_head(folder) else None)
