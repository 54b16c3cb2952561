"""`tunesmith blend` over two runs, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import tunesmith
from tests.e2e.desk import Call, Write
from tunesmith.models.locate import open_model
from tunesmith.types import Sampling
from tunesmith.workshop.opening import open_machine


@pytest.fixture
def runs(desk: Path, call: Call, write: Write) -> list[str]:
    """Two runs of one base with other seeds."""
    names = []
    for name, seed in (("one", 0), ("two", 1)):
        said = call("train", write(f"{name}.yaml", seed=seed), "--run", f"runs/{name}")
        assert said.code == 0, said.err
        names.append(f"runs/{name}")
    return names


def test_two_runs_to_one_adapter_and_to_one_model(desk: Path, call: Call, runs: list[str]) -> None:
    said = call("blend", "one", "runs/two", "--weights", "0.7,0.3", "--out", "both", "--json")
    assert said.code == 0, said.err
    told = said.json
    assert [source["factor"] for source in told["sources"]] == [0.7, 0.3]
    assert told["lost"] == 0
    assert all(gate["passed"] for gate in told["gates"])
    assert open_model("both").base.path == desk / "tiny"
    assert json.loads((desk / "both" / "blend.json").read_text(encoding="utf-8"))["method"] == "linear"
    answer = call("generate", "both", "--prompt", "case number 3", "--max-new-tokens", 4, "--json")
    assert answer.code == 0, answer.err
    said = call("blend", *runs, "--method", "dare-ties", "--density", 0.5, "--seed", 3, "--merge", "--out", "model")
    assert said.code == 0, said.err
    assert "dare-ties over" in said.out
    assert "Gate B passed" in said.out
    assert call("generate", "model", "--prompt", "case number 3", "--max-new-tokens", 4).code == 0
    said = call("blend", *runs, "--method", "ties", "--rank", 1, "--out", "thin")
    assert "the rank leaves out" in said.out
    assert "against the whole blend a mean KL of" in said.out
    assert "refused" not in said.out


def test_a_quantised_base(desk: Path, call: Call, write: Write) -> None:
    """The blend is measured on the base as it multiplies, and passes the gates there; so does one with DoRA, at full rank."""
    pytest.importorskip("bitsandbytes", reason="needs the extra `quantise`")
    packed = {"name": "tiny", "quantise": "nf4"}
    for name, adapter in (("one", {"type": "lora", "rank": 2}), ("dora", {"type": "lora", "rank": 2, "dora": True})):
        said = call("train", write(f"{name}.yaml", model=packed, adapter=adapter), "--run", f"runs/{name}")
        assert said.code == 0, said.err
    said = call("train", write("two.yaml", model=packed, seed=1), "--run", "runs/two")
    assert said.code == 0, said.err
    said = call("blend", "runs/one", "runs/two", "--out", "both", "--json")
    assert said.code == 0, said.err
    assert [gate["passed"] for gate in said.json["gates"]] == [True, True]
    said = call("blend", "runs/one", "runs/dora", "--rank", 64, "--out", "mixed", "--json")
    assert said.code == 0, said.err
    assert said.json["lost"] < 1e-5
    assert call("blend", "runs/one", "runs/two", "--merge", "--out", "model").code == 0
    assert call("train", write("plain.yaml"), "--run", "runs/plain").code == 0
    call("blend", "runs/one", "runs/plain", "--out", "out").refuses(2, "quantised in different ways")


def test_a_board_of_runs(desk: Path, runs: list[str]) -> None:
    board = tunesmith.open_switchboard("tiny", device="cpu")
    for name in runs:
        assert board.load(name, name) == []
    alone = open_machine("runs/two", device="cpu").machine
    prompt = board.prompt_ids("case number 3: please look at it", "runs/two")
    how = Sampling(max_new_tokens=5)
    mixed = board.sample([prompt, prompt], how, ["runs/one", "runs/two"])
    assert mixed[1].ids == alone.generator.sample([prompt], how)[0].ids


def test_refusals(desk: Path, call: Call, write: Write, runs: list[str]) -> None:
    call("blend", *runs, "--weights", "1,-1", "--out", "out").refuses(2, "sum to zero", "--no-normalise")
    call("blend", *runs, "--weights", "1,x", "--out", "out").refuses(2, "list of numbers")
    call("blend", *runs, "--weights", "1,nan", "--out", "out").refuses(2, "nan is no number")
    call("blend", *runs, "--weights", "1", "--out", "out").refuses(2, "2 adapters and 1 weights")
    call("blend", runs[0], runs[0], "--out", "out").refuses(2, "same adapter")
    call("blend", runs[0], "--out", "out").refuses(2, "one adapter")
    call("blend", *runs, "--out", "tiny").refuses(2, "not empty")
    call("blend", runs[0], "tiny", "--out", "out").refuses(2, "no adapter to blend")
    call("blend", runs[0], "nowhere", "--out", "out").refuses(2, "nowhere")
    call("blend", *runs, "--method", "ties", "--density", "2", "--out", "out").refuses(2, "density of 2")
    prompt = write("prompt.yaml", adapter={"type": "prompt", "num_tokens": 2})
    assert call("train", prompt, "--run", "runs/prompt").code == 0
    call("blend", runs[0], "runs/prompt", "--out", "out").refuses(2, "in front of the input", "stack")
    whole = write("whole.yaml", adapter={"type": "full"})
    assert call("train", whole, "--run", "runs/whole").code == 0
    call("blend", runs[0], "runs/whole", "--out", "out").refuses(2, "a whole model was trained")
    assert not (desk / "out").exists()
