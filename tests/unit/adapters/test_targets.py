from __future__ import annotations

import pytest
import torch
import transformers
from torch import nn

from tunesmith.adapters.targets import in_attention, in_feed_forward, resolve
from tunesmith.errors import RecipeError

LLAMA_ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj"}
LLAMA_FEED_FORWARD = {"gate_proj", "up_proj", "down_proj"}


def last(names):
    return {name.rpartition(".")[2] for name in names}


def test_all_linear_is_every_linear_but_the_head(make):
    assert last(resolve(make("llama"), ["all-linear"])) == LLAMA_ATTENTION | LLAMA_FEED_FORWARD
    assert len(resolve(make("llama"), ["all-linear"])) == 2 * 7
    assert len(resolve(make("llama-tied"), ["all-linear"])) == 2 * 7


def test_transposed_layers_of_gpt2_count_as_linear(make):
    assert resolve(make("gpt2"), ["all-linear"]) == [
        f"transformer.h.{i}.{n}" for i in (0, 1) for n in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    ]


def test_keywords_split_layers_of_one_name_by_their_parent(make):
    model = make("gpt2")
    assert resolve(model, ["attention"]) == [
        f"transformer.h.{i}.attn.{n}" for i in (0, 1) for n in ("c_attn", "c_proj")
    ]
    assert resolve(model, ["feed-forward"]) == [
        f"transformer.h.{i}.mlp.{n}" for i in (0, 1) for n in ("c_fc", "c_proj")
    ]


FAMILIES = {
    "LlamaConfig": (LLAMA_ATTENTION, LLAMA_FEED_FORWARD),
    "Gemma3TextConfig": (LLAMA_ATTENTION, LLAMA_FEED_FORWARD),
    "MistralConfig": (LLAMA_ATTENTION, LLAMA_FEED_FORWARD),
    "Qwen3Config": (LLAMA_ATTENTION, LLAMA_FEED_FORWARD),
    "PhiConfig": ({"q_proj", "k_proj", "v_proj", "dense"}, {"fc1", "fc2"}),
    "Phi3Config": ({"qkv_proj", "o_proj"}, {"gate_up_proj", "down_proj"}),
    "GPTNeoXConfig": ({"query_key_value", "dense"}, {"dense_h_to_4h", "dense_4h_to_h"}),
    "FalconConfig": ({"query_key_value", "dense"}, {"dense_h_to_4h", "dense_4h_to_h"}),
    "BloomConfig": ({"query_key_value", "dense"}, {"dense_h_to_4h", "dense_4h_to_h"}),
    "OPTConfig": ({"q_proj", "k_proj", "v_proj", "out_proj"}, {"fc1", "fc2"}),
    "GPTJConfig": ({"q_proj", "k_proj", "v_proj", "out_proj"}, {"fc_in", "fc_out"}),
    "MptConfig": ({"Wqkv", "out_proj"}, {"up_proj", "down_proj"}),
    "Starcoder2Config": (LLAMA_ATTENTION, {"c_fc", "c_proj"}),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_families_have_their_attention_and_feed_forward(family):
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(getattr(transformers, family)())
    attention, feed_forward = FAMILIES[family]
    assert last(resolve(model, ["attention"])) == attention
    assert last(resolve(model, ["feed-forward"])) == feed_forward
    both = resolve(model, ["attention", "feed-forward"])
    assert both == resolve(model, ["all-linear"])
    assert len(both) == len(set(both))


def test_routers_of_experts_are_not_feed_forward():
    assert not in_feed_forward("model.layers.0.mlp.gate")
    assert in_feed_forward("model.layers.0.mlp.experts.3.w1")
    assert not in_attention("model.layers.0.mlp.experts.3.w1")


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("q_proj", {"model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj"}),
        ("*.1.*.q_proj", {"model.layers.1.self_attn.q_proj"}),
        ("[qk]_proj", {f"model.layers.{i}.self_attn.{n}_proj" for i in (0, 1) for n in "qk"}),
        ("mlp.up*", {"model.layers.0.mlp.up_proj", "model.layers.1.mlp.up_proj"}),
        ("s*", set()),
    ],
)
def test_globs_fit_the_full_name_or_its_last_components(make, pattern, expected):
    if not expected:
        with pytest.raises(RecipeError):
            resolve(make("llama"), [pattern])
    else:
        assert set(resolve(make("llama"), [pattern])) == expected


def test_targets_add_up_in_module_order_whatever_their_order(make):
    model = make("llama")
    assert resolve(model, ["v_proj", "q_proj"]) == resolve(model, ["q_proj", "v_proj", "*q_proj"])


def test_a_pattern_that_fits_nothing_lists_what_exists(make):
    with pytest.raises(RecipeError) as error:
        resolve(make("llama"), ["q_proj", "q_porj"])
    assert "q_porj" in error.value.what
    assert error.value.where == "adapter.targets"
    assert "did you mean `q_proj`?" in error.value.hint
    assert "k_proj (2 of 32→16)" in error.value.hint
    assert "lm_head" not in error.value.hint


def test_layers_of_one_name_and_two_shapes_are_listed_apart(make):
    with pytest.raises(RecipeError) as error:
        resolve(make("gpt2"), ["nothing"])
    assert "c_proj (2 of 32→32, 2 of 128→32)" in error.value.hint


def test_a_keyword_misspelt_is_suggested(make):
    with pytest.raises(RecipeError, match="did you mean `all-linear`"):
        resolve(make("llama"), ["all_linear"])


@pytest.mark.parametrize("pattern", ["lm_head", "embed_tokens", "*norm"])
def test_what_cannot_carry_an_adapter_points_to_also_train(make, pattern):
    with pytest.raises(RecipeError, match="also_train"):
        resolve(make("llama"), [pattern])


def test_a_linear_tied_to_an_embedding_is_no_target_even_in_a_model_that_names_no_head():
    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(5, 4)
            self.inner = nn.Linear(4, 4)
            self.top = nn.Linear(4, 5, bias=False)
            self.top.weight = self.embed.weight

    assert resolve(Plain(), ["all-linear"]) == ["inner"]
