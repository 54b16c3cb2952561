"""What can be inspected: all that is known before a model is loaded. Torch-free."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tunesmith.errors import ModelError, UserError
from tunesmith.models.locate import ModelRef
from tunesmith.workshop.blendable import adapter_reference

MOST_TEXTS = 1000


def adapters_of_names(names: Sequence[str], base: str | None) -> dict[str, ModelRef]:
    """What is to be inspected.

    Raises:
        ModelError: no adapter there, or its base cannot be found.
        UserError: one is named twice.
    """
    found: dict[str, ModelRef] = {}
    for name in names:
        reference = adapter_reference(name, base)
        if reference.adapter is None:
            raise ModelError(
                "there is no adapter to inspect: a whole model was trained, or it was merged",
                where=name,
                hint="give an adapter folder, or a run with an adapter; `tunesmith eval` compares whole models",
            )
        if name in found or any(reference.adapter == other.adapter for other in found.values()):
            raise UserError(f"`{name}` is named twice", where="ADAPTER", hint="name each adapter once")
        found[name] = reference
    if not found:
        raise UserError("there is nothing to inspect", where="ADAPTER...", hint="give an adapter folder or a run")
    return found


def read_texts(path: Path) -> list[str]:
    """Texts to compare predictions on, a line each.

    Raises:
        UserError: the file is missing, is no text, or holds none or too many.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"the texts cannot be read: {error}", where=str(path), hint="give a text file in UTF-8, one text a line"
        ) from None
    texts = [line for line in lines if line.strip()]
    if not 0 < len(texts) <= MOST_TEXTS:
        raise UserError(
            f"the file holds {len(texts):,} texts", where=str(path), hint=f"give 1 to {MOST_TEXTS:,} lines of text"
        )
    return texts
