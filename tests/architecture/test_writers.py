"""What must survive a crash is written through ``tunesmith.disk``, where tests can break it. The rest is listed here, with why."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.architecture.source_tree import shown, source_files, tree_of

BY_OTHER_MEANS = {
    "src/tunesmith/disk.py": "the layer itself",
    "src/tunesmith/registry/lease.py": "a lock on an open file, worth nothing once its owner is dead",
    "src/tunesmith/workshop/model_files.py": "transformers writes whole models itself: into a new_folder, fsynced and renamed",
    "src/tunesmith/workshop/headed_files.py": "as model_files.py: a class of transformers writes itself into a new_folder",
    "src/tunesmith/models/loading.py": "a folder of links under the system's temporary folder, for transformers to read",
    "src/tunesmith/workshop/environment.py": "a switch of the kernel under /proc",
    "src/tunesmith/engine/watchdog.py": "stacks of a process that hangs: nothing reads them back",
    "src/tunesmith/cli/main.py": "/dev/null in place of a closed stdout",
}
"""Third-party sinks write files of their own, which no resume reads."""

PATH_METHODS = {
    "write_text", "write_bytes", "mkdir", "rmdir", "unlink", "rename", "touch", "symlink_to", "hardlink_to", "chmod",
    "save_pretrained", "tofile", "memmap",
}  # fmt: skip
OS_CALLS = {
    "open", "write", "pwrite", "ftruncate", "truncate", "remove", "unlink", "rename", "replace", "mkdir", "makedirs",
    "rmdir", "removedirs", "link", "symlink", "mkfifo", "sendfile",
}  # fmt: skip
SHUTIL_CALLS = {"rmtree", "copy", "copy2", "copyfile", "copyfileobj", "copytree", "move", "make_archive"}
WRITING_MODULES = {"tempfile", "sqlite3", "shelve", "dbm"}
ARRAY_SAVERS = {"save_file", "savez", "save"}
NAMES = PATH_METHODS | OS_CALLS | SHUTIL_CALLS | ARRAY_SAVERS
BARE_NAMES = {"save_file", "rmtree", "copyfile", "copytree"}


def _writes(tree: ast.Module) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [item.name for item in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            yield from ((node.lineno, name) for name in names if name.split(".")[0] in WRITING_MODULES)
        if isinstance(node, ast.Call):
            name = _called(node)
            if name is not None:
                yield node.lineno, name


def _called(call: ast.Call) -> str | None:
    """The call by name, where it writes by itself."""
    function = call.func
    if isinstance(function, ast.Name):
        return function.id if function.id in BARE_NAMES or (function.id == "open" and _mode(call, 1)) else None
    if not isinstance(function, ast.Attribute) or function.attr not in NAMES:
        return None
    owner, name = ast.unparse(function.value), function.attr
    if owner == "disk()":
        return None
    if owner == "os":
        return f"os.{name}" if name in OS_CALLS and not _only_reads(call) else None
    if owner == "shutil":
        return f"shutil.{name}" if name in SHUTIL_CALLS else None
    if owner in ("np", "numpy", "torch", "safetensors.torch", "safetensors.numpy") and name in ARRAY_SAVERS:
        return f"{owner}.{name}"
    if name == "memmap":
        return None if _keyword(call, "mode") in ("r", "c") else name
    if name == "open":
        return f"{owner}.open" if _mode(call, 0) else None
    if name == "replace":  # of a path: strings take two arguments, dataclasses and dates take names
        return name if len(call.args) == 1 and not call.keywords else None
    return name if name in PATH_METHODS else None


def _mode(call: ast.Call, position: int) -> bool:
    """Whether a file is opened for writing; a mode that is not spelled out counts."""
    given = call.args[position] if len(call.args) > position else None
    mode = given.value if isinstance(given, ast.Constant) else _keyword(call, "mode")
    if mode is None:
        return given is not None and not isinstance(given, ast.Constant) and position == 1
    return bool(set(str(mode)) & set("wxa+")) and len(str(mode)) <= 3


def _keyword(call: ast.Call, name: str) -> object:
    found = next((item.value for item in call.keywords if item.arg == name), None)
    return found.value if isinstance(found, ast.Constant) else None


def _only_reads(call: ast.Call) -> bool:
    return "O_RDONLY" in ast.unparse(call)


@pytest.mark.parametrize("path", source_files(), ids=shown)
def test_files_are_written_through_the_disk(path: Path) -> None:
    if shown(path) in BY_OTHER_MEANS:
        return
    assert [f"{shown(path)}:{line}: {name}" for line, name in _writes(tree_of(path))] == []


def test_the_list_is_of_files_that_write() -> None:
    idle = [
        name
        for name in BY_OTHER_MEANS
        if not any(_writes(tree_of(path)) for path in source_files() if shown(path) == name)
    ]
    assert idle == []


@pytest.mark.parametrize(
    "line",
    [
        "path.open('wb')", "path.open(mode='a')", "open(name, 'x')", "open(name, mode)", "path.write_text('x')", "path.replace(other)",
        "os.replace(a, b)", "os.open(a, os.O_RDWR)", "shutil.rmtree(a)", "np.save(a, b)", "torch.save(a, b)",
        "np.memmap(a, mode='r+')", "hf.save_pretrained(a)", "import tempfile", "(a / b).unlink()", "save_file(a, b)",
    ],
)  # fmt: skip
def test_a_write_is_seen(line: str) -> None:
    assert len(list(_writes(ast.parse(line)))) == 1


@pytest.mark.parametrize(
    "line",
    [
        "path.open('rb')", "path.open()", "open(name)", "text.replace('a', 'b')", "replace(plan, a=1)", "disk().rename(a, b)",
        "os.open(a, os.O_RDONLY)", "np.memmap(a, mode='r')", "RunFolder.open(path)", "gzip.open(path, 'rb')",
    ],
)  # fmt: skip
def test_reading_is_no_write(line: str) -> None:
    assert list(_writes(ast.parse(line))) == []
