"""The page of a run."""

from __future__ import annotations

from pathlib import Path

from tunesmith.registry.runs import RunFolder
from tunesmith.reports.render import write_report


def report(run_folder: Path) -> Path:
    """Write ``report.html`` of a run anew and return its path.

    Raises:
        RunError: the folder holds no run.
    """
    return write_report(RunFolder.open(Path(run_folder)).path)
