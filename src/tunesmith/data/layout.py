"""How a file is cut into rows, where its suffix alone does not say. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass

from tunesmith.recipe.data import SourceSection, TextRow

TEXT = ".txt"
TABLES = (".csv", ".tsv")


@dataclass(frozen=True)
class Layout:
    """What a source says about its files.

    Attributes:
        row: what one row of a ``.txt`` file is.
        header: whether the first line of a ``.csv`` or ``.tsv`` names the columns.
    """

    row: TextRow = "file"
    header: bool = True

    @classmethod
    def of(cls, section: SourceSection) -> Layout:
        """The layout that a source asks for."""
        return cls(section.row, section.header)

    def misplaced(self, suffix: str) -> tuple[str, str] | None:
        """A key that means nothing for files of a suffix, and what it is for; None where each fits.

        Args:
            suffix: of the file, without ``.gz`` or ``.zst``.
        """
        if self.row != "file" and suffix != TEXT:
            return "row", f"`row: {self.row}` cuts {TEXT} files"
        if not self.header and suffix not in TABLES:
            return "header", f"`header: false` is for {' and '.join(TABLES)} files"
        return None
