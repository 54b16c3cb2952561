"""What is fuzzed: each target takes any bytes and may end in an error of ours alone. No atheris is needed to import this."""

from __future__ import annotations

import atexit
import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from tunesmith.adapters import peft_patterns
from tunesmith.data.bad_row import BadRow
from tunesmith.data.chat_template import ChatTemplate
from tunesmith.data.formats import FORMATS
from tunesmith.data.row_codec import rejected_to_json, to_line
from tunesmith.data.sources import read_rows
from tunesmith.engine.checkpoint import CheckpointFolder
from tunesmith.errors import TunesmithError
from tunesmith.models.facts import read_facts
from tunesmith.models.weights import read_header
from tunesmith.recipe.codec import apply_overrides, load, parse
from tunesmith.recipe.data import SourceSection
from tunesmith.records import Message, Origin, RawRow, Rejected
from tunesmith.registry.run_folder import RunFolder

FOLDER = Path(tempfile.mkdtemp(prefix="tunesmith-fuzz-"))
atexit.register(shutil.rmtree, FOLDER, ignore_errors=True)
ASK = [Message("user", "When is high water?"), Message("assistant", "At noon.")]
VALUES = {"name": "desk", "model": "m", "data": {"train": [{"path": "rows.jsonl"}]}}
Target = Callable[[bytes], None]


def _file(name: str, payload: bytes) -> Path:
    path = FOLDER / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(payload)
    return path


def _rows(name: str) -> Target:
    """A reader of rows; each row must be one that can be written, and no format may fail on it otherwise than by a fault."""

    def target(payload: bytes) -> None:
        try:
            for row in read_rows(_file(name, payload), name):
                to_line(rejected_to_json(row) if isinstance(row, Rejected) else row.values)
                if isinstance(row, RawRow):
                    _formats(row)
        except TunesmithError:
            return

    return target


def _formats(row: RawRow) -> None:
    for make in FORMATS.values():
        try:
            make(row, SourceSection(path="x"))
        except BadRow:
            continue


def _recipe(name: str) -> Target:
    def target(payload: bytes) -> None:
        try:
            load(_file(name, payload))
        except TunesmithError:
            return

    return target


def override(payload: bytes) -> None:
    """``section.key=value``."""
    try:
        parse(apply_overrides(VALUES, payload.decode("utf-8", "surrogateescape").split("\0")))
    except TunesmithError:
        return


def header(payload: bytes) -> None:
    """A file of safetensors."""
    try:
        tensors = read_header(_file("model.safetensors", payload))
    except TunesmithError:
        return
    assert sum(item.num_bytes for item in tensors.values()) < len(payload)


def header_json(payload: bytes) -> None:
    """The JSON of a header, its length right, before 64 bytes of tensors."""
    header(len(payload).to_bytes(8, "little") + payload + bytes(64))


def config(payload: bytes) -> None:
    """config.json beside weights that are fine."""
    tensor = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}
    text = json.dumps({"model.embed_tokens.weight": tensor}).encode()
    _file("folder/model.safetensors", len(text).to_bytes(8, "little") + text + bytes(16))
    try:
        read_facts(_file("folder/config.json", payload).parent)
    except TunesmithError:
        return


def template(payload: bytes) -> None:
    """A chat template, compiled and rendered."""
    try:
        ChatTemplate(payload.decode("utf-8", "replace"), {"eos_token": "</s>"}).render(ASK, add_generation_prompt=True)
    except TunesmithError:
        return


def manifest(payload: bytes) -> None:
    """The manifest of a checkpoint: a fault in words, or none."""
    path = _file("checkpoints/00000001/manifest.json", payload)
    for name in ("trained.safetensors", "optimiser.safetensors", "state.json"):
        _file(f"checkpoints/00000001/{name}", b"x")
    fault = CheckpointFolder(path.parents[1], "identity").fault(path.parent)
    assert isinstance(fault, str), "a checkpoint of three letters passes for whole"


def run_files(payload: bytes) -> None:
    """Status, metrics and a scorecard of a run, in one."""
    status, metrics, card = [*payload.split(b"\0"), b"", b""][:3]
    _file("run/recipe.json", b"{}")
    run = RunFolder(FOLDER / "run")
    for path, text in (
        (run.status_path, status),
        (run.metrics_path, metrics),
        (run.scorecards_path / "tuned.json", card),
    ):
        _file(str(path.relative_to(FOLDER)), text)
    for read in (run.status, run.metrics, run.scorecards):
        try:
            read()
        except TunesmithError:
            continue


def pattern(payload: bytes) -> None:
    """A pattern of layer names, and a name."""
    expression, _, name = payload.decode("utf-8", "replace").partition("\0")
    try:
        peft_patterns.first_match(peft_patterns.compiled({expression: 1}), name[:300], 2.0)
    except peft_patterns.DangerousPattern:
        return


def row(payload: bytes) -> None:
    """A row of JSON in every format."""
    try:
        values = json.loads(payload)
    except (ValueError, RecursionError):
        return
    if isinstance(values, dict):
        _formats(RawRow(Origin("x", 1), values))


TARGETS: dict[str, Target] = {
    "recipe-yaml": _recipe("recipe.yaml"), "recipe-json": _recipe("recipe.json"), "override": override,
    "jsonl": _rows("rows.jsonl"), "json": _rows("rows.json"), "csv": _rows("rows.csv"), "gz": _rows("rows.jsonl.gz"),
    "zst": _rows("rows.csv.zst"), "row": row, "header": header, "header-json": header_json, "config": config,
    "template": template, "manifest": manifest, "run-files": run_files, "pattern": pattern,
}  # fmt: skip
"""Name on the command line -> what takes the bytes."""
