"""What trains, counted from shapes: known numbers, PEFT as oracle, and errors that list what there is."""

from __future__ import annotations

import copy
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith import embedded
from tunesmith.adapters import build
from tunesmith.errors import RecipeError
from tunesmith.models.facts import read_facts
from tunesmith.planning.bottleneck import bottleneck_values
from tunesmith.planning.low_rank import wide_rank_notes
from tunesmith.planning.scope import scope_of, trainable_parameters
from tunesmith.recipe.adapters import FullSection, LoraSection, PartialSection
from tunesmith.recipe.bottleneck import BottleneckSection
from tunesmith.recipe.low_rank import AfloraSection
from tunesmith.recipe.prompts import PrefixSection, PromptSection, PTuningSection
from tunesmith.recipe.root import Recipe


def one_layer(make_facts, rows: int, columns: int):
    return make_facts({"model.layers.0.self_attn.q_proj.weight": (rows, columns)}, columns, 1, 1, 1, 1, 1)


def test_ten_by_ten_at_rank_three_has_60_beside_100(make_facts) -> None:
    count = trainable_parameters(one_layer(make_facts, 10, 10), LoraSection(rank=3))
    assert (count.total, count.trainable, count.share) == (100, 60, 0.6)


@given(st.integers(64, 512), st.integers(64, 512), st.integers(1, 64))
def test_lora_has_rank_times_both_widths(make_facts, rows: int, columns: int, rank: int) -> None:
    assert trainable_parameters(one_layer(make_facts, rows, columns), LoraSection(rank=rank)).trainable == rank * (
        rows + columns
    )


def test_seven_billion(facts_7b) -> None:
    # Llama 2: 2·32000·4096 + 32·(4·4096² + 3·4096·11008 + 2·4096) + 4096
    assert trainable_parameters(facts_7b, FullSection()).trainable == 6_738_415_616


def test_eight_billion_rank_16(facts_8b) -> None:
    # performance.md §3: LoRA r16 all-linear on Llama-3.1-8B has 41.9 M.
    assert trainable_parameters(facts_8b, LoraSection(rank=16)).trainable == 41_943_040


FAMILIES = {
    "llama": ("LlamaConfig", {"num_key_value_heads": 2, "intermediate_size": 40}),
    "qwen3": ("Qwen3Config", {"num_key_value_heads": 2, "intermediate_size": 40, "head_dim": 8}),
    "mistral": ("MistralConfig", {"num_key_value_heads": 2, "intermediate_size": 40}),
    "gemma": ("GemmaConfig", {"num_key_value_heads": 1, "intermediate_size": 40, "head_dim": 8}),
    "phi": ("PhiConfig", {"intermediate_size": 40}),
    "gpt2": ("GPT2Config", {}),
}


