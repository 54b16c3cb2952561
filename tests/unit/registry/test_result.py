"""The result of a run is held against what was written down of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tunesmith.errors import RunError
from tunesmith.registry.result import NAME, check_result, forget_result, record_result, result_step


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "adapter" / "inner").mkdir(parents=True)
    (tmp_path / "adapter" / "weights").write_bytes(b"weights")
    (tmp_path / "adapter" / "inner" / "config").write_bytes(b"config")
    record_result(tmp_path, tmp_path / "adapter", 7)
    return tmp_path


def test_what_is_as_it_was_passes(run: Path) -> None:
    check_result(run)
    assert result_step(run) == 7
    (run / "adapter" / "README.md").write_bytes(b"a file more is the user's")
    check_result(run)


@pytest.mark.parametrize(
    ("name", "payload", "what"),
    [
        ("weights", b"weightz", "does not hold the bytes"),
        ("weights", b"weight", "has 6 bytes, 7 were written"),
        ("inner/config", None, "is missing"),
    ],
)
def test_a_file_that_is_another_is_named(run: Path, name: str, payload: bytes | None, what: str) -> None:
    path = run / "adapter" / name
    path.unlink()
    if payload is not None:
        path.write_bytes(payload)
    with pytest.raises(RunError, match=what) as raised:
        check_result(run)
    assert raised.value.where == str(path)
    assert "tunesmith export" in raised.value.hint


def test_a_run_of_before_has_nothing_to_check(run: Path) -> None:
    forget_result(run)
    forget_result(run)
    check_result(run)
    assert result_step(run) is None


@pytest.mark.parametrize(
    "change",
    [{"folder": "../x"}, {"files": {"../../etc/passwd": {"bytes": 1, "sha256": "x"}}}, {"files": []}, {"step": None}],
)
def test_a_record_that_is_none(run: Path, change: dict[str, object]) -> None:
    values = json.loads((run / NAME).read_text())
    values.pop("seal")
    (run / NAME).write_text(json.dumps(values | change))
    with pytest.raises(RunError) as raised:
        check_result(run)
    assert raised.value.where == str(run / NAME)
    (run / NAME).write_text(json.dumps(values | {"seal": "another"}))
    with pytest.raises(RunError, match="seal"):
        result_step(run)
