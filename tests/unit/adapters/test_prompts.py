"""Prompt tuning and P-tuning: PEFT's own classes, starts, the exact base, packs, files, generation, scoring, bad input."""

from __future__ import annotations

import json

import peft
import pytest
import torch
from pydantic import ValidationError
from tests.tiny import VOCABULARY, batch, documents, family
from tests.unit.adapters.test_peft_files import WARNINGS

from tunesmith.adapters import build
from tunesmith.adapters.lora import LoraAdapter
from tunesmith.adapters.peft_files import attach_read, read_adapter, write_adapter
from tunesmith.data.loader import make_batch
from tunesmith.errors import ModelError, RecipeError
from tunesmith.models.causal_lm import CausalLM
from tunesmith.models.generation import Generator
from tunesmith.models.scoring import PackScorer
from tunesmith.recipe.low_rank import LoraSection
from tunesmith.recipe.prompts import PromptSection, PTuningSection
from tunesmith.types import CannotMerge, Sampling

pytestmark = [pytest.mark.filterwarnings(text) for text in [*WARNINGS, "ignore:Position ids are not supported"]]
FAMILIES = ["llama", "qwen3", "gpt2", "gemma", "mistral"]
LENGTHS = (7, 1, 13, 5, 22, 40)
V = 6
SECTIONS = {
    "prompt": PromptSection(num_tokens=V),
    "p-tuning": PTuningSection(num_tokens=V, encoder_width=24),
    "lstm": PTuningSection(num_tokens=V, encoder="lstm", encoder_width=12, encoder_layers=2),
}


def tuned(name, section, seed=3, dtype=torch.float32):
    model = CausalLM(family(name).to(dtype))
    adapter = build(section, seed)
    adapter.attach(model.hf)
    return model, adapter


def theirs(name, section):
    """PEFT's own model with the same settings."""
    if section.type == "prompt":
        config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=V)
    else:
        config = peft.PromptEncoderConfig(
            task_type="CAUSAL_LM", num_virtual_tokens=V, encoder_reparameterization_type=section.encoder.upper(),
            encoder_hidden_size=section.encoder_width, encoder_num_layers=section.encoder_layers,
        )  # fmt: skip
    return peft.get_peft_model(family(name), config)


def relative(a, b):
    return float((a - b).detach().abs().max() / b.detach().abs().max())


@torch.no_grad()
def logits_alone(model, document):
    """Of one document, through the facade ``[T, V]``."""
    return model.head().logits(model.hidden(make_batch([document], [0])))


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
    labels = ids.clone()
    labels[
        :, 0
    ] = -100  # PEFT lets the last virtual token predict the first real one; here a first token is never a target
    expected = other(input_ids=ids, labels=labels)
    expected.loss.backward()
    outputs = model(make_batch([document], [0]))
    loss = -outputs.logprob_S.mean()
    loss.backward()
    assert loss.item() == pytest.approx(expected.loss.item(), rel=1e-5)
    assert relative(logits_alone(model, document), expected.logits[0, V:]) < 1e-5
    for key, part in table.items():
        assert relative(part.grad, given[key].grad) < 1e-4, key


