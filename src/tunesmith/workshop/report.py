"""The page of a run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tunesmith.files import write_text
from tunesmith.registry.runs import RunFolder
from tunesmith.reports.facts import read_facts
from tunesmith.reports.render import PAGE, render_facts
from tunesmith.reports.verdict import verdict


@dataclass(frozen=True)
class Report:
    """Where a page lies, and what it says first: the verdict in a word and in a sentence."""

    path: Path
    verdict: str
    sentence: str


def report(run_folder: Path) -> Report:
    """Write ``report.html`` of a run anew.

    Raises:
        RunError: the folder holds no run.
    """
    folder = RunFolder.open(Path(run_folder)).path
    facts = read_facts(folder)
    write_text(folder / PAGE, render_facts(facts))
    first = verdict(facts)
    return Report(folder / PAGE, first.word, first.sentence)
