"""Blended adapters against PEFT's `add_weighted_adapter`, against dense matrices, and against models."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file
from tests.adapter_folders import write_random
from tests.tiny import desk_model
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from tunesmith import embedded
from tunesmith.adapters.peft_files import attach_read, read_adapter
from tunesmith.adapters.updates import Update, updates_of
from tunesmith.errors import ModelError, UserError
from tunesmith.models.loading import load_model
from tunesmith.recipe.bottleneck import BottleneckSection
from tunesmith.recipe.low_rank import GraloraSection, LoraSection
from tunesmith.recipe.prompts import PrefixSection, PromptSection
from tunesmith.workshop.blend import blend
from tunesmith.workshop.switchboard import open_switchboard

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Could not find a config file:UserWarning"),
]
SECTIONS = {
    "one": LoraSection(rank=4, alpha=8.0),
    "two": LoraSection(rank=2, alpha=3.0, rslora=True, targets=["attention"]),
    "rows": LoraSection(rank=2, alpha=4.0, train_tokens=[5, 9]),
    "more_rows": LoraSection(rank=2, alpha=4.0, train_tokens=[9, 17]),
    "norms": LoraSection(rank=2, alpha=4.0, also_train=["*norm*"]),
    "embedding": LoraSection(rank=2, alpha=4.0, also_train=["*embed_tokens*"]),
    "dora": LoraSection(rank=4, alpha=8.0, dora=True),
    "gralora": GraloraSection(rank=4, alpha=8.0, blocks=2),
    "bottleneck": BottleneckSection(),
    "prompt": PromptSection(num_tokens=4),
    "prefix": PrefixSection(num_tokens=3),
}
IDS = [[7, 9, 5, 11, 30, 17, 60]]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    like = embedded.model_folder("tunesmith-base-8m")
    assert like is not None
    folder = tmp_path_factory.mktemp("blends") / "base"
    desk_model(folder, like)
    return folder


@pytest.fixture(scope="module")
def folders(base: Path) -> dict[str, Path]:
    return {
        name: write_random(base.parent / name, base, section, seed)
        for seed, (name, section) in enumerate(SECTIONS.items())
    }


def updates_in(base: Path, folder: Path) -> dict[str, torch.Tensor]:
    settings, state = read_adapter(folder)
    found = updates_of(attach_read(load_model(base).hf, settings, state))
    return {name: update.dense().detach() for name, update in found.items()}


def logits(base: Path, folder: Path) -> torch.Tensor:
    board = open_switchboard(str(base), device="cpu")
    board.load("it", folder)
    return board.logits(IDS, ["it"])[0]


def close(found: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance * float(expected.abs().max()))


def peft_with(base: Path, folders: dict[str, Path], *names: str) -> Any:
    first, *others = names
    model = AutoModelForCausalLM.from_pretrained(base)
    model = peft.PeftModel.from_pretrained(model, str(folders[first]), adapter_name=first)
    for name in others:
        model.load_adapter(str(folders[name]), adapter_name=name)
    return model.eval()


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ({"combination_type": "cat"}, {"method": "linear"}),
        ({"combination_type": "svd", "svd_rank": 3}, {"method": "linear", "rank": 3}),
        (
            {"combination_type": "ties_svd", "density": 0.4, "svd_rank": 32},
            {"method": "ties", "density": 0.4, "rank": 32},
        ),
    ],
    ids=["cat", "svd", "ties_svd"],
)
def test_weights_are_those_of_peft(
    base: Path, folders: dict[str, Path], tmp_path: Path, theirs: Any, ours: Any
) -> None:
    """Weights of 1 in TIES: PEFT elects signs without them."""
    weights = [1.0, 1.0] if ours["method"] == "ties" else [0.7, -0.4]
    square = ["*q_proj", "*o_proj"]  # PEFT's decomposition wants no rank above a layer's size
    both = {
        name: write_random(tmp_path / name, base, LoraSection(rank=rank, alpha=8.0, targets=square), rank)
        for name, rank in (("first", 4), ("second", 3))
    }
    model = peft_with(base, both, *both)
    model.add_weighted_adapter(list(both), weights, "blend", **theirs)
    model.set_adapter("blend")
    with torch.no_grad():
        expected = model(input_ids=torch.tensor(IDS)).logits[0]
    result = blend(list(both.values()), tmp_path / "out", weights=weights, normalise=False, **ours)
    close(logits(base, result.folder), expected, 2e-5)


def test_a_sum_is_exact_and_takes_layers_that_one_of_them_lacks(
    base: Path, folders: dict[str, Path], tmp_path: Path
) -> None:
    result = blend([folders["one"], folders["two"]], tmp_path / "out", weights=(7, 3))
    one, two, found = (updates_in(base, folder) for folder in (folders["one"], folders["two"], result.folder))
    assert set(two) < set(one) == set(found)
    for name, update in found.items():
        close(update, 0.7 * one[name] + 0.3 * two.get(name, torch.zeros_like(one[name])))
    assert {layer.rank for layer in result.layers} == {4, 6}
    assert result.lost == 0.0
    assert [gate.passed for gate in result.gates] == [True, True]


@pytest.mark.parametrize("pair", [("rows", "more_rows"), ("one", "norms"), ("rows", "embedding"), ("one", "gralora")])
@pytest.mark.parametrize("merge", [False, True])
def test_rows_and_whole_parameters_are_blended_too(
    base: Path, folders: dict[str, Path], tmp_path: Path, pair: tuple[str, str], merge: bool
) -> None:
    """Every parameter is the base's plus the weighted changes of both."""
    result = blend(
        [folders[name] for name in pair],
        tmp_path / "out",
        weights=(0.25, 0.75),
        merge=merge,
        dtype="float32" if merge else None,
    )
    plain, merged = load_model(base).hf, []
    for folder in [folders[name] for name in pair]:
        settings, state = read_adapter(folder)
        model = load_model(base).hf
        attach_read(model, settings, state).merge(model)
        merged.append(model.state_dict())
    expected = {
        key: value + 0.25 * (merged[0][key] - value) + 0.75 * (merged[1][key] - value)
        for key, value in plain.state_dict().items()
    }
    if merge:
        found = load_model(result.folder).hf.state_dict()
    else:
        settings, state = read_adapter(result.folder)
        model = load_model(base).hf
        attach_read(model, settings, state).merge(model)
        found = model.state_dict()
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-5, atol=1e-6)


