"""Identity of a run: what may not change between start and resume."""

from __future__ import annotations

import hashlib
from typing import Any

from tunesmith.files import canonical_json
from tunesmith.recipe.root import Recipe

_FREE_TRAINING = {
    "micro_batch_size", "recompute", "checkpoint_every", "keep_checkpoints", "samples", "log_every",
}  # fmt: skip
_FREE_GUARDS = {"max_failed_saves", "stall_minutes"}


def identity(recipe: Recipe) -> dict[str, Any]:
    """The part of a recipe that a resume must share: model, data, objective, adapter, optimiser, precision, seed."""
    full = recipe.model_dump(mode="json")
    training = {key: value for key, value in full["training"].items() if key not in _FREE_TRAINING}
    training["guards"] = {key: value for key, value in training["guards"].items() if key not in _FREE_GUARDS}
    return {
        "model": full["model"],
        "data": full["data"],
        "objective": full["objective"],
        "adapter": full["adapter"],
        "training": training,
        "seed": full["seed"],
    }


def fingerprint(value: Any) -> str:
    """Hex sha256 of canonical JSON."""
    return hashlib.sha256(canonical_json(value).encode("utf-8")).hexdigest()


def differences(before: Any, after: Any, path: str = "") -> list[str]:
    """Keys whose values differ, as ``key: before -> after`` lines."""
    if isinstance(before, dict) and isinstance(after, dict):
        lines: list[str] = []
        for key in sorted(before.keys() | after.keys()):
            inner = f"{path}.{key}" if path else str(key)
            lines += differences(before.get(key), after.get(key), inner)
        return lines
    return [] if before == after else [f"{path}: {before!r} -> {after!r}"]
