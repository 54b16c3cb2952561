"""Write docs/reference from the code: recipe keys, command line, errors, reasons for rejected rows.

python tools/write_reference.py            write the pages
python tools/write_reference.py --check    exit 1 where a page on disk is not what the code says
"""

from __future__ import annotations

import argparse
import inspect
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from tunesmith import errors
from tunesmith.cli.main import EXIT_FAULT, EXIT_READER_LEFT
from tunesmith.cli.main import tunesmith as group
from tunesmith.data.bad_row import REASONS
from tunesmith.data.ledger import POLICY_REASONS
from tunesmith.recipe.codec import schema
from tunesmith.recipe.section import Section

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "reference"
HEAD = "<!-- Written by tools/write_reference.py from the code. Change the code, then run it. -->\n\n"

REASON_WORDS = {
    "broken_json": "The line, or an item of the file, is not valid JSON, or an object of it has a key twice.",
    "wrong_encoding": "The line is not valid UTF-8.",
    "missing_column": "The row lacks a column that its format needs.",
    "wrong_type": "A column holds another kind of value than its format needs.",
    "empty_text": "A document, an input or a message is empty.",
    "empty_answer": "The answer to learn is empty.",
    "role_order": "The turns of a conversation do not take turns as user and assistant should.",
    "no_answer": "The conversation does not end with an assistant's turn, so that there is nothing to learn.",
    "template_failed": "The chat template refuses the conversation.",
    "overlong": "The example is longer than the context, and `data.overlong` says `drop`.",
    "duplicate_of_test": "The input is also in the test rows, and `data.duplicates` says `drop`.",
    "duplicate_of_validation": "The input is also in the validation rows, and `data.duplicates` says `drop`.",
    "nothing_trained": "No token of the example is a target of the loss.",
    "wrong_weight": "The column named by `columns.weight` holds no number from 0 to 1,000,000.",
    "unknown_label": "The row's label is none of those that `objective.labels` names.",
    "wrong_tags": "Words and tags, or spans and their text, do not go together, or a tag breaks `objective.scheme`.",
}


def main() -> int:
    """Write or check the pages."""
    parser = argparse.ArgumentParser(description="Write docs/reference from the code.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 where a page differs")
    check = parser.parse_args().check
    stale = []
    for name, text in pages().items():
        path = FOLDER / name
        if path.exists() and path.read_text(encoding="utf-8") == text:
            continue
        stale.append(name)
        if not check:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    verb = "differs from the code" if check else "written"
    for name in stale:
        print(f"docs/reference/{name}: {verb}")
    if check and stale:
        print("hint: run `python tools/write_reference.py` and look at the difference")
    return 1 if check and stale else 0


def pages() -> dict[str, str]:
    """Name -> text of every page."""
    return {
        "recipe.md": HEAD + recipe_page(),
        "cli.md": HEAD + cli_page(),
        "errors.md": HEAD + errors_page(),
        "reasons.md": HEAD + reasons_page(),
    }


def recipe_page() -> str:
    """Every section and key of a recipe with type, default and meaning."""
    root = schema()
    definitions = root["$defs"]
    parts = [
        "# Recipe\n",
        "YAML 1.2 by hand, JSON by machine. Unknown keys are errors; numbers are not made from text.",
        "Any key can be set for one call: `tunesmith train recipe.yaml training.epochs=2 data.train.0.limit=100`.\n",
        _section("Recipe", "The top level. `name`, `model` and `data` are needed; all else has a default.", root),
    ]
    for name in _in_order(root, definitions):
        words = inspect.cleandoc(definitions[name].get("description", ""))
        parts.append(_section(name, words, definitions[name]))
    return "\n".join(parts)


def _in_order(root: dict[str, Any], definitions: dict[str, Any]) -> list[str]:
    """Sections in the order in which the recipe first mentions them."""
    found: list[str] = []

    def visit(node: Any) -> None:
        if isinstance(node, dict):
            name = str(node.get("$ref", "")).rsplit("/", 1)[-1]
            if name and name not in found:
                found.append(name)
                visit(definitions[name])
            for value in node.values():
                visit(value)
        elif isinstance(node, list):
            for value in node:
                visit(value)

    visit(root["properties"])
    return found


