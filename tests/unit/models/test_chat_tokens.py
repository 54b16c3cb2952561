"""Tokens that nothing ever trained are told from those that were, from single rows of the weight files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tests.tiny import family
from tunesmith.data.tokenizer import Tokenizer
from tunesmith.embedded import model_folder
from tunesmith.models.chat_tokens import twins, untrained
from tunesmith.models.facts import read_facts

FOLDER = model_folder("tunesmith-base-8m")
assert FOLDER is not None


def test_rows_that_point_the_same_way_are_twins() -> None:
    rows = dict(enumerate(np.eye(5, dtype=np.float32)))
    rows[3] = 2.0 * rows[1] + np.float32(0.01)
    assert twins(rows, 1, {0, 1, 3}) == [3]
    assert twins(rows, 0, {0, 1, 3}) == []
    assert twins(rows, 0, {0}) == []


def test_rows_of_zeros_are_twins_of_each_other_only() -> None:
    rows = {0: np.zeros(3, np.float32), 1: np.ones(3, np.float32), 2: np.zeros(3, np.float32)}
    assert twins(rows, 0, {1, 2}) == [2]
    assert twins(rows, 1, {0, 2}) == []


def test_the_embedded_model_never_saw_its_chat_tokens() -> None:
    tokenizer = Tokenizer.from_folder(FOLDER)
    start, end, eos = (tokenizer.id_of(text) for text in ("<|im_start|>", "<|im_end|>", "<|endoftext|>"))
    found = untrained(FOLDER, read_facts(FOLDER), [start, end, eos], [end, eos], tokenizer.special_ids)
    assert set(found) == {start, end}
    assert eos not in found[end]
    assert start in found[end]


@pytest.mark.parametrize("where", ["embedding", "head"])
def test_in_untied_matrices_what_is_read_and_what_is_written_count(tmp_path: Path, where: str) -> None:
    """A turn's start is only read, so its row of the head tells nothing; an end is read and written."""
    model = family("llama")
    with torch.no_grad():
        layer = model.get_input_embeddings() if where == "embedding" else model.get_output_embeddings()
        layer.weight[5:8] = layer.weight[9]
    model.save_pretrained(tmp_path)
    start, end, other, special = 5, 6, 20, {5, 6, 7, 20}
    found = untrained(tmp_path, read_facts(tmp_path), [start, end, other], [end], special)
    assert found == ({start: [end, 7], end: [start, 7]} if where == "embedding" else {end: [start, 7]})


def test_bare_names_of_gpt_2_are_found(tmp_path: Path) -> None:
    model = family("gpt2")
    with torch.no_grad():
        model.transformer.wte.weight[5] = model.transformer.wte.weight[6]
    model.save_pretrained(tmp_path)
    state = {
        name.removeprefix("transformer."): part.contiguous() for name, part in model.transformer.state_dict().items()
    }
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert untrained(tmp_path, read_facts(tmp_path), [5, 8], [], {5, 6, 8}) == {5: [6]}
