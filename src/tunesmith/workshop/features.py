"""Features of a frozen model: pooled once, kept in the token cache, read by the head in every epoch.

    features/KEY.safetensors    feature_NH  float32, one row of a split each, in the order of the split's token store;
                                of words one each, row after row

The key covers the tokens, the base to the byte, how the base is run and what is read of it: whatever would change a feature.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.numpy import load_file, save
from torch import Tensor

from tunesmith.data.cache_key import cache_root
from tunesmith.data.head_batches import HeadData
from tunesmith.engine.precision import Precision
from tunesmith.files import write_bytes
from tunesmith.models.causal_lm import CausalLM
from tunesmith.models.head_shape import HeadShape
from tunesmith.models.task_head import FEATURES, WORD_FEATURES
from tunesmith.objectives.headed import read_states
from tunesmith.planning.settings import Settings
from tunesmith.recipe.adapters import HeadOnlySection
from tunesmith.recipe.fingerprint import fingerprint
from tunesmith.recipe.root import Recipe
from tunesmith.types import Batch
from tunesmith.workshop.headed import packs_of

VERSION = 1
_NAME = "feature_NH"
Features = npt.NDArray[np.float32]


@dataclass(frozen=True)
class FeatureKey:
    """What decides the features of a split.

    Attributes:
        data: key of the prepared data.
        base: sha256 of the base's weights, and of its configuration.
        shape: of the head: pooling and layer count.
        settings: precision, type of the weights, device and size of a pass count.
        loaded: how the base holds its weights, what it starts from, and the seed of that.
    """

    data: str
    base: tuple[str, str]
    shape: HeadShape
    settings: Settings
    loaded: tuple[str, str, int]

    @property
    def path(self) -> Path:
        """Where the features lie or will lie."""
        decides = {
            "version": VERSION, "data": self.data, "base": list(self.base), "pooling": self.shape.pooling,
            "layer": self.shape.layer, "precision": self.settings.precision, "weights": self.settings.weights_dtype,
            "device": self.settings.device, "atom_tokens": self.settings.atom_tokens, "loaded": list(self.loaded),
            "deterministic": self.settings.deterministic,
        }  # fmt: skip
        return cache_root() / "features" / f"{fingerprint(decides)}.safetensors"


def keeps_features(recipe: Recipe) -> bool:
    """Whether the recipe's base is frozen whole and its features are to be kept."""
    return isinstance(recipe.adapter, HeadOnlySection) and recipe.adapter.cache_features


def features_of(key: FeatureKey, model: CausalLM, rows: HeadData, say: Callable[[str, str], None]) -> Features:
    """The features of a split ``[rows, H]``, or ``[words, H]``, from the cache where they are there whole.

    Args:
        key: names them.
        model: the frozen base.
        rows: of the split.
        say: kind of event and sentence.
    """
    what = "words" if key.shape.pooling == "words" else "rows"
    found = _read(key.path, int(_ends(rows)[-1]), key.shape.inputs)
    if found is not None:
        say("features", f"using the kept features of {len(found):,} {what} ({key.path.name[:12]})")
        return found
    if key.path.exists():
        say("features", f"the kept features {key.path.name[:12]} are torn: they are made anew")
    made = _make(key, model, rows)
    write_bytes(key.path, save({_NAME: made}))
    say("features", f"the features of {len(made):,} {what} are made once and kept ({made.nbytes / (1 << 20):.1f} MiB)")
    return made


def with_features(data: HeadData, kept_NH: Features) -> Callable[[Sequence[int], float, int], Batch]:
    """Packs of a split's rows that carry their features, so that the model is not asked."""
    ends, name = _ends(data), WORD_FEATURES if data.task == "tag" else FEATURES

    def carrying(rows: Sequence[int], progress: float, epoch: int) -> Batch:
        batch = data.batch(rows, progress, epoch)
        read = np.concatenate([kept_NH[ends[row] : ends[row + 1]] for row in rows])
        return replace(batch, extras={**batch.extras, name: torch.from_numpy(read)})

    return carrying


@torch.no_grad()
def _make(key: FeatureKey, model: CausalLM, rows: HeadData) -> Features:
    ends = _ends(rows)
    made = np.zeros((int(ends[-1]), key.shape.inputs), dtype=np.float32)
    precision = Precision(key.settings.precision, model.device)
    was_training = model.training
    model.eval()
    for members in packs_of([int(length) for length in rows.store.lengths], key.settings.atom_tokens):
        batch = rows.batch(members).to(model.device)
        with precision.autocast():
            states: Tensor = read_states(model, batch, key.shape)
        made[np.concatenate([np.arange(ends[row], ends[row + 1]) for row in members])] = states.float().cpu().numpy()
    model.train(was_training)
    return made


def _ends(rows: HeadData) -> npt.NDArray[np.int64]:
    """Where the features of each row begin, and at the end where the last one's end: ``[rows + 1]``."""
    ends = np.zeros(rows.store.num_rows + 1, dtype=np.int64)
    np.cumsum([rows.num_scored(row) for row in range(rows.store.num_rows)], out=ends[1:])
    return ends


def _read(path: Path, count: int, width: int) -> Features | None:
    """The kept features; None where there are none of this size."""
    if not path.is_file():
        return None
    try:
        found: Any = load_file(path)[_NAME]
    except Exception:  # safetensors fails on a torn file in ways of its own
        return None
    return found if found.shape == (count, width) and np.isfinite(found).all() else None
