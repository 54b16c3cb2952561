"""Mark dates, sums, codes and goods in the embedded help desk: ``python tools/tag_helpdesk.py`` writes recipes/helpdesk-tags.

The spans come from the rules below, not from readers: they show tagging at work, and a head that has learnt them has learnt
these rules. ``--check`` writes nothing and says whether the files are fresh.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path

from tunesmith.embedded import HELPDESK

FOLDER = Path(__file__).resolve().parents[1] / "recipes" / "helpdesk-tags"
_DAY = r"(?:mon|tues|wednes|thurs|fri|satur|sun)day"
_MONTH = r"(?:January|February|March|April|June|July|August|September|October|November|December)"
_GOODS = (
    r"(?:(?:cast iron|copper|enamel|steel|bread|soup|cake|dinner|coffee|moka|butter|fish|roasting|frying|chopping|measuring|"
    r"stand|hand|pepper|garlic|dutch|chef's|paring|carving|baking|loaf|gravy|milk|tea|salad|serving|mixing|pastry) )?"
    r"(?:toaster|kettle|mixer|grinder|blender|casserole|skillet|griddle|saucepan|teapot|apron|zester|thermometer|whisk|ladle|"
    r"colander|cafetière|pan|mug|knife|plate|bowl|spoon|fork|jug|jar|board|tin|tray|pot|oven|press|mill|glass|cup|napkin|peeler|"
    r"rack|timer|scale|scoop|tongs|mandoline)(?:es|s)?"
)
RULES = {
    "MONEY": r"£ ?\d+(?:,\d{3})*(?:\.\d\d)?|\b(?:\d+|ten|twenty|thirty|forty|fifty|sixty) (?:pounds?|quid|euros?)\b",
    "CODE": r"\b[A-Z]{1,4}-?\d{3,}\b|\b(?!(?:19|20)\d\d\b)\d{4,}\b",
    "DATE": rf"\b(?:\d{{1,2}}(?:st|nd|rd|th)? (?:of )?{_MONTH}|{_MONTH} \d{{1,2}}(?:st|nd|rd|th)?|{_MONTH}|{_DAY}|"
    r"\d{1,2}(?:st|nd|rd|th))\b",
    "PRODUCT": rf"\b{_GOODS}\b",
}
"""Type -> expression; where two overlap, the one that stands first here is taken."""
_EITHER_CASE = {"DATE", "PRODUCT"}
_MONTHS_THAT_ARE_WORDS = {"march", "august"}
_MOST_CHARACTERS = 160


def spans_of(text: str) -> list[dict[str, object]]:
    """Spans of a ticket, in order and apart."""
    found: list[tuple[int, int, str]] = []
    for kind, rule in RULES.items():
        for match in re.finditer(rule, text, re.IGNORECASE if kind in _EITHER_CASE else 0):
            start, end = match.span()
            is_word = match.group() in _MONTHS_THAT_ARE_WORDS
            if not is_word and all(end <= other or start >= stop for other, stop, _ in found):
                found.append((start, end, kind))
    return [{"start": start, "end": end, "label": kind} for start, end, kind in sorted(found)]


def lines_of(split: str) -> str:
    """The file of a split: short tickets, each with its spans, of which there may be none."""
    tickets = (HELPDESK / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [(row["id"], row["ticket"]) for row in map(json.loads, tickets) if len(row["ticket"]) <= _MOST_CHARACTERS]
    return "".join(
        json.dumps({"id": name, "text": text, "spans": spans_of(text)}, ensure_ascii=False) + "\n"
        for name, text in rows
    )


def main() -> int:
    """Write the files, or compare them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit 1 where a file is not what would be written"
    )
    check, stale = parser.parse_args().check, []
    FOLDER.mkdir(exist_ok=True)
    for split in ("train", "test"):
        path, text = FOLDER / f"{split}.jsonl", lines_of(split)
        if check and (not path.is_file() or path.read_text(encoding="utf-8") != text):
            stale.append(path.name)
        elif not check:
            path.write_text(text, encoding="utf-8")
            print(f"recipes/helpdesk-tags/{path.name}: {len(text.splitlines()):,} rows")
    if stale:
        print(f"{', '.join(stale)}: not what the rules mark\nhint: run `python tools/tag_helpdesk.py`")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
