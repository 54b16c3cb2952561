"""What `--fork` names, and how a chain of parents is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from tunesmith.errors import RunError
from tunesmith.registry.lineage import lineage_line, parent_of, parse_fork, read_lineage
from tunesmith.registry.run_folder import RunFolder


def _entry(name: str, step: int) -> dict[str, object]:
    return {"path": f"/runs/{name}", "name": name, "run_identity": "0", "step": step, "manifest_sha256": "1"}


def test_a_run_and_a_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("runs/a@7").mkdir(parents=True)
    assert parse_fork("runs/b") == (Path("runs/b"), None)
    assert parse_fork("runs/b@40") == (Path("runs/b"), 40)
    assert parse_fork("runs/a@7") == (Path("runs/a@7"), None)  # a folder of that name is that folder
    assert parse_fork("runs/a@7@12") == (Path("runs/a@7"), 12)
    assert parse_fork("user@host/b") == (Path("user@host/b"), None)
    with pytest.raises(RunError, match="`newest` is not a step") as raised:
        parse_fork("runs/a@7@newest")
    assert raised.value.where == "--fork runs/a@7@newest"


def test_a_chain_is_told_nearest_first() -> None:
    lineage = {"parent": _entry("b", 6), "ancestors": [_entry("a", 4)]}
    assert parent_of(lineage) == "b@6"
    assert lineage_line(lineage) == "b@6, forked from a@4"
    assert parent_of(None) == ""


def test_a_run_of_its_own_has_none_and_a_torn_one_is_an_error(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    assert read_lineage(run) is None
    for text in ("[]", '{"parent": {"path": "x"}}', "{"):
        run.lineage_path.write_text(text, encoding="utf-8")
        with pytest.raises(RunError) as raised:
            read_lineage(run)
        assert str(run.lineage_path) in raised.value.where
