"""From what a person writes to a folder: embedded names, local folders, runs and adapters. Torch-free; no network."""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tunesmith import embedded
from tunesmith.errors import ModelError, RunError
from tunesmith.files import canonical_json, sha256_of
from tunesmith.foreign import LARGE_BYTES, read_object
from tunesmith.models.config_file import obeyed, read_config
from tunesmith.models.facts import read_facts
from tunesmith.models.head_shape import has_head
from tunesmith.models.links import refuse_links_out
from tunesmith.models.weights import weight_files

_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(?:@[\w./-]+)?$")


@dataclass(frozen=True)
class ModelFolder:
    """A model in Hugging Face layout. ``name`` is what the person wrote, ``path`` is absolute."""

    path: Path
    name: str
    embedded: bool = False

    @cached_property
    def sha256(self) -> str:
        """Hex sha256 of the weight file; of several, of the lines ``name:sha256`` in order. Reads all weights once."""
        hashes = {name: item["sha256"] for name, item in self.weights.items()}
        if len(hashes) == 1:
            return str(*hashes.values())
        lines = "".join(f"{name}:{digest}\n" for name, digest in hashes.items())
        return hashlib.sha256(lines.encode("utf-8")).hexdigest()

    @cached_property
    def weights(self) -> dict[str, dict[str, Any]]:
        """Name of each weight file -> ``bytes`` and ``sha256``."""
        files = weight_files(self.path)
        return {path.name: {"bytes": path.stat().st_size, "sha256": sha256_of(path)} for path in files}

    @cached_property
    def config_sha256(self) -> str:
        """Hex sha256 of what config.json says, whatever its layout; fields that are not obeyed do not count."""
        counted = {key: value for key, value in obeyed(read_config(self.path)).items() if key != "transformers_version"}
        return hashlib.sha256(canonical_json(counted).encode("utf-8")).hexdigest()


@dataclass(frozen=True)
class ModelRef:
    """What MODEL on a command line means: weights, perhaps an adapter on them, perhaps the run they came from.

    A run that trained weights of the base has them in ``RUN/model``, which is then ``base``; ``adapter`` is None.
    ``head`` is the folder that describes a head on the model.
    """

    base: ModelFolder
    adapter: Path | None = None
    run: Path | None = None
    head: Path | None = None


def locate(name: str, folder: Path = Path()) -> ModelFolder:
    """Find a base model.

    Args:
        name: embedded name, or folder.
        folder: where relative paths start, before the current folder; for recipes the recipe's folder.

    Raises:
        ModelError: nothing there, a hub id, or a folder that is no base model.
    """
    inside = embedded.model_folder(name)
    if inside is not None:
        return ModelFolder(inside.resolve(), name, embedded=True)
    path = _existing(name, folder)
    if path is None:
        raise _not_found(name, folder)
    if (path / "config.json").is_file():
        _refuse_both(path)
        return ModelFolder(path, name)
    raise _not_a_base(path)


def open_model(text: str) -> ModelRef:
    """Find what MODEL means: embedded name, model folder, run folder or adapter folder.

    Raises:
        ModelError: nothing there, a hub id, or an adapter whose base cannot be found.
        RunError: a run without a trained result.
    """
    if embedded.model_folder(text) is not None:
        return ModelRef(locate(text))
    path = _existing(text, Path())
    if path is None:
        raise _not_found(text, Path())
    if _is_run(path):
        return _open_run(path)
    if (path / "adapter_config.json").is_file():
        _refuse_both(path)
        return ModelRef(_base_of_adapter(path), adapter=path, head=_head_in(path))
    return ModelRef(locate(text), head=_head_in(path))


def check_weights(path: Path) -> None:
    """Check a model folder before anything is loaded.

    Raises:
        ModelError: no weights, pickled or torn weights, broken config.json, a tokenizer larger than the embedding, or
            links that lead out of the folder.
    """
    refuse_links_out(path)
    facts = read_facts(path)
    size = tokenizer_size(path)
    if size is not None and size > facts.embedding_rows:
        raise ModelError(
            f"the tokenizer knows {size:,} tokens, the model's embedding has only {facts.embedding_rows:,} rows",
            where=str(path / "tokenizer.json"),
            hint="tokenizer and weights do not belong together, or tokens were added without resizing the model: "
            "use the tokenizer.json that came with the weights",
        )


def tokenizer_size(folder: Path) -> int | None:
    """Largest token id of tokenizer.json plus one, or None where there is no such file.

    Raises:
        ModelError: the file is not a tokenizer.
    """
    path = folder / "tokenizer.json"
    try:
        values = read_object(path, LARGE_BYTES)
        vocabulary = values["model"]["vocab"]
        added = values.get("added_tokens") or []
        ids = vocabulary.values() if isinstance(vocabulary, dict) else range(len(vocabulary))
        return max([max(ids, default=-1), *(int(item["id"]) for item in added)]) + 1
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        what = f"it has no {error}" if isinstance(error, KeyError) else str(error)
        raise ModelError(f"tokenizer.json is broken: {what}", where=str(path), hint="copy the file again") from None


def _existing(name: str, folder: Path) -> Path | None:
    path = _at_home(name)
    for candidate in (path,) if path.is_absolute() else (folder / path, path):
        if _there(candidate, Path.is_dir):
            return candidate.resolve()
        if _there(candidate, Path.is_file):
            raise ModelError(
                "a model is a folder, this is a file", where=str(candidate), hint=f"give `{candidate.parent}`"
            )
    return None


def _at_home(name: str) -> Path:
    try:
        return Path(name).expanduser()
    except RuntimeError:  # `~name` of nobody on this machine
        return Path(name)


