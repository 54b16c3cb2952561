"""Text to token ids and back, by the ``tokenizers`` library alone. Torch-free, transformers-free."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers, processors

from tunesmith.data import tokenizer_spec
from tunesmith.errors import ModelError
from tunesmith.foreign import LARGE_BYTES, read_object, read_text

Offsets = list[tuple[int, int]]
"""Per token, the characters it stands for: first and one past the last."""

SPECIAL_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_LONGEST = 300
_CONVERT = "save it as tokenizer.json: transformers.AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)"


class Tokenizer:
    """The tokenizer of a model folder.

    Args:
        payload: text of a tokenizer.json.
        settings: what tokenizer_config.json and special_tokens_map.json say.
        source: where it came from, for messages.

    Raises:
        ModelError: the payload is not a tokenizer.
    """

    def __init__(self, payload: str, settings: dict[str, Any] | None = None, source: str = "tokenizer.json") -> None:
        self.sha256 = hashlib.sha256(payload.encode("utf-8")).hexdigest()
        self._payload = payload
        self._source = source
        with _trusting_no_file(source, "cannot be read"):
            spec = json.loads(payload)
            tokenizer_spec.check(spec)
            # Byte-level post-processors trim spaces off the offsets, so masks would be told lies about where a token begins.
            self._plain = _build({**spec, "post_processor": None})
        self.added = {number: token.content for number, token in self._plain.get_added_tokens_decoder().items()}
        flagged = {number for number, token in self._plain.get_added_tokens_decoder().items() if token.special}
        self.special_tokens = _special_tokens(settings or {}, self._plain)
        named = {self._plain.token_to_id(text) for text in self.special_tokens.values()}
        self.special_ids: frozenset[int] = frozenset(flagged | {number for number in named if number is not None})
        self.bos_id = self._id_of("bos_token")
        self.eos_id = self._id_of("eos_token")
        self.pad_id = self._id_of("pad_token")

    @classmethod
    def from_folder(cls, folder: Path) -> Tokenizer:
        """Read ``tokenizer.json``, or build the GPT-2 kind from ``vocab.json`` and ``merges.txt``.

        Raises:
            ModelError: no tokenizer, one in a form that needs conversion, or a torn one.
        """
        settings = {
            **read_mapping(folder / "special_tokens_map.json"),
            **read_mapping(folder / "tokenizer_config.json"),
        }
        path = folder / "tokenizer.json"
        if path.is_file():
            return cls(read_text(path, LARGE_BYTES), settings, str(path))
        if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
            return cls(_from_merges(folder, settings), settings, str(folder / "vocab.json"))
        pieces = sorted(item.name for item in folder.glob("*.model")) if folder.is_dir() else []
        if pieces:
            raise ModelError(f"only a SentencePiece tokenizer ({pieces[0]}) is here", where=str(folder), hint=_CONVERT)
        raise ModelError(
            "the model folder holds no tokenizer",
            where=str(path),
            hint="copy tokenizer.json from where the model came from",
        )

    @cached_property
    def _whole(self) -> Backend:
        """The tokenizer with its post-processor, for documents only; two copies are kept only where both are used."""
        with _trusting_no_file(self._source, "cannot be read"):
            return _build(json.loads(self._payload))

    @cached_property
    def vocab_size(self) -> int:
        """Rows an embedding needs: the highest id plus one."""
        return max(self._plain.get_vocab(with_added_tokens=True).values()) + 1

    def encode(self, text: str) -> list[int]:
        """Token ids of ``text``; special token strings in it are recognised, nothing is added."""
        return self.encode_with_offsets(text)[0]

    def encode_with_offsets(self, text: str) -> tuple[list[int], Offsets]:
        """The ids of ``encode`` with, per token, its characters in ``text``; bytes of one character share it."""
        with _trusting_no_file(self._source, "fails on a text"):
            encoding = self._plain.encode(text, add_special_tokens=False)
            return encoding.ids, encoding.offsets

    def encode_document(self, text: str) -> list[int]:
        """Token ids with what the tokenizer's post-processor adds, such as a first BOS."""
        return self.encode_document_with_offsets(text)[0]

    def encode_document_with_offsets(self, text: str) -> tuple[list[int], Offsets]:
        """The ids of ``encode_document`` with, per token, its characters; white space around may be left out, what was added has none."""
        with _trusting_no_file(self._source, "fails on a text"):
            encoding = self._whole.encode(text, add_special_tokens=True)
            return encoding.ids, encoding.offsets

    def decode(self, ids: Sequence[int], skip_special: bool = False) -> str:
        """Text of token ids."""
        with _trusting_no_file(self._source, "fails on tokens"):
            return str(self._plain.decode(list(ids), skip_special_tokens=skip_special))

    def token_text(self, token_id: int) -> str:
        """Readable text of one token; a token that is part of a character shows as the vocabulary spells it."""
        raw = self._plain.id_to_token(token_id)
        if raw is None:
            return f"<{token_id}>"
        if token_id in self.added:
            return str(raw)
        if "▁" in raw:
            return str(raw).replace("▁", " ")
        text = self.decode([token_id])
        return str(raw) if "�" in text or not text else str(text)

    def id_of(self, text: str) -> int | None:
        """Id of the token spelt exactly ``text``, or None."""
        number: int | None = self._plain.token_to_id(text)
        return number

    def _id_of(self, name: str) -> int | None:
        text = self.special_tokens.get(name)
        return None if text is None else self.id_of(text)


