"""Try every language model that transformers can build, and write docs/reference/models.md: ``python tools/write_breadth.py``.

A tiny random model of each goes through plan, masks, two steps of training, export and the export in transformers. It takes some
minutes on two cores. ``--only TYPE …`` tries some and prints what became of them.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import transformers

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.breadth.patience import Patience
from tests.breadth.probe import TOLERANCE, Found
from tests.breadth.tiny_configs import KINDS

FILE = Path(__file__).resolve().parents[1] / "docs" / "reference" / "models.md"
SECONDS_EACH = 60.0
TITLES = {
    "causal": ("Causal language models", "`sft`, LoRA"),
    "encoder": ("Encoders", "`mlm`, LoRA"),
    "encoder-decoder": ("Encoder–decoder models", "`sft`, LoRA"),
}
STAGES = {
    "build": "transformers", "plan": "plan", "train": "training", "export": "export", "reload": "reload", "packed": "packing",
    "answers": "answers", "time": "time",
}  # fmt: skip


def main() -> None:
    """Try them and write the page."""
    parser = argparse.ArgumentParser(description="Try every language model that transformers can build.")
    parser.add_argument("--only", nargs="+", metavar="TYPE", help="model types; nothing is written")
    only = parser.parse_args().only
    asked = [(kind, name) for kind, (names, _) in KINDS.items() for name in names if only is None or name in only]
    every: list[Found] = []
    for found in Patience(SECONDS_EACH).each(asked):
        every.append(found)
        print(
            f"{found.kind} {found.model_type}: {'passed' if found.passed else f'{found.stage}: {found.reason}'}",
            flush=True,
        )
    print(_sums(every))
    if only is None:
        FILE.write_text(page(every), encoding="utf-8")


def page(every: Sequence[Found]) -> str:
    """The page as text."""
    parts = [
        "<!-- Written by tools/write_breadth.py. Change the code, then run it. -->\n",
        "# Models that were tried\n",
        f"Every class that transformers {transformers.__version__} can build from a configuration and that reads text: as a tiny random "
        "model it is planned, its data is rendered and masked, it trains two steps, is merged, exported, and opened again by transformers. "
        f"{_sums(every)}\n",
        "- **packing**: *in one row* where documents lie end to end and attention keeps them apart; else how they run instead. A family that "
        "cannot pack does so only where `models/families.py` names it, and the plan says it; one that is not named is refused when it is loaded.\n"
        "- **reload**: the largest difference between the logits of the export in transformers, a document at a time, and those of the "
        "trained run, over the largest logit, in fp32.\n"
        "- **beside others**: the same where the documents run beside others of unlike lengths. Were any token of another document "
        f"seen, this would be near 1. Both must stay below {TOLERANCE:g}.\n"
        "- A causal model also answers prompts of unlike lengths, and ranks candidates, as its own forward does; the plan's count of what trains "
        "is what was trained.\n",
    ]
    for kind, (title, how) in TITLES.items():
        own = [found for found in every if found.kind == kind]
        passed, failed = [item for item in own if item.passed], [item for item in own if not item.passed]
        parts.append(f"## {title}\n\n{len(passed)} of {len(own)} pass ({how}).\n")
        rows = [
            f"| {item.name} | `{item.model_type}` | {_short(item.packing)} | {item.reload:.0e} | {item.packed:.0e} |"
            for item in passed
        ]
        parts.append(_table("| class | model type | packing | reload | beside others |", rows))
        rows = [
            f"| {item.name} | `{item.model_type}` | {STAGES[item.stage]} | {_cell(item.reason)} |" for item in failed
        ]
        parts.append(_table("| class that fails | model type | in | because |", rows))
    return "\n".join(part for part in parts if part)


def _sums(every: Sequence[Found]) -> str:
    passed = sum(found.passed for found in every)
    classes = len({found.name for found in every if found.passed})
    return f"**{passed} of {len(every)} pass, {classes} classes.**"


def _table(head: str, rows: Sequence[str]) -> str:
    if not rows:
        return ""
    return "\n".join([head, "|---" * (head.count("|") - 1) + "|", *rows, ""])


def _short(packing: str) -> str:
    return packing.removeprefix("documents ")


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


if __name__ == "__main__":
    main()
