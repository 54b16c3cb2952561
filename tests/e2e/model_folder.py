"""Tiny random models on disk, with the embedded model's tokenizer and chat template beside them."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.tiny import family
from tunesmith.embedded import DEFAULT_MODEL, ROOT

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


def write_family(folder: Path, name: str, **changes: object) -> Path:
    """Save a random model of a family in Hugging Face layout and return its folder."""
    special = {"bos_token_id": 0, "eos_token_id": 0, **({} if name == "gpt2" else {"pad_token_id": 1})}
    family(name, vocab_size=8192, **special, **changes).save_pretrained(folder)
    for file in TOKENIZER_FILES:
        shutil.copyfile(ROOT / DEFAULT_MODEL / file, folder / file)
    return folder