def _section(name: str, words: str, definition: dict[str, Any]) -> str:
    rows = ["| key | type | default | meaning |", "|---|---|---|---|"]
    needed = definition.get("required", [])
    for key, item in definition["properties"].items():
        default = (
            "needed"
            if key in needed
            else _shown(_sections()[name].model_fields[key].get_default(call_default_factory=True))
        )
        meaning = _cell(item.get("description", "Names the method." if key == "type" else ""))
        rows.append(f"| `{key}` | {_cell(_type(item))} | {_cell(default)} | {meaning} |")
    return f"## {name}\n\n{words}\n\n" + "\n".join(rows) + "\n"


def _type(item: dict[str, Any]) -> str:
    if "$ref" in item:
        name = item["$ref"].rsplit("/", 1)[-1]
        return f"[{name}](#{name.lower()})"
    if "anyOf" in item or "oneOf" in item:
        return " or ".join(dict.fromkeys(_type(inner) for inner in item.get("anyOf") or item["oneOf"]))
    if "const" in item:
        return f"`{item['const']}`"
    if "enum" in item:
        return ", ".join(f"`{value}`" for value in item["enum"])
    if item.get("type") == "array":
        inner = item.get("items") or item.get("prefixItems", [{}])[0]
        return f"list of {_type(inner)}"
    if item.get("type") == "object":
        return f"mapping of text to {_type(item.get('additionalProperties', {}))}"
    names = {
        "string": "text",
        "integer": "whole number",
        "number": "number",
        "boolean": "true or false",
        "null": "null",
    }
    return names.get(item.get("type", ""), "any") + _limits(item)


def _limits(item: dict[str, Any]) -> str:
    signs = {"exclusiveMinimum": "> ", "minimum": "≥ ", "exclusiveMaximum": "< ", "maximum": "≤ "}
    limits = [f"{sign}{item[name]:g}" for name, sign in signs.items() if name in item]
    return f" {', '.join(limits)}" if limits else ""


def _sections() -> dict[str, type[Section]]:
    """Every section of a recipe by the name of its class."""

    def below(kind: type[Section]) -> Iterator[type[Section]]:
        for inner in kind.__subclasses__():
            yield inner
            yield from below(inner)

    return {kind.__name__: kind for kind in below(Section)}


