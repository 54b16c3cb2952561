"""Many adapters on one base: stacked, switched by request, swapped; equal to each alone and to a fresh load."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path

import peft
import pytest
import torch
from tests.adapter_folders import write_random
from tests.tiny import desk_model
from transformers import AutoModelForCausalLM

from tunesmith import embedded
from tunesmith.adapters import lora_layer
from tunesmith.adapters.lora_layer import LinearPart
from tunesmith.errors import ModelError, UserError
from tunesmith.models.loading import load_model
from tunesmith.models.locate import open_model
from tunesmith.recipe.bottleneck import BottleneckSection
from tunesmith.recipe.low_rank import GraloraSection, LoraSection
from tunesmith.recipe.prompts import PrefixSection, PromptSection
from tunesmith.types import Sampling
from tunesmith.workshop.opening import open_machine
from tunesmith.workshop.switchboard import Switchboard, open_switchboard

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Unable to fetch remote file|Could not find a config file:UserWarning"),
]

SECTIONS = {
    "lora": LoraSection(rank=4, alpha=8.0),
    "scaled": LoraSection(rank=2, alpha=4.0, rslora=True, targets=["attention"]),
    "rows": LoraSection(rank=2, alpha=4.0, train_tokens=[5, 9]),
    "more_rows": LoraSection(rank=2, alpha=4.0, train_tokens=[9, 17]),
    "dora": LoraSection(rank=4, alpha=8.0, dora=True),
    "gralora": GraloraSection(rank=4, alpha=8.0, blocks=2),
    "bottleneck": BottleneckSection(),
    "prompt": PromptSection(num_tokens=4),
    "prefix": PrefixSection(num_tokens=3),
    "norms": LoraSection(rank=2, alpha=4.0, also_train=["*norm*"]),
}
SEQUENTIAL = BottleneckSection(placement="sequential", reduction=2)
DOCUMENTS = [[7, 9, 5, 11, 30], [8, 5, 17, 9], [9, 40, 41, 42, 43, 44, 5], [3, 17, 9, 60], [5, 6, 9]]
FEW = Sampling(max_new_tokens=6)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    like = embedded.model_folder("tunesmith-base-8m")
    assert like is not None
    folder = tmp_path_factory.mktemp("board") / "base"
    desk_model(folder, like)
    return folder


@pytest.fixture(scope="module")
def folders(base: Path) -> dict[str, Path]:
    return {
        name: write_random(base.parent / name, base, section, seed)
        for seed, (name, section) in enumerate(SECTIONS.items())
    }


def board_with(base: Path, folders: dict[str, Path], *names: str) -> Switchboard:
    board = open_switchboard(str(base), device="cpu")
    for name in names:
        assert board.load(name, folders[name]) == []
    return board


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("name", SECTIONS)
def test_one_of_many_gives_the_bits_of_a_fresh_load(base: Path, folders: dict[str, Path], name: str) -> None:
    board = board_with(base, folders, *SECTIONS)
    fresh = open_switchboard(str(base), device="cpu")
    bare = fresh.logits(DOCUMENTS)
    fresh.load(name, folders[name])
    fresh.use(name)
    board.use(name)
    for one, other, without in zip(board.logits(DOCUMENTS), fresh.logits(DOCUMENTS), bare, strict=True):
        assert torch.equal(one, other)
        assert not torch.allclose(one, without, atol=1e-3)
    board.use()
    assert all(torch.equal(one, other) for one, other in zip(board.logits(DOCUMENTS), bare, strict=True))


def test_the_board_answers_as_the_adapter_opened_by_itself(base: Path, folders: dict[str, Path]) -> None:
    board = board_with(base, folders, "lora", "rows")
    alone = open_machine(str(folders["rows"]), device="cpu").machine
    prompt = board.prompt_ids("where is it?", "rows")
    assert board.sample([prompt], FEW, ["rows"])[0].ids == alone.generator.sample([prompt], FEW)[0].ids


def test_stacked_updates_are_summed_as_peft_sums_them(base: Path, folders: dict[str, Path]) -> None:
    board = board_with(base, folders, "lora", "scaled")
    found = board.logits(DOCUMENTS[:1], [("lora", "scaled")])[0]
    model = AutoModelForCausalLM.from_pretrained(base)
    model = peft.PeftModel.from_pretrained(model, str(folders["lora"]), adapter_name="lora")
    model.load_adapter(str(folders["scaled"]), adapter_name="scaled")
    model.base_model.set_adapter(["lora", "scaled"])
    with torch.no_grad():
        close(found, model.eval()(input_ids=torch.tensor(DOCUMENTS[:1])).logits[0])


def test_mixed_rows_are_those_of_peft(base: Path, folders: dict[str, Path]) -> None:
    board = board_with(base, folders, "lora", "scaled")
    rows = [[7, 9, 5, 11], [8, 5, 17, 9], [9, 40, 41, 42]]
    model = AutoModelForCausalLM.from_pretrained(base)
    model = peft.PeftModel.from_pretrained(model, str(folders["lora"]), adapter_name="lora")
    model.load_adapter(str(folders["scaled"]), adapter_name="scaled")
    with torch.no_grad():
        theirs = model.eval()(input_ids=torch.tensor(rows), adapter_names=["scaled", "__base__", "lora"]).logits
    for found, expected in zip(board.logits(rows, ["scaled", (), "lora"]), theirs, strict=True):
        close(found, expected)


def test_a_stack_of_any_methods_is_the_base_plus_each_change(base: Path, folders: dict[str, Path]) -> None:
    """Closed form: every change of a weight, each from the base's own, added to it."""
    names = ("lora", "dora", "gralora")
    board = board_with(base, folders, *names)
    plain = load_model(base)
    for name in names:
        adapter = board._held[name].adapter
        for place, site in adapter.carriers().items():
            part = adapter.part_at(site)
            assert isinstance(part, LinearPart)
            with torch.no_grad():
                plain.hf.get_submodule(place).weight.add_(part.delta(lora_layer.weight_of(site)))
    with torch.no_grad():
        expected = plain.hf.eval()(input_ids=torch.tensor(DOCUMENTS[:1])).logits[0]
    close(board.logits(DOCUMENTS[:1], [names])[0], expected)


