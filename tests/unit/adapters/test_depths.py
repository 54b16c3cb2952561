"""Groups by depth: where each parameter stands, in which order, at which rate."""

from __future__ import annotations

from typing import Any

import pytest
from tests.tiny import FAMILIES, family

from tunesmith.adapters import build
from tunesmith.adapters.depths import by_depth
from tunesmith.models import names
from tunesmith.recipe.adapters import FullSection, LoraSection, PartialSection
from tunesmith.recipe.layers import LayerRatesSection

SECTIONS = [
    FullSection(),
    PartialSection(last_layers=1, norms=True, head=True),
    LoraSection(rank=2),
    LoraSection(rank=2, train_tokens=[3], also_train=["NORMS"]),
]


def _groups(name: str, section: Any, **changes: Any) -> list[Any]:
    model = family(name, **changes)
    if getattr(section, "also_train", None):
        section = section.model_copy(update={"also_train": ["*ln_*" if name == "gpt2" else "*norm*"]})
    adapter = build(section, 0)
    adapter.attach(model)
    return list(adapter.groups())


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.type)
def test_every_parameter_stays_with_its_name_factor_and_decay(name: str, section: Any) -> None:
    before = _groups(name, section)
    after = by_depth(before, 2, LayerRatesSection(decay=0.5))

    def told(groups: list[Any]) -> dict[str, tuple[int, float, bool]]:
        return {
            key: (id(parameter), group.rate_factor, group.decay)
            for group in groups
            for key, parameter in group.parameters
        }

    assert told(after) == told(before)
    assert sum(len(group.parameters) for group in after) == len(told(before))
    assert len({group.name for group in after}) == len(after)


@pytest.mark.parametrize("name", FAMILIES)
def test_depth_of_every_parameter_of_a_model(name: str) -> None:
    """Embeddings 0, layers 1 and 2, final norm and head 3; a tied head is the embedding, under its first name."""
    model = family(name)
    assert names.num_layers(key for key, _ in model.named_parameters()) == 2
    for key, _ in model.named_parameters():
        expected = 3
        if ".layers." in key or ".h." in key:
            expected = int(key.split(".layers." if ".layers." in key else ".h.")[1][0]) + 1
        elif any(part in key for part in ("embed_tokens", "wte", "wpe")):
            expected = 0
        assert names.depth(key, 2) == expected, key


def test_bert_puts_all_its_embeddings_and_their_norm_below() -> None:
    for key in ("word_embeddings.weight", "token_type_embeddings.weight", "LayerNorm.bias"):
        assert names.depth(f"bert.embeddings.{key}", 4) == 0
    assert names.depth("bert.encoder.layer.3.output.dense.weight", 4) == 4
    assert names.depth("classifier.weight", 4) == names.depth("embed_out.weight", 4) == 5


def test_rates_fall_from_the_head_to_the_embeddings() -> None:
    """L = 4, decay 0.5: layer l from 0 has 0.5^(4 - l), embeddings 0.5^5, norm and head 1."""
    groups = by_depth(_groups("llama", FullSection(), num_hidden_layers=4), 4, LayerRatesSection(decay=0.5))
    factors = {key: group.depth_factor for group in groups for key, _ in group.parameters}
    assert factors["model.embed_tokens.weight"] == 0.5**5
    for layer in range(4):
        assert factors[f"model.layers.{layer}.mlp.up_proj.weight"] == 0.5 ** (4 - layer)
        assert factors[f"model.layers.{layer}.input_layernorm.weight"] == 0.5 ** (4 - layer)
    assert factors["model.norm.weight"] == factors["lm_head.weight"] == 1.0


def test_groups_are_depth_times_decay_in_a_stable_order() -> None:
    groups = by_depth(_groups("llama", FullSection()), 2, None)
    assert [(group.decay, group.depth) for group in groups] == [
        (True, 1), (True, 2), (True, 3), (False, 0), (False, 1), (False, 2), (False, 3),
    ]  # fmt: skip
    assert {group.depth_factor for group in groups} == {1.0}
