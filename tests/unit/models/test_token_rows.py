"""Single rows of an embedding or a head train: values are the matrix's, gradients those that the whole matrix would get."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.tiny import FAMILIES, batch, family
from tunesmith.errors import ModelError
from tunesmith.models.causal_lm import CausalLM
from tunesmith.models.token_rows import TokenRows, active_rows, add_rows, remove_rows, require_known, set_active

BATCH = batch([9, 14, 6], seed=3)
READ = [int(token) for token in BATCH.input_ids_T[[0, 4, 11]]]
IDS = [*READ, 0]
"""Three tokens that the rows hold, and the padding token, which none of them holds."""


def matrices(hf: Any) -> list[nn.Module]:
    return [hf.get_input_embeddings(), hf.get_output_embeddings()]


def with_rows(hf: Any, ids: list[int] = IDS) -> list[TokenRows]:
    """Freeze the model and let rows of both matrices train; one set where they are tied."""
    hf.requires_grad_(False)
    embedding, head = matrices(hf)
    parts = [TokenRows(embedding.weight, ids)]
    if head.weight is not embedding.weight:
        parts.append(TokenRows(head.weight, ids))
    for layer, part in ((embedding, parts[0]), (head, parts[-1])):
        add_rows(layer, "default", part)
        set_active(layer, ("default",))
    return parts


def whole(hf: Any) -> list[nn.Parameter]:
    """Freeze the model but for both matrices."""
    hf.requires_grad_(False)
    found = list({id(layer.weight): layer.weight for layer in matrices(hf)}.values())
    for weight in found:
        weight.requires_grad_(True)
    return found


def loss_of(model: CausalLM, through: str) -> Tensor:
    if through == "facade":
        outputs = model(BATCH)
        assert outputs.logprob_S is not None
        return -outputs.logprob_S.mean()
    ids = BATCH.input_ids_T[None, : BATCH.lengths[0]]
    with model.plain_attention() as hf:
        logits_TV = hf(input_ids=ids).logits[0, :-1].float()
    return nn.functional.cross_entropy(logits_TV, ids[0, 1:])


@pytest.mark.parametrize("through", ["facade", "transformers"])
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("name", FAMILIES)
def test_rows_get_the_gradient_that_the_whole_matrix_has_there(name: str, tied: bool, through: str) -> None:
    """Oracle: autograd through the whole embedding and head. Gemma's embedding is scaled, Phi's head has a bias."""
    ours, theirs = (CausalLM(family(name, tie_word_embeddings=tied)) for _ in range(2))
    parts, weights = with_rows(ours.hf), whole(theirs.hf)
    assert len(parts) == len(weights) == (1 if tied else 2)
    found, expected = loss_of(ours, through), loss_of(theirs, through)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
    found.backward()
    expected.backward()
    for part, weight in zip(parts, weights, strict=True):
        assert part.rows.grad is not None
        assert weight.grad is not None
        reached = weight.grad[IDS]
        assert bool(reached.any())
        # nn.Embedding leaves out the gradient of its padding token; a row that is named trains.
        places = (
            slice(0, len(READ)) if getattr(ours.hf.get_input_embeddings(), "padding_idx", None) == 0 else slice(None)
        )
        torch.testing.assert_close(part.rows.grad[places], reached[places], rtol=1e-4, atol=1e-7)
    for parameter in ours.hf.parameters():
        assert parameter.grad is None or any(parameter is part.rows for part in parts)


def test_the_mean_over_the_vocabulary_gives_rows_their_part_of_its_gradient() -> None:
    ours, theirs = (CausalLM(family("llama")) for _ in range(2))
    part, weight = with_rows(ours.hf)[1], whole(theirs.hf)[1]
    for model in (ours, theirs):
        model(BATCH, want=("mean_logprob",)).mean_logprob_S.sum().backward()
    torch.testing.assert_close(part.rows.grad, weight.grad[IDS], rtol=1e-4, atol=1e-5)  # type: ignore[index]


def test_a_named_padding_token_trains_where_it_is_read() -> None:
    model = CausalLM(family("llama", pad_token_id=READ[0]))
    part = with_rows(model.hf)[0]
    loss_of(model, "facade").backward()
    assert bool(part.rows.grad[0].any())  # type: ignore[index]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_start_is_the_base_bit_for_bit_and_so_is_the_matrix_after_removal(dtype: torch.dtype) -> None:
    model = CausalLM(family("llama", tie_word_embeddings=True).to(dtype))
    before = {name: value.clone() for name, value in model.hf.state_dict().items()}
    types = [type(layer) for layer in matrices(model.hf)]
    expected = loss_of(model, "transformers")
    (part,) = with_rows(model.hf)
    assert torch.equal(loss_of(model, "transformers"), expected)
    with torch.no_grad():
        part.rows.add_(0.1)
    assert not torch.equal(loss_of(model, "transformers"), expected)
    embedding = model.hf.get_input_embeddings()
    changed = (embedding.weight != before["model.embed_tokens.weight"]).any(-1).nonzero()[:, 0].tolist()
    assert changed == sorted(IDS)
    assert torch.equal(embedding.weight[IDS], part.rows.to(dtype))
    part.restore(embedding.weight)
    for layer in matrices(model.hf):
        remove_rows(layer, "default")
        assert active_rows(layer) == []
    after = model.hf.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert [type(layer) for layer in matrices(model.hf)] == types


def test_the_fused_head_sees_rows_that_the_optimiser_moved_without_a_forward_of_the_embedding() -> None:
    model = CausalLM(family("llama"))
    parts = with_rows(model.hf)
    with torch.no_grad():
        parts[1].rows.add_(1.0)
    assert torch.equal(model.head().weight_VH[IDS], parts[1].rows)


def test_a_head_whose_bias_trains_beside_gives_the_same_gradients() -> None:
    """The head then computes its softmax again in the backward pass."""
    ours, theirs = (CausalLM(family("phi")) for _ in range(2))
    part = with_rows(ours.hf)[1]
    weight = whole(theirs.hf)[1]
    biases = [model.hf.lm_head.bias.requires_grad_(True) for model in (ours, theirs)]
    for model in (ours, theirs):
        loss_of(model, "facade").backward()
    torch.testing.assert_close(part.rows.grad, weight.grad[IDS], rtol=1e-4, atol=1e-7)  # type: ignore[index]
    torch.testing.assert_close(biases[0].grad, biases[1].grad)


def test_gradients_in_bf16_are_fp32_and_near_those_of_fp32() -> None:
    """Autocast over fp32 weights, and a frozen base in bf16; the rows stay fp32 in both."""
    exact = CausalLM(family("llama", tie_word_embeddings=True))
    (expected,) = with_rows(exact.hf)
    loss_of(exact, "facade").backward()
    for dtype in (torch.float32, torch.bfloat16):
        model = CausalLM(family("llama", tie_word_embeddings=True).to(dtype))
        (part,) = with_rows(model.hf)
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of(model, "facade")
        loss.backward()
        grad = part.rows.grad
        assert grad is not None
        assert grad.dtype == torch.float32
        cosine = nn.functional.cosine_similarity(grad.flatten(), expected.rows.grad.flatten(), dim=0)  # type: ignore[union-attr]
        assert cosine > 0.99


def test_recomputing_activations_changes_nothing() -> None:
    grads = []
    for again in (False, True):
        model = CausalLM(family("llama", tie_word_embeddings=True)).train()
        (part,) = with_rows(model.hf)
        if again:
            model.recompute_activations()
        loss_of(model, "facade").backward()
        grads.append(part.rows.grad)
    assert torch.equal(*grads)


def test_no_gradient_is_prepared_where_none_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    model = CausalLM(family("llama"))
    with_rows(model.hf)

    def fail(*_: object) -> Tensor:
        raise AssertionError("scoring must not compute the derivative of the logits")

    monkeypatch.setattr("tunesmith.models.head._logit_gradient", fail)
    with torch.inference_mode():
        loss_of(model, "facade")
    with pytest.raises(AssertionError, match="scoring must not"):
        loss_of(model, "facade")


def test_layers_of_unknown_arithmetic_are_refused() -> None:
    class Shifted(nn.Embedding):
        def forward(self, ids: Tensor) -> Tensor:
            return super().forward(ids) + 1.0

    require_known(nn.Embedding(5, 3), [1, 4])
    require_known(nn.Linear(3, 5), [1, 4])
    for layer in (Shifted(5, 3), nn.Conv1d(3, 5, 1)):
        with pytest.raises(ModelError, match=f"rows of a {type(layer).__name__}") as error:
            require_known(layer, [1, 4])
        assert "train_tokens: none" in error.value.hint
