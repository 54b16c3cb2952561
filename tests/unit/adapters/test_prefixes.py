"""Prefix tuning: PEFT's own class, the base behind a text, packs, masks, files, generation, scoring, bad input."""

from __future__ import annotations

import json

import peft
import pytest
import torch
from pydantic import ValidationError
from tests.tiny import batch, documents, family
from tests.unit.adapters.test_peft_files import WARNINGS
from tests.unit.adapters.test_prompts import (
    FAMILIES,
    LENGTHS,
    PROMPTS,
    V,
    logits_alone,
    recomputed_alike,
    relative,
    tuned,
)
from transformers import (
    BertConfig,
    BertForMaskedLM,
    MambaConfig,
    MambaForCausalLM,
    ModernBertConfig,
    ModernBertForMaskedLM,
)

from tunesmith.adapters import build
from tunesmith.adapters.peft_files import attach_read, read_adapter, write_adapter
from tunesmith.data.loader import make_batch
from tunesmith.errors import ModelError, RecipeError
from tunesmith.models.attention import Cached, layout_of, packed_attention
from tunesmith.models.causal_lm import CausalLM
from tunesmith.models.encoder_lm import EncoderLM
from tunesmith.models.generation import Generator
from tunesmith.models.scoring import PackScorer
from tunesmith.recipe.prompts import PrefixSection, PromptSection
from tunesmith.types import CannotMerge, Sampling

pytestmark = [pytest.mark.filterwarnings(text) for text in WARNINGS]
TEXT = [5, 9, 33, 41, 7, 60]
SECTIONS = {
    "plain": PrefixSection(num_tokens=V),
    "projected": PrefixSection(num_tokens=V, projection=True, projection_width=24),
}


def theirs(name, section):
    """PEFT's own model with the same settings."""
    config = peft.PrefixTuningConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=V, prefix_projection=section.projection,
        encoder_hidden_size=section.projection_width if section.projection else None,
    )  # fmt: skip
    return peft.get_peft_model(family(name), config)


def their_logits(model, document):
    with torch.no_grad():
        return model(input_ids=torch.from_numpy(document[0].astype("int64"))[None]).logits[0]


@pytest.mark.parametrize("name", ["llama", "qwen3", "gpt2"])
@pytest.mark.parametrize("kind", SECTIONS)
def test_losses_and_gradients_are_pefts(name, kind):
    model, adapter = tuned(name, SECTIONS[kind])
    other = theirs(name, SECTIONS[kind])
    table = {f"prompt_encoder.default.{key.partition('.')[2]}": part for key, part in adapter.trained_parts().items()}
    given = dict(other.named_parameters())
    assert set(table) == {key for key, part in given.items() if part.requires_grad}
    with torch.no_grad():
        for key, part in table.items():
            given[key].copy_(part)
    document = documents((19,))[0]
    ids = torch.from_numpy(document[0].astype("int64"))[None]
    expected = other(input_ids=ids, labels=ids)
    expected.loss.backward()
    loss = -model(make_batch([document], [0])).logprob_S.mean()
    loss.backward()
    assert loss.item() == pytest.approx(expected.loss.item(), rel=1e-5)
    assert relative(logits_alone(model, document), expected.logits[0]) < 1e-5
    for key, part in table.items():
        assert relative(part.grad, given[key].grad) < 1e-4, key


@pytest.mark.parametrize("name", [*FAMILIES, "phi", "phi3"])
def test_a_start_from_text_is_the_base_reading_that_text(name):
    """Bottom-right masks, positions, windows (Mistral's is 8) and borders at once: keys and values of V tokens before each document."""
    model, _ = tuned(name, PrefixSection(num_tokens=V, init_text=TEXT))
    base = CausalLM(family(name))
    pack = batch(LENGTHS)
    with torch.no_grad():
        found_TH = model.hidden(pack)
        for index, (ids, trained) in enumerate(documents(LENGTHS)):
            whole = make_batch([(torch.tensor([*TEXT, *ids.tolist()]).numpy(), trained)], [0])
            own = slice(int(pack.starts_D1[index]), int(pack.starts_D1[index + 1]))
            torch.testing.assert_close(found_TH[own], base.hidden(whole)[V:], rtol=2e-5, atol=2e-5)


