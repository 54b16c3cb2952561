"""What a run stands on: each file with its size and hash, kept in ``inputs.json`` and held against what is there later."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from tunesmith.data.cache_key import cache_root
from tunesmith.data.prepare import source_files
from tunesmith.data.prepared import Prepared
from tunesmith.data.rendering import Renderer
from tunesmith.data.store import STORE_VERSION
from tunesmith.errors import RunError
from tunesmith.files import canonical_json, read_json
from tunesmith.models.locate import ModelFolder
from tunesmith.recipe.fingerprint import fingerprint, identity
from tunesmith.recipe.root import Recipe
from tunesmith.registry.runs import RunFolder

_MOST_LINES = 12
_SHORT_HASH = 12
_PARTS = {
    "data": "data", "rendering": "tokenizer, chat template or rendering", "base": "base model",
    "tunesmith": "way this version of Tunesmith keeps tokens",
}  # fmt: skip


def inputs_of(recipe: Recipe, renderer: Renderer, base: ModelFolder) -> dict[str, dict[str, Any]]:
    """Part of the run -> name -> size and hash: files of the data, parts of the rendering, files of the base."""
    decides = dict(renderer.decides)
    tokenizer = {"tokenizer.json": {"sha256": decides.pop("tokenizer")}}
    return {
        "data": source_files(recipe, cache_root()),
        "rendering": tokenizer | {name.replace("_", " "): _text(value) for name, value in decides.items()},
        "base": {**base.weights, "config.json": {"sha256": base.config_sha256}},
        "tunesmith": {"token cache": {"version": STORE_VERSION}},
    }


def run_identity(recipe: Recipe, data: Prepared, base: ModelFolder, fork: Mapping[str, Any] | None = None) -> str:
    """Fingerprint of a run: its resolved recipe, its data and its base, to the byte; and of a child where it comes from."""
    stands_on = {"data": data.key, "base": base.sha256, "config": base.config_sha256}
    return fingerprint(identity(recipe) | stands_on | ({"fork": dict(fork)} if fork is not None else {}))


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, list[str]]:
    """Part -> lines ``name: before -> after``, for the parts in which anything differs."""
    found = {}
    for part in _PARTS:
        one, other = before.get(part, {}), after.get(part, {})
        names = [*one, *(name for name in other if name not in one)]
        lines = [
            f"{name}: {_shown(one.get(name), other.get(name))} -> {_shown(other.get(name), one.get(name))}"
            for name in names
            if one.get(name) != other.get(name)
        ]
        if lines:
            found[part] = lines
    return found


def changed_inputs(
    run: RunFolder, recipe: Recipe, renderer: Renderer, base: ModelFolder, *, hint: str | None = None
) -> RunError:
    """What changed since the run was started, file by file, for a run whose identity is no longer what it was.

    ``hint`` says how to go on; None names the ways of a run that was to go on.
    """
    before = read_json(run.inputs_path) if run.inputs_path.exists() else {}
    found = changes(before, inputs_of(recipe, renderer, base)) if isinstance(before, dict) and before else {}
    named = " and the ".join(_PARTS[part] for part in found) or "recipe, data, base or version of Tunesmith"
    lines = [f"  {line}" for part in found for line in found[part]]
    more = [f"  and {len(lines) - _MOST_LINES} more"] if len(lines) > _MOST_LINES else []
    then = " (then -> now):" if lines else ""
    first = next(iter(found), "base")
    files = ", ".join(line.partition(":")[0] for line in found.get("data", []))
    return RunError(
        "\n".join([f"the {named} changed since the run in {run.path} was started{then}", *lines[:_MOST_LINES], *more]),
        where={"data": files, "rendering": renderer.template.where}.get(first, str(base.path)),
        hint=hint
        or f"put it back as it was, start a new run with --run, or a child run from its checkpoint with `--fork {run.path}`",
    )


def _text(value: Any) -> dict[str, Any]:
    if isinstance(value, int):
        return {"version": value}
    payload = (value if isinstance(value, str) else canonical_json(value)).encode("utf-8")
    return {"bytes": len(payload), "sha256": hashlib.sha256(payload).hexdigest()}


def _shown(item: Any, other: Any) -> str:
    """``1,234 bytes, sha256 0a1b2c3d4e5f…``; equal sizes are left out."""
    if not isinstance(item, Mapping):
        return "not there"
    words = []
    if "version" in item:
        words.append(f"version {item['version']}")
    if "bytes" in item and (not isinstance(other, Mapping) or other.get("bytes") != item["bytes"]):
        words.append(f"{item['bytes']:,} bytes")
    if "sha256" in item:
        words.append(f"sha256 {str(item['sha256'])[:_SHORT_HASH]}…")
    return ", ".join(words)
