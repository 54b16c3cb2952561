"""Folders of bottleneck adapters, read; ``bottleneck_layout`` says what is in them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn

from tunesmith.adapters import stored
from tunesmith.adapters.added import AddedAdapter
from tunesmith.adapters.bottleneck import BottleneckAdapter, width_of
from tunesmith.adapters.bottleneck_layout import FORMAT, TYPE, shapes
from tunesmith.adapters.parameters import weight_names
from tunesmith.adapters.stored import CONFIGURATION, SAVE_AGAIN, WEIGHTS, Rows, StoredAdapter
from tunesmith.adapters.trained_tokens import SUFFIX
from tunesmith.errors import ModelError, RecipeError
from tunesmith.models.blocks import KINDS, blocks
from tunesmith.recipe.bottleneck import BottleneckPart, BottleneckSection
from tunesmith.recipe.low_rank import AddedSection

_KEYS = frozenset(["peft_type", "format", "base_model_name_or_path", "parts", "token_rows"])


@dataclass(frozen=True, kw_only=True)
class StoredBottleneck(StoredAdapter):
    """A read bottleneck adapter: ``parts`` has the settings of each module."""

    parts: dict[str, BottleneckPart]

    def require_fit(self, model: nn.Module, state: Mapping[str, Tensor]) -> None:
        """Each module must be a sub-layer that may have such a part, and the model as wide as the parts."""
        names, hidden = weight_names(model), width_of(model)
        known = {block.name: block for kind in KINDS for block in blocks(names, kind)}
        for name, part in self.parts.items():
            block = known.get(name)
            if block is None or (part.placement == "parallel" and not block.is_whole):
                raise ModelError(
                    f"the adapter has a {part.placement} part for `{name}`, where this model has no place for it",
                    where=self.source,
                    hint=f"it was trained on `{self.base or 'another model'}`",
                )
            for ending, shape in shapes(part, hidden).items():
                stored.check_shape(self, name + ending, state, shape)

    def build(self, section: AddedSection, rows: Rows) -> AddedAdapter:
        """An adapter at the modules that were read."""
        return BottleneckAdapter(cast(BottleneckSection, section), 0, self.parts, rows)


def read_bottleneck(folder: Path, configuration: Mapping[str, Any]) -> tuple[StoredAdapter, dict[str, Tensor]]:
    """Settings, and tensors by the names of the adapter's ``state``.

    Args:
        folder: of the adapter.
        configuration: what its configuration file holds.

    Raises:
        ModelError: another format, unknown keys, values that cannot be, or tensors that do not fit the settings.
    """
    where, source = str(folder / CONFIGURATION), str(folder / WEIGHTS)
    if configuration.get("format") != FORMAT:
        raise ModelError(
            f"the adapter has format {str(configuration.get('format'))[:40]}, this Tunesmith reads format {FORMAT}",
            where=f"{where} [format]",
            hint="it was written by another version of Tunesmith: read it with that one",
        )
    unknown = next((str(key)[:80] for key in configuration if key not in _KEYS), None)
    if unknown is not None:
        raise ModelError(f"`{unknown}` is no key of a {TYPE} adapter", where=where, hint=SAVE_AGAIN)
    parts = _parts(configuration.get("parts"), f"{where} [parts]")
    state = stored.read_adapter_tensors(folder)
    rows = stored.read_rows(configuration.get("token_rows") or {}, state, f"{where} [token_rows]")
    added = {name + ending for name, part in parts.items() for ending in shapes(part, 1)}
    missing = next((key for key in sorted(added) if key not in state), None)
    if missing is not None:
        raise ModelError(f"the adapter lacks `{missing}`", where=source, hint="the file is incomplete: copy it again")
    section = BottleneckSection(
        also_train=[key for key in state if key not in added and not key.endswith(SUFFIX)],
        train_tokens=sorted({token for ids in rows.values() for token in ids}) or "none",
    )
    base = str(configuration.get("base_model_name_or_path") or "")
    return StoredBottleneck(section=section, base=base, source=source, rows=rows, parts=parts), state


def _parts(given: Any, where: str) -> dict[str, BottleneckPart]:
    """Module -> settings."""
    if not isinstance(given, dict) or not given or not all(isinstance(values, dict) for values in given.values()):
        raise ModelError("the adapter names no parts", where=where, hint=SAVE_AGAIN)
    found = {}
    for name, values in given.items():
        try:
            found[str(name)] = BottleneckPart(**{str(key): value for key, value in values.items()})
        except RecipeError as error:
            raise ModelError(
                f"the settings of `{str(name)[:80]}` cannot be used: {error.what}", where=where, hint=SAVE_AGAIN
            ) from None
    return found
