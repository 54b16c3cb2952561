"""`train --fork RUN[@STEP]`: a child run from a checkpoint, although recipe or data changed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from tests.e2e.desk import ROWS, Call, Said, Write, torn, write_rows
from tests.faults import Crash, FaultyDisk
from tests.tiny import desk_model
from tunesmith.disk import use_disk

PARENT, CHILD = Path("runs/desk"), Path("runs/child")
TRAINING = {
    "max_steps": 4, "batch_size": 4, "samples": 0, "learning_rate": 1e-3, "schedule": "constant", "warmup": 0,
    "checkpoint_every": 2, "evaluate_every": 3, "keep_checkpoints": 9, "adaptive_clip": {"warmup": 2, "threshold": 1.0},
    "guards": {"spikes": {"window": 8, "threshold": 20}},
}  # fmt: skip


@pytest.fixture
def parent(desk: Path, call: Call, write: Write) -> str:
    """A finished run of four steps and its recipe."""
    recipe = write(training=TRAINING)
    assert call("train", recipe).code == 0
    return recipe


def _fork(call: Call, recipe: str, *more: str, of: str = "runs/desk") -> Said:
    return call("train", recipe, "--fork", of, "--run", CHILD, *more)


def _lineage(run: Path = CHILD) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((run / "lineage.json").read_text(encoding="utf-8"))
    return values


def _metrics(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [{key: line[key] for key in line if "second" not in key} for line in lines]


def _hashes(run: Path, step: int) -> dict[str, str]:
    manifest = json.loads((run / "checkpoints" / f"{step:08d}" / "manifest.json").read_text(encoding="utf-8"))
    return {name: item["sha256"] for name, item in manifest["files"].items() if name != "state.json"}


def test_a_longer_child_goes_on_as_if_the_parent_had_been_longer(call: Call, write: Write, parent: str) -> None:
    """Weights, moments, place in the data, spike window and clipping history: any of them missing would show in the bits."""
    whole = write("whole.yaml", training=TRAINING | {"max_steps": 9})
    assert call("train", whole, "--run", "runs/whole").code == 0
    said = _fork(call, parent, "training.max_steps=9")
    assert said.code == 0, said.err
    assert (
        "forked from runs/desk at step 4: takes over the weights and optimiser state, and goes on at step 4 of 9"
        in said.err
    )
    assert "training.max_steps: 4 -> 9" in said.err
    assert _hashes(CHILD, 9) == _hashes(Path("runs/whole"), 9)
    assert _metrics(CHILD) == [line for line in _metrics(Path("runs/whole")) if line["step"] > 4]
    lineage = _lineage()
    assert lineage["parent"]["path"] == str(PARENT.resolve())
    assert lineage["parent"]["step"] == 4
    assert lineage["starts_at"] == 4
    assert lineage["differences"] == {"recipe": ["training.max_steps: 4 -> 9"], "inputs": []}
    assert all(value for name, value in lineage["carried"].items() if name != "loss_scale")


def test_the_parents_own_resolved_recipe_is_no_other_data(call: Call, parent: str) -> None:
    assert _fork(call, "runs/desk/recipe.json", "training.max_steps=6", of="desk").code == 0  # by its name, too
    assert _lineage()["starts_at"] == 4


def test_an_earlier_step_can_be_named(call: Call, parent: str) -> None:
    assert _fork(call, parent, "training.learning_rate=2e-3", of="runs/desk@2").code == 0
    assert [line["step"] for line in _metrics(CHILD) if "loss" in line] == [3, 4]
    assert {line["learning_rate"] for line in _metrics(CHILD) if "loss" in line} == {2e-3}
    assert (CHILD / "checkpoints" / "00000002").is_dir()


def test_on_other_data_it_starts_at_step_0_with_the_parents_moments(desk: Path, call: Call, parent: str) -> None:
    write_rows(desk / "rows.jsonl", [{"text": "new words", "label": "repair"}, *ROWS])
    call("train", parent).refuses(2, "the data changed", "--fork runs/desk")
    said = _fork(call, parent)
    assert said.code == 0, said.err
    assert "starts at step 0 of its own data" in said.err
    assert "the data is not the parent's" in said.err
    assert "rows.jsonl: " in said.err
    start = CHILD / "checkpoints" / "00000000"
    assert _hashes(CHILD, 0) == _hashes(PARENT, 4)
    assert load_file(start / "optimiser.safetensors")["model.layers.0.self_attn.q_proj.lora_A.weight/step"].item() == 4
    assert [line["step"] for line in _metrics(CHILD) if "loss" in line] == [1, 2, 3, 4]
    carried = _lineage()["carried"]
    assert carried.pop("optimiser") is True
    assert carried == dict.fromkeys(("position", "loss_scale", "clipping", "spikes", "freezing"), False)


@pytest.mark.parametrize(
    ("override", "words"),
    [("training.batch_size=8", "`training.batch_size` is not the parent's"), ("seed=3", "`seed` is not the parent's"),
     ("objective.loss_on=everything", "the data and the objective are not the parent's")],
)  # fmt: skip
def test_another_order_of_the_data_starts_at_step_0(call: Call, parent: str, override: str, words: str) -> None:
    said = _fork(call, parent, override)
    assert said.code == 0, said.err
    assert words in said.err
    assert _lineage()["starts_at"] == 0


def test_another_optimiser_takes_the_weights_alone(call: Call, parent: str) -> None:
    said = _fork(call, parent, "training.optimiser=sgd", "training.max_steps=6")
    assert said.code == 0, said.err
    assert "the optimiser is sgd, the parent's was adamw: its state starts anew" in said.err
    assert load_file(CHILD / "checkpoints" / "00000004" / "optimiser.safetensors") == {}
    assert _lineage()["starts_at"] == 4


def test_early_stopping_and_guards_that_changed_start_anew(call: Call, parent: str) -> None:
    said = _fork(
        call, parent, "training.max_steps=7", "training.early_stopping={patience: 5}", "training.guards.spikes.window=9",
        "training.adaptive_clip=null",
    )  # fmt: skip
    assert said.code == 0, said.err
    for words in ("early stopping starts anew", "the spike guard starts anew", "adaptive clipping starts anew"):
        assert words in said.err


def test_another_base_is_refused_with_the_difference(desk: Path, call: Call, write: Write, parent: str) -> None:
    desk_model(desk / "other", desk / "tiny", seed=3)
    _fork(call, write("other.yaml", training=TRAINING, model="other")).refuses(
        2, "another base model", "model.safetensors: sha256 ", "at runs/desk", "export it merged"
    )
    assert not CHILD.exists()


def test_other_tensors_are_refused_with_the_difference(call: Call, parent: str) -> None:
    _fork(call, parent, "adapter.rank=3", of="runs/desk@2").refuses(
        2, "the parent trained other tensors", "lora_A.weight: 2 x 32 float32 -> 3 x 32 float32", "`adapter` section"
    )
    _fork(call, parent, "adapter={type: full}", of="runs/desk@2").refuses(
        2, "lora_A.weight: 2 x 32 float32 -> none", "and "
    )
    assert not CHILD.exists()


def test_rows_of_other_tokens_are_refused_and_the_same_go_on(call: Call, write: Write) -> None:
    adapter = {"type": "lora", "rank": 2, "train_tokens": [5, 6]}
    recipe = write(training=TRAINING | {"max_steps": 2}, adapter=adapter)
    assert call("train", recipe).code == 0
    _fork(call, recipe, "adapter.train_tokens=[5, 7]", "training.max_steps=3").refuses(
        2, "rows of other tokens", "is [5, 6] there and [5, 7] here", "at --fork runs/desk", "train_tokens: [5, 6]"
    )
    assert not CHILD.exists()
    assert _fork(call, recipe, "training.max_steps=3").code == 0


def test_what_cannot_be_forked(desk: Path, call: Call, parent: str) -> None:
    _fork(call, parent, of="runs/none").refuses(2, "no such run folder", "at runs/none")
    _fork(call, parent, of="runs/desk@3").refuses(2, "no checkpoint of step 3", "at --fork runs/desk@3", "@2, @4")
    _fork(call, parent, of="runs/desk@last").refuses(2, "`last` is not a step", "--fork runs/desk@40")
    _fork(call, parent).refuses(2, "no step is left to train", "step 4", "training.max_steps", "@2, @4")
    call("train", parent, "--fork", "runs/desk", "training.max_steps=9").refuses(
        2, "holds a run already", "at runs/desk", "--run runs/desk-2"
    )
    assert not CHILD.exists()
    for file in (PARENT / "checkpoints").rglob("trained.safetensors"):
        file.write_bytes(file.read_bytes()[:-1])
    before = sorted(path.name for path in (PARENT / "checkpoints").iterdir())
    _fork(call, parent, "training.max_steps=9").refuses(
        2, "of step 4 cannot be used: trained.safetensors has ", "of step 2"
    )
    assert sorted(path.name for path in (PARENT / "checkpoints").iterdir()) == before  # it is not ours to set aside


def test_the_newest_good_checkpoint_is_taken_and_the_bad_one_named(call: Call, parent: str) -> None:
    file = PARENT / "checkpoints" / "00000004" / "state.json"
    file.write_bytes(b"{}")
    said = _fork(call, parent, "training.learning_rate=2e-3")
    assert said.code == 0, said.err
    assert "the parent's checkpoint of step 4 cannot be used: state.json has 2 bytes" in said.err
    assert _lineage()["parent"]["step"] == 2


def test_the_same_call_goes_on_and_another_parent_is_refused(call: Call, parent: str) -> None:
    assert _fork(call, parent, "training.max_steps=6").code == 0
    assert "nothing to do" in _fork(call, parent, "training.max_steps=6").err
    assert "nothing to do" in call("train", parent, "training.max_steps=6", "--run", CHILD).err
    _fork(call, parent, "training.max_steps=6", of="runs/desk@2").refuses(
        2, "was forked from ", "runs/desk@4, not from runs/desk@2", "at runs/child", "--run runs/child-2"
    )


def _die(disk: FaultyDisk, call: Call, parent: str) -> None:
    with use_disk(disk), pytest.raises(Crash):
        _fork(call, parent, "training.max_steps=8")


@pytest.mark.parametrize("tenth", range(10))
def test_a_crash_anywhere_and_a_parent_that_is_gone(call: Call, parent: str, tenth: int) -> None:
    """A child that was cut off goes on, or starts once more, to the same bits; once it has a checkpoint it needs no parent."""
    counting = FaultyDisk(only=lambda path: "child" in path.parts)
    with use_disk(counting):
        assert _fork(call, parent, "training.max_steps=8").code == 0
    expected, metrics = _hashes(CHILD, 8), _metrics(CHILD)
    shutil.rmtree(CHILD)
    _die(FaultyDisk(1 + counting.count * tenth // 10, only=lambda path: "child" in path.parts), call, parent)
    if any((CHILD / "checkpoints").glob("0000000?/manifest.json")):
        PARENT.rename("gone")
    again = _fork(call, parent, "training.max_steps=8")
    assert again.code == 0, again.err
    assert _hashes(CHILD, 8) == expected
    assert _metrics(CHILD) == metrics
    assert torn(Path()) == []


def test_without_any_checkpoint_the_parents_is_needed_and_asked_for(call: Call, parent: str) -> None:
    assert _fork(call, parent, "training.max_steps=6").code == 0
    (CHILD / "status.json").unlink()
    shutil.rmtree(CHILD / "checkpoints")
    PARENT.rename("gone")
    _fork(call, parent, "training.max_steps=6").refuses(
        4, "the parent's of step 4 cannot be used", "desk/checkpoints", "back"
    )
    Path("gone").rename(PARENT)
    assert _fork(call, parent, "training.max_steps=6").code == 0


def test_a_fork_of_a_fork_keeps_the_chain_and_every_face_shows_it(call: Call, parent: str) -> None:
    assert _fork(call, parent, "training.max_steps=6").code == 0
    said = call("train", parent, "training.max_steps=8", "--fork", "runs/child@6", "--run", "runs/grandchild")
    assert said.code == 0, said.err
    run = Path("runs/grandchild")
    lineage = _lineage(run)
    assert [item["name"] for item in (lineage["parent"], *lineage["ancestors"])] == ["child", "desk"]
    chain = "child@6, forked from desk@4"
    shown = call("runs", "show", run)
    assert chain in shown.out
    assert call("runs", "show", run, "--json").json["lineage"]["parent"]["step"] == 6
    listed = call("runs", "list")
    assert "child@6" in listed.out
    by_name = {item["name"]: item["forked_from"] for item in call("runs", "list", "--json").json["runs"]}
    assert by_name == {"desk": "", "child": "desk@4", "grandchild": "child@6"}
    compared = call("runs", "compare", CHILD, run)
    assert compared.code == 0
    assert "training.max_steps: 6 -> 8" in compared.out
    assert "grandchild was forked from child@6, forked from desk@4" in compared.out
    for page, head in (("report.html", "<h2>Lineage</h2>"), ("card.md", "## Lineage")):
        text = (run / page).read_text(encoding="utf-8")
        assert head in text
        assert f"Forked from {chain}" in text
        assert "lineage.json" not in (PARENT / page).read_text(encoding="utf-8")  # its absence is no lack
        assert head not in (PARENT / page).read_text(encoding="utf-8")


def test_a_damaged_lineage_is_a_users_error(call: Call, parent: str) -> None:
    assert _fork(call, parent, "training.max_steps=6").code == 0
    (CHILD / "lineage.json").write_text("{}", encoding="utf-8")
    call("train", parent, "training.max_steps=6", "--run", CHILD).refuses(2, "lineage", "at runs/child/lineage.json")
    (CHILD / "lineage.json").unlink()
    call("train", parent, "training.max_steps=6", "--run", CHILD).refuses(2, "changed", "--run")
