"""A world of processes that cannot come together says why."""

from __future__ import annotations

import pytest
import torch

from tunesmith.engine import ranks
from tunesmith.errors import UserError


def test_more_ranks_than_cards_are_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "RANK": "2",
        "WORLD_SIZE": "3",
        "LOCAL_RANK": "2",
        "MASTER_ADDR": "x",
        "MASTER_PORT": "1",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with (
        pytest.raises(UserError, match="3 or more ranks on this machine, and it has 2 cards") as caught,
        ranks.joined("cuda"),
    ):
        pass
    assert "--nproc-per-node 2" in str(caught.value.hint)
