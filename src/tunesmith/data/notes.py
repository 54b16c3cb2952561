"""The sentences of a ledger: what must be said aloud about the data. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tunesmith.data.ledger import POLICY_REASONS, Ledger, SourceCount
from tunesmith.data.prepared import Split
from tunesmith.data.reading import SourceFiles
from tunesmith.data.sources import is_text
from tunesmith.recipe.data import DataSection, DuplicatePolicy, SplitSection


def count_of(number: int, one: str, many: str) -> str:
    """``1 row`` or ``2,000 rows``."""
    return f"{number:,} {one if number == 1 else many}"


def format_notes(
    sources: Sequence[SourceFiles], found: Sequence[Mapping[str, int]], counts: Sequence[SourceCount]
) -> list[str]:
    """What each source was read as, and limits that cut one short.

    Args:
        sources: in reading order.
        found: for each source, sentence about a format -> files.
        counts: for each source, what became of its rows.
    """
    said = []
    for source, sentences, count in zip(sources, found, counts, strict=True):
        for sentence, files in sentences.items():
            among = f" ({count_of(files, 'file', 'files')})" if len(source.files) > 1 else ""
            said.append(f"{source.name}{among}: {sentence}")
        if source.section.limit is not None and count.rows_in == source.section.limit:
            said.append(f"{source.name}: reading ended at {count_of(count.rows_in, 'row', 'rows')} (limit)")
    return said


def duplicate_notes(duplicates: Mapping[tuple[Split, Split], int], policy: DuplicatePolicy) -> list[str]:
    """Rows whose input is in two splits, by (split they would go to, held-out split that has them)."""
    said = []
    for (split, repeated), number in sorted(duplicates.items()):
        rows = count_of(number, f"{split} row has", f"{split} rows have")
        act = "dropped" if policy == "drop" else f"kept, so that scores on the {repeated} rows flatter the model"
        said.append(f"{rows} the same input as a {repeated} row: {act} (data.duplicates: {policy})")
    return said


def warning_notes(warnings: Mapping[str, int]) -> list[str]:
    """What the renderer wants said about rows: sentence -> rows, most frequent first."""
    ordered = sorted(warnings.items(), key=lambda item: (-item[1], item[0]))
    return [f"in {count_of(number, 'row', 'rows')}: {sentence}" for sentence, number in ordered]


def reject_notes(ledger: Ledger, context: int) -> list[str]:
    """Rows left out as too long, and faulty rows by reason."""
    said = []
    if overlong := ledger.rejected.get("overlong", 0):
        rows = count_of(overlong, "row is", "rows are")
        said.append(f"{rows} longer than the context of {context:,} tokens: left out (data.overlong)")
    if ledger.faults:
        reasons = ", ".join(
            f"{number:,} {reason}"
            for reason, number in sorted(ledger.rejected.items(), key=lambda item: (-item[1], item[0]))
            if reason not in POLICY_REASONS
        )
        said.append(f"{count_of(ledger.faults, 'faulty row was', 'faulty rows were')} rejected: {reasons}")
    return said


def split_notes(ledger: Ledger, sources: Sequence[SourceFiles], data: DataSection) -> list[str]:
    """Splits that came out empty although the recipe asks for rows in them."""
    rows = {"validation": ledger.validation_rows, "test": ledger.test_rows}
    empty = [split for split, number in rows.items() if not number]
    said = document_notes(empty, sources, data)
    asked = [split for split in empty if not _is_zero(getattr(data, split))]
    unsaid = [split for split in asked if not (said and split in _asked(empty, data))]
    return said + [
        f"the {split} split holds no row: data.{split} gives none of these {ledger.rows_in:,} rows" for split in unsaid
    ]


def document_notes(empty: Sequence[str], sources: Sequence[SourceFiles], data: DataSection) -> list[str]:
    """The sentence about fractions that hold nothing out because a text file is one document, where that is so.

    Args:
        empty: splits without a row.
        sources: of all roles.
        data: the recipe's section.
    """
    asked, hint = _asked(empty, data), text_row_hint(sources)
    return [f"nothing is held out for {' or '.join(asked)}: {hint}"] if asked and hint else []


def text_row_hint(sources: Sequence[SourceFiles]) -> str | None:
    """How to make more rows of text files, where every training file is read as one document."""
    train = [source for source in sources if source.role == "train"]
    if any(source.section.row != "file" or not all(is_text(path) for path, _ in source.files) for source in train):
        return None
    names = ", ".join(source.name for source in train)
    keys = " and ".join(f"data.train.{source.index}.row" for source in train)
    return f"a .txt file is one document, above 1 MiB pieces of 64 KiB ({names}); set {keys} to `paragraph` or `line`"


def _asked(empty: Sequence[str], data: DataSection) -> list[str]:
    """Those of the empty splits that a fraction asks for."""
    return [split for split in empty if isinstance(given := getattr(data, split), SplitSection) and given.fraction > 0]


def _is_zero(given: object) -> bool:
    return isinstance(given, SplitSection) and given.fraction == 0
