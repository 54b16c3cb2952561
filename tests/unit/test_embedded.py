"""What the package carries: the tickets are what their card says, the model is whole, and both reach the wheel."""

from __future__ import annotations

import json
import re
import tomllib
from collections import Counter
from pathlib import Path

import pytest

from tunesmith import embedded
from tunesmith.data.tokenizer import Tokenizer
from tunesmith.files import sha256_of
from tunesmith.models.facts import read_facts
from tunesmith.models.locate import check_weights
from tunesmith.workshop.doctor import EMBEDDED_SHA256

REPOSITORY = Path(__file__).resolve().parents[2]
SPLITS = {"train": 1279, "validation": 185, "test": 366}
FIELDS = ["id", "ticket", "queue", "urgency", "reply"]
QUEUES = {
    "account", "advice", "coffee-club", "damaged", "delivery", "feedback", "gift-cards", "order-change",
    "payments", "privacy", "refunds", "returns", "trade", "website", "workshop",
}  # fmt: skip
LIKE = 0.5
MOST_LIKE_SHARE = 0.02


def _rows(split: str) -> list[dict[str, str]]:
    lines = (embedded.HELPDESK / f"{split}.jsonl").read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines if line]


@pytest.fixture(scope="module")
def tickets() -> dict[str, list[dict[str, str]]]:
    return {split: _rows(split) for split in SPLITS}


@pytest.fixture(scope="module")
def every(tickets: dict[str, list[dict[str, str]]]) -> list[dict[str, str]]:
    return [row for split in SPLITS for row in tickets[split]]


def test_counts(tickets: dict[str, list[dict[str, str]]]) -> None:
    assert {split: len(rows) for split, rows in tickets.items()} == SPLITS


def test_every_row_has_the_fields_in_order(every: list[dict[str, str]]) -> None:
    assert {tuple(row) for row in every} == {tuple(FIELDS)}


def test_no_field_is_empty_or_padded(every: list[dict[str, str]]) -> None:
    faults = [
        (row["id"], field) for row in every for field in FIELDS if not row[field] or row[field] != row[field].strip()
    ]
    assert faults == []


def test_labels(tickets: dict[str, list[dict[str, str]]]) -> None:
    for rows in tickets.values():
        assert {row["queue"] for row in rows} == QUEUES
        assert {row["urgency"] for row in rows} == {"high", "normal", "low"}


def test_nothing_is_there_twice(every: list[dict[str, str]]) -> None:
    for field in ("id", "ticket", "reply"):
        counts = Counter(" ".join(row[field].casefold().split()) for row in every)
        assert [text for text, times in counts.items() if times > 1] == []


def test_the_split_is_stratified(tickets: dict[str, list[dict[str, str]]], every: list[dict[str, str]]) -> None:
    """Each queue has its share of each split, to within one and a half tickets, which rounding may cost."""
    of_queue = Counter(row["queue"] for row in every)
    for split, size in SPLITS.items():
        found = Counter(row["queue"] for row in tickets[split])
        for queue, total in of_queue.items():
            assert abs(found[queue] - total * size / len(every)) <= 1.5, (split, queue)


def _trigrams(text: str) -> set[tuple[str, ...]]:
    words = re.findall(r"[\w']+", text.casefold())
    return {tuple(words[start : start + 3]) for start in range(max(1, len(words) - 2))}


def _nearest(held_out: set[tuple[str, ...]], others: list[set[tuple[str, ...]]], index: dict) -> float:
    """Largest Jaccard index of one set with any of the others; those that share nothing are never looked at."""
    shared = Counter(number for gram in held_out for number in index.get(gram, ()))
    return max((count / len(held_out | others[number]) for number, count in shared.items()), default=0.0)


