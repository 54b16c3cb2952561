"""The model card of a run: YAML metadata that model hubs read, and a page of Markdown for people."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from tunesmith.files import write_text
from tunesmith.reports.costs import trained_sizes
from tunesmith.reports.descent import descent
from tunesmith.reports.facts import Facts, read_facts
from tunesmith.reports.measures import Measure, changes, forgetting, is_share, like_for_like, show_interval, show_value
from tunesmith.reports.verdict import sentence
from tunesmith.reports.wording import as_list, as_mapping, as_number, count, duration, number, percent, plain, size
from tunesmith.visible import visible

CARD = "card.md"
_LIBRARIES = {
    "lora": "peft", "gralora": "peft", "aflora": "peft", "bottleneck": "tunesmith", "prompt": "peft", "p-tuning": "peft", "prefix": "peft",
    "full": "transformers", "partial": "transformers",
}  # fmt: skip
_MARKUP = re.compile(r"([\\`*_{}\[\]<>|#~])")
_TRAINING_KEYS = (
    "epochs",
    "max_steps",
    "batch_size",
    "learning_rate",
    "optimiser",
    "schedule",
    "warmup",
    "weight_decay",
    "clip",
    "precision",
)


def render_card(run_folder: Path) -> str:
    """The card of a run; what the folder lacks is said.

    Raises:
        RunError: no such folder, or its recipe is missing or torn.
    """
    facts = read_facts(Path(run_folder))
    measures = like_for_like(facts.base, facts.tuned, facts.comparison)
    parts = [
        _metadata(facts, measures),
        f"# {_safe(facts.name)}",
        _origin(facts),
        "## Did it help",
        _safe(sentence(facts, changes(facts.comparison, "tasks"))),
        *_warnings(facts),
        _scores(measures),
        "## What was forgotten",
        _bullets(forgetting(facts.comparison)) or "Not measured.",
        "## Training data",
        _data(facts),
        "## Training",
        _training(facts),
        *_lineage(facts),
        "## Limits",
        _LIMITS,
        "## Reproduce",
        "The resolved recipe is `recipe.json` beside this card; `report.html` shows curves, answers and the exact command.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def write_card(run_folder: Path, out: Path | None = None) -> Path:
    """Write the card atomically, beside the run unless ``out`` names another file, and return its path.

    Raises:
        RunError: no such folder, or its recipe is missing or torn.
    """
    target = Path(out) if out is not None else Path(run_folder) / CARD
    write_text(target, render_card(run_folder))
    return target


_LIMITS = (
    "This card was written by Tunesmith from the files of the run. What the model is for, who may be harmed, and under which licence it may be used "
    "must be added by a person. The scores hold for rows like those of the held-out split; other inputs were not measured."
)


def _safe(text: Any) -> str:
    """Text of people and models as literal Markdown, on one line."""
    return _MARKUP.sub(r"\\\1", visible(" ".join(str(text).split())))


def _quoted(value: Any) -> str:
    """A YAML scalar: JSON strings and numbers are YAML."""
    return json.dumps(value, ensure_ascii=True)


def _metadata(facts: Facts, measures: list[Measure]) -> str:
    adapter = str(as_mapping(facts.recipe.get("adapter")).get("type") or "")
    objective = str(as_mapping(facts.recipe.get("objective")).get("type") or "")
    lines = [
        "---",
        *([] if facts.from_scratch else [f"base_model: {_quoted(_base_name(facts))}"]),
        f"library_name: {_quoted(_LIBRARIES.get(adapter, 'transformers'))}",
    ]
    lines += [
        'pipeline_tag: "text-generation"',
        "tags:",
        *(f"- {_quoted(tag)}" for tag in ("tunesmith", adapter, objective) if tag),
    ]
    tuned = [one for one in measures if one.who == "tuned"]
    if tuned:
        lines += ["model-index:", f"- name: {_quoted(facts.name)}", "  results:"]
        for one in tuned:
            lines += [
                "  - task:",
                '      type: "text-generation"',
                "    dataset:",
                f"      name: {_quoted(_dataset_name(facts))}",
                '      type: "private"',
                f"      split: {_quoted('validation' if facts.optimistic else 'test')}",
                "    metrics:",
                f"    - type: {_quoted(one.metric)}",
                f"      name: {_quoted(plain(one.task))}",
                f"      value: {_quoted(round(one.score.value, 6))}",
            ]
    return "\n".join([*lines, "---"])


def _base_name(facts: Facts) -> str:
    model = facts.recipe.get("model")
    return str(as_mapping(model).get("name") or model or "unknown")


def _dataset_name(facts: Facts) -> str:
    sources = as_list(as_mapping(facts.recipe.get("data")).get("train"))
    names = [Path(str(as_mapping(one).get("path", one))).name for one in sources]
    return ", ".join(names) or "unknown"


def _origin(facts: Facts) -> str:
    adapter = as_mapping(facts.recipe.get("adapter"))
    kind = {
        "lora": f"a LoRA adapter of rank {adapter.get('rank')}",
        "gralora": f"a GraLoRA adapter of rank {adapter.get('rank')}",
        "aflora": f"an AFLoRA adapter of rank {adapter.get('rank')}, {adapter.get('procedure')} procedure, stored as LoRA",
        "bottleneck": "bottleneck adapters, which PEFT cannot read",
        "prompt": f"a prompt of {adapter.get('num_tokens')} virtual tokens",
        "p-tuning": f"a prompt of {adapter.get('num_tokens')} virtual tokens, made by P-tuning",
        "prefix": f"keys and values of {adapter.get('num_tokens')} virtual tokens in every layer",
        "full": "all parameters trained",
        "partial": "some parameters trained",
    }
    version = as_mapping(facts.environment.get("versions")).get("tunesmith")
    made = f"Tunesmith {version}" if version else "Tunesmith"
    base = _safe(_base_name(facts))
    if facts.from_scratch:
        return f"The shape of {base}, trained from random weights with {_safe(made)} on {_safe(_dataset_name(facts))}."
    return f"{base}, tuned with {_safe(made)}: {kind.get(str(adapter.get('type')), 'an unknown scope')}, on {_safe(_dataset_name(facts))}."


def _warnings(facts: Facts) -> list[str]:
    found = []
    if facts.optimistic:
        found.append("**Optimistic:** only validation rows were scored, which also served to stop or select.")
    if facts.status.get("status") not in (None, "done"):
        found.append(f"**Unfinished:** the run is {_safe(facts.status['status'])}.")
    return found


def _scores(measures: list[Measure]) -> str:
    if not measures:
        return "No scores were written."
    who = {"majority": "majority class", "base": "base", "tuned": "tuned"}
    lines = ["| model | measure | score | 95 % interval | n |", "|---|---|---:|---:|---:|"]
    for one in measures:
        better = "" if is_share(one.metric) else " (lower is better)"
        label = f"{one.label}{better}{', claimed' if one.claimed else ''}"
        cells = (
            who[one.who],
            _safe(label),
            show_value(one.metric, one.score),
            show_interval(one.metric, one.score) or "–",
            count(one.score.n),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _data(facts: Facts) -> str:
    said = facts.ledger
    if not said:
        return "No ledger was written: it is not known what became of each row."
    rejected = sum(int(as_number(value) or 0) for value in as_mapping(said.get("rejected")).values())
    tokens, trained = as_number(said.get("tokens")), as_number(said.get("trained_tokens"))
    share = trained / tokens if tokens and trained is not None else None
    lines = [
        f"{count(as_number(said.get('rows_in')))} rows in: {count(as_number(said.get('trained')))} trained, {count(as_number(said.get('held_out')))} held out, {count(rejected)} rejected",
        f"{count(tokens)} tokens, of which {count(trained)} ({percent(share)}) are trained on",
        *(str(note) for note in as_list(said.get("notes"))),
    ]
    return _bullets(lines)


def _training(facts: Facts) -> str:
    settings = as_mapping(facts.recipe.get("training"))
    words = [f"{plain(key)} {settings[key]}" for key in _TRAINING_KEYS if settings.get(key) is not None]
    lines = [", ".join(words)] if words else []
    steps, tokens = as_number(facts.status.get("step")), as_number(facts.status.get("tokens"))
    took = [
        f"{count(steps)} steps" if steps else "",
        f"{count(tokens)} tokens" if tokens else "",
        duration(facts.seconds) if facts.seconds is not None else "",
    ]
    if any(took):
        lines.append(", ".join(filter(None, took)))
    sizes = trained_sizes(facts)
    if sizes is not None:
        lines.append(
            f"{count(sizes[1])} trained parameters on average, {count(sizes[0])} at first and {count(sizes[2])} at the end"
        )
    peak = as_number(facts.status.get("peak_memory_bytes"))
    if peak is not None:
        lines.append(f"peak memory {size(peak)}")
    if facts.training and (loss := as_number(facts.training[-1].get("loss"))) is not None:
        lines.append(f"last training loss {number(loss)} nats per token")
    return _bullets(lines) or "Nothing was recorded."


def _lineage(facts: Facts) -> list[str]:
    found = descent(facts)
    if found is None:
        return []
    return ["## Lineage", _bullets([f"Forked from {found.chain}", *found.said])]


def _bullets(lines: list[str]) -> str:
    return "\n".join(f"- {_safe(line)}" for line in lines)
