"""Speeds of this machine: what is measured is used, its neighbours with a wider interval, a stranger is not known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tunesmith.planning.speeds import SpeedKey, cache_file, lookup, record

KEY = SpeedKey(machine="cpu|X|2 threads", device="cpu", precision="fp32", shape="llama-h256", scope="lora")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "speeds.json"


def test_stranger_is_not_known(path: Path) -> None:
    assert lookup(KEY, path) == (None, None)
    record(KEY, 1e10, path)
    for change in ({"machine": "other"}, {"precision": "bf16"}, {"device": "cuda"}):
        assert lookup(replace(KEY, **change), path) == (None, None)


def test_median_and_spread_of_several_runs(path: Path) -> None:
    for value in (1.00e10, 1.02e10, 0.98e10):
        record(KEY, value, path)
    speed, note = lookup(KEY, path)
    assert speed is not None
    assert (speed.flops_per_second, speed.n, note) == (1e10, 3, None)
    assert speed.spread == 1.1  # exp(4.3 · 0.02) = 1.09, never below 1.1
    assert "measured 3 times on this machine with this model and scope" in speed.basis
    record(KEY, 5e9, path)
    wider, _ = lookup(KEY, path)
    assert wider is not None
    assert wider.spread > 2


def test_nearest_measurement_stands_in_with_a_wider_interval(path: Path) -> None:
    for value in (1e10, 1e10):
        record(KEY, value, path)
    spreads = []
    for change in ({}, {"scope": "partial"}, {"shape": "big"}, {"shape": "big", "scope": "partial"}):
        other, _ = lookup(replace(KEY, **change), path)
        assert other is not None
        assert other.flops_per_second == 1e10
        spreads.append(other.spread)
    assert spreads == [1.1, 1.5, 2.0, 3.0]


def test_single_measurement_is_never_taken_as_exact(path: Path) -> None:
    record(KEY, 1e10, path)
    speed, _ = lookup(KEY, path)
    assert speed is not None
    assert speed.spread == 1.5
    other, _ = lookup(replace(KEY, shape="big", scope="full"), path)
    assert other is not None
    assert other.spread == 3.0
    assert "another model and scope" in other.basis


def test_only_the_newest_twenty_are_kept(path: Path) -> None:
    for value in range(1, 31):
        record(KEY, float(value), path)
    speed, _ = lookup(KEY, path)
    assert speed is not None
    assert (speed.n, speed.flops_per_second) == (20, 20.5)


@pytest.mark.parametrize("content", ["{", '{"speeds": [{"machine": "x"}]}', "[]"])
def test_broken_file_is_said_and_written_anew(path: Path, content: str) -> None:
    path.parent.mkdir()
    path.write_text(content)
    speed, note = lookup(KEY, path)
    assert speed is None
    assert note is not None
    assert str(path) in note
    record(KEY, 1e9, path)
    assert lookup(KEY, path)[1] is None


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_what_is_no_speed_is_not_recorded(path: Path, value: float) -> None:
    with pytest.raises(ValueError, match="no measurement"):
        record(KEY, value, path)
    assert not path.exists()


def test_place_of_the_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "own"))
    assert cache_file() == tmp_path / "own" / "speeds.json"
    monkeypatch.delenv("TUNESMITH_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_file() == tmp_path / "xdg" / "tunesmith" / "speeds.json"
