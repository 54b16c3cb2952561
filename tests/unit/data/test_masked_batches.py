"""What is hidden is a function of seed, epoch and row; the shares are those that were asked for."""

from __future__ import annotations

import numpy as np
import pytest

from tests.loops import MemoryStore
from tunesmith.data.masked_batches import Masking, masked_documents, masked_rows

SPECIAL = frozenset({0, 1, 2})
MASK = 2


def masking(**changes: object) -> Masking:
    return Masking(
        **{"mask_id": MASK, "share": 0.15, "plain": False, "special_ids": SPECIAL, "num_tokens": 97, **changes}
    )  # type: ignore[arg-type]


class Store(MemoryStore):
    def row_id(self, index: int) -> str:
        return f"{index:016x}"


def row(length: int = 4000) -> np.ndarray:
    ids = np.random.default_rng(0).integers(3, 97, length).astype(np.uint32)
    ids[[0, -1]] = 0
    return ids


def test_eight_of_ten_show_the_mask_one_a_random_token_one_itself() -> None:
    ids = row()
    shown, places = masking().hide(ids, "a")
    assert len(places) == round(0.15 * 3998)
    assert set(np.flatnonzero(shown != ids)) <= set(places), "nothing else is touched"
    masked = (shown[places] == MASK).mean()
    kept = (shown[places] == ids[places]).mean()
    assert masked == pytest.approx(0.8, abs=0.05)
    assert kept == pytest.approx(0.1, abs=0.04)
    others = shown[places][(shown[places] != MASK) & (shown[places] != ids[places])]
    assert len(others) / len(places) == pytest.approx(0.1, abs=0.04)
    assert not SPECIAL & set(others.tolist())


def test_plain_masking_shows_the_mask_alone() -> None:
    ids = row()
    shown, places = masking(plain=True).hide(ids, "a")
    assert (shown[places] == MASK).all()


def test_special_tokens_are_never_hidden_and_one_token_always_is() -> None:
    for key in range(20):
        _, places = masking().hide(np.asarray([0, 5, 6, 0], dtype=np.uint32), str(key))
        assert len(places) == 1
        assert places[0] in (1, 2)
    _, none = masking().hide(np.asarray([0, 1, 2], dtype=np.uint32), "a")
    assert len(none) == 0


def test_what_is_hidden_depends_on_seed_epoch_and_row_alone() -> None:
    store = Store([40, 30, 20, 25])
    make = masked_rows(store, masking(), 7)  # type: ignore[arg-type]
    together, alone = make([0, 1, 2], 0.0, 3), make([2], 0.5, 3)
    part = together.part(2, 3)
    assert part.input_ids_T.tolist() == alone.input_ids_T.tolist()
    assert part.scored_S.tolist() == alone.scored_S.tolist()
    assert part.targets_S.tolist() == alone.targets_S.tolist()
    assert make([2], 0.0, 4).scored_S.tolist() != alone.scored_S.tolist(), "another epoch hides others"
    other = masked_rows(store, masking(), 8)([2], 0.0, 3)  # type: ignore[arg-type]
    assert other.scored_S.tolist() != alone.scored_S.tolist(), "another seed too"


def test_targets_are_what_stood_there() -> None:
    store = Store([40, 30])
    batch = masked_rows(store, masking(share=0.5), 0)([1, 0], 0.0, 0)  # type: ignore[arg-type]
    whole = np.concatenate([store.row(1)[0], store.row(0)[0]])
    assert batch.targets_S.tolist() == whole[batch.scored_S.numpy()].tolist()
    assert batch.document_S.tolist() == [0] * 15 + [1] * 20
    assert batch.weights_S.tolist() == [1.0] * 35


def test_scoring_hides_by_the_text_itself() -> None:
    make = masked_documents(masking())
    ids = row(60)
    one = make([(ids, ids > 0)], [0])
    other = make([(row(30), row(30) > 0), (ids, ids > 0)], [4, 5]).part(1, 2)
    assert one.scored_S.tolist() == other.scored_S.tolist()
    assert one.input_ids_T.tolist() == other.input_ids_T.tolist()
