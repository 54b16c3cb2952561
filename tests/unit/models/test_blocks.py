"""Where sub-layers end, found by names alone, and by running: the module's output is what goes into the stream."""

from __future__ import annotations

import pytest
import torch

from tests.tiny import FAMILIES, family
from tunesmith.errors import RecipeError
from tunesmith.models.blocks import Block, blocks, bottleneck_parts
from tunesmith.recipe.bottleneck import BottleneckSection

ATTENTION = {"gpt2": "transformer.h.{}.attn"}
FEED_FORWARD = {"gpt2": "transformer.h.{}.mlp"}


def names(model):
    return [name for name, _ in model.named_parameters()]


@pytest.mark.parametrize("kind", FAMILIES)
def test_the_sub_layers_of_every_family(kind):
    known = names(family(kind))
    attention = ATTENTION.get(kind, "model.layers.{}.self_attn")
    assert blocks(known, "attention") == [Block(attention.format(n), "attention", True) for n in (0, 1)]
    forward = FEED_FORWARD.get(kind, "model.layers.{}.mlp")
    assert blocks(known, "feed-forward") == [Block(forward.format(n), "feed-forward", True) for n in (0, 1)]


def configs():
    import transformers as t

    small = {"vocab_size": 48, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    narrow = {**small, "intermediate_size": 40}
    grouped = {**narrow, "num_key_value_heads": 2}
    return {
        "gemma2": (t.Gemma2Config(**grouped, head_dim=8), "self_attn", "mlp"),
        "gpt-neox": (t.GPTNeoXConfig(**narrow), "attention", "mlp"),
        "falcon": (t.FalconConfig(**small), "self_attention", "mlp"),
        "mixtral": (t.MixtralConfig(**grouped, num_local_experts=2), "self_attn", "mlp"),
        "qwen2-moe": (
            t.Qwen2MoeConfig(**grouped, num_experts=2, num_experts_per_tok=1, moe_intermediate_size=8, shared_expert_intermediate_size=8),
            "self_attn", "mlp",
        ),
        "olmo2": (t.Olmo2Config(**grouped), "self_attn", "mlp"),
        "cohere": (t.CohereConfig(**grouped), "self_attn", "mlp"),
        "gptj": (t.GPTJConfig(vocab_size=48, n_embd=32, n_layer=2, n_head=4, rotary_dim=4), "attn", "mlp"),
        "opt": (t.OPTConfig(**small, ffn_dim=40, word_embed_proj_dim=32), "self_attn", "fc2"),
        "bert": (t.BertConfig(**narrow, is_decoder=True), "attention.output.dense", "output.dense"),
        "modernbert": (t.ModernBertDecoderConfig(**narrow, pad_token_id=0), "attn", "mlp"),
    }  # fmt: skip


@pytest.mark.parametrize("kind", configs())
def test_what_a_sub_layer_gives_goes_into_the_stream(kind):
    """Zero in place of both outputs, and the layers are the identity, but for norms and the positions' embedding behind them.

    So what is added to such an output is added to the stream, and once: with experts, one module gives their sum.
    """
    from transformers import AutoModelForCausalLM

    config, attention, forward = configs()[kind]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    chosen = {name: [item.name for item in blocks(names(model), name)] for name in ("attention", "feed-forward")}
    for name, end in (("attention", attention), ("feed-forward", forward)):
        assert len(chosen[name]) == 2
        assert [f".{place}".endswith(f".{n}.{end}") for n, place in enumerate(chosen[name])] == [True, True]
    seen = []

    def zero(module, given, found):
        first = found[0] if isinstance(found, tuple) else found
        assert first.shape[-1] == 32
        return (torch.zeros_like(first), *found[1:]) if isinstance(found, tuple) else torch.zeros_like(first)

    for place in (*chosen["attention"], *chosen["feed-forward"]):
        model.get_submodule(place).register_forward_hook(zero)
    layers = [model.get_submodule(place.split(attention)[0].rstrip(".")) for place in chosen["attention"]]
    for layer in layers:
        layer.register_forward_hook(
            lambda module, given, kwargs, found: seen.append(
                (given[0] if given else kwargs["hidden_states"], found[0] if isinstance(found, tuple) else found)
            ),
            with_kwargs=True,
        )
    with torch.no_grad():
        model(torch.arange(5, 15)[None])
    assert len(seen) == 2
    for before, after in seen:
        flat = before.reshape(after.shape)
        if kind == "bert":  # normalises behind each sum
            flat = torch.nn.functional.layer_norm(flat, (32,), eps=config.layer_norm_eps)
            torch.testing.assert_close(after, flat, rtol=1e-3, atol=1e-5)
        else:
            assert torch.equal(after, flat)


def test_parts_follow_placement_and_kind():
    known = names(family("llama"))
    parts = bottleneck_parts(known, BottleneckSection(placement="hybrid"), 32)
    assert {(name.rpartition(".")[2], part.placement, part.width, part.scaling) for name, part in parts.items()} == {
        ("self_attn", "sequential", 2, 1.0), ("mlp", "parallel", 16, 4.0),
    }  # fmt: skip


def test_an_unknown_layout_names_what_there_is():
    known = ["model.layers.0.mixer.in_proj.weight", "model.layers.0.norm.weight", "model.embed_tokens.weight"]
    with pytest.raises(RecipeError, match="the feed-forward of this model's layers is not known") as caught:
        bottleneck_parts(known, BottleneckSection(), 32)
    assert caught.value.where == "adapter.targets"
    assert "mixer.in_proj, norm" in caught.value.hint


def test_nothing_runs_beside_a_sub_layer_without_a_module():
    known = ["model.decoder.layers.0.fc1.weight", "model.decoder.layers.0.fc2.weight"]
    with pytest.raises(RecipeError, match=r"ends with `model\.decoder\.layers\.0\.fc2`") as caught:
        bottleneck_parts(known, BottleneckSection(), 32)
    assert caught.value.where == "adapter.placement"
    assert list(bottleneck_parts(known, BottleneckSection(placement="sequential"), 32)) == [
        "model.decoder.layers.0.fc2"
    ]
