"""What can be exported where: all that is known before a model is loaded. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tunesmith.errors import RunError
from tunesmith.recipe.low_rank import AddedSection
from tunesmith.registry.runs import RunFolder


@dataclass(frozen=True)
class Exportable:
    """A finished run, a folder that is free, and whether a whole model is written instead of an adapter."""

    run: RunFolder
    out: Path
    whole: bool


def check_export(run_folder: Path, out: Path, *, merge: bool, dtype: str | None) -> Exportable:
    """Refuse an export that cannot be, before anything is loaded.

    Raises:
        RunError: no run, an unfinished one, ``out`` is taken, an adapter that cannot be merged shall be, or a ``dtype`` is asked
            for an adapter.
    """
    run = RunFolder.open(Path(run_folder))
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise RunError("there is a file of that name", where=str(out), hint="name a folder that does not exist yet")
    if out.exists() and any(out.iterdir()):
        raise RunError(
            "the folder to export to is not empty", where=str(out), hint="name a folder that does not exist yet"
        )
    status = run.status()["status"]
    if status != "done":
        raise RunError(
            f"this run is {status}, not done",
            where=str(run.path),
            hint="start the same `tunesmith train` again to finish it",
        )
    section = run.recipe().adapter
    if merge and isinstance(section, AddedSection) and not section.merges:
        raise RunError(
            f"`{section.type}` adds computation that no weight of the base can hold, so it cannot be merged",
            where="--merge",
            hint="leave --merge out: the adapter is exported as it is and used on its base",
        )
    whole = merge or not run.adapter_path.is_dir()
    if dtype is not None and not whole:
        raise RunError(
            f"an adapter keeps the precision it was trained in: `{dtype}` is the number format of a whole model",
            where="--dtype",
            hint="add --merge, or leave --dtype out",
        )
    return Exportable(run, out, whole)