def test_peft_reads_a_blend_of_several_ranks(base: Path, folders: dict[str, Path], tmp_path: Path) -> None:
    folder = blend([folders["one"], folders["two"], folders["rows"]], tmp_path / "out", weights=(3, 2, 1)).folder
    model = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(folder)).eval()
    with torch.no_grad():
        close(logits(base, folder), model(input_ids=torch.tensor(IDS)).logits[0])


def gpt2_model(folder: Path, like: Path) -> None:
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=8192, n_embd=32, n_layer=2, n_head=4, n_positions=128, bos_token_id=1, eos_token_id=2
    )
    GPT2LMHeadModel(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copyfile(like / name, folder / name)


@pytest.mark.parametrize("kind", ["transposed layers", "untied head"])
@pytest.mark.parametrize(
    "how", [{}, {"method": "ties", "merge": True, "dtype": "float32"}, {"method": "dare", "rank": 64}]
)
def test_other_shapes_of_models(tmp_path: Path, kind: str, how: dict[str, Any]) -> None:
    """The gates hold what was written against the blend itself, folded layer by layer."""
    like = embedded.model_folder("tunesmith-base-8m")
    assert like is not None
    if kind == "untied head":
        desk_model(tmp_path / "base", like, tie_word_embeddings=False)
    else:
        gpt2_model(tmp_path / "base", like)
    sections = (LoraSection(rank=4, alpha=8.0, train_tokens=[5, 9]), LoraSection(rank=2, alpha=4.0, train_tokens=[9]))
    sources = [write_random(tmp_path / str(seed), tmp_path / "base", item, seed) for seed, item in enumerate(sections)]
    result = blend(sources, tmp_path / "out", **how)
    assert result.lost < 1e-5
    assert all(gate.passed for gate in result.gates)
    if not how:
        one, two, found = (updates_in(tmp_path / "base", folder) for folder in (*sources, result.folder))
        for name, update in found.items():
            close(update, 0.5 * one[name] + 0.5 * two[name])
        rows = {key for key in read_adapter(result.folder)[1] if key.endswith(".token_rows")}
        assert len(rows) == (2 if kind == "untied head" else 1)


def test_a_reduced_blend_says_what_it_leaves_out(base: Path, folders: dict[str, Path], tmp_path: Path) -> None:
    whole = updates_in(base, blend([folders["one"], folders["gralora"]], tmp_path / "whole").folder)
    result = blend([folders["one"], folders["gralora"]], tmp_path / "out", rank=3)
    assert {layer.rank for layer in result.layers} == {3}
    found = updates_in(base, result.folder)
    lost = sum(float((whole[name] - found[name]).square().sum()) for name in whole)
    total = sum(float(update.square().sum()) for update in whole.values())
    assert result.lost == pytest.approx((lost / total) ** 0.5, rel=1e-3)
    assert result.lost > 0.1
    assert result.gates == []
    assert result.cost["mean_kl_nats"] > 0
    assert 0 <= result.cost["top1_agreement"] <= 1
    for layer in result.layers:
        values = torch.linalg.svdvals(whole[layer.name])
        assert layer.lost == pytest.approx(float(torch.linalg.norm(values[3:])), rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("method", ["ties", "dare", "dare-ties"])
def test_dense_methods_are_written_at_the_sum_of_ranks_or_whole(
    base: Path, folders: dict[str, Path], tmp_path: Path, method: str
) -> None:
    sources = [folders["one"], folders["gralora"]]
    exact = blend(sources, tmp_path / "whole", method=method, rank=64)
    assert exact.lost < 1e-5
    assert all(gate.passed for gate in exact.gates)
    usual = blend(sources, tmp_path / "usual", method=method)
    assert {layer.rank for layer in usual.layers} == {12}
    assert usual.lost > 0.01
    model = blend(sources, tmp_path / "model", method=method, merge=True, dtype="float32")
    merged = load_model(model.folder)
    with torch.no_grad():
        close(logits(base, exact.folder), merged.hf(input_ids=torch.tensor(IDS)).logits[0], 1e-4)


def test_dare_is_drawn_from_the_seed_whatever_the_order(base: Path, folders: dict[str, Path], tmp_path: Path) -> None:
    def weights_of(name: str, sources: list[str], **how: Any) -> dict[str, torch.Tensor]:
        folder = blend([folders[item] for item in sources], tmp_path / name, method="dare", rank=64, **how).folder
        return updates_in(base, folder)

    first = weights_of("a", ["one", "gralora"], weights=(0.6, 0.4), seed=3)
    again = weights_of("b", ["gralora", "one"], weights=(0.4, 0.6), seed=3)
    other = weights_of("c", ["one", "gralora"], weights=(0.6, 0.4), seed=4)
    for name, update in first.items():
        close(update, again[name], 1e-4)
        assert float((update - other[name]).abs().max()) > 1e-2


def test_dora_is_blended_as_the_change_it_makes(base: Path, folders: dict[str, Path], tmp_path: Path) -> None:
    """It has no low rank: written whole at full rank, and merged exactly."""
    sources = [folders["one"], folders["dora"]]
    one, dora = (updates_in(base, folder) for folder in sources)
    found = updates_in(base, blend(sources, tmp_path / "out").folder)
    for name, update in found.items():
        close(update, 0.5 * one[name] + 0.5 * dora[name], 1e-4)
    reduced = blend(sources, tmp_path / "reduced", rank=8)
    assert reduced.lost > 0.01


def test_the_folder_tells_where_it_comes_from(base: Path, folders: dict[str, Path], tmp_path: Path) -> None:
    result = blend([folders["one"], folders["two"]], tmp_path / "out", method="dare-ties", seed=7, density=0.3)
    told = json.loads((result.folder / "blend.json").read_text(encoding="utf-8"))
    assert told == json.loads(json.dumps(result.lineage))
    assert (told["method"], told["density"], told["seed"], told["normalise"]) == ("dare-ties", 0.3, 7, True)
    assert [source["factor"] for source in told["sources"]] == [0.5, 0.5]
    assert all(len(source["sha256"]) == 64 for source in told["sources"])
    assert told["base"]["sha256"] == read_adapter(result.folder)[0].base_sha256
    assert "dare-ties" in (result.folder / "README.md").read_text(encoding="utf-8")
    assert load_file(result.folder / "adapter_model.safetensors")


def test_a_quantised_base(base: Path, folders: dict[str, Path], tmp_path: Path) -> None:
    """Factors do not ask what the base is: a blend made beside the plain base works on a packed one."""
    folder = blend([folders["one"], folders["gralora"]], tmp_path / "out").folder
    board = open_switchboard(str(base), device="cpu", quantise="nf4")
    for name in ("one", "gralora"):
        board.load(name, folders[name])
    board.load("blend", folder)
    assert not torch.allclose(board.logits(IDS, ["blend"])[0], board.logits(IDS)[0], atol=1e-3)


REFUSED: list[tuple[list[str], dict[str, Any], str, str]] = [
    (["one", "two"], {"weights": (1.0, -1.0)}, "sum to zero", "--no-normalise"),
    (["one", "two"], {"weights": (0.0, 0.0), "normalise": False}, "all weights are zero", "other weights"),
    (["one", "two"], {"weights": (1.0,)}, "2 adapters and 1 weights", "0.7,0.3"),
    (["one", "two"], {"weights": (1.0, float("nan"))}, "nan is no number", "finite"),
    (["one", "two"], {"weights": (1.0, float("inf"))}, "inf is no number", "finite"),
    (["one", "two"], {"weights": (2.0, -1.0), "method": "ties"}, "has no meaning", "positive"),
    (["one"], {}, "one adapter to blend", "two or more"),
    (["one", "one"], {}, "same adapter", "each adapter once"),
    (["one", "two"], {"density": 0.5}, "drops nothing", "leave it out"),
    (["one", "two"], {"method": "ties", "density": 0.0}, "density of 0", "at most 1"),
    (["one", "two"], {"method": "dare", "density": float("nan")}, "density of nan", "at most 1"),
    (["one", "two"], {"method": "ties", "seed": 1}, "no seed", "leave it out"),
    (["one", "two"], {"method": "slerp"}, "`slerp` is no method", "dare-ties"),
    (["one", "two"], {"rank": 0}, "rank of 0", "at least 1"),
    (["one", "two"], {"rank": 2, "merge": True}, "of no rank", "--merge"),
    (["one", "two"], {"dtype": "float16"}, "written in fp32", "--merge"),
]


@pytest.mark.parametrize(
    ("names", "how", "what", "hint"), REFUSED, ids=lambda item: item if isinstance(item, str) else ""
)
def test_settings_that_do_not_fit(
    folders: dict[str, Path], tmp_path: Path, names: list[str], how: dict[str, Any], what: str, hint: str
) -> None:
    with pytest.raises(UserError, match=what) as caught:
        blend([folders[name] for name in names], tmp_path / "out", **how)
    assert caught.value.where
    assert hint in caught.value.hint
    assert list(tmp_path.iterdir()) == []


def test_one_update_less_another(base: Path, folders: dict[str, Path], tmp_path: Path) -> None:
    folder = blend([folders["one"], folders["gralora"]], tmp_path / "out", weights=(1, -1), normalise=False).folder
    one, other, found = (updates_in(base, item) for item in (folders["one"], folders["gralora"], folder))
    for name, update in found.items():
        close(update, one[name] - other[name])
    half = blend([folders["one"]], tmp_path / "half", weights=(0.5,), normalise=False).folder
    for name, update in updates_in(base, half).items():
        close(update, 0.5 * one[name])


@pytest.mark.parametrize(
    ("name", "why"),
    [("bottleneck", "layers of its own"), ("prompt", "in front of the input"), ("prefix", "keys and values")],
)
def test_what_changes_no_weights_is_refused(folders: dict[str, Path], tmp_path: Path, name: str, why: str) -> None:
    with pytest.raises(ModelError, match=why) as caught:
        blend([folders["one"], folders[name]], tmp_path / "out")
    assert "stack" in caught.value.hint
    assert list(tmp_path.iterdir()) == []


def test_adapters_of_two_bases_are_refused_by_hash_and_by_shape(
    base: Path, folders: dict[str, Path], tmp_path: Path
) -> None:
    like = embedded.model_folder("tunesmith-base-8m")
    assert like is not None
    desk_model(tmp_path / "twin", like, seed=1)
    desk_model(tmp_path / "wide", like, hidden_size=48)
    twin = write_random(tmp_path / "of_twin", tmp_path / "twin", SECTIONS["one"], 0)
    with pytest.raises(ModelError, match="another base"):
        blend([folders["one"], twin], tmp_path / "out")
    wide = peft.get_peft_model(
        AutoModelForCausalLM.from_pretrained(tmp_path / "wide"), peft.LoraConfig(r=2, target_modules=["q_proj"])
    )
    wide.save_pretrained(tmp_path / "of_wide")
    with pytest.raises(ModelError, match="shape"):
        blend([folders["one"], tmp_path / "of_wide"], tmp_path / "out", base=str(base))
    assert not (tmp_path / "out").exists()


def test_a_parameter_trained_in_two_ways_is_refused(base: Path, folders: dict[str, Path], tmp_path: Path) -> None:
    section = LoraSection(rank=2, alpha=4.0, targets=["*o_proj"], also_train=["*q_proj.weight"])
    write_random(tmp_path / "fully", base, section, 60)
    with pytest.raises(UserError, match="trains fully in one of the adapters"):
        blend([folders["one"], tmp_path / "fully"], tmp_path / "out")


def test_an_update_needs_factors_or_a_matrix() -> None:
    with pytest.raises(ValueError, match="no low rank"):
        Update(whole=torch.ones(2, 2)).factors()
