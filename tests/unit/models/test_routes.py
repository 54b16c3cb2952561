from __future__ import annotations

import pytest
import torch

from tunesmith.errors import ModelError
from tunesmith.models.routes import Routes

CPU = torch.device("cpu")


def listed(routes: Routes, num_tokens: int) -> dict[tuple[str, ...], list[int]]:
    return {stack: torch.arange(num_tokens)[places].tolist() for stack, places in routes.places(num_tokens, CPU)}


def test_a_pack_is_cut_by_lengths_and_the_base_is_left_alone():
    routes = Routes([("a",), (), ("a",), ("b", "a")], [2, 3, 1, 2])
    assert listed(routes, 8) == {("a",): [0, 1, 5], ("b", "a"): [6, 7]}
    assert isinstance(dict(routes.places(8, CPU))[("b", "a")], slice)


def test_padded_rows_are_as_long_as_a_layer_sees_them_and_may_leave():
    routes = Routes([("a",), ("b",), ("a",)])
    assert listed(routes, 6) == {("a",): [0, 1, 4, 5], ("b",): [2, 3]}
    assert listed(routes, 3) == {("a",): [0, 2], ("b",): [1]}
    routes.keep([2, 1])
    assert listed(routes, 2) == {("a",): [0], ("b",): [1]}


@pytest.mark.parametrize("lengths", [[2, 2], None])
def test_tokens_that_go_ways_of_their_own_are_refused(lengths):
    with pytest.raises(ModelError, match="ways of their own") as caught:
        Routes([("a",), ("b",)], lengths).places(3, CPU)
    assert caught.value.where
    assert caught.value.hint