def _shown(default: Any) -> str:
    """A default as a recipe has it; a section's is the section's own page."""
    if isinstance(default, Section):
        fields = default.model_dump(mode="json", exclude_defaults=True)
        return (
            f"`type: {default.type}`"
            if hasattr(default, "type")
            else f"`{json.dumps(fields)}`"
            if fields
            else "its defaults"
        )
    if isinstance(default, list) and any(isinstance(item, Section) for item in default):
        kinds = [{"type": item.type, **item.model_dump(mode="json", exclude_defaults=True)} for item in default]
        return f"`{json.dumps(kinds)}`"
    return f"`{json.dumps(default)}`"


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").replace("``", "`").split())


def cli_page() -> str:
    """Every verb with its arguments and options."""
    context = click.Context(group, info_name="tunesmith")
    parts = [
        "# Command line\n",
        f"{inspect.cleandoc(group.help or '')}\n",
        "Every verb takes `--help`, and `--debug`, which shows the traceback of an error. With `--json` stdout holds exactly one JSON",
        "object; progress and notes go to stderr; after an error the object is",
        '`{"error": {"what", "where", "hint", "exit_code"}}`. Exit codes are on the page of [errors](errors.md).\n',
        "`MODEL` is an embedded name, a folder in Hugging Face layout, a run folder or an adapter folder.",
        "`SECTION.KEY=VALUE` sets a key of the [recipe](recipe.md) for one call.\n",
    ]
    parts += [_verb(path, command, inner) for path, command, inner in _verbs(group, context)]
    return "\n".join(parts)


def _verbs(command: click.Command, context: click.Context) -> Iterator[tuple[str, click.Command, click.Context]]:
    if not isinstance(command, click.Group):
        yield context.command_path, command, context
        return
    for name in command.list_commands(context):
        inner = command.get_command(context, name)
        if inner is not None:
            yield from _verbs(inner, click.Context(inner, info_name=name, parent=context))


def _verb(path: str, command: click.Command, context: click.Context) -> str:
    arguments = [item.make_metavar(context) for item in command.params if isinstance(item, click.Argument)]
    usage = " ".join([path, *arguments])
    rows = [
        f"| `{item.opts[0]}`{_value(item)} | {_default(item)} | {_cell(item.help or '')} |"
        for item in command.params
        if isinstance(item, click.Option) and "--debug" not in item.opts
    ]
    options = "\n".join(["| option | default | meaning |", "|---|---|---|", *rows]) + "\n" if rows else ""
    words = inspect.cleandoc(command.help or "")
    return f"## {path}\n\n```\n{usage}\n```\n\n{words}\n\n{options}"


def _value(option: click.Option) -> str:
    if option.is_flag:
        return ""
    if isinstance(option.type, click.Choice):
        return " " + ", ".join(f"`{choice}`" for choice in option.type.choices)
    if option.metavar:
        return f" {option.metavar}"
    return {"integer range": " N", "float range": " X", "path": " DIR"}.get(option.type.name, " TEXT")


def _default(option: click.Option) -> str:
    if option.is_flag or not option.show_default:
        return ""
    return f"`{option.default}`"


def errors_page() -> str:
    """Exit codes, and the tree of exceptions."""
    parts = [
        "# Errors and exit codes\n",
        "An error says what is wrong, where, and after `hint:` how to mend it. A mistake in the input never shows a traceback;",
        "`--debug` does.\n",
        "| exit code | meaning |\n|---|---|",
        "| 0 | done, or nothing to do |",
        f"| {EXIT_FAULT} | a fault of Tunesmith itself |",
        "| 2 | the input is wrong: recipe, data, model, run folder, arguments |",
        "| 3 | a gate refused: does not fit, parity failed, hardware missing, `doctor` found something bad |",
        "| 4 | a guard stopped training: non-finite, diverged, disk full |",
        "| 130 | interrupted; training saved a checkpoint, and the same call resumes |",
        f"| {EXIT_READER_LEFT} | the reader of the output left, as in `tunesmith runs list \\| head -1` |",
        "\n## Exceptions\n",
        "In Python the same errors are raised as exceptions of `tunesmith.errors`, each with `what`, `where`, `hint` and `exit_code`.\n",
        "| exception | is a | exit code | meaning |\n|---|---|---|---|",
        *_exceptions(errors.TunesmithError),
    ]
    return "\n".join(parts) + "\n"


def _exceptions(kind: type[errors.TunesmithError]) -> Iterator[str]:
    for inner in kind.__subclasses__():
        if inner.__module__ == errors.__name__:
            words = (inner.__doc__ or "").splitlines()[0]
            yield f"| `{inner.__name__}` | `{kind.__name__}` | {inner.exit_code} | {words} |"
            yield from _exceptions(inner)


def reasons_page() -> str:
    """Why a row is rejected."""
    unknown = set(REASONS) ^ REASON_WORDS.keys()
    if unknown:
        raise SystemExit(f"tools/write_reference.py: give words for {', '.join(sorted(unknown))}, or drop them")
    parts = [
        "# Reasons for rejected rows\n",
        "Rows in = trained + held out + rejected. `rejected.jsonl` beside a run lists file, line, reason and row of every rejected one;",
        "`tunesmith data check` counts them. Faults are tolerated up to the share `data.max_rejected`; what the recipe itself leaves",
        "out is counted and not a fault.\n",
        "| reason | counts as | meaning |\n|---|---|---|",
        *(
            f"| `{name}` | {'policy' if name in POLICY_REASONS else 'fault'} | {REASON_WORDS[name]} |"
            for name in REASONS
        ),
    ]
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    sys.exit(main())
