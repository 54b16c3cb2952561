"""Models whose documents cannot lie in one row, and those that must not be taken for ones that can."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.breadth.tiny_folder import tiny_model, write_rows, write_tiny
from tests.tiny import batch, documents, family
from tunesmith.data.loader import make_batch
from tunesmith.errors import ModelError, RecipeError
from tunesmith.models import config_file, names
from tunesmith.models.causal_lm import CausalLM
from tunesmith.models.families import UNPACKED, Unpacked
from tunesmith.models.generation import Generator
from tunesmith.models.loading import load_model
from tunesmith.planning.plan import make_plan
from tunesmith.recipe.codec import parse
from tunesmith.types import Sampling

LENGTHS = (7, 40, 4, 19, 40)
PADDED, EVEN = Unpacked("is asked to by a test"), Unpacked("is asked to by a test", even=True)


@pytest.mark.parametrize("unpacked", [PADDED, EVEN])
def test_rectangles_give_what_one_row_gives(unpacked: Unpacked) -> None:
    ours, packed, pack = CausalLM(family("llama"), unpacked), CausalLM(family("llama")), batch(LENGTHS)
    logprobs = [model(pack).logprob_S for model in (ours, packed)]
    torch.testing.assert_close(*logprobs, rtol=1e-5, atol=1e-5)
    for logprob_S in logprobs:
        logprob_S.sum().backward()
    gradients = [model.hf.model.layers[0].self_attn.q_proj.weight.grad for model in (ours, packed)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4)


def test_only_even_documents_share_a_rectangle_where_padding_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    model = CausalLM(family("llama"), EVEN)
    seen: list[tuple[int, ...]] = []
    forward = model.hf.model.forward

    def noted(**given: Any) -> Any:
        assert "attention_mask" not in given
        seen.append(tuple(given["input_ids"].shape))
        return forward(**given)

    monkeypatch.setattr(model.hf.model, "forward", noted)
    with torch.no_grad():
        model.hidden(batch(LENGTHS))
    assert sorted(seen) == [(1, 4), (1, 7), (1, 19), (2, 40)]


def test_a_state_that_runs_on_is_refused_in_a_pack_and_runs_by_name() -> None:
    hf = tiny_model("causal", "qwen3_next")
    with pytest.raises(ModelError, match="does not keep the documents of a pack apart") as caught:
        CausalLM(hf).check_facade("here")
    assert caught.value.where == "here"
    assert "models.md" in caught.value.hint
    model = CausalLM(hf, UNPACKED["qwen3_next"])
    model.check_facade()
    with torch.no_grad():
        together = model.logits(batch((9, 5)))
        alone = [model.logits(make_batch([document], [0])) for document in documents((9, 5))]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-4, atol=1e-4)


def test_a_model_that_sees_what_it_shall_predict_is_refused() -> None:
    blind = tiny_model("causal", "bert")
    CausalLM(blind).check_facade()
    for layer in blind.bert.encoder.layer:
        layer.attention.self.is_causal = layer.attention.self.is_decoder = False
    blind.config.is_decoder = False
    with pytest.raises(ModelError, match="sees the tokens behind each place") as caught:
        CausalLM(blind).check_facade()
    assert "is_decoder" in caught.value.hint


@pytest.mark.parametrize("name", ["gpt_oss", "deepseek_v3", "gemma2"])
def test_sinks_narrow_values_and_capped_scores_pack(name: str) -> None:
    """gpt-oss has sinks, DeepSeek's values are narrower than its keys, Gemma 2 has no fused attention in transformers."""
    model = CausalLM(tiny_model("causal", name))
    model.check_facade()
    assert model.packing == "documents in one row"


def test_a_sink_changes_what_a_layer_gives() -> None:
    hf = tiny_model("causal", "gpt_oss")
    model = CausalLM(hf)
    with torch.no_grad():
        before = model.logits(batch((9, 5)))
        for layer in hf.model.layers:
            layer.self_attn.sinks += 2.0
        assert not torch.allclose(model.logits(batch((9, 5))), before, atol=1e-2)
    model.check_facade()


def test_answers_without_a_cache_are_those_with_one() -> None:
    prompts, how = [[5, 6, 7], [9, 8, 7, 6, 5], [3, 4, 5]], Sampling(max_new_tokens=6)
    answers = [
        Generator(CausalLM(family("llama"), unpacked), stop_ids=frozenset({2}), pad_id=0, decode=str).sample(
            prompts, how
        )
        for unpacked in (None, PADDED)
    ]
    assert [answer.ids for answer in answers[0]] == [answer.ids for answer in answers[1]]


def test_a_head_with_layers_of_its_own_is_read_through_the_model(tmp_path: Path) -> None:
    write_tiny(tmp_path, "encoder", "electra")
    model = load_model(tmp_path)
    assert model.catches_head_inputs
    pack = batch((9, 5))
    with torch.no_grad():
        logprob_S = model(pack).logprob_S
        assert logprob_S is not None
        logits = [model.plainly(part) for part in pack.input_ids_T.split([9, 5])]
        expected = torch.cat(logits).log_softmax(-1)[pack.scored_S].gather(1, pack.targets_S[:, None])[:, 0]
    torch.testing.assert_close(logprob_S, expected, rtol=1e-4, atol=1e-4)


def test_the_plan_says_that_documents_do_not_share_a_row_and_refuses_what_needs_it(tmp_path: Path) -> None:
    write_tiny(tmp_path / "base", "causal", "mamba")
    write_rows(tmp_path / "rows.jsonl", "causal")
    values: dict[str, Any] = {
        "name": "x",
        "model": "base",
        "data": {"train": "rows.jsonl"},
        "machine": {"device": "cpu"},
    }
    plan = make_plan(parse(values).placed(tmp_path))
    assert any("`mamba` keeps a state" in note and "cannot pack" in note for note in plan.notes)
    with pytest.raises(RecipeError, match="do not share a row") as caught:
        make_plan(parse({**values, "adapter": {"type": "prefix"}}).placed(tmp_path))
    assert "type: prompt" in caught.value.hint
    with pytest.raises(RecipeError, match="noise by document"):
        make_plan(parse({**values, "training": {"neftune_alpha": 5}}).placed(tmp_path))


def test_infinities_of_a_config_are_kept_and_read() -> None:
    values = {"limit": [0.0, {"__float__": "Infinity"}], "evil": {"__class__": "x", "a": 1}}
    obeyed = config_file.obeyed(values)
    assert obeyed == {"limit": [0.0, {"__float__": "Infinity"}], "evil": {"a": 1}}
    assert config_file.with_numbers(obeyed)["limit"] == [0.0, float("inf")]
    assert config_file.dropped(values) == ("evil.__class__",)


@pytest.mark.parametrize(
    ("parameter", "takes"),
    [
        ("model.layers.0.mlp.gate.weight", False), ("model.layers.0.mlp.gate_proj.weight", True),
        ("model.layers.0.feed_forward.router.weight", False), ("lm_head.weight", False), ("lm_head.dense.weight", True),
        ("lm_head.decoder.weight", False), ("backbone.embeddings.weight", False), ("transformer.w.weight", False),
        ("bert.embeddings.word_embeddings.weight", False), ("electra.embeddings_project.weight", True),
        ("encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight", False),
        ("cls.predictions.transform.dense.weight", True), ("cls.predictions.decoder.weight", False),
    ],
)  # fmt: skip
def test_what_takes_an_adapter_by_its_name(parameter: str, takes: bool) -> None:
    assert names.is_linear(parameter, (8, 8)) == takes
