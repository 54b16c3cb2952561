from __future__ import annotations

import json
import math

import pytest
import torch

from tunesmith.errors import GateRefused
from tunesmith.workshop.gates import gate_a, gate_b, require


def logprobs(rows):
    return torch.tensor(rows, dtype=torch.float64).log()


def test_gate_a_is_the_largest_difference_over_the_largest_logit():
    trained = torch.tensor([[1.0, -20.0], [3.0, 4.0]])
    merged = trained.clone()
    merged[1, 0] += 0.0015
    result = gate_a(merged, trained)
    assert result.passed
    assert result.numbers["relative_difference"] == pytest.approx(0.0015 / 20, rel=1e-3)
    merged[1, 0] += 0.001
    result = gate_a(merged, trained)
    assert not result.passed
    assert result.numbers["max_difference"] == pytest.approx(0.0025, rel=1e-3)
    assert "refused" in result.sentence
    assert "0.0001" in result.sentence


def test_gate_a_sees_every_position():
    trained = torch.zeros(1000, 3)
    trained[0, 0] = 10.0
    merged = trained.clone()
    merged[999, 2] = 0.1
    assert gate_a(merged, trained).numbers["relative_difference"] == pytest.approx(0.01, rel=1e-6)


def test_gate_a_accepts_zeros_that_stay_zeros_only():
    assert gate_a(torch.zeros(1, 2), torch.zeros(1, 2)).passed
    assert not gate_a(torch.full((1, 2), 1e-9), torch.zeros(1, 2)).passed


def test_gate_b_is_the_mean_kl_by_hand():
    p, q = [0.5, 0.25, 0.25], [0.25, 0.5, 0.25]
    result = gate_b(logprobs([p, p]), logprobs([p, q]))
    expected = (0.5 * math.log(2) - 0.25 * math.log(2)) / 2
    assert result.numbers["mean_kl_nats"] == pytest.approx(expected, rel=1e-12)
    assert result.numbers["top1_agreement"] == 0.5
    assert not result.passed


def test_gate_b_weighs_by_the_reference():
    p, q = [0.9, 0.1], [0.6, 0.4]
    forward = gate_b(logprobs([p]), logprobs([q])).numbers["mean_kl_nats"]
    assert forward == pytest.approx(0.9 * math.log(0.9 / 0.6) + 0.1 * math.log(0.1 / 0.4), rel=1e-12)


@pytest.mark.parametrize(("flips", "passed"), [(2, True), (3, False)])
def test_gate_b_needs_98_percent_of_first_choices(flips, passed):
    reference = logprobs([[0.5001, 0.4999]] * 100)
    candidate = reference.clone()
    candidate[:flips] = candidate[:flips].flip(-1)
    result = gate_b(reference, candidate)
    assert result.numbers["mean_kl_nats"] < 1e-6
    assert result.numbers["top1_agreement"] == pytest.approx(1 - flips / 100)
    assert result.passed is passed


def test_gate_b_refuses_by_kl_alone():
    result = gate_b(logprobs([[0.8, 0.2]]), logprobs([[0.75, 0.25]]))
    assert result.numbers["top1_agreement"] == 1.0
    assert result.numbers["mean_kl_nats"] > 1e-3
    assert not result.passed


def test_gate_b_names_what_was_written():
    same = logprobs([[0.8, 0.2]])
    assert "the written model has a mean KL" in gate_b(same, same).sentence
    assert "the adapter written in float32 has a mean KL" in gate_b(same, same, "adapter written in float32").sentence


def test_impossible_tokens_count_nothing_where_the_reference_has_none():
    reference, candidate = logprobs([[1.0, 0.0]]), logprobs([[1.0, 0.0]])
    assert gate_b(reference, candidate).numbers["mean_kl_nats"] == 0.0
    assert gate_b(logprobs([[0.9, 0.1]]), candidate).numbers["mean_kl_nats"] == math.inf


@pytest.mark.parametrize("gate", [gate_a, gate_b])
def test_not_a_number_never_passes(gate):
    good = torch.log_softmax(torch.randn(4, 5, generator=torch.Generator().manual_seed(0)), -1)
    bad = good.clone()
    bad[2, 1] = math.nan
    for first, second in ((good, bad), (bad, good)):
        result = gate(first, second)
        assert not result.passed
        json.dumps(result.to_json(), allow_nan=False)
    assert gate(good, good).passed


@pytest.mark.parametrize("gate", [gate_a, gate_b])
def test_what_cannot_be_compared_is_an_error(gate):
    with pytest.raises(ValueError, match="two N×V"):
        gate(torch.zeros(2, 3), torch.zeros(2, 4))
    with pytest.raises(ValueError, match="at least one position"):
        gate(torch.zeros(0, 3), torch.zeros(0, 3))


def test_a_bf16_cast_passes_b_and_would_fail_a():
    """Why there are two gates: a cast alone moves logits further than arithmetic may."""
    logits = torch.randn(200, 64, generator=torch.Generator().manual_seed(0)) * 4
    cast = logits.bfloat16().float()
    assert not gate_a(cast, logits).passed
    assert gate_b(torch.log_softmax(logits, -1), torch.log_softmax(cast, -1)).passed


def test_require_lets_good_ones_through_and_refuses_with_all_numbers():
    good_a = gate_a(torch.ones(1, 2), torch.ones(1, 2))
    bad_a = gate_a(torch.ones(1, 2), torch.zeros(1, 2) + 2)
    good_b = gate_b(logprobs([[0.5, 0.5]]), logprobs([[0.5, 0.5]]))
    bad_b = gate_b(logprobs([[0.8, 0.2]]), logprobs([[0.5, 0.5]]))
    require([good_a, good_b])
    with pytest.raises(GateRefused) as error:
        require([good_a, bad_b])
    assert error.value.exit_code == 3
    assert "--dtype float32" in error.value.hint
    assert error.value.where == "gate B"
    assert good_a.sentence in error.value.what
    assert bad_b.sentence in error.value.what
    with pytest.raises(GateRefused) as error:
        require([bad_a, bad_b])
    assert error.value.where == "gate A and B"
    assert "--merge" in error.value.hint
    with pytest.raises(ValueError, match="no gate"):
        require([])