def test_rows_of_one_token_are_summed_where_adapters_stack(base: Path, folders: dict[str, Path]) -> None:
    """Closed form: a matrix whose rows are the base's plus each adapter's change."""
    board = board_with(base, folders, "rows", "more_rows")
    hf = board.model.hf
    weight = hf.get_input_embeddings().weight
    plain = weight.detach().clone()
    rows = {}
    for name in ("rows", "more_rows"):
        board.logits(DOCUMENTS[:1], [name])
        board.use(name)
        board.logits(DOCUMENTS[:1])
        rows[name] = weight.detach() - plain
        board.use()
    assert torch.equal(weight, plain)
    board.use("rows", "more_rows")
    board.logits(DOCUMENTS[:1])
    torch.testing.assert_close(weight.detach(), plain + rows["rows"] + rows["more_rows"])
    assert [int(item) for item in (rows["rows"].abs().sum(1) > 0).nonzero()] == [5, 9]
    board.use()
    assert torch.equal(weight, plain)


MIXED = ["lora", ("rows", "more_rows"), (), "bottleneck", ("dora", "gralora", "lora")]


def test_rows_of_one_batch_have_adapters_of_their_own(base: Path, folders: dict[str, Path]) -> None:
    board = board_with(base, folders, "lora", "rows", "more_rows", "dora", "gralora", "bottleneck")
    passes = []
    hook = board.model.base().register_forward_pre_hook(lambda *_: passes.append(1))
    together = board.logits(DOCUMENTS, MIXED)
    assert len(passes) == 1
    hook.remove()
    for document, stack, found in zip(DOCUMENTS, MIXED, together, strict=True):
        close(found, board.logits([document], [stack])[0])


def test_interleaved_requests_of_two_adapters(base: Path, folders: dict[str, Path]) -> None:
    """Equal lengths: padded rows of one batch in any order, answered token by token; rows that end leave the batch."""
    board = board_with(base, folders, "lora", "rows")
    prompts = [[7, 9, 5, number] for number in (11, 12, 13, 14, 15, 16)]
    adapters = ["lora", "rows", (), "lora", "rows", ()]
    calls = []
    hook = board.model.hf.register_forward_pre_hook(lambda *_: calls.append(1))
    together = board.sample(prompts, FEW, adapters)
    assert len(calls) <= FEW.max_new_tokens
    hook.remove()
    for prompt, adapter, answer in zip(prompts, adapters, together, strict=True):
        alone = board.sample([prompt], FEW, [adapter])[0]
        assert answer.ids == alone.ids
        torch.testing.assert_close(torch.tensor(answer.logprobs), torch.tensor(alone.logprobs), rtol=1e-4, atol=1e-4)