def test_held_out_tickets_are_not_copies(tickets: dict[str, list[dict[str, str]]]) -> None:
    others = [_trigrams(row["ticket"]) for row in tickets["train"]]
    index: dict[tuple[str, ...], list[int]] = {}
    for number, grams in enumerate(others):
        for gram in grams:
            index.setdefault(gram, []).append(number)
    held_out = [row for split in ("validation", "test") for row in tickets[split]]
    nearest = [_nearest(_trigrams(row["ticket"]), others, index) for row in held_out]
    assert sum(value >= LIKE for value in nearest) <= MOST_LIKE_SHARE * len(nearest)
    card = (embedded.HELPDESK / "README.md").read_text(encoding="utf-8")
    assert f"the largest value measured is {max(nearest):.3f}." in card


def test_a_copy_would_be_found() -> None:
    one, other = _trigrams("the lid of my pot came off in the post"), _trigrams("when will the knives arrive in Hull")
    index = {gram: [0] for gram in one} | {gram: [1] for gram in other}
    assert _nearest(_trigrams("The lid of my pot came OFF, in the post!"), [one, other], index) == 1.0
    assert _nearest(_trigrams("nothing of this kind at all"), [one, other], index) == 0.0


def _table(card: str, label: str) -> dict[str, list[int]]:
    """Rows of the card's table whose first head is ``label``: name -> train, validation, test, all."""
    lines = card.split(f"| {label} | meaning |")[1].split("\n\n", maxsplit=1)[0].splitlines()[2:]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {row[0].strip("`"): [int(cell) for cell in row[2:]] for row in cells}


@pytest.mark.parametrize("field", ["queue", "urgency"])
def test_the_card_counts_right(field: str, tickets: dict[str, list[dict[str, str]]]) -> None:
    card = (embedded.HELPDESK / "README.md").read_text(encoding="utf-8")
    counts = [Counter(row[field] for row in tickets[split]) for split in SPLITS]
    expected = {name: [*(count[name] for count in counts), sum(count[name] for count in counts)] for name in counts[0]}
    assert _table(card, field) == expected


def test_the_card_sums_right(every: list[dict[str, str]]) -> None:
    card = (embedded.HELPDESK / "README.md").read_text(encoding="utf-8")
    assert card.split("\n\n")[1].startswith(f"{len(every):,} messages")
    for split, size in SPLITS.items():
        assert f"| `{split}.jsonl` | {size:,} |" in card


def _model() -> Path:
    folder = embedded.model_folder(embedded.DEFAULT_MODEL)
    assert folder is not None
    return folder


@pytest.mark.parametrize("name", sorted(EMBEDDED_SHA256))
def test_model_files_are_intact(name: str) -> None:
    assert sha256_of(_model() / name) == EMBEDDED_SHA256[name]


def test_the_model_is_what_its_card_says() -> None:
    check_weights(_model())
    facts = read_facts(_model())
    card = (_model() / "README.md").read_text(encoding="utf-8")
    assert (
        f"hidden {facts.hidden_size}, {facts.num_layers} layers, {facts.num_heads} heads, "
        f"{facts.num_kv_heads} key/value heads, head width {facts.head_dim}, feed-forward {facts.intermediate_size}"
    ) in card
    assert f"{facts.num_parameters:,} (8.0 M)" in card
    assert f"{Tokenizer.from_folder(_model()).vocab_size:,} tokens" in card
    assert f"| context | {facts.context:,} tokens |" in card
    assert facts.tied


def test_the_wheel_takes_the_whole_package() -> None:
    """Hatch packs every file below the named folders that git does not ignore, data included."""
    wheel = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["hatch"]["build"]
    assert wheel["targets"]["wheel"] == {"packages": ["src/tunesmith"]}
    assert embedded.ROOT.is_relative_to(REPOSITORY / "src" / "tunesmith") or "site-packages" in str(embedded.ROOT)
    patterns = (REPOSITORY / ".gitignore").read_text(encoding="utf-8").split()
    ignored = [
        path.name
        for path in embedded.ROOT.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
        for pattern in patterns
        if path.match(pattern.strip("/"))
    ]
    assert ignored == []
    assert (embedded.ROOT.parent / "py.typed").is_file()
