"""Training from random weights: said wherever the run speaks, resumed to the bit, exported whole."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.e2e.desk import Call, Write
from tunesmith.registry import run_folder

RUN, WHOLE = Path("runs/desk"), Path("runs/whole")
MODEL = {"name": "tiny", "init": "random"}


def test_a_run_from_random_weights_says_so_resumes_and_exports(
    desk: Path, call: Call, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = write(model=MODEL, adapter={"type": "full"}, training__max_steps=4, training__checkpoint_every=1)
    said = call("train", recipe, "--run", WHOLE)
    assert said.code == 0, said.err
    assert "starts from random weights in the shape of tiny" in said.err
    plan = call("plan", recipe, "--json").json
    assert any("random weights" in note for note in plan["notes"])
    card = (WHOLE / "card.md").read_text(encoding="utf-8")
    assert "The shape of tiny, trained from random weights with" in card
    assert "base_model:" not in card
    assert "the shape of tiny from random weights" in (WHOLE / "report.html").read_text(encoding="utf-8")

    append = run_folder.RunFolder.append_metric

    def at_step_two(self: run_folder.RunFolder, line: dict[str, object]) -> None:
        append(self, line)
        if line["step"] == 2 and "loss" in line:
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(run_folder.RunFolder, "append_metric", at_step_two)
        assert call("train", recipe).code == 130
    assert call("train", recipe).code == 0
    one, other = (load_file(run / "model" / "model.safetensors") for run in (RUN, WHOLE))
    assert all(torch.equal(one[name], other[name]) for name in other)
    stored = load_file(desk / "tiny" / "model.safetensors")
    embedding = "model.embed_tokens.weight"
    assert not torch.allclose(other[embedding], stored[embedding], atol=1e-2)
    assert call("runs", "reproduce", WHOLE, "--json").json["equal"] is True
    exported = call("export", WHOLE, "out", "--json")
    assert exported.code == 0, exported.err
    assert torch.equal(load_file(Path("out") / "model.safetensors")[embedding], other[embedding])


def test_another_seed_is_another_start(desk: Path, call: Call, write: Write) -> None:
    losses = []
    for seed in (0, 0, 1):
        run = Path(f"runs/{len(losses)}")
        recipe = write(model=MODEL, adapter={"type": "full"}, seed=seed, training__max_steps=1)
        assert call("train", recipe, "--run", run).code == 0
        card = json.loads((run / "scorecards" / "base.json").read_text(encoding="utf-8"))
        losses.append(card["tasks"]["loss"]["loss"]["value"])
    assert losses[0] == losses[1] != losses[2]


@pytest.mark.parametrize("adapter", [{"type": "lora"}, {"type": "partial", "last_layers": 1}])
def test_what_would_leave_random_weights_untrained_is_refused(
    desk: Path, call: Call, write: Write, adapter: dict[str, object]
) -> None:
    recipe = write(model=MODEL, adapter=adapter)
    for verb in ("plan", "train"):
        call(verb, recipe).refuses(2, f"`{adapter['type']}` would leave them so", "[model.init]", "type: full")
    assert not (desk / "runs").exists()