def test_a_row_that_ends_early_leaves_the_others_their_adapters(base: Path, folders: dict[str, Path]) -> None:
    board = board_with(base, folders, "lora", "rows")
    prompts, adapters = [[7, 9, 5], [8, 9, 5], [9, 9, 5]], ["lora", (), "rows"]
    whole = board.sample(prompts, FEW, adapters)
    stop = frozenset([whole[0].ids[1]])
    board._stop_ids = lambda stack: stop  # type: ignore[method-assign]
    for prompt, adapter, answer in zip(prompts, adapters, board.sample(prompts, FEW, adapters), strict=True):
        assert answer.ids == board.sample([prompt], FEW, [adapter])[0].ids
    assert board.sample(prompts, FEW, adapters)[0].ended


def test_what_cannot_share_a_pass_takes_its_own(base: Path, folders: dict[str, Path]) -> None:
    board = board_with(base, folders, "lora", "prompt", "prefix", "norms")
    stacks = ["lora", "prompt", "prefix", "norms", ()]
    for document, stack, found in zip(DOCUMENTS, stacks, board.logits(DOCUMENTS, stacks), strict=True):
        close(found, board.logits([document], [stack])[0])
    for answer, prompt, stack in zip(board.sample(DOCUMENTS, FEW, stacks), DOCUMENTS, stacks, strict=True):
        assert answer.ids == board.sample([prompt], FEW, [stack])[0].ids


def test_mixed_and_apart_agree(base: Path, folders: dict[str, Path]) -> None:
    board = board_with(base, folders, "lora", "rows")
    stacks = ["lora", "rows", "lora", "rows", ()]
    pairs = zip(board.logits(DOCUMENTS, stacks), board.logits(DOCUMENTS, stacks, mixed=False), strict=True)
    for one, other in pairs:
        close(one, other)


@pytest.mark.parametrize("quantise", ["nf4"])
def test_mixed_rows_on_a_quantised_base(base: Path, folders: dict[str, Path], quantise: str) -> None:
    board = open_switchboard(str(base), device="cpu", quantise=quantise)
    for name in ("lora", "gralora"):
        board.load(name, folders[name])
    stacks = ["lora", "gralora", (), "lora", ("gralora", "lora")]
    for document, stack, found in zip(DOCUMENTS, stacks, board.logits(DOCUMENTS, stacks), strict=True):
        close(found, board.logits([document], [stack])[0])


@pytest.mark.parametrize("second", ["rows", "bottleneck", "norms", "prompt"])
def test_a_swap_gives_the_bits_of_a_fresh_load_and_frees_the_old(
    base: Path, folders: dict[str, Path], second: str
) -> None:
    board = board_with(base, folders, "lora", "gralora")
    board.use("lora")
    board.logits(DOCUMENTS)
    old = board._held["lora"].adapter
    gone = [weakref.ref(old), *(weakref.ref(part) for part in old.trained_parts().values())]
    del old
    board.swap("lora", folders[second])
    gc.collect()
    assert [item for item in gone if item() is not None] == []
    fresh = open_switchboard(str(base), device="cpu")
    fresh.load("other", folders[second])
    fresh.use("other")
    for one, other in zip(board.logits(DOCUMENTS), fresh.logits(DOCUMENTS), strict=True):
        assert torch.equal(one, other)


def test_unloading_leaves_the_base_as_it_was_loaded(base: Path, folders: dict[str, Path]) -> None:
    board = board_with(base, folders, *SECTIONS)
    board.logits(DOCUMENTS[:2], ["norms", ("rows", "more_rows")])
    for name in board.names:
        board.unload(name)
    plain, here = load_model(base).hf, board.model.hf
    assert [type(module) for module in plain.modules()] == [type(module) for module in here.modules()]
    found = here.state_dict()
    assert found.keys() == plain.state_dict().keys()
    assert all(torch.equal(found[key], value) for key, value in plain.state_dict().items())


