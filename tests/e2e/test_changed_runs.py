"""A run whose recipe, data, tokenizer, template or base changed is refused with the difference; a machine's own choices stay."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.desk import ROWS, Call, Write, write_rows
from tests.tiny import desk_model
from tunesmith.planning import defaults, plan
from tunesmith.planning.settings import Derived

RUN = Path("runs/desk")


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12]


@pytest.fixture
def begun(desk: Path, call: Call, write: Write) -> str:
    """A finished run and its recipe."""
    recipe = write()
    assert call("train", recipe).code == 0
    return recipe


def test_inputs_name_every_file(desk: Path, begun: str) -> None:
    inputs = json.loads((RUN / "inputs.json").read_text(encoding="utf-8"))
    rows = desk / "rows.jsonl"
    expected = {"bytes": rows.stat().st_size, "sha256": hashlib.sha256(rows.read_bytes()).hexdigest()}
    assert inputs["data"] == {"rows.jsonl": expected}
    assert set(inputs["base"]) == {"model.safetensors", "config.json"}
    tokenizer = hashlib.sha256((desk / "tiny" / "tokenizer.json").read_bytes()).hexdigest()
    assert inputs["rendering"]["tokenizer.json"] == {"sha256": tokenizer}


def test_a_changed_data_file_is_named_with_both_hashes(desk: Path, call: Call, begun: str) -> None:
    rows = desk / "rows.jsonl"
    before, size = _hash(rows), rows.stat().st_size
    write_rows(rows, [{"text": "new", "label": "repair"}, *ROWS[1:]])
    now = rows.stat().st_size
    call("train", begun).refuses(
        2, "the data changed since the run in runs/desk", "then -> now",
        f"rows.jsonl: {size:,} bytes, sha256 {before}… -> {now:,} bytes, sha256 {_hash(rows)}…",
        "at rows.jsonl", "--run", "--fork runs/desk",
    )  # fmt: skip


def test_a_file_more_and_a_file_less_are_named(desk: Path, call: Call, write: Write) -> None:
    for name, part in (("a", ROWS[:12]), ("b", ROWS[12:])):
        write_rows(desk / f"part-{name}.jsonl", part)
    source = [
        {"path": "part-*.jsonl", "format": "prompt-completion", "columns": {"prompt": "text", "completion": "label"}}
    ]
    recipe = write(data__train=source)
    assert call("train", recipe).code == 0
    (desk / "part-b.jsonl").rename(desk / "part-c.jsonl")
    call("train", recipe).refuses(2, "part-b.jsonl: ", "-> not there", "part-c.jsonl: not there -> ", "at part-b.jsonl")


def test_data_that_is_gone_is_named(desk: Path, call: Call, begun: str) -> None:
    (desk / "rows.jsonl").unlink()
    call("train", begun).refuses(2, "rows.jsonl")


def _other_template(desk: Path) -> None:
    path = desk / "tiny" / "chat_template.jinja"
    path.write_text(path.read_text(encoding="utf-8") + "\n", encoding="utf-8")


def _other_tokenizer(desk: Path) -> None:
    path = desk / "tiny" / "tokenizer.json"
    path.write_text(path.read_text(encoding="utf-8") + "\n", encoding="utf-8")


def _other_weights(desk: Path) -> None:
    shutil.copytree(desk / "tiny", desk / "kept")
    desk_model(desk / "tiny", desk / "kept", seed=3)


def _other_config(desk: Path) -> None:
    path = desk / "tiny" / "config.json"
    path.write_text(
        json.dumps({**json.loads(path.read_text(encoding="utf-8")), "rms_norm_eps": 1e-3}), encoding="utf-8"
    )


@pytest.mark.parametrize(
    ("change", "part", "line"),
    [
        (_other_template, "the tokenizer, chat template or rendering changed", "  template: "),
        (_other_tokenizer, "the tokenizer, chat template or rendering changed", "  tokenizer.json: sha256 "),
        (_other_weights, "the base model changed", "  model.safetensors: sha256 "),
        (_other_config, "the base model changed", "  config.json: sha256 "),
    ],
)
def test_a_changed_model_folder_is_named(
    desk: Path, call: Call, begun: str, change: Callable[[Path], None], part: str, line: str
) -> None:
    change(desk)
    call("train", begun).refuses(2, part, line, "at /", "tiny", "--fork runs/desk")


def test_a_config_that_says_the_same_in_another_layout_is_the_same(desk: Path, call: Call, begun: str) -> None:
    path = desk / "tiny" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")), indent=7), encoding="utf-8")
    assert "nothing to do" in call("train", begun).err


def test_a_changed_recipe_names_keys_and_the_ways_out(call: Call, write: Write, begun: str) -> None:
    call("train", write("other.yaml", adapter__rank=3, seed=4)).refuses(
        2, "adapter.rank: 2 -> 3", "seed: 0 -> 4", "at runs/desk", "--run", "--fork runs/desk"
    )


def test_what_this_machine_would_choose_otherwise_can_be_stated(
    desk: Path, call: Call, begun: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody changed the recipe: the words say where the other value comes from, and the hint is a command that works."""
    with monkeypatch.context() as patch:
        patch.setattr(defaults, "_auto_precision", lambda machine: Derived("bf16", "the CPU has AMX"))
        said = call("train", begun).refuses(
            2, "training.precision: 'fp32' -> 'bf16' (not set: the CPU has AMX)", "state"
        )
        stated = said.err.rpartition("`")[0].rpartition("`")[2]
        assert stated == "training.precision=fp32"
        assert "nothing to do" in call("train", begun, *stated.split()).err


