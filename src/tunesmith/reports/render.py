"""A run folder to one self-contained page.

    files ──facts──> Facts ──verdict, answers, sections, accounts──> views ──templates──> HTML

The page loads nothing: its own policy forbids it. All text of data and models is escaped.
"""

from __future__ import annotations

import json
import shlex
from functools import cache
from importlib.resources import files as package_files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from tunesmith.files import write_text
from tunesmith.reports import accounts, answers, costs, framing, history, sections, verdict, wording
from tunesmith.reports.descent import descent
from tunesmith.reports.facts import Facts, read_facts
from tunesmith.reports.measures import forgetting
from tunesmith.reports.spent import spent
from tunesmith.visible import is_inert

PAGE = "report.html"


def render_report(run_folder: Path) -> str:
    """The report of a run as HTML; what the folder lacks is said in the page.

    Raises:
        RunError: no such folder, or its recipe is missing or torn.
    """
    return render_facts(read_facts(Path(run_folder)))


def render_facts(facts: Facts) -> str:
    """The report of what a run folder holds."""
    return environment().get_template("report.html.jinja").render(**views(facts))


def write_report(run_folder: Path, out: Path | None = None) -> Path:
    """Write the page atomically, beside the run unless ``out`` names another file, and return its path.

    Raises:
        RunError: no such folder, or its recipe is missing or torn.
    """
    target = Path(out) if out is not None else Path(run_folder) / PAGE
    write_text(target, render_report(run_folder))
    return target


def views(facts: Facts) -> dict[str, Any]:
    """Everything the templates show, by name."""
    happened, more_events = history.events(facts)
    return {
        "facts": facts,
        "subtitle": subtitle(facts),
        "date": facts.date,
        "verdict": verdict.verdict(facts),
        "troubles": history.troubles(facts),
        "curves": sections.curves(facts),
        "layers": sections.layers(facts),
        "lost_points": sections.lost_points(facts),
        "classes": sections.classes(facts),
        "frame": framing.frame_of(facts),
        "cases": answers.side_by_side(facts),
        "forgotten": sections.forgotten(facts),
        "forgetting": forgetting(facts.comparison),
        "instructions": answers.instructions(facts),
        "ledger": accounts.ledger(facts),
        "planned": costs.planned_against_measured(facts),
        "plan": costs.plan_view(facts),
        "spent": spent(facts),
        "watched": sections.watched(facts),
        "events": happened,
        "more_events": more_events,
        "environment": sections.flatten(facts.environment),
        "recipe": json.dumps(facts.recipe, indent=2, ensure_ascii=False),
        "commands": commands(facts),
        "descent": descent(facts),
    }


def subtitle(facts: Facts) -> str:
    """Model, scope and amount in one line."""
    model = wording.as_mapping(facts.recipe.get("model")).get("name") or facts.recipe.get("model") or "unknown model"
    adapter = wording.as_mapping(facts.recipe.get("adapter"))
    objective = wording.as_mapping(facts.recipe.get("objective")).get("type")
    kind = str(adapter.get("type") or "")
    scope = {
        "lora": f"LoRA rank {adapter.get('rank')}",
        "gralora": f"GraLoRA rank {adapter.get('rank')}",
        "aflora": f"AFLoRA rank {adapter.get('rank')}",
        "bottleneck": "bottleneck adapters",
        "prompt": f"prompt of {adapter.get('num_tokens')} tokens",
        "p-tuning": f"P-tuning of {adapter.get('num_tokens')} tokens",
        "prefix": f"prefix of {adapter.get('num_tokens')} tokens",
        "full": "all parameters",
        "partial": "some parameters",
    }.get(kind, kind)
    rows = wording.as_number(facts.ledger.get("trained"))
    words = [
        f"the shape of {model} from random weights" if facts.from_scratch else str(model),
        scope,
        f"objective {objective}" if objective else "",
        f"{wording.count(rows)} training rows" if rows else "",
    ]
    return " · ".join(filter(None, words))


def commands(facts: Facts) -> tuple[tuple[str, str], ...]:
    """The exact commands that make this run and this page again, each with what it does."""
    folder = str(facts.folder)
    recipe = str(facts.folder / "recipe.json")
    again = f"{folder}-again"
    fork = ["--fork", f"{facts.lineage['parent']['path']}@{facts.lineage['parent']['step']}"] if descent(facts) else []
    found = [
        ("the training again, compared step by step", shlex.join(["tunesmith", "runs", "reproduce", folder])),
        ("the same run into a new folder", shlex.join(["tunesmith", "train", recipe, *fork, "--run", again])),
    ]
    said = facts.environment.get("command")
    if isinstance(said, list) and said:
        found.insert(0, ("as it was started", shlex.join(map(str, said))))
    elif isinstance(said, str) and is_inert(said):
        found.insert(0, ("as it was started", said))
    found.append(("what differs between the two", shlex.join(["tunesmith", "runs", "compare", folder, again])))
    return tuple(found)


@cache
def environment() -> Environment:
    """Templates, escaping, and the words of numbers as filters; shared by every page."""
    environment = Environment(
        loader=PackageLoader("tunesmith.reports", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style = package_files("tunesmith.reports").joinpath("templates/report.css").read_text(encoding="utf-8")
    environment.globals["style"] = Markup(style)  # noqa: S704 - our own file
    for name in ("count", "number", "percent", "points", "signed", "chance", "plain", "duration", "size"):
        environment.filters[name] = getattr(wording, name)
    return environment
