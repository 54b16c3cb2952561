"""What the result of a run was when it was written: ``result.json``, by which rot is found. Torch-free."""

from __future__ import annotations

from pathlib import Path

from tunesmith.disk import disk
from tunesmith.errors import RunError
from tunesmith.files import read_json, sha256_of, write_sealed
from tunesmith.registry.shapes import DAMAGED

NAME = "result.json"
_HINT = "write it anew with `tunesmith export`, put the file back from a copy, or train again into a new folder"


def record_result(run: Path, folder: Path, step: int) -> None:
    """Write down size and sha256 of every file of a result, and the step whose weights it has."""
    files = {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    write_sealed(run / NAME, {"folder": folder.name, "step": step, "files": files})


def forget_result(run: Path) -> None:
    """Remove what was written down, because the result is about to be another."""
    if (run / NAME).exists():
        disk().unlink(run / NAME)


def result_step(run: Path) -> int | None:
    """Step whose weights the result has; None where nothing was written down.

    Raises:
        RunError: result.json is damaged.
    """
    if not (run / NAME).exists():
        return None
    return _recorded(run)[1]


def check_result(run: Path) -> None:
    """Hold the files of a result against what was written down. Nothing is checked where nothing was.

    Raises:
        RunError: a file is missing or another, or result.json is damaged.
    """
    if not (run / NAME).exists():
        return
    folder, _, files = _recorded(run)
    for name, (num_bytes, digest) in files.items():
        path = folder / name
        if not path.is_file():
            what = "is missing"
        elif path.stat().st_size != num_bytes:
            what = f"has {path.stat().st_size:,} bytes, {num_bytes:,} were written"
        elif sha256_of(path) != digest:
            what = "does not hold the bytes that were written"
        else:
            continue
        raise RunError(f"the result of the run is damaged: {name} {what}", where=str(path), hint=_HINT)


def _recorded(run: Path) -> tuple[Path, int, dict[str, tuple[int, str]]]:
    """Folder, step, and bytes and sha256 of every file. Raises RunError where it does not say them."""
    values = read_json(run / NAME)
    try:
        folder, step = str(values["folder"]), int(values["step"])
        files = {str(name): (int(item["bytes"]), str(item["sha256"])) for name, item in values["files"].items()}
        if folder not in ("adapter", "model", "head") or any(
            Path(name).is_absolute() or ".." in Path(name).parts for name in files
        ):
            raise ValueError("a name leads out of the run")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RunError(
            f"what was written down of the result is damaged: {error!r}", where=str(run / NAME), hint=DAMAGED
        ) from error
    return run / folder, step, files