def test_the_resolved_recipe_of_a_run_is_its_recipe(desk: Path, call: Call, begun: str) -> None:
    """Nothing is unset in it: what the run left open, such as `data.overlong`, must not look like a change."""
    (RUN / "report.html").unlink()
    said = call("train", RUN / "recipe.json", "--run", RUN)
    assert said.code == 0, said.err
    assert "nothing to do" in said.err


def _interrupted(call: Call, write: Write, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> str:
    """A run that broke off after its last step, before its result was written."""
    recipe = write(training__max_steps=4, training__checkpoint_every=1, **changes)
    with monkeypatch.context() as patch:
        patch.setattr("tunesmith.workshop.train.check_finite", None)
        assert call("train", recipe).code == 1
    return recipe


def _events(kind: str) -> list[str]:
    lines = [json.loads(line) for line in (RUN / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    return [line["message"] for line in lines if line["kind"] == kind]


def test_threads_and_passes_stay_what_the_run_chose(
    desk: Path, call: Call, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    recipe = _interrupted(call, write, monkeypatch, machine={})
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    real = plan.fit_to_memory

    def larger(*arguments: Any, **more: Any) -> Any:
        settings, *rest = real(*arguments, **more)
        return replace(settings, atom_tokens=settings.atom_tokens * 2), *rest

    monkeypatch.setattr(plan, "fit_to_memory", larger)
    said = call("train", recipe)
    assert said.code == 0, said.err
    assert "1 threads as the run was started with, not 2" in said.err
    assert "other settings" not in said.err
    assert json.loads((RUN / "environment.json").read_text(encoding="utf-8"))["threads"] == 1


def test_what_a_resume_changes_on_request_is_said(
    desk: Path, call: Call, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = _interrupted(call, write, monkeypatch)
    said = call("train", recipe, "training.micro_batch_size=1", "training.recompute=on")
    assert said.code == 0, said.err
    words = next(line for line in _events("note") if line.startswith("resumed with other settings"))
    assert "micro_batch_size any -> 1, recompute off -> on)" in words
    assert words in said.err


def test_other_software_on_resume_is_said(
    desk: Path, call: Call, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = _interrupted(call, write, monkeypatch)
    path = RUN / "environment.json"
    facts = json.loads(path.read_text(encoding="utf-8"))
    facts["versions"]["torch"] = "1.0"
    path.write_text(json.dumps(facts), encoding="utf-8")
    said = call("train", recipe)
    assert said.code == 0, said.err
    assert "the machine or its software is not what the run was started with: torch: '1.0' -> " in said.err