@pytest.mark.parametrize("name", FAMILIES)
def test_a_start_from_text_is_the_base_reading_that_text(name):
    """The strongest check of positions and borders: V real tokens in front of each document."""
    text = [5, 9, 33, 41, 7, 60]
    model, _ = tuned(name, PromptSection(num_tokens=V, init_text=text))
    base = CausalLM(family(name))
    pack = batch(LENGTHS)
    with torch.no_grad():
        found_TH = model.hidden(pack)
        for index, (ids, trained) in enumerate(documents(LENGTHS)):
            whole = make_batch([(torch.tensor([*text, *ids.tolist()]).numpy(), trained)], [0])
            own = slice(int(pack.starts_D1[index]), int(pack.starts_D1[index + 1]))
            torch.testing.assert_close(found_TH[own], base.hidden(whole)[V:], rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize(
    ("text", "wanted"), [([5, 9], [5, 9, 5, 9, 5, 9]), ([5, 9, 33, 41, 7, 60, 8], [5, 9, 33, 41, 7, 60])]
)
def test_a_text_is_repeated_or_cut(text, wanted):
    model, adapter = tuned("llama", PromptSection(num_tokens=V, init_text=text))
    start = adapter.state()["virtual_tokens.embedding.weight"]
    assert torch.equal(start, model.hf.get_input_embeddings().weight[wanted])


def test_a_start_without_text_is_rows_of_the_vocabulary_by_seed():
    starts = []
    for seed in (3, 3, 4):
        model, adapter = tuned("llama", PromptSection(num_tokens=V), seed)
        starts.append(adapter.state()["virtual_tokens.embedding.weight"].clone())
        rows = model.hf.get_input_embeddings().weight
        assert all(any(torch.equal(row, other) for other in rows) for row in starts[-1])
    assert torch.equal(starts[0], starts[1])
    assert not torch.equal(starts[0], starts[2])


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("kind", SECTIONS)
def test_off_it_is_the_exact_base_and_packs_change_nothing(name, kind):
    pack = batch(LENGTHS)
    with torch.no_grad():
        base_TH = CausalLM(family(name)).hidden(pack)
        model, adapter = tuned(name, SECTIONS[kind])
        on_TH = model.hidden(pack)
        assert relative(on_TH, base_TH) > 1e-2
        with adapter.active(()):
            assert torch.equal(model.hidden(pack), base_TH)
        assert torch.equal(model.hidden(pack), on_TH)
        alone = torch.cat([model.hidden(pack.part(index, index + 1)) for index in range(len(LENGTHS))])
        torch.testing.assert_close(on_TH, alone, rtol=2e-5, atol=2e-5)
    adapter.detach()
    assert not hasattr(model.hf, "virtual_tokens")
    assert not any("virtual" in name for name, _ in model.hf.named_modules())
    with torch.no_grad():
        assert torch.equal(model.hidden(pack), base_TH)


@pytest.mark.parametrize("kind", SECTIONS)
def test_state_makes_the_round_trip_and_only_the_section_trains(kind):
    model, adapter = tuned("llama", SECTIONS[kind])
    other, again = tuned("llama", SECTIONS[kind], seed=8)
    pack = batch(LENGTHS)
    with torch.no_grad():
        assert relative(other.hidden(pack), model.hidden(pack)) > 1e-3
        again.load_state({key: value.clone() for key, value in adapter.state().items()})
        assert torch.equal(other.hidden(pack), model.hidden(pack))
    training = {id(part) for part in model.parameters() if part.requires_grad}
    assert training == {id(part) for group in adapter.groups() for _, part in group.parameters}
    decayed = {name for group in adapter.groups() if group.decay for name, _ in group.parameters}
    assert "virtual_tokens.embedding.weight" not in decayed
    assert bool(decayed) == (kind != "prompt")


def recomputed_alike(section):
    """With and without recomputation the loss and the gradients are the same."""
    found = []
    for recompute in (False, True):
        model, adapter = tuned("llama", section)
        model.train()
        if recompute:
            model.recompute_activations()
        loss = -model(batch(LENGTHS)).logprob_S.sum()
        loss.backward()
        found.append((loss.item(), {key: part.grad for key, part in adapter.trained_parts().items()}))
    assert found[0][0] == found[1][0]
    for key, grad in found[0][1].items():
        torch.testing.assert_close(grad, found[1][1][key])


@pytest.mark.parametrize("kind", SECTIONS)
def test_recompute_gives_the_same_loss_and_gradients(kind):
    recomputed_alike(SECTIONS[kind])


def test_a_base_in_bf16_has_virtual_tokens_in_fp32():
    model, adapter = tuned("llama", PromptSection(num_tokens=V), dtype=torch.bfloat16)
    exact, _ = tuned("llama", PromptSection(num_tokens=V))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = model(batch(LENGTHS))
    outputs.logprob_S.sum().backward()
    (part,) = adapter.trained_parts().values()
    assert part.dtype == part.grad.dtype == torch.float32
    gap = (outputs.logprob_S - exact(batch(LENGTHS)).logprob_S).abs().mean()
    assert gap < 0.1


@pytest.mark.parametrize("name", ["llama", "qwen3", "gpt2"])
@pytest.mark.parametrize("kind", SECTIONS)
@pytest.mark.parametrize(
    "more", [{}, {"train_tokens": [3, 5]}, {"also_train": ["*norm*", "*ln_*"]}], ids=["plain", "rows", "norms"]
)
def test_what_we_write_peft_and_we_read(name, kind, more, tmp_path):
    if "also_train" in more:
        more = {"also_train": ["*ln_*" if name == "gpt2" else "*norm*"]}
    model, adapter = tuned(name, SECTIONS[kind].model_copy(update=more))
    with torch.no_grad():
        for group in adapter.groups():
            for _, part in group.parameters:
                part.add_(torch.randn(part.shape, generator=torch.Generator().manual_seed(1)) * 0.1)
    notes = write_adapter(tmp_path, adapter, "base")
    assert bool(notes) == bool(more)
    document = documents((19,))[0]
    expected = logits_alone(model, document)
    other = peft.PeftModel.from_pretrained(family(name), tmp_path)
    with torch.no_grad():
        ids = torch.from_numpy(document[0].astype("int64"))[None]
        assert relative(other(input_ids=ids).logits[0, V:], expected) < 1e-5
    again = CausalLM(family(name))
    read = attach_read(again.hf, *read_adapter(tmp_path))
    assert read.virtual_tokens == V
    assert relative(logits_alone(again, document), expected) < 1e-6
    write_adapter(tmp_path / "again", read, "base")
    assert json.loads((tmp_path / "again" / "adapter_config.json").read_text())["peft_type"] == other.peft_type


@pytest.mark.parametrize("kind", SECTIONS)
def test_what_peft_writes_we_read(kind, tmp_path):
    other = theirs("llama", SECTIONS[kind])
    other.save_pretrained(tmp_path)
    model = CausalLM(family("llama"))
    attach_read(model.hf, *read_adapter(tmp_path))
    document = documents((19,))[0]
    with torch.no_grad():
        expected = other(input_ids=torch.from_numpy(document[0].astype("int64"))[None]).logits[0, V:]
    assert relative(logits_alone(model, document), expected) < 1e-5


PROMPTS = [list(ids.tolist()) for ids, _ in documents((5, 1, 12, 3, 12, 7), seed=4)]


@pytest.mark.parametrize("name", FAMILIES)
def test_batched_answers_are_those_of_the_base_behind_the_text(name):
    text = [5, 9, 33, 41, 7, 60]
    how = Sampling(max_new_tokens=12)
    made = []
    for front in ([], text):
        model = CausalLM(family(name))
        if not front:
            build(PromptSection(num_tokens=V, init_text=text), 0).attach(model.hf)
        generator = Generator(model, stop_ids=frozenset({2}), pad_id=0, decode=str)
        answers = generator.sample([front + prompt for prompt in PROMPTS], how)
        assert list(generator.stream(front + PROMPTS[2], how)) == list(answers[2].ids)
        made.append([answer.ids for answer in answers])
    assert made[0] == made[1]


@pytest.mark.parametrize("name", FAMILIES)
def test_scores_are_those_of_the_base_behind_the_text(name):
    text = [5, 9, 33, 41, 7, 60]
    candidates = [[4, 8], [4, 9, 11], [30], [4, 8, 2]]
    made = []
    for front in ([], text):
        model = CausalLM(family(name))
        if not front:
            build(PromptSection(num_tokens=V, init_text=text), 0).attach(model.hf)
        scorer = PackScorer(model, make_batch, context=64)
        contexts = [front + prompt for prompt in PROMPTS]
        ranked = torch.tensor(scorer.rank(contexts, candidates))
        plain = [score.total for score in scorer.score(contexts, [candidates[1]] * len(contexts))]
        assert plain == pytest.approx(ranked[:, 1].tolist(), rel=1e-4)
        made.append(ranked)
    torch.testing.assert_close(made[0], made[1], rtol=1e-4, atol=1e-4)


def test_two_adapters_stack_and_the_rows_of_another_stay():
    """LoRA beside a prompt: each is off by itself, and both come off in any order."""
    pack = batch(LENGTHS)
    for first_off in ("prompt", "lora"):
        model = CausalLM(family("llama"))
        with torch.no_grad():
            base_TH = model.hidden(pack)
        lora = LoraAdapter(LoraSection(rank=2, train_tokens=[3, 5]), 0)
        lora.attach(model.hf, "lora")
        prompt = build(PromptSection(num_tokens=V, train_tokens=[7]), 0)
        prompt.attach(model.hf, "prompt")
        both = {"lora": lora, "prompt": prompt}
        with torch.no_grad():
            alone_TH = model.hidden(pack)
            with prompt.active(("lora", "prompt")):
                torch.testing.assert_close(model.hidden(pack), alone_TH)
            both.pop(first_off).detach()
            next(iter(both.values())).detach()
            assert torch.equal(model.hidden(pack), base_TH)


def test_virtual_tokens_do_not_merge():
    model, adapter = tuned("llama", PromptSection(num_tokens=V))
    with pytest.raises(CannotMerge, match="export the adapter without merging"):
        adapter.merge(model.hf)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"num_tokens": 0}, "greater than 0"),
        ({"init_text": " "}, "empty"),
        ({"init_text": []}, "a text, or a list of token ids"),
        ({"init_text": [-1]}, "a text, or a list of token ids"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, words):
    with pytest.raises((ValidationError, RecipeError), match=words):
        PromptSection(**settings)


