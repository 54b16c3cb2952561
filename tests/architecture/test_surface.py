"""What scripts rely on: verbs, their options, the public names; and how fast they answer."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import get_type_hints

import click
import pytest

import tunesmith
from tunesmith.cli.main import tunesmith as group
from tunesmith.cli.table import VERBS

SAMPLING = ["--max-new-tokens", "--seed", "--system", "--temperature", "--top-p"]
SURFACE: dict[str, tuple[list[str], list[str]]] = {
    "blend": (
        ["ADAPTER..."],
        [
            "--base",
            "--density",
            "--dtype",
            "--json",
            "--merge",
            "--method",
            "--no-normalise",
            "--out",
            "--rank",
            "--seed",
            "--weights",
        ],
    ),
    "chat": (["MODEL"], ["--against", *SAMPLING]),
    "compare-strategies": (
        ["RECIPE", "[SECTION.KEY=VALUE]..."],
        [
            "--dry-run",
            "--factors",
            "--jobs",
            "--json",
            "--out",
            "--own",
            "--reference",
            "--score",
            "--seeds",
            "--strategies",
        ],
    ),
    "data check": (["RECIPE", "[SECTION.KEY=VALUE]..."], ["--json", "--verify"]),
    "data show": (["RECIPE", "[SECTION.KEY=VALUE]..."], ["--json", "--row", "--split"]),
    "demo": ([], ["--json", "--run"]),
    "doctor": ([], ["--json"]),
    "eval": (["MODEL", "SUITE"], ["--against", "--json"]),
    "export": (["RUN", "OUT"], ["--dtype", "--json", "--merge"]),
    "generate": (["MODEL"], ["--json", "--prompt", *SAMPLING]),
    "inspect": (["ADAPTER..."], ["--base", "--json", "--text", "--texts", "--top"]),
    "init": (["[DIR]"], ["--json"]),
    "plan": (["RECIPE", "[SECTION.KEY=VALUE]..."], ["--json"]),
    "report": (["RUN"], ["--json"]),
    "runs compare": (["RUN", "OTHER"], ["--json"]),
    "runs list": ([], ["--json", "--root"]),
    "runs reproduce": (["RUN"], ["--into", "--json"]),
    "runs show": (["RUN"], ["--json"]),
    "schema": ([], ["--json"]),
    "train": (["RECIPE", "[SECTION.KEY=VALUE]..."], ["--detach", "--fork", "--json", "--nproc", "--restart", "--run"]),
}
"""Verb -> arguments and options; every verb has --help and --debug beside them. Additions are written here first."""

FACE = [
    "Asked", "Comparison", "Plan", "Recipe", "Report", "Run", "Scorecard", "StrategyComparison", "Switchboard", "__version__",
    "apply_head", "blend", "compare", "compare_strategies", "evaluate", "export", "inspect_adapters", "load", "make_plan", "media_features", "open_switchboard", "report", "train", "train_head",
]  # fmt: skip


def _verbs(command: click.Command, path: str, context: click.Context) -> dict[str, click.Command]:
    if not isinstance(command, click.Group):
        return {path: command}
    found: dict[str, click.Command] = {}
    for name in command.list_commands(context):
        inner = command.get_command(context, name)
        assert inner is not None
        found |= _verbs(inner, f"{path} {name}".strip(), click.Context(inner, info_name=name, parent=context))
    return found


def test_verbs_and_options_are_frozen() -> None:
    context = click.Context(group, info_name="tunesmith")
    found = {}
    for path, command in _verbs(group, "", context).items():
        arguments = [item.make_metavar(context) for item in command.params if isinstance(item, click.Argument)]
        options = [name for item in command.params if isinstance(item, click.Option) for name in item.opts]
        assert "--debug" in options
        found[path] = (arguments, sorted(set(options) - {"--debug"}))
    assert found == {name: (arguments, sorted(options)) for name, (arguments, options) in SURFACE.items()}


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_the_table_names_what_the_module_holds(verb: str) -> None:
    context = click.Context(group, info_name="tunesmith")
    command = group.get_command(context, verb)
    assert command is not None
    assert command.name == verb
    assert command.help


def test_public_names_are_frozen() -> None:
    assert sorted(tunesmith.__all__) == FACE


def test_unknown_public_name() -> None:
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        _ = tunesmith.trian


@pytest.mark.parametrize("name", [name for name in FACE if not name.startswith("__")])
def test_public_names_load(name: str) -> None:
    assert callable(getattr(tunesmith, name))


@pytest.mark.parametrize(
    ("name", "gives"),
    [
        ("load", "Recipe"), ("make_plan", "Plan"), ("train", "Run"), ("evaluate", "Scorecard"),
        ("compare", "Comparison"), ("report", "Report"), ("open_switchboard", "Switchboard"),
    ],
)  # fmt: skip
def test_functions_of_the_face_give_what_its_names_say(name: str, gives: str) -> None:
    assert get_type_hints(getattr(tunesmith, name))["return"] is getattr(tunesmith, gives)


def test_version_is_the_package_s() -> None:
    text = (Path(__file__).resolve().parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    assert f'version = "{tunesmith.__version__}"' in text


def test_import_is_free() -> None:
    code = (
        "import sys, tunesmith\n"
        "heavy = {'torch', 'transformers', 'pydantic', 'numpy', 'click', 'rich', 'tokenizers'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)


def test_help_loads_no_verb() -> None:
    code = (
        "import sys\n"
        "from tunesmith.cli.main import run\n"
        "run(['--help'])\n"
        "loaded = {name for name in sys.modules if name.startswith('tunesmith.')}\n"
        "expected = {'tunesmith.cli', 'tunesmith.errors', 'tunesmith.disk', 'tunesmith.files', 'tunesmith.json_values', 'tunesmith.launcher', 'tunesmith.signals', 'tunesmith.visible'}\n"
        "expected |= {f'tunesmith.cli.{name}' for name in ('main', 'command', 'streams', 'table', 'terminal')}\n"
        "assert loaded == expected, loaded ^ expected\n"
        "assert not {'torch', 'pydantic', 'rich'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr


def test_help_is_quick() -> None:
    times = []
    for _ in range(5):
        started = time.perf_counter()
        subprocess.run([sys.executable, "-m", "tunesmith", "--help"], check=True, capture_output=True, timeout=30)
        times.append(time.perf_counter() - started)
    assert min(times) < 0.3
