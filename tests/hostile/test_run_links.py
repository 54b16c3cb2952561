"""Links in a run folder that a stranger made: nothing is written through them, and nothing outside is touched."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.hostile.bounds import answer, refusal
from tests.hostile.conftest import call
from tunesmith.disk import Disk
from tunesmith.errors import RunError
from tunesmith.files import append_line, mend_tail, write_text
from tunesmith.registry.lease import lease
from tunesmith.registry.run_folder import RunFolder

FILES = (
    "recipe.json", "plan.json", "environment.json", "status.json", "ledger.json", "rejected.jsonl", "metrics.jsonl",
    "events.jsonl", "samples.jsonl", "report.html", "card.md",
)  # fmt: skip
FOLDERS = ("checkpoints", "adapter", "model", "scorecards")


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "precious").write_text("{}\nhalf a line", encoding="utf-8")
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "runs" / "mine"
    folder.mkdir(parents=True)
    (folder / "recipe.json").write_text("{}", encoding="utf-8")
    return folder


@pytest.mark.parametrize("name", [*FILES, *FOLDERS])
@pytest.mark.parametrize("relative", [False, True])
def test_a_link_out_of_a_run_is_refused_before_anything_is_read_or_written(
    run: Path, outside: Path, name: str, relative: bool
) -> None:
    end = outside if name in FOLDERS else outside / "precious"
    (run / name).unlink(missing_ok=True)
    (run / name).symlink_to(Path("../..") / end.relative_to(outside.parent) if relative else end)
    for work in (lambda: RunFolder.open(run), RunFolder(run).check_free):
        refused = refusal(work)
        assert isinstance(refused, RunError)
        assert name in refused.where
    assert (outside / "precious").read_text(encoding="utf-8") == "{}\nhalf a line"


def test_a_run_reached_through_a_link_and_links_within_it_are_fine(run: Path, tmp_path: Path) -> None:
    (run / "kept").mkdir()
    (run / "checkpoints").symlink_to("kept")
    (tmp_path / "link").symlink_to(run)
    RunFolder.open(tmp_path / "link")


def test_writing_replaces_a_link_or_refuses_it_but_never_follows_it(run: Path, outside: Path) -> None:
    precious = outside / "precious"
    link = run / "metrics.jsonl"
    link.symlink_to(precious)
    for write in (lambda: append_line(link, {"step": 1}), lambda: mend_tail(link), lambda: Disk().truncate(link, 0)):
        with pytest.raises(OSError, match="symbolic"):
            write()
    write_text(link, "ours")
    assert not link.is_symlink()
    assert precious.read_text(encoding="utf-8") == "{}\nhalf a line"


def test_the_lease_is_not_taken_through_a_link(run: Path, outside: Path) -> None:
    (run / "lease.json").symlink_to(outside / "precious")

    def take() -> None:
        with lease(run):
            raise AssertionError("the lease was taken")

    assert isinstance(answer(take), RunError)
    assert (outside / "precious").read_text(encoding="utf-8") == "{}\nhalf a line"
    (run / "lease.json").unlink()
    (run / "lease.json").symlink_to(outside / "new")
    assert isinstance(answer(take), RunError)
    assert not (outside / "new").exists()


def test_a_link_that_leads_nowhere_is_no_place_for_a_run(desk: Path) -> None:
    Path("nowhere").symlink_to(desk / "not" / "there")
    call("train", "recipe.yaml", "--run", "nowhere").refuses(2, "a link that leads nowhere")
    assert Path("nowhere").is_symlink()