@pytest.mark.parametrize(
    ("settings", "words", "where"),
    [
        ({"num_tokens": 127}, "no example has room", "adapter.num_tokens"),
        ({"num_tokens": 500}, "at most 128 tokens", "adapter.num_tokens"),
        ({"init_text": "Sort this"}, "no tokenizer here", "adapter.init_text"),
        ({"init_text": [VOCABULARY]}, f"no token {VOCABULARY}", "adapter.init_text"),
        ({"also_train": ["*nowhere*"]}, "nowhere", "adapter.also_train"),
    ],
)
def test_what_does_not_fit_the_model_leaves_it_as_it_is(settings, words, where):
    model = family("llama")
    before = [name for name, _ in model.named_modules()]
    with pytest.raises(RecipeError, match=words) as caught:
        build(PromptSection(**settings), 0).attach(model)
    assert caught.value.where == where
    assert caught.value.hint
    assert [name for name, _ in model.named_modules()] == before
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_model_that_reads_ids_only_is_refused():
    model = family("llama")
    forward = type(model.model).forward

    class Deaf(type(model.model)):
        def forward(self, input_ids, **others):
            return forward(self, input_ids, **others)

    model.model.__class__ = Deaf
    with pytest.raises(RecipeError, match="cannot take virtual tokens"):
        build(PromptSection(num_tokens=V), 0).attach(model)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_virtual_tokens": V + 1}, "a table `prompt_embeddings`"),
        ({"num_transformer_submodules": 2}, "for an encoder and for a decoder"),
        ({"num_ranks": 3}, "uses `num_ranks`"),
    ],
)
def test_a_folder_that_is_not_understood_is_refused(change, words, tmp_path):
    _, adapter = tuned("llama", PromptSection(num_tokens=V))
    write_adapter(tmp_path, adapter, "base")
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ModelError, match=words):
        read_adapter(tmp_path)


def test_a_folder_of_another_width_is_refused(tmp_path):
    _, adapter = tuned("llama", PromptSection(num_tokens=V))
    write_adapter(tmp_path, adapter, "base")
    with pytest.raises(ModelError, match="this model needs") as caught:
        attach_read(family("llama", hidden_size=64), *read_adapter(tmp_path))
    assert "another model" in caught.value.hint
