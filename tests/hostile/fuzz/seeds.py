"""Where the fuzzer starts, and what it found: small inputs written by hand, replayed by ``test_fuzz.py`` in every run of the tests."""

from __future__ import annotations

import gzip
import json

_RECIPE = b"name: desk\nmodel: m\ndata: {train: rows.jsonl, validation: 0.1}\nadapter: {type: lora, rank: 8}\nseed: 3\n"
_HEADER = json.dumps(
    {"a": {"dtype": "F32", "shape": [4, 4], "data_offsets": [0, 64]}, "__metadata__": {"format": "pt"}}
).encode()
_CONFIG = json.dumps(
    {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 2, "num_attention_heads": 1, "num_hidden_layers": 0, "vocab_size": 2}
).encode()  # fmt: skip
_FILES = {name: {"bytes": 1, "sha256": "x"} for name in ("trained.safetensors", "optimiser.safetensors", "state.json")}
_MANIFEST = json.dumps({"format": 1, "step": 1, "identity": "identity", "files": _FILES}).encode()

SEEDS: dict[str, list[bytes]] = {
    "recipe-yaml": [
        _RECIPE, b"a: &a {<<: *a}", b"a: &a [*a]", b"seed: 0x" + b"f" * 5_000, b"? [a]\n: 1", b"? [0x" + b"f" * 5_000 + b"]\n: 1", b"!!set {a}", b"'", b"a: |\n b",
        b"<<: 1", b'name: "\\ud800"', b"%YAML 9.9\n---\n", b"a: 1:2:3", b"- - - a",
    ],
    "recipe-json": [b'{"name": "desk", "model": "m", "data": {"train": "r.jsonl"}}', b'{"a": 1, "a": 2}', b'{"a": NaN}', b"[[", b'{"a": "\\ud800"}'],
    "override": [b"training.epochs=2", b"data.train.0.path=x", "data.train.²=1".encode(), b"a=&a [*a]", b"model.name=x\0model=y", b"=", b"a.=1"],
    "jsonl": [b'{"text": "a"}\n{"prompt": "a", "completion": "b"}\n', b'{"a": "\\ud800"}', b"\xef\xbb\xbf{}", b"[1]\n\n", b"{" * 200],
    "json": [b'[{"text": "a"}, {"text": "b"}]', b'{"data": [{"a": 1}], "n": 2}', b'{"a": 1}', b'{"a": 1}\n{"a": 2}', b'{"a": [', b"[" * 200, b'{"a":[],"b":[]}'],
    "csv": [b'a,b\n"x ""y""",2\n', b'a,b\n"x\ny",2\n', b'a\n"', b"a,a\n", b"a;b\n1;2\n", b"\0,\0\n\0,\0\n", b'a\n"x"y\n'],
    "gz": [gzip.compress(b'{"text": "a"}\n', mtime=0), gzip.compress(b"", mtime=0), b"\x1f\x8b\x08\x00", b"\x1f\x8b\x08\xff"],
    "zst": [b"(\xb5/\xfd\x04X1\x00\x00a,b\n1,", b"(\xb5/\xfd", b""],
    "row": [
        b'{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": [{"type": "text", "text": "b"}]}]}',
        b'{"conversations": [{"from": "human", "value": "a"}, {"from": "function_call", "value": "{}"}], "tools": "[]"}',
        b'{"instruction": "a", "output": "b", "history": [["a", "b"]]}', b'{"text": "a", "label": 1}', b'{"prompt": 1e999, "completion": null}',
    ],
    "header": [len(_HEADER).to_bytes(8, "little") + _HEADER + bytes(64), b"\xff" * 8, b"", bytes(8)],
    "header-json": [_HEADER, b'{"a":{"dtype":"X","shape":[1e999],"data_offsets":[0,64]}}', b'{"a":1,"a":2}', b"[", b"{}", b'{"a":{"dtype":"U8","shape":[-8,-8],"data_offsets":[0,64]}}'],
    "config": [_CONFIG, b'{"num_hidden_layers": ' + b"9" * 400 + b"}", b"[]", b'{"text_config": {"hidden_size": []}}'],
    "template": [
        b"{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}</s>{% endfor %}", b"{{ raise_exception('no') }}", b"{% set n = namespace(x=[1]) %}{{ n.x * 9 }}",
        b"{% macro f(a) %}{{ a }}{% endmacro %}{{ f(1) ~ '%5s' % 2 }}", b"{% generation %}x{% endgeneration %}", b"{{ ''.__class__ }}", b"{{ [1] | map('string') | join(',') }}",
    ],
    "manifest": [_MANIFEST, b"{}", b"[", b'{"format": 1, "files": 5}', _MANIFEST.replace(b'"x"', b"[]"), _MANIFEST.replace(b"1, ", b"null, ")],
    "run-files": [
        b'{"status": "done", "step": 2}\0{"step": 1, "loss": 2.5}\n\0{"tasks": {"a": {"accuracy": {"value": 1}}}}', b'{"status": "done", "step": "x"}\0[]\n\0{"tasks": 5}',
        b"[\0{\n{}\n\0[", b'{"status": []}\0{"step": 1e999}\n\0{"tasks": {"a": 1}}',
    ],
    "pattern": [b"layers.0\0model.layers.0", b"(a+)+b\0" + b"a" * 40, b".*q_proj\0model.q_proj", b"(\0a", b"[a\0a", b"(?P<a>b)\0b", b"a{1,99999}\0a"],
}  # fmt: skip
"""Target -> inputs."""