def test_a_start_without_text_is_what_the_base_caches_of_common_tokens_by_seed():
    starts = [tuned("llama", PrefixSection(num_tokens=V), seed)[1].state() for seed in (3, 3, 4)]
    key = "virtual_tokens.embedding.weight"
    assert torch.equal(starts[0][key], starts[1][key])
    assert not torch.equal(starts[0][key], starts[2][key])
    model, adapter = tuned("llama", PrefixSection(num_tokens=V, init_text=TEXT))
    first_keys = adapter.state()[key].view(V, 4, 2, 8)[0, 0]
    normed = model.hf.model.layers[0].input_layernorm(model.hf.get_input_embeddings().weight[TEXT[0]])
    torch.testing.assert_close(
        first_keys.flatten(), model.hf.model.layers[0].self_attn.k_proj(normed)
    )  # position 0: no turn


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("kind", SECTIONS)
def test_off_it_is_the_exact_base_and_packs_change_nothing(name, kind):
    pack = batch(LENGTHS)
    with torch.no_grad():
        base_TH = CausalLM(family(name)).hidden(pack)
        model, adapter = tuned(name, SECTIONS[kind])
        on_TH = model.hidden(pack)
        assert relative(on_TH, base_TH) > 1e-3
        with adapter.active(()):
            assert torch.equal(model.hidden(pack), base_TH)
        alone = torch.cat([model.hidden(pack.part(index, index + 1)) for index in range(len(LENGTHS))])
        torch.testing.assert_close(on_TH, alone, rtol=2e-5, atol=2e-5)
    adapter.detach()
    with torch.no_grad():
        assert torch.equal(model.hidden(pack), base_TH)


@pytest.mark.parametrize("kind", SECTIONS)
def test_state_makes_the_round_trip(kind):
    model, adapter = tuned("llama", SECTIONS[kind])
    other, again = tuned("llama", SECTIONS[kind], seed=8)
    pack = batch(LENGTHS)
    with torch.no_grad():
        assert relative(other.hidden(pack), model.hidden(pack)) > 1e-4
        again.load_state({key: value.clone() for key, value in adapter.state().items()})
        assert torch.equal(other.hidden(pack), model.hidden(pack))
    assert not any("embedding" in name for group in adapter.groups() if group.decay for name, _ in group.parameters)


@pytest.mark.parametrize("kind", SECTIONS)
def test_recompute_gives_the_same_loss_and_gradients(kind):
    """PEFT refuses gradient checkpointing here, since its prefix is a cache; ours goes in by the layout of the pack."""
    recomputed_alike(SECTIONS[kind])


def test_a_base_in_bf16_has_its_prefix_in_fp32():
    model, adapter = tuned("llama", PrefixSection(num_tokens=V, init_text=TEXT), dtype=torch.bfloat16)
    exact, _ = tuned("llama", PrefixSection(num_tokens=V, init_text=TEXT))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = model(batch(LENGTHS))
    outputs.logprob_S.sum().backward()
    (part,) = adapter.trained_parts().values()
    assert part.dtype == part.grad.dtype == torch.float32
    assert (outputs.logprob_S - exact(batch(LENGTHS)).logprob_S).abs().mean() < 0.1


def test_attention_dropout_keeps_to_the_documents():
    """With dropout the SDPA path runs: no weight reaches another document, and on average nothing changes."""
    torch.manual_seed(0)
    lengths = (5, 9)
    starts = torch.tensor([0, 5, 14], dtype=torch.int32)
    query, key, value = (torch.randn(1, 2, 14, 4) for _ in range(3))
    cached = Cached([(torch.randn(3, 2, 4), torch.randn(3, 2, 4))])
    module = torch.nn.Module()
    module.layer_idx = 0
    exact, _ = packed_attention(module, query, key, value, None, pack=layout_of(starts, lengths, cached))
    drawn = [
        packed_attention(module, query, key, value, None, pack=layout_of(starts, lengths, cached), dropout=0.2)[0]
        for _ in range(2000)
    ]
    torch.testing.assert_close(torch.stack(drawn).mean(0), exact, rtol=0.0, atol=0.1)
    value[:, :, 5:] = float("nan")
    found, _ = packed_attention(module, query, key, value, None, pack=layout_of(starts, lengths, cached), dropout=0.2)
    assert found[:, :5].isfinite().all()


