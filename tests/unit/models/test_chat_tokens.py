"""Untrained end-of-turn tokens are told."""

from __future__ import annotations

import torch
from safetensors.torch import load_file

from tunesmith.data.tokenizer import Tokenizer
from tunesmith.embedded import model_folder
from tunesmith.models.chat_tokens import twins, untrained_note


def test_rows_that_point_the_same_way_are_twins() -> None:
    weight_VH = torch.eye(5)
    weight_VH[3] = 2.0 * weight_VH[1] + 0.01
    assert twins(weight_VH, 1, frozenset({0, 1, 3})) == [3]
    assert twins(weight_VH, 0, frozenset({0, 1, 3})) == []
    assert twins(weight_VH, 0, frozenset({0})) == []


def test_the_embedded_model_never_saw_its_chat_tokens() -> None:
    folder = model_folder("tunesmith-base-8m")
    assert folder is not None
    tokenizer = Tokenizer.from_folder(folder)
    weight_VH = load_file(folder / "model.safetensors")["model.embed_tokens.weight"]
    names = {token: tokenizer.token_text(token) for token in tokenizer.special_ids}
    end = next(token for token, name in names.items() if name == "<|im_end|>")
    said = untrained_note(weight_VH, names, frozenset({end}), "*embed_tokens*")
    assert said is not None
    assert said.startswith("<|im_end|> ends an answer here but was never trained")
    assert tokenizer.eos_id is not None
    assert untrained_note(weight_VH, names, frozenset({tokenizer.eos_id}), "*embed_tokens*") is None
