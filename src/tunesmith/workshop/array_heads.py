"""A head on a ready array: features that somebody made, of pictures, of clips or by any means, and what each row should answer.

    encoder = load_media_encoder(folder)            pictures or clips -> features, kept on disk
    train_head(features_NH, labels, out)            head.json, head.safetensors, result.json, checkpoints/

The loop, the loss and the head are those of recipes with ``adapter: {type: head}``. The same call resumes to the same bits, and a
finished one has nothing to do.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.numpy import load_file, save
from torch import Tensor, nn

from tunesmith.adapters.head_only import HeadOnly
from tunesmith.data.cache_key import cache_root
from tunesmith.data.ordering import epoch_order
from tunesmith.engine.checkpoint import CheckpointFolder
from tunesmith.engine.options import TrainerOptions
from tunesmith.engine.trainer import Trainer
from tunesmith.errors import DataError, ModelError, RunError, UserError
from tunesmith.evaluation.statistics import proportion
from tunesmith.files import read_json, write_bytes, write_json
from tunesmith.models.head_shape import HeadFile, HeadShape, has_head
from tunesmith.models.locate import ModelFolder
from tunesmith.models.media import load_media_encoder
from tunesmith.models.task_head import FEATURES, load_head, save_head
from tunesmith.objectives.headed import VALUES, Headed
from tunesmith.recipe.adapters import HeadOnlySection
from tunesmith.recipe.fingerprint import fingerprint
from tunesmith.types import Batch, Step

RESULT = "result.json"
_VERSION = 1
_NAME = "feature_NH"
Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class HeadOptions:
    """How a head is trained.

    Attributes:
        kind: ``linear``, or ``mlp`` of ``width``.
        width: inner width of ``mlp``; None is that of the features.
        dropout: on what the head reads.
        epochs: passes over the training rows.
        batch_size: rows of a step.
        learning_rate: of AdamW, warmed up over 3 % and decayed by a cosine.
        held_out: share of rows that are scored instead of trained on, drawn from the seed.
        seed: of the start, the order and the draw.
    """

    kind: str = "linear"
    width: int | None = None
    dropout: float = 0.0
    epochs: int = 20
    batch_size: int = 32
    learning_rate: float = 5e-3
    held_out: float = 0.1
    seed: int = 0


def media_features(
    folder: str | Path, inputs: Sequence[Any], *, pooling: str = "mean", layer: int | None = None, batch_size: int = 16
) -> Array:
    """Features of pictures or clips ``[N, H]``, made once and kept in the cache by what they are made of.

    Args:
        folder: of an image or audio encoder of transformers.
        inputs: what its processor makes of each.
        pooling: ``mean`` or ``first``.
        layer: whose output; None is the last.
        batch_size: most inputs of a pass.

    Raises:
        ModelError: no such encoder.
        DataError: inputs that it does not take.
    """
    model = ModelFolder(Path(folder).resolve(), str(folder))
    digest = hashlib.sha256()
    for item in inputs:
        array = np.ascontiguousarray(np.asarray(item, dtype=np.float32))
        digest.update(f"{array.shape}".encode())
        digest.update(array.tobytes())
    decides = {
        "version": _VERSION, "weights": model.sha256, "config": model.config_sha256, "inputs": digest.hexdigest(),
        "pooling": pooling, "layer": layer, "batch_size": batch_size,
    }  # fmt: skip
    path = cache_root() / "features" / f"{fingerprint(decides)}.safetensors"
    with suppress(Exception):  # safetensors fails on a torn file in ways of its own: it is made anew
        kept: Array = load_file(path)[_NAME]
        return kept
    made = load_media_encoder(model.path).features(inputs, pooling=pooling, layer=layer, batch_size=batch_size)
    write_bytes(path, save({_NAME: made}))
    return made


def train_head(features: Any, targets: Sequence[Any], out: str | Path, **how: Any) -> dict[str, Any]:
    """Train a head on an array; the same call resumes, and a finished one is left as it is.

    Args:
        features: numbers ``[N, H]``, a row each.
        targets: of each row a label, as text, or a number to come near.
        out: folder of the head.
        how: fields of ``HeadOptions``.

    Returns:
        Rows trained and held out, and on those held out accuracy with its interval beside the majority's, or the mean squared
        error beside that of the mean; as ``result.json`` has it.

    Raises:
        DataError: no such array, rows and targets that do not match, or labels that cannot be told apart.
        UserError: a setting without meaning.
        RunError: the folder holds a head of other rows or settings.
    """
    options = HeadOptions(**how)
    job = _Job(_checked(features, targets, options), targets, Path(out), options)
    return job.run()


def apply_head(folder: str | Path, features: Any) -> list[Any]:
    """What a trained head says of each row: its likeliest label, or a number.

    Raises:
        ModelError: no head there.
        DataError: an array of another width.
    """
    if not has_head(Path(folder)):
        raise ModelError("there is no trained head", where=str(folder), hint="give the folder that `train_head` filled")
    head, described = load_head(Path(folder))
    array = _matrix(features)
    if array.shape[1] != described.shape.inputs:
        raise DataError(
            f"the features have {array.shape[1]} numbers a row, the head reads {described.shape.inputs}",
            where="features",
            hint="make them as those that the head was trained on",
        )
    with torch.no_grad():
        logits_NK = head(torch.from_numpy(array))
    if described.shape.task == "regress":
        return [float(value) for value in logits_NK[:, 0]]
    return [described.labels[place] for place in logits_NK.argmax(-1).tolist()]


class _Job:
    """One call of ``train_head``."""

    def __init__(self, features: Array, targets: Sequence[Any], out: Path, options: HeadOptions) -> None:
        self.features, self.out, self.options = features, out, options
        self.numbers = not isinstance(targets[0], str)
        self.labels = () if self.numbers else tuple(sorted(set(targets)))
        place = {label: number for number, label in enumerate(self.labels)}
        self.targets: npt.NDArray[Any] = (
            np.asarray(targets, dtype=np.float32) if self.numbers else np.asarray([place[item] for item in targets])
        )
        order = np.random.default_rng([options.seed, 1]).permutation(len(features))
        held = round(options.held_out * len(features))
        self.held, self.trained = np.sort(order[:held]), np.sort(order[held:])
        width = options.width or features.shape[1]
        self.shape = HeadShape(
            task="regress" if self.numbers else "classify", kind="mlp" if options.kind == "mlp" else "linear",
            inputs=features.shape[1], outputs=1 if self.numbers else len(self.labels),
            width=width if options.kind == "mlp" else 0, activation="gelu", pooling="mean", dropout=options.dropout,
        )  # fmt: skip
        self.identity = fingerprint(
            {
                "version": _VERSION, "options": asdict(options), "labels": list(self.labels),
                "features": hashlib.sha256(features.tobytes()).hexdigest(), "shape": list(features.shape),
                "targets": hashlib.sha256(self.targets.tobytes()).hexdigest(),
            }
        )  # fmt: skip

    def run(self) -> dict[str, Any]:
        """Train from where it stopped, score, write."""
        path = self.out / RESULT
        known = read_json(path) if path.is_file() else None
        if known is not None and known.get("identity") == self.identity:
            return dict(known)
        if known is not None:
            raise RunError(
                "the folder holds a head of other rows or settings", where=str(self.out), hint="name another folder"
            )
        objective = Headed(self.shape, self.options.seed)
        trainer = self.trainer(objective)
        checkpoint = trainer.checkpoints.newest()
        if checkpoint is not None:
            trainer.restore(checkpoint)
        trainer.run()
        objective.head.eval()
        save_head(self.out, objective.head, HeadFile(self.shape, self.labels))
        told = {
            "identity": self.identity,
            "trained": len(self.trained),
            "held_out": len(self.held),
            **self._scores(objective),
        }
        write_json(path, told)
        return told

    def trainer(self, objective: Headed) -> Trainer:
        """The engine's loop over the training rows, without a model."""
        options = self.options
        stream = _Rows(self.features[self.trained], self.targets[self.trained], self.numbers, options)
        total = stream.total_steps
        loop = TrainerOptions(
            total_steps=total, learning_rate=options.learning_rate, warmup_steps=max(1, round(0.03 * total)),
            checkpoint_every=max(1, total // 5), evaluate_every=total, log_every=max(1, total // 20), seed=options.seed,
            has_dropout=options.dropout > 0,
        )  # fmt: skip
        folder = CheckpointFolder(self.out / "checkpoints", self.identity)
        return Trainer(_NoModel(), objective, HeadOnly(HeadOnlySection()), stream, loop, folder)

    @torch.no_grad()
    def _scores(self, objective: Headed) -> dict[str, Any]:
        """On the rows held out; empty where there are none."""
        if not len(self.held):
            return {}
        said_NK = objective.head(torch.from_numpy(self.features[self.held]))
        wanted = self.targets[self.held]
        if self.numbers:
            error = np.square(said_NK[:, 0].numpy() - wanted).mean()
            return {
                "squared_error": float(error),
                "of_the_mean": float(np.square(self.targets[self.trained].mean() - wanted).mean()),
            }
        right = proportion(int((said_NK.argmax(-1).numpy() == wanted).sum()), len(wanted))
        common = int(np.bincount(self.targets[self.trained]).argmax())
        return {
            "accuracy": right.value, "interval": [right.low, right.high],
            "majority": {"label": self.labels[common], "accuracy": float((wanted == common).mean())},
        }  # fmt: skip


class _NoModel(nn.Module):
    """In the place of a model: the rows carry what the head reads, so that nobody asks it."""

    device = torch.device("cpu")


class _Rows:
    """Steps over the rows of an array; follows ``types.Stream``. Each row is a document of one token."""

    def __init__(self, features: Array, targets: npt.NDArray[Any], numbers: bool, options: HeadOptions) -> None:
        self.features, self.targets, self.numbers, self.options = features, targets, numbers, options
        self.steps_in_epoch = -(-len(features) // options.batch_size)
        self.total_steps = self.steps_in_epoch * options.epochs
        self.next_step = 0

    def __iter__(self) -> Iterator[Step]:
        """The steps from where it stands on."""
        while self.next_step < self.total_steps:
            step = self.next_step
            self.next_step += 1
            epoch, place = divmod(step, self.steps_in_epoch)
            order = epoch_order(len(self.features), self.options.seed, epoch, None)
            yield [self._batch(order[place * self.options.batch_size :][: self.options.batch_size])]

    def heaviest(self) -> Batch:
        """Any full one."""
        return self._batch(np.arange(min(len(self.features), self.options.batch_size)))

    def state_dict(self) -> dict[str, Any]:
        """The position."""
        return {"next_step": self.next_step}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on there."""
        self.next_step = int(state["next_step"])

    def _batch(self, rows: npt.NDArray[np.int64]) -> Batch:
        count = len(rows)
        extras: dict[str, Tensor] = {FEATURES: torch.from_numpy(self.features[rows])}
        classes = torch.zeros(count, dtype=torch.int64)
        if self.numbers:
            extras[VALUES] = torch.from_numpy(self.targets[rows])
        else:
            classes = torch.from_numpy(self.targets[rows].astype(np.int64))
        each = torch.arange(count)
        return Batch(
            input_ids_T=torch.zeros(count, dtype=torch.int64), positions_T=torch.zeros(count, dtype=torch.int64),
            starts_D1=torch.arange(count + 1, dtype=torch.int32), lengths=(1,) * count, scored_S=each, targets_S=classes,
            weights_S=torch.ones(count), document_S=each, rows=tuple(int(row) for row in rows), extras=extras,
        )  # fmt: skip


def _matrix(features: Any) -> Array:
    """Finite numbers, a row each."""
    array = np.ascontiguousarray(np.asarray(features, dtype=np.float32))
    if array.ndim != 2 or not array.size or not np.isfinite(array).all():
        fault = "holds values that are not finite" if array.ndim == 2 and array.size else f"has shape {array.shape}"
        raise DataError(f"the array of features {fault}", where="features", hint="give finite numbers, [rows, width]")
    return array


def _checked(features: Any, targets: Sequence[Any], options: HeadOptions) -> Array:
    array = _matrix(features)
    if len(targets) != len(array):
        raise DataError(
            f"there are {len(array)} rows of features and {len(targets)} targets",
            where="targets",
            hint="give one target for each row, in their order",
        )
    texts = [isinstance(item, str) for item in targets]
    if any(texts) and not (all(texts) and all(item.strip() for item in targets)):
        raise DataError(
            "some targets are labels and others are not, or a label is empty",
            where="targets",
            hint="give texts, or numbers",
        )
    if all(texts) and len(set(targets)) < 2:
        raise DataError("there is only one label", where="targets", hint="give rows of at least two labels")
    if not any(texts) and not np.isfinite(np.asarray(targets, dtype=np.float32)).all():
        raise DataError("a target is no finite number", where="targets", hint="leave such rows out")
    limits: dict[str, tuple[Callable[[Any], bool], str]] = {
        "kind": (lambda value: value in ("linear", "mlp"), "`linear` or `mlp`"),
        "width": (lambda value: value is None or value > 0, "above 0"),
        "dropout": (lambda value: 0 <= value < 1, "from 0, below 1"),
        "epochs": (lambda value: value > 0, "above 0"),
        "batch_size": (lambda value: value > 0, "above 0"),
        "learning_rate": (lambda value: 0 < value < 1, "between 0 and 1"),
        "held_out": (lambda value: 0 <= value < 1, "from 0, below 1"),
        "seed": (lambda value: value >= 0, "from 0 on"),
    }
    for name, (fits, range_of) in limits.items():
        if not fits(getattr(options, name)):
            raise UserError(f"`{name}` is {getattr(options, name)}", where=name, hint=f"give one {range_of}")
    if round(options.held_out * len(array)) >= len(array):
        raise UserError("nothing is left to train on", where="held_out", hint="give more rows, or hold out fewer")
    return array