@pytest.mark.parametrize("name", ["llama", "qwen3", "gpt2"])
@pytest.mark.parametrize("kind", SECTIONS)
@pytest.mark.parametrize("more", [{}, {"train_tokens": [3, 5]}], ids=["plain", "rows"])
def test_what_we_write_peft_and_we_read(name, kind, more, tmp_path):
    model, adapter = tuned(name, SECTIONS[kind].model_copy(update=more))
    with torch.no_grad():
        for group in adapter.groups():
            for _, part in group.parameters:
                part.add_(torch.randn(part.shape, generator=torch.Generator().manual_seed(1)) * 0.1)
    notes = write_adapter(tmp_path, adapter, "base")
    assert bool(notes) == bool(more)
    document = documents((19,))[0]
    expected = logits_alone(model, document)
    assert relative(their_logits(peft.PeftModel.from_pretrained(family(name), tmp_path), document), expected) < 1e-5
    again = CausalLM(family(name))
    read = attach_read(again.hf, *read_adapter(tmp_path))
    assert relative(logits_alone(again, document), expected) < 1e-6
    write_adapter(tmp_path / "again", read, "base")
    assert json.loads((tmp_path / "again" / "adapter_config.json").read_text())["peft_type"] == "PREFIX_TUNING"


@pytest.mark.parametrize("kind", SECTIONS)
def test_what_peft_writes_we_read(kind, tmp_path):
    other = theirs("llama", SECTIONS[kind])
    other.save_pretrained(tmp_path)
    model = CausalLM(family("llama"))
    attach_read(model.hf, *read_adapter(tmp_path))
    document = documents((19,))[0]
    assert relative(logits_alone(model, document), their_logits(other, document)) < 1e-5


@pytest.mark.parametrize("name", FAMILIES)
def test_batched_answers_are_those_of_the_base_behind_the_text(name):
    how = Sampling(max_new_tokens=12)
    made = []
    for front in ([], TEXT):
        model = CausalLM(family(name))
        if not front:
            build(PrefixSection(num_tokens=V, init_text=TEXT), 0).attach(model.hf)
        generator = Generator(model, stop_ids=frozenset({2}), pad_id=0, decode=str)
        answers = generator.sample([front + prompt for prompt in PROMPTS], how)
        assert list(generator.stream(front + PROMPTS[2], how)) == list(answers[2].ids)
        made.append([answer.ids for answer in answers])
    assert made[0] == made[1]


@pytest.mark.parametrize("name", FAMILIES)
def test_scores_are_those_of_the_base_behind_the_text(name):
    candidates = [[4, 8], [4, 9, 11], [30], [4, 8, 2]]
    made = []
    for front in ([], TEXT):
        model = CausalLM(family(name))
        if not front:
            build(PrefixSection(num_tokens=V, init_text=TEXT), 0).attach(model.hf)
        scorer = PackScorer(model, make_batch, context=64)
        contexts = [front + prompt for prompt in PROMPTS]
        ranked = torch.tensor(scorer.rank(contexts, candidates))
        plain = [score.total for score in scorer.score(contexts, [candidates[1]] * len(contexts))]
        assert plain == pytest.approx(ranked[:, 1].tolist(), rel=1e-4)
        made.append(ranked)
    torch.testing.assert_close(made[0], made[1], rtol=1e-4, atol=1e-4)


