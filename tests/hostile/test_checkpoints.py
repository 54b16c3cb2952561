"""Checkpoints of strangers, whose manifests fit: what does not fit the run is set aside before any of it is used."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from tests.hostile.checkpoints import FORGERIES, OPTIMISER, STATE, TRAINED, seal, state
from tests.hostile.conftest import call
from tests.loops import Cut, make_trainer
from tests.reliability.stories import one_thread_saves
from tunesmith.engine.checkpoint import Checkpoint
from tunesmith.engine.clipping import ZClipOptions
from tunesmith.engine.recovery import GuardOptions
from tunesmith.engine.spikes import SpikeOptions
from tunesmith.engine.trainer import Trainer
from tunesmith.errors import GuardStopped
from tunesmith.registry.run_folder import RunFolder

GUARDED: dict[str, Any] = {
    "spikes": SpikeOptions(window=4), "zclip": ZClipOptions(warmup=2), "guards": GuardOptions(non_finite="skip"),
    "save_in_background": False,
}  # fmt: skip


def make(folder: Path, said: list[str] | None = None, **changes: Any) -> Trainer:
    heard = said if said is not None else []
    return make_trainer(folder, say=lambda kind, text: heard.append(f"{kind}: {text}"), **GUARDED, **changes)[0]


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints of steps 4 and 8 of a run of 12 steps that was cut off."""
    folder = tmp_path_factory.mktemp("kept")
    with pytest.raises(Cut):
        make(folder, stop_after=8).run()
    return folder


@pytest.fixture
def shelf(kept: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(kept, tmp_path / "checkpoints"))


def inside(trainer: Trainer) -> list[Any]:
    """All that a restore would change."""
    tensors = {**trainer.adapter.state(), **trainer.optimiser.state()}
    return [json.dumps(trainer.state()), {name: value.clone() for name, value in tensors.items()}]


def same(one: list[Any], other: list[Any]) -> bool:
    return one[0] == other[0] and list(one[1]) == list(other[1]) and all(
        torch.equal(value, other[1][name]) for name, value in one[1].items()
    )  # fmt: skip


def test_good_ones_are_used(shelf: Path) -> None:
    said: list[str] = []
    trainer = make(shelf, said)
    found = trainer.checkpoints.newest()
    assert found is not None
    assert (found.step, said) == (8, [])
    trainer.restore(found)
    assert trainer.run().steps == 12


@pytest.mark.parametrize("forgery", FORGERIES.values(), ids=FORGERIES)
def test_what_does_not_fit_is_set_aside_and_nothing_of_it_is_used(shelf: Path, forgery: Any) -> None:
    newest = shelf / "00000008"
    forgery(newest)
    seal(newest)
    said: list[str] = []
    trainer = make(shelf, said)
    before = inside(trainer)
    found = trainer.checkpoints.newest()
    assert found is not None
    assert found.step == 4
    assert [item.partition(":")[0] for item in said] == ["checkpoint_set_aside"]
    assert len(said[0]) < 400
    assert same(before, inside(trainer))


def test_none_left_says_what_to_do(shelf: Path) -> None:
    for folder in sorted(shelf.iterdir()):
        FORGERIES["moments short"](folder)
        seal(folder)
    with pytest.raises(GuardStopped) as raised:
        make(shelf).checkpoints.newest()
    assert raised.value.exit_code == 4
    assert "--restart" in raised.value.hint


@pytest.mark.parametrize("scope", ["lora", "lora with tokens", "full"])
@pytest.mark.parametrize("optimiser", ["adamw", "adamw_8bit", "sgd"])
def test_what_a_run_saves_fits_it(tmp_path: Path, scope: str, optimiser: str) -> None:
    """Of each kind, after refused steps, and before the first one."""
    changes = {"scope": scope, "optimiser": optimiser, "checkpoint_every": 1, "keep_checkpoints": 20}
    trainer = make(tmp_path, **changes)
    trainer.save()
    trainer.run()
    again = make(tmp_path, **changes)
    looked = [again.checkpoints.look(step) for step in again.checkpoints.steps()]
    assert len(looked) == 13
    assert [item for item in looked if not isinstance(item, Checkpoint)] == []


def test_a_parameter_without_state_had_no_step(shelf: Path) -> None:
    """All of its keys may be missing, some of them may not."""
    newest = shelf / "00000008"
    tensors = load_file(newest / OPTIMISER)
    name = sorted(tensors)[0].rpartition("/")[0]
    save_file({key: value for key, value in tensors.items() if key.rpartition("/")[0] != name}, newest / OPTIMISER)
    seal(newest)
    found = make(shelf).checkpoints.newest()
    assert found is not None
    assert found.step == 8


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 66), 1 << 66) | st.floats(allow_nan=True) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip


def places(value: Any, above: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths of everything within a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [above, *(place for key, inner in items for place in places(inner, (*above, key)))]


def put(value: Any, place: tuple[Any, ...], other: Any, act: str) -> Any:
    """The value with another at a place, or without it, or with one more."""
    if not place:
        return other
    inner = value[place[0]]
    if len(place) > 1:
        return put_in(value, place[0], put(inner, place[1:], other, act))
    if act == "drop":
        rest = {key: item for key, item in value.items() if key != place[0]} if isinstance(value, dict) else None
        return rest if rest is not None else [item for at, item in enumerate(value) if at != place[0]]
    if act == "add":
        return {**value, "more": other} if isinstance(value, dict) else [*value, other]
    return put_in(value, place[0], other)


def put_in(value: Any, key: Any, other: Any) -> Any:
    if isinstance(value, dict):
        return {**value, key: other}
    return [other if at == key else item for at, item in enumerate(value)]


def goes_on_or_aside(folder: Path) -> None:
    """A run goes on from what the folder holds, or sets it aside; a guard may stop it; nothing else happens."""
    seal(folder / "00000008")
    trainer = make(folder)
    before = inside(trainer)
    found = trainer.checkpoints.newest()
    assert found is not None
    if found.step == 4:
        assert same(before, inside(trainer))
        return
    trainer.restore(found)
    try:
        outcome = trainer.run()
    except GuardStopped:
        return
    assert outcome.stopped_early or outcome.steps == 12


FUZZ = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


@FUZZ
@given(data=st.data())
def test_any_value_in_the_state(kept: Path, tmp_path: Path, data: st.DataObject) -> None:
    folder = Path(shutil.copytree(kept, tmp_path / "c", dirs_exist_ok=True))
    values = json.loads((kept / "00000008" / STATE).read_text())
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.sampled_from(places(values)))
        values = put(values, place, data.draw(VALUES), data.draw(st.sampled_from(["replace", "drop", "add"])))
    (folder / "00000008" / STATE).write_text(json.dumps(values))
    goes_on_or_aside(folder)
    shutil.rmtree(folder)


@FUZZ
@given(data=st.data())
@pytest.mark.parametrize("name", [TRAINED, OPTIMISER])
def test_any_tensor_in_a_checkpoint(kept: Path, tmp_path: Path, name: str, data: st.DataObject) -> None:
    folder = Path(shutil.copytree(kept, tmp_path / "c", dirs_exist_ok=True))
    tensors = load_file(kept / "00000008" / name)
    for _ in range(data.draw(st.integers(1, 3))):
        chosen = data.draw(st.sampled_from(sorted(tensors) or ["adapter/none"]))
        value = tensors.pop(chosen, torch.zeros(1))
        if data.draw(st.booleans()):
            named = data.draw(st.sampled_from([chosen, f"{chosen}/exp_avg", "evil", "adapter/x", "/", "parts/"]))
            tensors[named] = data.draw(st.sampled_from(OTHERS))(value)
    save_file(tensors, folder / "00000008" / name)
    goes_on_or_aside(folder)
    shutil.rmtree(folder)


def _of_shape(*shape: int) -> Any:
    return lambda value: torch.zeros(shape, dtype=value.dtype)


OTHERS: list[Any] = [
    _of_shape(), _of_shape(0), _of_shape(7), _of_shape(1, 1), _of_shape(3, 0, 2), _of_shape(4096),
    lambda value: value.clone(), lambda value: value.flatten().clone(), lambda value: value[..., None].clone(),
    lambda value: value.half(), lambda value: value.double(), lambda value: value.to(torch.int64),
    lambda value: value.to(torch.bool), lambda value: torch.full_like(value, 3e38), lambda value: -value,
    lambda value: torch.full_like(value, -float("inf")), lambda value: value.T.contiguous() if value.ndim == 2 else value[None].clone(),
]  # fmt: skip


@pytest.fixture
def cut(desk: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    """The words that go on with ``runs/cut``, a run that was interrupted with checkpoints of its steps 2 and 3."""
    words = ("train", "recipe.yaml", "training.max_steps=4", "training.checkpoint_every=1", "--run", "runs/cut")
    append = RunFolder.append_metric

    def killed(run: RunFolder, line: dict[str, Any]) -> None:
        if line["step"] == 4:
            raise KeyboardInterrupt
        append(run, line)

    with one_thread_saves(), monkeypatch.context() as patch:
        patch.setattr(RunFolder, "append_metric", killed)
        assert call(*words).code == 130
    assert len(list(Path("runs/cut/checkpoints").iterdir())) == 2
    return words


def forge(name: str, *folders: Path) -> None:
    for folder in folders:
        FORGERIES[name](folder)
        seal(folder)


def test_a_run_goes_on_from_the_one_before_or_says_what_to_do(cut: tuple[str, ...]) -> None:
    newest, before = Path("runs/cut/checkpoints/00000003"), Path("runs/cut/checkpoints/00000002")
    forge("moments short", newest)
    shutil.copytree("runs/cut", "runs/all")
    said = call(*cut)
    assert said.code == 0, said.err
    assert "checkpoint 00000003 is set aside as 00000003.bad-0: optimiser.safetensors: " in said.err
    assert "resumed from the checkpoint of step 2 of 4" in said.err
    forge("state deep", Path("runs/all") / before.relative_to("runs/cut"))
    call(*cut[:-1], "runs/all").refuses(4, "no checkpoint of this run is good", "--restart")


@pytest.mark.parametrize("name", ["moments short", "state deep", "state empty", "trained NaN", "hooks none"])
def test_a_fork_of_one_is_refused_and_leaves_no_run(desk: Path, name: str) -> None:
    forge(name, *Path("runs/desk/checkpoints").iterdir())
    call("train", "recipe.yaml", "--fork", "runs/desk", "--run", "runs/child", "training.max_steps=3").refuses(2)
    assert not Path("runs/child/recipe.json").exists()


def test_a_fork_of_one_that_only_the_childs_guards_find_is_refused(desk: Path) -> None:
    """The clipping of a parent that had none fits its form, and not the child's guard."""
    forge_state = {"state": [30.0, 1.0, 1.0]}
    for folder in Path("runs/desk/checkpoints").iterdir():
        state(judge__clipping=forge_state)(folder)
        seal(folder)
    said = call("train", "recipe.yaml", "--fork", "runs/desk", "--run", "runs/child", "training.max_steps=3")
    said.refuses(4, "judge.clipping", "fork again into another folder")