@pytest.fixture(scope="module")
def families(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """Tiny random models of every family, in memory and saved."""
    import transformers

    made = {}
    for name, (config, extra) in FAMILIES.items():
        settings = getattr(transformers, config)(
            vocab_size=48, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=64,
            bos_token_id=0, eos_token_id=0, pad_token_id=0, **extra,
        )  # fmt: skip
        model = transformers.AutoModelForCausalLM.from_config(settings)
        folder = tmp_path_factory.mktemp(name)
        model.save_pretrained(folder)
        made[name] = (model, folder)
    return made


@pytest.mark.parametrize("family", FAMILIES)
def test_full_agrees_with_the_module(families, family: str) -> None:
    model, folder = families[family]
    facts = read_facts(folder)
    assert facts.num_parameters == sum(part.numel() for part in model.parameters())
    assert set(facts.tensors) == {name for name, _ in model.named_parameters()}
    assert (facts.num_layers, facts.hidden_size, facts.context, facts.embedding_rows) == (2, 32, 64, 48)
    assert trainable_parameters(facts, FullSection()).share == 1.0


@pytest.mark.parametrize("family", FAMILIES)
def test_all_linear_agrees_with_peft(families, family: str) -> None:
    from peft import LoraConfig, get_peft_model

    model, folder = families[family]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tuned = get_peft_model(model, LoraConfig(r=3, target_modules="all-linear", fan_in_fan_out=family == "gpt2"))
    theirs = sum(part.numel() for part in tuned.parameters() if part.requires_grad)
    tuned.unload()
    for part in model.parameters():
        part.requires_grad_(True)
    assert trainable_parameters(read_facts(folder), LoraSection(rank=3)).trainable == theirs


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "section",
    [
        PartialSection(last_layers=1),
        PartialSection(first_layers=1),
        PartialSection(every_nth=2),
        PartialSection(every_nth=1, head=True),
        PartialSection(every_nth=3),
        PartialSection(norms=True),
        PartialSection(embeddings=True),
        PartialSection(head=True),
        PartialSection(patterns=["*.0.*"]),
        LoraSection(targets=["attention"]),
        LoraSection(targets=["feed-forward"]),
        LoraSection(also_train=["*norm*"]),
        LoraSection(also_train=["lm_head.weight"]),
        LoraSection(train_tokens=[3, 7, 3]),
        LoraSection(train_tokens=[3], also_train=["lm_head.weight"]),
        AfloraSection(),
        AfloraSection(train_projections="all", rank=3, also_train=["*norm*"]),
        AfloraSection(train_projections="none", targets=["attention"], train_tokens=[3]),
        BottleneckSection(),
        BottleneckSection(preset="houlsby", layer_norm="before"),
        BottleneckSection(placement="hybrid", layer_norm="after", reduction=5.5, train_tokens=[3]),
        BottleneckSection(preset="pfeiffer", also_train=["lm_head.weight"]),
        BottleneckSection(reduction=33),
        PromptSection(num_tokens=5),
        PromptSection(num_tokens=5, train_tokens=[3, 7], also_train=["*norm*"]),
        PTuningSection(num_tokens=5),
        PTuningSection(num_tokens=5, encoder_width=24),
        PTuningSection(num_tokens=5, encoder="lstm", encoder_width=12, encoder_layers=3),
        PrefixSection(num_tokens=5, train_tokens=[3]),
        PrefixSection(num_tokens=5, projection=True, projection_width=24),
    ],
    ids=str,
)
def test_plan_counts_what_the_adapter_trains(families, family: str, section) -> None:
    """The planner reads names, the adapters walk modules; both must choose the same parameters."""
    model, folder = families[family]
    facts = read_facts(folder)
    module = copy.deepcopy(model)
    adapter = build(section, 0)
    try:
        adapter.attach(module)
    except RecipeError:
        with pytest.raises(RecipeError):
            trainable_parameters(facts, section)
        return
    theirs = sum(part.numel() for group in adapter.groups() for _, part in group.parameters)
    assert trainable_parameters(facts, section).trainable == theirs


def test_bottlenecks_by_hand(facts_7b) -> None:
    """2 d r + r + d each: Houlsby's at d = 4096, r = 256 twice a layer; parallel at r = 2048 once."""
    count = lambda **choices: trainable_parameters(facts_7b, BottleneckSection(**choices)).trainable  # noqa: E731
    houlsby = 32 * 2 * (2 * 4096 * 256 + 256 + 4096)
    assert count(preset="houlsby") == houlsby
    assert count(preset="houlsby", layer_norm="before") == houlsby + 32 * 2 * 2 * 4096
    assert count(preset="pfeiffer") == houlsby // 2
    assert count() == count(preset="parallel") == count(placement="parallel") == 32 * (2 * 4096 * 2048 + 2048 + 4096)
    assert count(placement="hybrid") == houlsby // 2 + count()


def test_the_plan_says_what_a_bottleneck_comes_to(facts_7b) -> None:
    said = lambda facts, **choices: {  # noqa: E731
        key: (item.value, item.reason)
        for key, item in bottleneck_values(
            Recipe(name="a", model="m", data={"train": "a.csv"}, adapter=BottleneckSection(**choices)), facts
        ).items()
    }
    as_he = "what the recipe leaves out is as in He et al. 2022"
    assert said(facts_7b) == {"adapter.feed-forward": ("parallel, width 2,048, relu, scaling 4", as_he)}
    assert said(facts_7b, preset="houlsby", scaling=0.5)["adapter.attention"] == (
        "sequential, width 256, silu, scaling 0.5", "what the recipe leaves out is as in Houlsby et al. 2019",
    )  # fmt: skip
    mixed = {name: shape for name, shape in facts_7b.tensors.items() if ".mlp." not in name or ".layers.3." not in name}
    (only,) = said(replace(facts_7b, tensors=mixed)).values()
    assert only[1].endswith("in 31 of 32 layers, the others have no feed-forward by the names of their parameters")


