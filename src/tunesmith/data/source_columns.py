"""The columns that a source gives a format, and what it must not give. Torch-free."""

from __future__ import annotations

from tunesmith.data.columns import Column, columns_of
from tunesmith.data.row_weights import content_columns
from tunesmith.errors import DataError
from tunesmith.recipe.data import SourceSection
from tunesmith.records import RawRow


def read_columns(name: str, raw: RawRow, source: SourceSection) -> dict[str, Column]:
    """The column of each field of a format, as the source names them.

    Raises:
        DataError: a field the format does not have, or a broken template; its place is in the row's file.
    """
    try:
        return columns_of(name, tuple(content_columns(source.columns).items()))
    except DataError as error:
        raise DataError(error.what, where=f"{raw.origin.file} [{error.where}]", hint=error.hint) from None


def refuse_system(name: str, source: SourceSection) -> None:
    """Refuse a system message for rows that are no conversations.

    Raises:
        DataError: the source gives one.
    """
    if source.system is not None:
        raise DataError(
            f"`system` belongs to conversations, and rows of the format {name} are none",
            where="system",
            hint="remove it, or use prompt-completion",
        )