def test_a_prefix_and_a_prompt_stand_one_behind_the_other():
    """Together they are the base behind both texts: keys and values first, then embedded tokens."""
    more = [11, 12, 13]
    model = CausalLM(family("llama"))
    build(PromptSection(num_tokens=3, init_text=more), 0).attach(model.hf, "prompt")
    prefix = build(PrefixSection(num_tokens=V, init_text=TEXT), 0)
    prefix.attach(model.hf, "prefix")
    base = CausalLM(family("llama"))
    document = documents((19,))[0]
    ids = torch.tensor([*TEXT, *more, *document[0].tolist()])
    with prefix.active(("prompt", "prefix")):
        found = logits_alone(model, document)
    with torch.no_grad():
        # The prompt's own tokens read the text, too: so it is the base reading all of it.
        whole = base.head().logits(base.hidden(make_batch([(ids.numpy(), document[1])], [0])))[V + 3 :]
    torch.testing.assert_close(found, whole, rtol=1e-4, atol=1e-4)


def test_a_prefix_does_not_merge():
    model, adapter = tuned("llama", PrefixSection(num_tokens=V))
    with pytest.raises(CannotMerge, match="export the adapter without merging"):
        adapter.merge(model.hf)


def test_a_text_for_a_network_is_refused():
    with pytest.raises((ValidationError, RecipeError), match="cannot be combined"):
        PrefixSection(projection=True, init_text="Sort this")


@pytest.mark.parametrize(("count", "words"), [(127, "no example has room"), (500, "at most 128 tokens")])
def test_a_prefix_longer_than_the_context_is_refused(count, words):
    with pytest.raises(RecipeError, match=words):
        build(PrefixSection(num_tokens=count), 0).attach(family("llama"))


SMALL = {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}


def bert():
    torch.manual_seed(0)
    return BertForMaskedLM(BertConfig(**SMALL)).eval()


def modern_bert():
    torch.manual_seed(0)
    return ModernBertForMaskedLM(ModernBertConfig(**SMALL, pad_token_id=0, cls_token_id=1, sep_token_id=2)).eval()


def state_space():
    return MambaForCausalLM(MambaConfig(vocab_size=97, hidden_size=32, num_hidden_layers=2, state_size=4))


@pytest.mark.parametrize(
    ("make", "section"),
    [
        (bert, PrefixSection(num_tokens=V)),
        (bert, PromptSection(num_tokens=V)),
        (modern_bert, PromptSection(num_tokens=V)),
    ],
    ids=["bert prefix", "bert prompt", "modernbert prompt"],
)
def test_encoders_read_in_both_directions_behind_virtual_tokens(make, section):
    pack = batch(LENGTHS)
    model = EncoderLM(make())
    with torch.no_grad():
        base_TH = model.hidden(pack)
        adapter = build(section, 0)
        adapter.attach(model.hf)
        on_TH = model.hidden(pack)
        assert relative(on_TH, base_TH) > 1e-3
        alone = torch.cat([model.hidden(pack.part(index, index + 1)) for index in range(len(LENGTHS))])
        torch.testing.assert_close(on_TH, alone, rtol=2e-5, atol=2e-5)
        with adapter.active(()):
            assert torch.equal(model.hidden(pack), base_TH)


@pytest.mark.parametrize("make", [modern_bert, state_space])
def test_a_model_without_cached_keys_is_refused_and_left_as_it_is(make):
    model = make()
    before = [name for name, _ in model.named_modules()]
    with pytest.raises(RecipeError, match="cannot take") as caught:
        build(PrefixSection(num_tokens=V), 0).attach(model)
    assert caught.value.where == "adapter.type"
    assert [name for name, _ in model.named_modules()] == before


def test_layers_that_go_by_their_prefix_are_an_error_not_a_wrong_model():
    model, _ = tuned("llama", PrefixSection(num_tokens=V))
    model.hf.model.layers[1].self_attn.layer_idx = 7
    with pytest.raises(ModelError, match="not every layer asks"):
        model.hidden(batch(LENGTHS))


def test_a_folder_of_another_model_is_refused(tmp_path):
    _, adapter = tuned("llama", PrefixSection(num_tokens=V))
    write_adapter(tmp_path, adapter, "base")
    with pytest.raises(ModelError, match="this model needs") as caught:
        attach_read(family("llama", num_hidden_layers=3), *read_adapter(tmp_path))
    assert "another model" in caught.value.hint