def test_a_bottleneck_trains_no_lower_than_its_layers(facts_7b) -> None:
    scope = scope_of(facts_7b, BottleneckSection())
    assert (scope.kind, scope.first_layer, scope.dropout) == ("bottleneck", 0, 0.0)
    assert wide_rank_notes(facts_7b, BottleneckSection()) == []
    assert set(scope.adapted) == {f"model.layers.{layer}.mlp" for layer in range(32)}


def test_choices_of_partial_add_up(tiny) -> None:
    layer = 2 * 32 * 32 + 2 * 16 * 32 + 3 * 32 * 48 + 2 * 32
    count = lambda **choices: trainable_parameters(tiny, PartialSection(**choices)).trainable  # noqa: E731
    assert count(last_layers=1) == layer
    assert count(last_layers=2, norms=True) == 2 * layer + 2 * 32 + 32
    assert count(first_layers=1) == count(every_nth=2) == count(every_nth=3) == layer
    assert count(first_layers=1, last_layers=1) == 2 * layer
    assert count(first_layers=2, last_layers=2) == count(every_nth=1) == 3 * layer
    assert count(embeddings=True) == count(head=True) == 96 * 32
    assert count(patterns=["*.mlp.up_proj.weight"]) == 3 * 48 * 32


@pytest.mark.parametrize(
    ("section", "first"),
    [
        (FullSection(), 0),
        (PartialSection(last_layers=1), 2),
        (PartialSection(first_layers=1), 0),
        (PartialSection(every_nth=2), 1),
        (PartialSection(last_layers=1, head=True), 0),
        (PartialSection(patterns=["model.norm.weight"]), 3),
        (LoraSection(targets=["model.layers.1.*"]), 1),
        (LoraSection(targets=["model.layers.1.*"], train_tokens=[3]), 0),
    ],
    ids=str,
)
def test_lowest_layer_of_the_gradient(tiny, section, first: int) -> None:
    """The head of the tiny model is tied, so training it trains the embedding at the bottom."""
    assert scope_of(tiny, section).first_layer == first


@pytest.mark.parametrize(
    ("section", "words", "listed"),
    [
        (LoraSection(targets=["q_prj"]), "`q_prj` matches no linear layer", "model.layers.*.self_attn.q_proj"),
        (LoraSection(also_train=["*wte*"]), r"`\*wte\*` matches no parameter", "model.embed_tokens.weight"),
        (PartialSection(patterns=["*.attn.*"]), "matches no parameter", "model.layers.*.mlp.up_proj.weight"),
        (PartialSection(biases=True), "`biases: true`, but the model has none", "model.norm.weight"),
        (PartialSection(last_layers=4), "the model has 3 layers", "at most 3"),
        (PartialSection(first_layers=4), "`first_layers` is 4, the model has 3 layers", "at most 3"),
        (PartialSection(every_nth=4), "`every_nth` is 4, the model has 3 layers", "at most 3"),
        (PartialSection(), "nothing would train", "`last_layers`, `first_layers`, `every_nth`"),
    ],
    ids=str,
)
def test_what_matches_nothing_lists_what_there_is(tiny, section, words: str, listed: str) -> None:
    with pytest.raises(RecipeError, match=words) as caught:
        trainable_parameters(tiny, section)
    assert listed in caught.value.hint
    assert caught.value.where.startswith("adapter")


def test_embedded_model_rank_16() -> None:
    facts = read_facts(Path(embedded.model_folder(embedded.DEFAULT_MODEL)))
    # 8 layers · 16 · (q 512 + k 384 + v 384 + o 512 + gate, up, down 960 each)
    assert trainable_parameters(facts, LoraSection()).trainable == 8 * 16 * (2 * 512 + 2 * 384 + 3 * 960)
