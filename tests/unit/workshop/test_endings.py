"""How a run ended is written down, as far as the disk lets it."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from tunesmith.disk import Disk, use_disk
from tunesmith.errors import Diverged, GuardStopped
from tunesmith.registry.run_folder import RunFolder
from tunesmith.workshop.endings import recorded


class NoInodes(Disk):
    """Files that are there can be added to; no new one can be made."""

    def open(self, path: Path, mode: str) -> Any:
        if not path.exists():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return super().open(path, mode)


class Work:
    step, doing, has_begun = 3, "training", True


def test_an_ending_is_recorded_where_no_new_file_can_be_made(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.append_event("started", 0, "started")
    run.set_status("running")
    with use_disk(NoInodes()), pytest.raises(GuardStopped), recorded(run, Work()):
        raise GuardStopped("the disk is full", hint="free some space")
    assert [line["kind"] for line in run.events()] == ["started", "stopped"]
    assert run.events()[-1]["message"] == "the disk is full"


@pytest.mark.parametrize(("kind", "diverged"), [(Diverged, True), (GuardStopped, None)])
def test_numbers_that_went_wrong_are_told_from_a_full_disk(
    tmp_path: Path, kind: type[GuardStopped], diverged: bool | None
) -> None:
    """What diverged does so again; what a full disk stopped goes on, and then neither is said any more."""
    run = RunFolder(tmp_path)
    with pytest.raises(kind), recorded(run, Work()):
        raise kind("it stopped", where="step 3", hint="look")
    assert run.status().get("diverged") is diverged
    run.set_status(None, step=4)
    assert run.status().get("diverged") is diverged
    run.set_status("running")
    assert "diverged" not in run.status()
