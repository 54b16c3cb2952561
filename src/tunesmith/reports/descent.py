"""Where a child run comes from, for the page and the card."""

from __future__ import annotations

from dataclasses import dataclass

from tunesmith.registry.lineage import lineage_line
from tunesmith.reports.facts import Facts
from tunesmith.reports.wording import as_list, as_mapping, plain


@dataclass(frozen=True)
class Descent:
    """A parent and what was taken over.

    Attributes:
        chain: the parent with its step, and its own parents behind it.
        said: the sentences that were said at the fork, one or more lines each.
        rows: name and value of each fact.
    """

    chain: str
    said: tuple[str, ...]
    rows: tuple[tuple[str, str], ...]


def descent(facts: Facts) -> Descent | None:
    """The lineage of a child; None for a run that starts from its base, or whose lineage is torn."""
    lineage = facts.lineage
    parent = as_mapping(lineage.get("parent"))
    if not {"name", "step"} <= parent.keys():
        return None
    carried = [plain(name) for name, is_carried in as_mapping(lineage.get("carried")).items() if is_carried]
    rows = [
        ("parent", str(parent.get("path", ""))),
        ("step of its checkpoint", str(parent["step"])),
        ("identity of the parent", str(parent.get("run_identity", ""))),
        ("sha256 of the checkpoint's manifest", str(parent.get("manifest_sha256", ""))),
        ("starts at step", str(lineage.get("starts_at", ""))),
        ("carried over", ", ".join(["weights", *carried])),
    ]
    ancestors = [item for item in as_list(lineage.get("ancestors")) if {"name", "step"} <= as_mapping(item).keys()]
    return Descent(
        chain=lineage_line({"parent": parent, "ancestors": ancestors}),
        said=tuple(str(text) for text in as_list(lineage.get("said"))),
        rows=tuple(rows),
    )