@contextmanager
def _trusting_no_file(source: str, fails: str) -> Iterator[None]:
    """Turn whatever the library raises into an error of ours; its panics are not even Exceptions.

    Raises:
        ModelError: says that the tokenizer ``fails``.
    """
    try:
        yield
    except (Exception, RecursionError) as error:
        what = str(error)
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        what = str(error)
    else:
        return
    raise ModelError(f"the tokenizer {fails}: {what[:_LONGEST]}", where=source, hint=_CONVERT)


def _build(spec: dict[str, Any]) -> Backend:
    # Dropout would make other tokens of the same text each time.
    model = {**spec["model"], "dropout": None} if spec["model"].get("dropout") else spec["model"]
    backend = Backend.from_str(json.dumps({**spec, "model": model}))
    # A tokenizer.json may carry the truncation of whoever saved it, which would cut examples silently.
    backend.no_truncation()
    backend.no_padding()
    return backend


def _special_tokens(settings: dict[str, Any], backend: Backend) -> dict[str, str]:
    """Named special tokens that the vocabulary has."""
    found: dict[str, str] = {}
    for name in SPECIAL_NAMES:
        text = _text_of(settings.get(name))
        if text and backend.token_to_id(text) is not None:
            found[name] = text
    return found


def _text_of(value: Any) -> str | None:
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None


def _from_merges(folder: Path, settings: dict[str, Any]) -> str:
    """tokenizer.json of a byte-level BPE in GPT-2's two files."""
    for name in ("vocab.json", "merges.txt"):
        read_text(folder / name, LARGE_BYTES)
    with _trusting_no_file(str(folder), "cannot be made of vocab.json and merges.txt"):
        vocabulary, merges = models.BPE.read_file(str(folder / "vocab.json"), str(folder / "merges.txt"))
        backend = Backend(models.BPE(vocab=vocabulary, merges=merges))
    spaced = settings.get("add_prefix_space") is True
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=spaced)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.ByteLevel(trim_offsets=False)
    texts = {text for name in SPECIAL_NAMES if (text := _text_of(settings.get(name)))} | {"<|endoftext|>"}
    backend.add_special_tokens(sorted(text for text in texts if backend.token_to_id(text) is not None))
    return str(backend.to_str())


def read_mapping(path: Path) -> dict[str, Any]:
    """A JSON object, or nothing where the file is absent.

    Raises:
        ModelError: the file is no JSON object.
    """
    try:
        return read_object(path)
    except FileNotFoundError:
        return {}


def stop_ids_of(folder: Path) -> frozenset[int]:
    """End-of-text ids that the model's own files name for generation."""
    stops: set[int] = set()
    for name in ("generation_config.json", "config.json"):
        ids = read_mapping(folder / name).get("eos_token_id")
        stops.update(item for item in (ids if isinstance(ids, list) else [ids]) if type(item) is int and item >= 0)
    return frozenset(stops)
