"""Calls that turn a file or a text of a stranger into running code stand nowhere in the source."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.architecture.source_tree import PACKAGE, imports, shown, source_files, tree_of

CODE_LOADERS = {
    "pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "jsonpickle", "code", "codeop",
    "picklescan", "torch.hub", "torch.package", "tarfile", "zipfile", "pty", "commands", "yaml",
}  # fmt: skip
"""Modules whose reading side runs code or unpacks names that a file chose; none has a use here."""

NAMES = {"eval", "exec", "compile", "__import__", "execfile", "breakpoint"}
"""Built-ins that run text."""

METHODS = {
    ("torch", "load"), ("torch", "save"), ("torch", "hub"), ("torch", "package"), ("torch.jit", "load"), ("jit", "load"),
    ("torch.serialization", "load"), ("np", "load"), ("numpy", "load"), ("pd", "read_pickle"), ("pandas", "read_pickle"),
    ("os", "system"), ("os", "popen"), ("os", "execv"), ("os", "execl"), ("os", "execvp"), ("os", "spawnl"), ("os", "spawnv"),
    ("subprocess", "getoutput"), ("subprocess", "getstatusoutput"), ("yaml", "load"), ("yaml", "unsafe_load"),
    ("yaml", "full_load"), ("shutil", "unpack_archive"), ("runpy", "run_path"), ("runpy", "run_module"),
    ("builtins", "eval"), ("builtins", "exec"),
}  # fmt: skip
"""Owner and attribute; any mention counts, a call or not."""

TRUE_NOWHERE = {"trust_remote_code", "shell", "allow_pickle"}
"""Keyword arguments that must be False (a constant) wherever they are given."""

MUST_BE_TRUE = {"weights_only", "local_files_only", "use_safetensors"}
RUAMEL_TYPES = {"rt", "safe"}
"""Loaders of ruamel.yaml that build plain values; ``unsafe`` and ``full`` build objects."""


def dangers(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and words of everything forbidden in a syntax tree."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from _imported(node)
        elif isinstance(node, ast.Name) and node.id in NAMES:
            yield node.lineno, f"names the built-in {node.id}"
        elif isinstance(node, ast.Attribute) and (_owner(node.value), node.attr) in METHODS:
            yield node.lineno, f"names {_owner(node.value)}.{node.attr}"
        elif isinstance(node, ast.Call):
            yield from _called(node)
        elif isinstance(node, ast.Dict):
            yield from _spelt(node)


def _imported(node: ast.Import | ast.ImportFrom) -> Iterator[tuple[int, str]]:
    if isinstance(node, ast.Import):
        names = [item.name for item in node.names]
    else:
        names = [node.module or "", *(f"{node.module}.{item.name}" for item in node.names)]
    for name in names:
        parents = {".".join(name.split(".")[: end + 1]) for end in range(name.count(".") + 1)}
        if parents & CODE_LOADERS:
            yield node.lineno, f"imports {name}"
        owner, _, attribute = name.rpartition(".")
        if (owner, attribute) in METHODS:
            yield node.lineno, f"imports {name}"


def _called(node: ast.Call) -> Iterator[tuple[int, str]]:
    for keyword in node.keywords:
        value = keyword.value.value if isinstance(keyword.value, ast.Constant) else None
        if keyword.arg in TRUE_NOWHERE and value is not False:
            yield node.lineno, f"gives {keyword.arg} another value than False"
        if keyword.arg in MUST_BE_TRUE and value is not True:
            yield node.lineno, f"gives {keyword.arg} another value than True"
    name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    if name == "YAML":
        given = [*node.args[:1], *(keyword.value for keyword in node.keywords if keyword.arg == "typ")]
        if not given or not all(isinstance(item, ast.Constant) and item.value in RUAMEL_TYPES for item in given):
            yield node.lineno, "makes a YAML loader that is not plainly rt or safe"
    if name == "from_pretrained" and not {"local_files_only", "trust_remote_code"} <= {
        item.arg for item in node.keywords
    }:
        yield node.lineno, "calls from_pretrained without local_files_only and trust_remote_code"


def _spelt(node: ast.Dict) -> Iterator[tuple[int, str]]:
    """Keyword arguments that are passed as ``**{...}``."""
    for key, value in zip(node.keys, node.values, strict=True):
        named = isinstance(key, ast.Constant) and key.value in TRUE_NOWHERE
        if named and not (isinstance(value, ast.Constant) and value.value is False):
            yield node.lineno, f"spells {key.value} with another value than False"


def _owner(node: ast.expr) -> str:
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{_owner(node.value)}.{node.attr}"
    return ""


@pytest.mark.parametrize("path", source_files(), ids=shown)
def test_no_file_or_text_becomes_code(path: Path) -> None:
    assert [f"{shown(path)}:{line}: {what}" for line, what in dangers(tree_of(path))] == []


@pytest.mark.parametrize(
    "line",
    [
        "import pickle", "from pickle import loads", "import dill as p", "import joblib.parallel", "import torch.hub",
        "from torch import load", "from torch import hub", "torch.load(p)", "torch.load", "read = torch.load", "torch.jit.load(p)",
        "torch.save(x, p)", "np.load(p)", "np.load(p, allow_pickle=False)", "pd.read_pickle(p)", "eval(t)", "exec(t)",
        "run = eval", "compile(t, '', 'exec')", "__import__(n)", "os.system(c)", "from os import system", "os.popen(c)",
        "subprocess.run(c, shell=True)", "subprocess.run(c, shell=flag)", "f(trust_remote_code=True)",
        "f(trust_remote_code=given)", "f(**{'trust_remote_code': True})", "options = {'shell': True}", "yaml.load(t)",
        "import yaml", "YAML(typ='unsafe')", "YAML()", "YAML(typ=kind)", "ruamel.yaml.YAML('full')", "import tarfile",
        "from zipfile import ZipFile", "shutil.unpack_archive(p)", "f(weights_only=False)", "f(allow_pickle=True)",
        "f(local_files_only=False)", "f(use_safetensors=None)", "AutoModel.from_pretrained(p)",
        "AutoModel.from_pretrained(p, local_files_only=True)", "runpy.run_path(p)", "import marshal", "import shelve",
    ],
)  # fmt: skip
def test_each_danger_is_seen(line: str) -> None:
    assert list(dangers(ast.parse(line))) != []


@pytest.mark.parametrize(
    "line",
    [
        "model.eval()", "json.loads(t)", "re.compile(t)", "f(trust_remote_code=False)", "YAML(typ='rt', pure=True)",
        "subprocess.run([a, b], check=False)", "safetensors.torch.load_file(p)", "adapter.load_state(s)", "np.memmap(p)",
        "AutoModel.from_pretrained(p, local_files_only=True, trust_remote_code=False)", "'torch.load(file)'",
    ],
)  # fmt: skip
def test_what_is_harmless_passes(line: str) -> None:
    assert list(dangers(ast.parse(line))) == []


def test_no_file_format_of_pickles_is_read() -> None:
    """The suffixes of pickled weights stand in the source once: where they are refused."""
    holders = {
        shown(path)
        for path in source_files()
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Constant) and node.value in (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
    }
    assert holders == {"src/tunesmith/models/weights.py"}


def test_the_reading_of_the_whole_package_is_covered() -> None:
    assert len(source_files()) > 100
    assert all(path.is_relative_to(PACKAGE) for path in source_files())
    assert any(item.module == "safetensors.torch" for path in source_files() for item in imports(path))