def test_order_decides_where_one_reads_what_the_other_wrote(base: Path, folders: dict[str, Path]) -> None:
    board = board_with(base, folders)
    for seed, name in enumerate(("first", "second")):
        board.load(name, write_random(base.parent / name, base, SEQUENTIAL, 77 + seed, size=1.0))
    one = board.logits(DOCUMENTS[:1], [("first", "second")])[0]
    other = board.logits(DOCUMENTS[:1], [("second", "first")])[0]
    assert not torch.allclose(one, other, atol=1e-3)
    again = board.logits(DOCUMENTS[:1], [("first", "second")])[0]
    assert torch.equal(one, again)


def test_refusals(base: Path, folders: dict[str, Path], tmp_path: Path) -> None:
    board = board_with(base, folders, "lora", "norms")
    with pytest.raises(UserError, match="already") as caught:
        board.load("lora", folders["rows"])
    assert "swap" in caught.value.hint
    with pytest.raises(UserError, match="no adapter `lroa`"):
        board.use("lroa")
    with pytest.raises(UserError, match="no adapter `x`"):
        board.swap("x", folders["rows"])
    with pytest.raises(UserError, match="stacks on itself"):
        board.use("lora", "lora")
    with pytest.raises(UserError, match="adapters for 1"):
        board.logits(DOCUMENTS, ["lora"])
    with pytest.raises(UserError, match="request 1 has 0 tokens"):
        board.logits([[1], []])
    board.use("lora")
    with pytest.raises(UserError, match="in use"):
        board.unload("lora")
    board.load("norms2", folders["norms"])
    with pytest.raises(UserError, match="`norms` and `norms2` both train"):
        board.use("norms", "norms2")
    with pytest.raises(ModelError, match="no adapter"):
        board.load("base", base)
    assert board.names == ("lora", "norms", "norms2")


def test_a_swap_that_fails_leaves_what_was(base: Path, folders: dict[str, Path], tmp_path: Path) -> None:
    board = board_with(base, folders, "lora", "norms", "rows")
    board.use("norms", "lora")
    before = board.logits(DOCUMENTS)
    with pytest.raises(UserError, match="both train"):
        board.swap("lora", folders["norms"])
    with pytest.raises(ModelError):
        board.swap("lora", tmp_path)
    assert all(torch.equal(one, other) for one, other in zip(board.logits(DOCUMENTS), before, strict=True))


def test_an_adapter_of_another_base_is_refused_by_hash_and_by_shape(base: Path, tmp_path: Path) -> None:
    like = embedded.model_folder("tunesmith-base-8m")
    assert like is not None
    desk_model(tmp_path / "twin", like, seed=1)
    desk_model(tmp_path / "wide", like, hidden_size=48)
    twin = write_random(tmp_path / "of_twin", tmp_path / "twin", SECTIONS["lora"], 0)
    board = open_switchboard(str(base), device="cpu")
    with pytest.raises(ModelError, match="another base"):
        board.load("twin", twin)
    # PEFT's files name no hash: shapes decide, and that is said
    model = peft.get_peft_model(
        AutoModelForCausalLM.from_pretrained(tmp_path / "twin"), peft.LoraConfig(r=2, target_modules=["q_proj"])
    )
    model.save_pretrained(tmp_path / "peft_twin")
    assert "no hash" in board.load("peft", tmp_path / "peft_twin")[0]
    wide = peft.get_peft_model(
        AutoModelForCausalLM.from_pretrained(tmp_path / "wide"), peft.LoraConfig(r=2, target_modules=["q_proj"])
    )
    wide.save_pretrained(tmp_path / "peft_wide")
    with pytest.raises(ModelError, match="shape"):
        board.load("wide", tmp_path / "peft_wide")
    assert board.names == ("peft",)
    # and where a folder is opened by itself, its base having changed since
    (tmp_path / "twin" / "model.safetensors").write_bytes((base / "model.safetensors").read_bytes())
    assert open_model(str(twin)).base.path == tmp_path / "twin"
    with pytest.raises(ModelError, match="another base"):
        open_machine(str(twin), device="cpu")
