"""The fused head against plain cross-entropy, values and gradients."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from tunesmith.models import head as head_module
from tunesmith.models.head import Head, token_logprob


@pytest.mark.parametrize("trains", [False, True])
@pytest.mark.parametrize("cap", [None, 3.0])
@pytest.mark.parametrize("bias", [False, True])
def test_logprob_and_gradients_equal_cross_entropy(
    trains: bool, cap: float | None, bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(head_module, "_CHUNK_LOGITS", 5 * 53)  # several chunks of five positions
    generator = torch.Generator().manual_seed(0)
    hidden_SH = torch.randn(23, 16, generator=generator, dtype=torch.float32, requires_grad=True)
    weight_VH = torch.randn(53, 16, generator=generator).requires_grad_(trains)
    bias_V = torch.randn(53, generator=generator).requires_grad_(trains) if bias else None
    targets_S = torch.randint(0, 53, (23,), generator=generator)
    weights_S = torch.rand(23, generator=generator)
    scale = 0.7

    logprob_S = token_logprob(hidden_SH, Head(weight_VH, bias_V, scale, cap), targets_S).logprob_S
    (-(logprob_S * weights_S).sum()).backward()
    inputs = [hidden_SH, *([weight_VH] if trains else []), *([bias_V] if trains and bias_V is not None else [])]
    ours = [item.grad.clone() for item in inputs if item.grad is not None]
    for item in inputs:
        item.grad = None

    logits_SV = F.linear(hidden_SH, weight_VH, bias_V) * scale
    if cap is not None:
        logits_SV = cap * torch.tanh(logits_SV / cap)
    loss_S = F.cross_entropy(logits_SV, targets_S, reduction="none")
    (loss_S * weights_S).sum().backward()
    torch.testing.assert_close(-logprob_S, loss_S, rtol=1e-6, atol=1e-6)
    assert len(ours) == len(inputs)
    for gradient, item in zip(ours, inputs, strict=True):
        assert item.grad is not None
        torch.testing.assert_close(gradient, item.grad, rtol=1e-5, atol=1e-6)


def test_entropy_and_correctness() -> None:
    generator = torch.Generator().manual_seed(1)
    hidden_SH = torch.randn(9, 8, generator=generator)
    weight_VH = torch.randn(31, 8, generator=generator)
    targets_S = (hidden_SH @ weight_VH.T).argmax(-1)
    targets_S[0] = (targets_S[0] + 1) % 31
    _, entropy_S, correct_S, _ = token_logprob(hidden_SH, Head(weight_VH), targets_S, want_more=True)
    expected = torch.distributions.Categorical(logits=hidden_SH @ weight_VH.T).entropy()
    torch.testing.assert_close(entropy_S, expected, rtol=1e-5, atol=1e-5)
    assert correct_S.tolist() == [False] + [True] * 8


def test_a_frozen_head_gets_no_gradient_and_hidden_states_without_one_cost_nothing() -> None:
    hidden_SH = torch.randn(4, 8)
    weight_VH = torch.randn(10, 8)
    logprob_S = token_logprob(hidden_SH, Head(weight_VH), torch.zeros(4, dtype=torch.long)).logprob_S
    assert not logprob_S.requires_grad


@pytest.mark.parametrize("trains", [False, True])
@pytest.mark.parametrize("cap", [None, 3.0])
@pytest.mark.parametrize("bias", [False, True])
def test_the_mean_over_the_vocabulary_and_its_gradients_are_the_dense_ones(
    trains: bool, cap: float | None, bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any mix of both outputs, weighted by position, against log-softmax of all logits."""
    monkeypatch.setattr(head_module, "_CHUNK_LOGITS", 5 * 53)
    generator = torch.Generator().manual_seed(0)
    hidden_SH = torch.randn(23, 16, generator=generator).requires_grad_()
    weight_VH = torch.randn(53, 16, generator=generator).requires_grad_(trains)
    bias_V = torch.randn(53, generator=generator).requires_grad_(trains) if bias else None
    targets_S = torch.randint(0, 53, (23,), generator=generator)
    first_S, second_S = torch.randn(2, 23, generator=generator)
    inputs = [item for item in (hidden_SH, weight_VH, bias_V) if item is not None and item.requires_grad]

    scored = token_logprob(hidden_SH, Head(weight_VH, bias_V, 0.7, cap), targets_S, want_mean=True)
    ours = torch.autograd.grad((scored.logprob_S * first_S + scored.mean_S * second_S).sum(), inputs)
    logits_SV = F.linear(hidden_SH, weight_VH, bias_V) * 0.7
    if cap is not None:
        logits_SV = cap * torch.tanh(logits_SV / cap)
    log_SV = logits_SV.log_softmax(-1)
    torch.testing.assert_close(scored.mean_S, log_SV.mean(-1), rtol=1e-6, atol=1e-6)
    dense_S = log_SV.gather(1, targets_S[:, None])[:, 0] * first_S + log_SV.mean(-1) * second_S
    theirs = torch.autograd.grad(dense_S.sum(), inputs)
    for gradient, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-5)


def test_what_is_not_wanted_changes_no_bit() -> None:
    """The plain loss has the same bits whether or not the mean is computed beside it."""
    generator = torch.Generator().manual_seed(3)
    hidden_SH = torch.randn(9, 8, generator=generator).requires_grad_()
    head, targets_S = Head(torch.randn(31, 8, generator=generator)), torch.arange(9)
    plain, beside = (token_logprob(hidden_SH, head, targets_S, want_mean=want) for want in (False, True))
    assert torch.equal(plain.logprob_S, beside.logprob_S)
    assert not plain.mean_S.requires_grad
    gradients = [torch.autograd.grad(scored.logprob_S.sum(), hidden_SH)[0] for scored in (plain, beside)]
    assert torch.equal(*gradients)