def _there(path: Path, kind: Callable[[Path], bool]) -> bool:
    """Whether there is such a file or folder; a name that no file can have, being too long, is not there."""
    try:
        return kind(path)
    except OSError:
        return False


def _refuse_both(path: Path) -> None:
    """Refuse a folder that is a model and an adapter at once: other programs load both, and which is meant is unclear."""
    if (path / "adapter_config.json").is_file() and (path / "config.json").is_file():
        raise ModelError(
            "the folder holds a whole model and an adapter: which of them is meant is unclear",
            where=str(path),
            hint="move adapter_config.json and adapter_model.safetensors into a folder of their own",
        )


def _is_run(path: Path) -> bool:
    return (path / "recipe.json").is_file() and not (path / "config.json").is_file()


def _not_a_base(path: Path) -> ModelError:
    if _is_run(path):
        trained = path / "model"
        hint = f"give `{trained}`" if trained.is_dir() else "merge it first: `tunesmith export RUN OUT --merge`"
        return ModelError("this is a run folder, a base model is wanted", where=str(path), hint=hint)
    if (path / "adapter_config.json").is_file():
        return ModelError(
            "this is an adapter, a base model is wanted",
            where=str(path),
            hint="merge it into its base, or name the base",
        )
    names = sorted(item.name for item in path.iterdir())
    shown = ", ".join(names[:12]) + (" …" if len(names) > 12 else "") if names else "nothing"
    return ModelError(
        f"the folder is no model: it has no config.json; it holds: {shown}",
        where=str(path),
        hint="give a folder in Hugging Face layout: config.json, model.safetensors, tokenizer.json",
    )


def _not_found(name: str, folder: Path) -> ModelError:
    near = _near(name, folder)
    if _HUB_ID.match(name) and near is None:
        model, _, revision = name.partition("@")
        place = model.rsplit("/", 1)[-1]
        pinned = f" --revision {revision}" if revision else ""
        return ModelError(
            f"there is no folder `{name}` here, and hub access is off",
            where=f"model {name}",
            hint=f"on a machine with network: `hf download {model}{pinned} --local-dir {place}`; "
            f"place that folder beside the recipe and write `model: {place}`",
        )
    hint = f"did you mean `{near}`?" if near else f"embedded models: {', '.join(embedded.MODELS)}; or give a folder"
    return ModelError(f"there is no model `{name}`", where=f"looked in the package, {_shown(folder)}", hint=hint)


def _shown(folder: Path) -> str:
    here = "the current folder"
    return here if folder.resolve() == Path.cwd() else f"{folder} and {here}"


def _near(name: str, folder: Path) -> str | None:
    """The closest embedded name or model folder, as the person would write it."""
    known = {item: item for item in embedded.MODELS}
    parent = _at_home(name).parent
    for place in (folder / parent, parent):
        if _there(place, Path.is_dir):
            found = [item for item in place.iterdir() if (item / "config.json").is_file()]
            known.update({item.name: str(parent / item.name) for item in found})
    close = difflib.get_close_matches(Path(name).name, known, n=1, cutoff=0.6)
    return known[close[0]] if close else None


def _base_of_adapter(path: Path) -> ModelFolder:
    config = path / "adapter_config.json"
    name = read_object(config).get("base_model_name_or_path")
    if not isinstance(name, str) or not name:
        raise ModelError(
            "the adapter does not say which base it belongs to", where=str(config), hint="set `base_model_name_or_path`"
        )
    try:
        return locate(name, path)
    except ModelError as error:
        raise ModelError(
            f"the adapter's base `{name}` cannot be found: {error.what}",
            where=str(config),
            hint=f"place the base where `base_model_name_or_path` says, or correct it ({error.hint})",
        ) from error


def _open_run(path: Path) -> ModelRef:
    """The result of a run; its base is where the plan found it, else where the recipe names it."""
    if (path / "model" / "config.json").is_file():
        return ModelRef(ModelFolder(path / "model", str(path / "model")), run=path, head=_head_in(path / "model"))
    if _head_in(path / "head"):
        return ModelRef(base_of_run(path), run=path, head=path / "head")
    adapter = path / "adapter"
    if not adapter.is_dir():
        raise RunError(
            "the run has no result yet: neither adapter/ nor model/",
            where=str(path),
            hint="finish it: the same `tunesmith train` call resumes",
        )
    return ModelRef(base_of_run(path), adapter=adapter, run=path, head=_head_in(adapter))


def _head_in(path: Path) -> Path | None:
    return path if has_head(path) else None


def base_of_run(path: Path) -> ModelFolder:
    """The untouched base model of a run folder, whatever the run trained.

    Raises:
        ModelError: it is no longer where the run found it.
    """
    recipe = _of_run(path / "recipe.json")
    model = recipe.get("model")
    name = model.get("name") if isinstance(model, dict) else model
    if not isinstance(name, str) or not name:
        raise ModelError(
            "the run's recipe names no model",
            where=str(path / "recipe.json"),
            hint="the run folder is damaged: put the file back from a copy, or train again",
        )
    if embedded.model_folder(name) is None and (path / "plan.json").is_file():
        planned = _of_run(path / "plan.json").get("model")
        place = Path(str(planned.get("path", ""))) if isinstance(planned, dict) else Path()
        if place.is_absolute() and (place / "config.json").is_file():
            return ModelFolder(place, name)
    try:
        return locate(name, path)
    except ModelError as error:
        raise ModelError(
            f"the base `{name}` of this run cannot be found: {error.what}",
            where=str(path / "recipe.json"),
            hint=error.hint,
        ) from error


def _of_run(path: Path) -> dict[str, Any]:
    try:
        return read_object(path, kind=RunError)
    except FileNotFoundError:
        raise RunError("a file of the run is missing", where=str(path), hint="name a whole run folder") from None
