"""Whether a facade computes what the model computes: two documents together in our way, each by itself in the model's own."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from tunesmith.errors import ModelError
from tunesmith.models.packs import pack_of

LENGTHS = (9, 5)
_TESTED = "docs/reference/models.md lists what was tried"
_TOLERANCE_32_BIT = 2e-4
_TOLERANCE_16_BIT = 5e-2
_LONGEST = 120


@torch.no_grad()
def check_facade(model: Any, where: str = "") -> None:
    """Compare a facade with its model's own forward, and let it read the head's own inputs where the plain way is another.

    Args:
        model: a ``CausalLM`` or one of its kind, without adapters.
        where: the model's folder, for errors.

    Raises:
        ModelError: values are not finite, the model cannot pack and is not named among those that run otherwise, or it does
            something to hidden states or logits that the facade does not know.
    """
    ids_T = _tokens(model)
    training = model.hf.training
    model.hf.eval()
    try:
        _compare(model, ids_T, where)
    finally:
        model.hf.train(training)


def _compare(model: Any, ids_T: Tensor, where: str) -> None:
    parts = _theirs(model, ids_T, where)
    theirs_TX = torch.cat(parts)
    bound = _bound(model, theirs_TX)
    if model.is_causal:
        _require_causal(model, theirs_TX[: LENGTHS[0] - 1], ids_T[: LENGTHS[0] - 1], bound, where)
    gap, fault = _gap(model, ids_T, LENGTHS, theirs_TX)
    if gap > bound and not model.is_headless and model.catch_head_inputs():
        gap, fault = _gap(model, ids_T, LENGTHS, theirs_TX)
    if gap > bound:
        first = LENGTHS[0]
        alone = _gap(model, ids_T[:first], (first,), parts[0])[0]
        raise _refusal(type(model.hf).__name__, where, (gap, bound), fault, packs_alone=alone <= bound)


def _tokens(model: Any) -> Tensor:
    """Token ids that are no special ones, as far as small ids are those."""
    size = int(model.hf.get_input_embeddings().weight.shape[0])
    first = min(4, size - 1)
    return first + (torch.arange(sum(LENGTHS), device=torch.device(model.device)) * 7) % (size - first)


def _theirs(model: Any, ids_T: Tensor, where: str) -> list[Tensor]:
    first = LENGTHS[0]
    with model.plain_attention():
        parts: list[Tensor] = [model.plainly(ids_T[:first]), model.plainly(ids_T[first:])]
    if not all(bool(part.isfinite().all()) for part in parts):
        raise ModelError(
            "the model's weights give values that are not finite",
            where=where,
            hint="the weights are damaged or were saved from a run that diverged: copy them again",
        )
    return parts


def _require_causal(model: Any, theirs_TX: Tensor, ids_T: Tensor, bound: float, where: str) -> None:
    """Refuse a model whose states change with tokens behind them: next-token prediction would read its targets."""
    with model.plain_attention():
        shorter_TX = model.plainly(ids_T)
    if float((shorter_TX - theirs_TX).abs().max()) > bound:
        raise ModelError(
            f"{type(model.hf).__name__} sees the tokens behind each place, so it cannot be trained to predict them",
            where=where,
            hint="a decoder of the BERT family needs `is_decoder: true` in config.json; else take a causal language model",
        )


def _gap(model: Any, ids_T: Tensor, lengths: tuple[int, ...], theirs_TX: Tensor) -> tuple[float, str]:
    """Largest difference, infinite where our way does not run at all; and the fault it ran into."""
    try:
        ours_TX = model.checked(pack_of(ids_T, lengths))
    except ModelError:
        raise
    except Exception as error:  # a layer that does not know our attention fails in every way there is
        return float("inf"), (str(error).strip() or type(error).__name__).splitlines()[0][:_LONGEST]
    gap = float((ours_TX - theirs_TX).abs().max())
    return (float("inf") if math.isnan(gap) else gap), ""


def _bound(model: Any, theirs_TX: Tensor) -> float:
    tolerance = _TOLERANCE_32_BIT if model.hf.dtype == torch.float32 else _TOLERANCE_16_BIT
    return tolerance * max(1.0, float(theirs_TX.abs().max()))


def _refusal(name: str, where: str, apart: tuple[float, float], fault: str, *, packs_alone: bool) -> ModelError:
    gap, bound = apart
    if fault:
        what = f"{name} does not run with our attention: {fault}"
    elif packs_alone:
        what = f"{name} does not keep the documents of a pack apart, and is not among the models that run unpacked"
    else:
        what = (
            f"this architecture ({name}) computes its logits in a way Tunesmith does not know: "
            f"largest difference {gap:.3g} against {bound:.3g} allowed"
        )
    return ModelError(what, where=where, hint=f"take a model of another family: {_TESTED}")
