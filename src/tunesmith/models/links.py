"""Links in the folders of models and adapters: where they may lead. Torch-free."""

from __future__ import annotations

from pathlib import Path

from tunesmith import foreign

TEXTS = (
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json", "vocab.json", "merges.txt", "tokenizer.model", "chat_template.jinja",
    "model.safetensors.index.json", "adapter_config.json",
)  # fmt: skip
"""Files that are read as text, and in part copied into exports."""


def refuse_links_out(folder: Path) -> None:
    """Refuse a folder whose texts are links to somewhere else: what they lead to would be read, and exported with the model.

    A folder of the hub's cache is made of links into the ``blobs`` beside it, and may be. Weights may be links to anywhere:
    they are read as tensors or not at all, and are never copied.

    Raises:
        ModelError: names the first such link.
    """
    blobs = [folder.parent.parent / "blobs"] if folder.parent.name == "snapshots" else []
    hint = "put the file itself in its place, or give the folder that it lies in"
    foreign.refuse_links_out(folder, TEXTS, hint, also=blobs)
