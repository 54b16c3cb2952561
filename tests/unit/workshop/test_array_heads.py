"""Heads on ready arrays: what they learn, that they resume to the same bits, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file
from tests.tiny_media import media_model

from tunesmith.errors import DataError, ModelError, RunError, UserError
from tunesmith.workshop import array_heads
from tunesmith.workshop.array_heads import apply_head, media_features, train_head

LABELS = ("cat", "dog", "owl")


def blobs(count: int = 150, seed: int = 0) -> tuple[np.ndarray, list[str]]:
    """Three clouds of points that a plane can tell apart."""
    generator = np.random.default_rng(seed)
    classes = generator.integers(0, 3, count)
    centres = 4.0 * np.eye(3, 8)
    return centres[classes] + generator.standard_normal((count, 8)), [LABELS[item] for item in classes]


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_clouds_are_told_apart_and_the_head_reloads(tmp_path: Path, kind: str) -> None:
    features, labels = blobs()
    told = train_head(features, labels, tmp_path / "head", kind=kind, held_out=0.2, learning_rate=0.02)
    assert (told["trained"], told["held_out"]) == (120, 30)
    assert told["accuracy"] >= 0.9
    assert told["interval"][0] > told["majority"]["accuracy"]
    again, right = blobs(seed=1)
    said = apply_head(tmp_path / "head", again)
    assert np.mean([one == other for one, other in zip(said, right, strict=True)]) >= 0.9


def test_numbers(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    features = generator.standard_normal((200, 6))
    slopes = generator.standard_normal(6)
    told = train_head(features, list(features @ slopes), tmp_path / "head", epochs=60, learning_rate=0.03)
    assert told["squared_error"] < 0.05 * told["of_the_mean"]
    assert apply_head(tmp_path / "head", features[:2]) == pytest.approx(list(features[:2] @ slopes), abs=0.5)


def test_an_interrupted_training_goes_on_to_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    features, labels = blobs()
    how: dict[str, Any] = {"epochs": 6, "dropout": 0.2, "kind": "mlp"}
    train_head(features, labels, tmp_path / "whole", **how)
    plain = array_heads._Rows._batch
    calls = [0]

    def failing(self: Any, rows: Any) -> Any:
        calls[0] += 1
        if calls[0] > 17:
            raise KeyError("cut")
        return plain(self, rows)

    monkeypatch.setattr(array_heads._Rows, "_batch", failing)
    with pytest.raises(KeyError):
        train_head(features, labels, tmp_path / "cut", **how)
    assert not (tmp_path / "cut" / "result.json").exists()
    calls[0] = -1000
    resumed = train_head(features, labels, tmp_path / "cut", **how)
    assert calls[0] < -1000 + 30  # it did not begin anew
    whole = load_file(tmp_path / "whole" / "head.safetensors")
    for key, value in load_file(tmp_path / "cut" / "head.safetensors").items():
        assert np.array_equal(value, whole[key])
    assert resumed == json.loads((tmp_path / "whole" / "result.json").read_text(encoding="utf-8"))
    before = (tmp_path / "cut" / "head.safetensors").stat().st_mtime_ns
    assert train_head(features, labels, tmp_path / "cut", **how) == resumed
    assert (tmp_path / "cut" / "head.safetensors").stat().st_mtime_ns == before


def test_pictures_to_labels(tmp_path: Path) -> None:
    """Features of a frozen encoder are made once, kept, and made anew where anything differs or the file is torn."""
    media_model(tmp_path / "vit", "vit")
    generator = np.random.default_rng(0)
    classes = generator.integers(0, 2, 60)
    pictures = [(generator.standard_normal((3, 16, 16)) + 3.0 * item).astype(np.float32) for item in classes]
    first = media_features(tmp_path / "vit", pictures)
    again = media_features(tmp_path / "vit", pictures)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, media_features(tmp_path / "vit", pictures, pooling="first"))
    told = train_head(
        first, ["dark" if item else "bright" for item in classes], tmp_path / "head", epochs=40, learning_rate=0.05
    )
    assert told["accuracy"] >= 0.8


def test_torn_features_are_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "cache"))
    media_model(tmp_path / "resnet", "resnet")
    pictures = np.random.default_rng(0).standard_normal((3, 3, 16, 16)).astype(np.float32)
    made = media_features(tmp_path / "resnet", pictures)
    (kept,) = (tmp_path / "cache" / "features").iterdir()
    kept.write_bytes(kept.read_bytes()[:20])
    assert np.array_equal(media_features(tmp_path / "resnet", pictures), made)


REFUSED: list[tuple[Any, Any, dict[str, Any], type[Exception], str]] = [
    (np.zeros(3), ["a", "b", "c"], {}, DataError, "has shape"),
    (np.full((2, 2), np.inf), ["a", "b"], {}, DataError, "not finite"),
    (np.zeros((2, 2)), ["a"], {}, DataError, "2 rows of features and 1 targets"),
    (np.zeros((2, 2)), ["a", 1], {}, DataError, "others are not"),
    (np.zeros((2, 2)), ["a", " "], {}, DataError, "a label is empty"),
    (np.zeros((2, 2)), ["a", "a"], {}, DataError, "only one label"),
    (np.zeros((2, 2)), [1.0, float("nan")], {}, DataError, "no finite number"),
    (np.zeros((2, 2)), ["a", "b"], {"kind": "deep"}, UserError, "`kind` is deep"),
    (np.zeros((2, 2)), ["a", "b"], {"epochs": 0}, UserError, "`epochs` is 0"),
    (np.zeros((2, 2)), ["a", "b"], {"learning_rate": float("nan")}, UserError, "`learning_rate` is nan"),
    (np.zeros((2, 2)), ["a", "b"], {"held_out": 0.9}, UserError, "nothing is left to train"),
]


@pytest.mark.parametrize(("features", "targets", "how", "kind", "what"), REFUSED, ids=[item[4] for item in REFUSED])
def test_refusals(tmp_path: Path, features: Any, targets: Any, how: Any, kind: type[Exception], what: str) -> None:
    with pytest.raises(kind, match=what) as caught:
        train_head(features, targets, tmp_path / "head", **how)
    assert caught.value.where  # type: ignore[attr-defined]
    assert caught.value.hint  # type: ignore[attr-defined]
    assert not (tmp_path / "head").exists()


def test_other_rows_and_widths_are_refused(tmp_path: Path) -> None:
    features, labels = blobs(40)
    train_head(features, labels, tmp_path / "head", epochs=1)
    with pytest.raises(RunError, match="other rows or settings"):
        train_head(features, labels, tmp_path / "head", epochs=2)
    with pytest.raises(DataError, match="5 numbers a row, the head reads 8"):
        apply_head(tmp_path / "head", features[:, :5])
    with pytest.raises(ModelError, match="no trained head"):
        apply_head(tmp_path / "nowhere", features)
