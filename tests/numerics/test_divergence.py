"""The divergence of two passes against dense distributions, and R-Drop against its formula on dense logits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.tiny import batch, family
from tunesmith.models import head as head_module
from tunesmith.models.causal_lm import CausalLM
from tunesmith.models.divergence import symmetric_divergence
from tunesmith.models.head import Head
from tunesmith.models.token_rows import TokenRows, add_rows, set_active
from tunesmith.objectives.next_token import NextToken


def dense(one_SV: Tensor, other_SV: Tensor) -> Tensor:
    """Both directions by torch's kl_div, which takes the log-probabilities of the second first."""
    p, q = one_SV.log_softmax(-1), other_SV.log_softmax(-1)
    return 0.5 * (
        F.kl_div(q, p, reduction="none", log_target=True) + F.kl_div(p, q, reduction="none", log_target=True)
    ).sum(-1)


def test_a_worked_number() -> None:
    """p = (3/4, 1/4), q = (1/2, 1/2): ½ · [(1/4) ln(3/2) + (−1/4) ln(1/2)] = (1/8) ln 3."""
    one, other = torch.tensor([[0.75, 0.25]]).log(), torch.tensor([[0.5, 0.5]]).log()
    found = symmetric_divergence(one, other, Head(torch.eye(2)))
    torch.testing.assert_close(found, torch.tensor([1.0986123 / 8]), rtol=1e-5, atol=1e-7)
    assert symmetric_divergence(one, one, Head(torch.eye(2))).item() == 0.0


@pytest.mark.parametrize("trains", [False, True])
@pytest.mark.parametrize("cap", [None, 3.0])
@pytest.mark.parametrize("bias", [False, True])
def test_values_and_gradients_are_the_dense_ones(
    trains: bool, cap: float | None, bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(head_module, "_CHUNK_LOGITS", 5 * 53)  # several chunks of five positions
    generator = torch.Generator().manual_seed(0)
    one_SH, other_SH = (torch.randn(23, 16, generator=generator).requires_grad_() for _ in range(2))
    weight_VH = torch.randn(53, 16, generator=generator).requires_grad_(trains)
    bias_V = torch.randn(53, generator=generator).requires_grad_(trains) if bias else None
    head, weights_S = Head(weight_VH, bias_V, 0.7, cap), torch.rand(23, generator=generator)
    inputs = [item for item in (one_SH, other_SH, weight_VH, bias_V) if item is not None and item.requires_grad]

    def logits(hidden_SH: Tensor) -> Tensor:
        logits_SV = F.linear(hidden_SH, weight_VH, bias_V) * 0.7
        return logits_SV if cap is None else cap * torch.tanh(logits_SV / cap)

    found_S, expected_S = symmetric_divergence(one_SH, other_SH, head), dense(logits(one_SH), logits(other_SH))
    torch.testing.assert_close(found_S, expected_S, rtol=1e-4, atol=1e-5)
    ours = torch.autograd.grad((found_S * weights_S).sum(), inputs)
    theirs = torch.autograd.grad((expected_S * weights_S).sum(), inputs)
    for gradient, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-4)


def test_rows_that_train_by_themselves_get_their_part() -> None:
    ours, theirs = (CausalLM(family("llama")) for _ in range(2))
    ids = [5, 40, 41]
    ours.hf.requires_grad_(False)
    part = TokenRows(ours.hf.lm_head.weight, ids)
    add_rows(ours.hf.lm_head, "default", part)
    set_active(ours.hf.lm_head, ("default",))
    generator = torch.Generator().manual_seed(1)
    one_SH, other_SH = (torch.randn(9, 32, generator=generator) for _ in range(2))
    symmetric_divergence(one_SH, other_SH, ours.head()).sum().backward()
    weight_VH = theirs.hf.lm_head.weight
    dense(one_SH @ weight_VH.T, other_SH @ weight_VH.T).sum().backward()
    torch.testing.assert_close(part.rows.grad, weight_VH.grad[ids], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_rdrop_is_its_formula_over_two_draws(smoothing: float) -> None:
    """The same two draws, seeded alike, through transformers' states and dense logits."""
    alpha, pack = 1.5, batch([9, 4, 13], trained_from=2)
    model = CausalLM(family("llama", attention_dropout=0.3)).train()
    torch.manual_seed(7)
    loss = NextToken(rdrop_alpha=alpha, label_smoothing=smoothing)(model, pack, {})
    loss.totals["loss"].backward()
    ours = {name: item.grad.clone() for name, item in model.hf.named_parameters() if item.grad is not None}
    model.zero_grad(set_to_none=True)
    torch.manual_seed(7)
    one_SV, other_SV = (model.hf.lm_head(model.hidden(pack)[pack.scored_S]) for _ in range(2))
    losses = [
        F.cross_entropy(item, pack.targets_S, label_smoothing=smoothing, reduction="sum") for item in (one_SV, other_SV)
    ]
    apart = dense(one_SV, other_SV).sum()
    expected = 0.5 * (losses[0] + losses[1]) + alpha * apart
    torch.testing.assert_close(loss.totals["loss"], expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(loss.metrics["divergence"].total, apart.detach(), rtol=1e-4, atol=1e-5)
    plain = sum(F.cross_entropy(item, pack.targets_S, reduction="sum") for item in (one_SV, other_SV)) / 2
    torch.testing.assert_close(loss.metrics["nll"].total, plain.detach(), rtol=1e-5, atol=1e-5)
    expected.backward()
    for name, item in model.hf.named_parameters():
        torch.testing.assert_close(ours[name], item.grad, rtol=1e-3, atol=1e-4, msg=name)


def test_without_dropout_both_passes_are_one_and_rdrop_is_the_plain_loss() -> None:
    model, pack = CausalLM(family("llama")).train(), batch([9, 4, 13])
    plain: Any = NextToken()(model, pack, {})
    doubled: Any = NextToken(rdrop_alpha=2.0)(model, pack, {})
    assert doubled.totals["loss"].item() == pytest.approx(plain.totals["loss"].item(), rel=1e-6)
    assert doubled.metrics["divergence"].total.item() == 0.0


def test_the_divergence_asks_for_the_other_pass() -> None:
    with pytest.raises(ValueError, match="of another pass"):
        CausalLM(family("llama"))(batch([5]), want=("divergence",))
