"""Inspections against dense matrices and the models' own logits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tests.adapter_folders import write_random
from tests.tiny import desk_model

from tunesmith import embedded
from tunesmith.adapters import lora_layer
from tunesmith.adapters.peft_files import attach_read, read_adapter
from tunesmith.adapters.updates import updates_of
from tunesmith.cli.inspected import inspection_lines
from tunesmith.data.loader import make_batch
from tunesmith.data.tokenizer import Tokenizer
from tunesmith.errors import ModelError, UserError
from tunesmith.models.loading import load_model
from tunesmith.recipe.bottleneck import BottleneckSection
from tunesmith.recipe.low_rank import GraloraSection, LoraSection
from tunesmith.recipe.prompts import PrefixSection, PromptSection
from tunesmith.workshop.inspecting import inspect_adapters

SECTIONS = {
    "lora": LoraSection(rank=4, alpha=8.0),
    "pissa": LoraSection(rank=4, alpha=8.0, init="pissa"),
    "attention": LoraSection(rank=2, alpha=4.0, targets=["attention"]),
    "rows": LoraSection(rank=2, alpha=4.0, train_tokens=[5, 9], also_train=["*norm*"]),
    "dora": LoraSection(rank=4, alpha=8.0, dora=True),
    "gralora": GraloraSection(rank=4, alpha=8.0, blocks=2),
    "bottleneck": BottleneckSection(),
    "prompt": PromptSection(num_tokens=4),
    "prefix": PrefixSection(num_tokens=3),
}
TEXTS = ["The lamp is on the table.", "Where is my parcel now?"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    like = embedded.model_folder("tunesmith-base-8m")
    assert like is not None
    folder = tmp_path_factory.mktemp("inspected") / "base"
    desk_model(folder, like)
    return folder


@pytest.fixture(scope="module")
def folders(base: Path) -> dict[str, Path]:
    return {
        name: write_random(base.parent / name, base, section, seed, size=0.5)
        for seed, (name, section) in enumerate(SECTIONS.items())
    }


@pytest.mark.parametrize("name", ["lora", "pissa", "dora", "gralora"])
def test_sizes_and_spectra_are_those_of_the_dense_updates(base: Path, folders: dict[str, Path], name: str) -> None:
    found = inspect_adapters([folders[name]], texts=TEXTS).adapters[0]
    settings, state = read_adapter(folders[name])
    model = load_model(base).hf
    adapter = attach_read(model, settings, state)
    updates = updates_of(adapter)
    assert list(found.layers) == [key for key, _ in model.named_modules() if key in updates]
    assert len(found.layers) == len(updates)
    total = weights = 0.0
    for key, update in updates.items():
        dense, weight = update.dense().detach(), lora_layer.weight_of(model.get_submodule(key))
        layer = found.layers[key]
        assert layer.norm == pytest.approx(float(dense.norm()), rel=1e-4)
        assert layer.relative == pytest.approx(float(dense.norm() / weight.norm()), rel=1e-4)
        values = torch.linalg.svdvals(dense)[: len(layer.values)]
        torch.testing.assert_close(torch.tensor(layer.values), values, rtol=1e-3, atol=1e-4)
        total += float(dense.square().sum())
        weights += float(weight.square().sum())
    assert found.relative == pytest.approx((total / weights) ** 0.5, rel=1e-4)
    assert found.numbers == sum(value.numel() for value in adapter.state().values())


@pytest.mark.parametrize("name", ["lora", "rows", "bottleneck", "prompt", "prefix"])
def test_movements_are_those_of_both_models_logits(base: Path, folders: dict[str, Path], name: str) -> None:
    found = inspect_adapters([folders[name]], texts=TEXTS, top=3).adapters[0].movements
    assert [item.on for item in found] == ["given texts"]
    tokenizer = Tokenizer.from_folder(base)
    settings, state = read_adapter(folders[name])
    plain, tuned = load_model(base), load_model(base)
    attach_read(tuned.hf, settings, state)
    kls, changes, same = [], [], []
    for text in TEXTS:
        ids = np.asarray(tokenizer.encode_document(text), dtype=np.uint32)
        batch = make_batch([(ids, np.zeros(len(ids), dtype=np.bool_))], [0])
        with torch.no_grad():
            p, q = (model.eval().logits(batch)[:-1].double().log_softmax(-1) for model in (plain, tuned))
        kls.append((p.exp() * (p - q)).sum(-1))
        changes.append(q.exp() - p.exp())
        same.append(p.argmax(-1) == q.argmax(-1))
    kl = torch.cat(kls)
    np.testing.assert_allclose(found[0].kl, kl.numpy(), rtol=1e-3, atol=1e-6)
    assert found[0].same_first == pytest.approx(float(torch.cat(same).double().mean()))
    assert [item.kl for item in found[0].moved] == pytest.approx(kl.topk(3).values.tolist(), rel=1e-3)
    mean = torch.cat(changes).mean(0)
    assert [change for _, change in found[0].up] == pytest.approx(mean.topk(3).values.tolist(), rel=1e-3, abs=1e-7)
    assert [token for token, _ in found[0].down] == [tokenizer.decode([int(item)]) for item in (-mean).topk(3).indices]
    most = found[0].moved[0]
    ids = tokenizer.encode_document(TEXTS[most.text])
    assert most.follows == tokenizer.decode([ids[most.position + 1]])
    assert most.before[0][1] >= most.before[1][1]


def test_what_trained_beside(base: Path, folders: dict[str, Path]) -> None:
    found = inspect_adapters([folders["rows"]], texts=TEXTS).adapters[0]
    assert [token for token, *_ in found.rows["model.embed_tokens"]] == [5, 9]
    assert all(norm > 0 and relative > 0 for _, _, norm, relative in found.rows["model.embed_tokens"])
    assert "model.norm.weight" in found.beside


def test_virtual_tokens_are_told_by_what_they_are_like(base: Path, folders: dict[str, Path]) -> None:
    prompt, prefix = inspect_adapters([folders["prompt"], folders["prefix"]], texts=TEXTS).adapters
    assert [item["place"] for item in prompt.virtual] == [0, 1, 2, 3]
    assert all(len(item["nearest"]) == 3 for item in prompt.virtual)
    assert [item["layer"] for item in prefix.virtual] == [0, 1]
    assert (prompt.layers, prefix.relative) == ({}, None)


def test_pairs_and_words(base: Path, folders: dict[str, Path], tmp_path: Path) -> None:
    names = ["lora", "attention", "gralora", "bottleneck", "prompt"]
    result = inspect_adapters([folders[name] for name in names], texts=TEXTS)
    assert len(result.overlaps) == 10
    first = result.overlaps[0]
    assert len(first.layers) == 8
    assert first.alone == (6, 0)
    settings = [read_adapter(folders[name]) for name in ("lora", "attention")]
    dense = [
        {key: update.dense().detach() for key, update in updates_of(attach_read(load_model(base).hf, *item)).items()}
        for item in settings
    ]
    norms = [sum(float(value.square().sum()) for value in side.values()) ** 0.5 for side in dense]
    inner = sum(float((dense[0][key] * dense[1][key]).sum()) for key in dense[1])
    assert first.cosine == pytest.approx(inner / (norms[0] * norms[1]), rel=1e-3, abs=1e-6)
    assert result.overlaps[3].layers == {}
    text = "\n".join(inspection_lines(result.to_json()))
    for piece in (
        "eff. rank",
        "cosine of all updates",
        "none of their layers meet",
        "most like",
        "more likely",
        "KL from the base",
    ):
        assert piece in text, text


def test_general_texts_where_no_text_is_given(base: Path, folders: dict[str, Path]) -> None:
    found = inspect_adapters([folders["lora"]]).adapters[0].movements
    assert [item.on for item in found] == ["general texts"]
    assert len(found[0].kl) > 100


def test_refusals(base: Path, folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no adapter to inspect"):
        inspect_adapters([base])
    with pytest.raises(UserError, match="named twice"):
        inspect_adapters([folders["lora"], folders["lora"]])
    with pytest.raises(UserError, match="nothing to inspect"):
        inspect_adapters([])
    like = embedded.model_folder("tunesmith-base-8m")
    assert like is not None
    desk_model(tmp_path / "twin", like, seed=1)
    twin = write_random(tmp_path / "of_twin", tmp_path / "twin", SECTIONS["lora"], 0)
    with pytest.raises(ModelError, match="another base"):
        inspect_adapters([folders["lora"], twin])
