"""Pages point at what exists: links, verbs, files, and every method has its page."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest

from tests.architecture.source_tree import REPOSITORY
from tests.architecture.test_surface import SURFACE
from tunesmith.adapters import ADAPTERS
from tunesmith.cli.main import tunesmith as group
from tunesmith.cli.table import VERBS
from tunesmith.objectives import OBJECTIVES

PAGES = [
    *sorted((REPOSITORY / "docs").rglob("*.md")),
    *(REPOSITORY / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted((REPOSITORY / "src").rglob("*.md")),
]
_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
_FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
_VERB = re.compile(r"(?<![\w./-])tunesmith ([a-z]+(?:-[a-z]+)*(?: [a-z]+)?)")
_OPTION = re.compile(r"(?<=\s)--[a-z][a-z-]*")


def _shown(page: Path) -> str:
    return str(page.relative_to(REPOSITORY))


def _anchors(page: Path) -> set[str]:
    text = _FENCE.sub("", page.read_text(encoding="utf-8"))
    heads = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=_shown)
def test_links_resolve(page: Path) -> None:
    broken = []
    for link in _LINK.findall(_FENCE.sub("", page.read_text(encoding="utf-8"))):
        if link.startswith(("http://", "https://", "mailto:")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in _anchors(target)):
            broken.append(link)
    assert broken == []


def _code(text: str) -> list[str]:
    """Lines of code blocks and pieces of code in running text."""
    lines = [line for block in _FENCE.findall(text) for line in block.splitlines()]
    return lines + re.findall(r"`([^`\n]+)`", _FENCE.sub("", text))


@pytest.mark.parametrize("page", PAGES, ids=_shown)
def test_verbs_exist(page: Path) -> None:
    unknown = []
    for piece in _code(page.read_text(encoding="utf-8")):
        for words in _VERB.findall(piece):
            first, _, second = words.partition(" ")
            groups = {name.split()[0] for name in SURFACE if " " in name}
            if first not in VERBS or (first in groups and second and f"{first} {second}" not in SURFACE):
                unknown.append(piece)
    assert unknown == []


@pytest.mark.parametrize("page", PAGES, ids=_shown)
def test_options_exist(page: Path) -> None:
    """Options in a command that begins with a verb are options of that verb."""
    unknown = []
    for piece in _code(page.read_text(encoding="utf-8")):
        for command in re.split(r"\||&&|;|#|\$\(", piece):
            words = command.removeprefix("$").split()
            if len(words) < 2 or words[0] != "tunesmith":
                continue
            name = next((name for name in (" ".join(words[1:3]), words[1]) if name in SURFACE), None)
            if name is None:
                continue
            known = {*SURFACE[name][1], "--help", "--debug"}
            unknown += [f"{name} {option}" for option in _OPTION.findall(command) if option not in known]
    assert unknown == []


@pytest.mark.parametrize("section", [*OBJECTIVES, *ADAPTERS], ids=lambda section: section.__name__)
def test_every_method_has_a_page(section: type) -> None:
    name = section().type
    page = REPOSITORY / "docs" / "methods" / f"{name}.md"
    text = page.read_text(encoding="utf-8")
    for part in ("**When.**", "## Cost", "## Defaults and reasons", "## Pitfalls", "Source"):
        assert part in text, part
    assert f"methods/{name}.md" in (REPOSITORY / "docs" / "README.md").read_text(encoding="utf-8")


def test_every_page_is_in_the_index() -> None:
    index = (REPOSITORY / "docs" / "README.md").read_text(encoding="utf-8")
    index += (REPOSITORY / "docs" / "course" / "README.md").read_text(encoding="utf-8")
    folder = REPOSITORY / "docs"
    missing = [_shown(page) for page in folder.rglob("*.md") if page.name != "README.md" and page.name not in index]
    assert missing == []


def test_the_readme_has_every_verb() -> None:
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    context = click.Context(group, info_name="tunesmith")
    assert [name for name in group.list_commands(context) if f"`tunesmith {name}" not in text] == []
