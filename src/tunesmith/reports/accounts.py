"""The ledger for the page: what became of every row and token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tunesmith.reports.facts import Facts
from tunesmith.reports.figures import Part, stacked
from tunesmith.reports.wording import (
    DASH,
    as_list,
    as_mapping,
    as_number,
    count,
    percent,
    plain,
)


@dataclass(frozen=True)
class RoleTokens:
    """Tokens of one role of the conversations, and how many of them are trained on."""

    role: str
    tokens: str
    trained: str
    share: str


@dataclass(frozen=True)
class LedgerView:
    """What became of every row and token; ``gap`` is what the books do not account for."""

    parts: tuple[Part, ...]
    rows_in: int
    rejected: tuple[tuple[str, int], ...]
    tokens: tuple[tuple[str, str], ...]
    roles: tuple[RoleTokens, ...]
    sources: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...]
    gap: int


def ledger(facts: Facts) -> LedgerView | None:
    """The ledger, or None where none was written."""
    said = facts.ledger
    rows_in = as_number(said.get("rows_in"))
    if rows_in is None:
        return None
    rejected = [(str(key), _whole(value)) for key, value in as_mapping(said.get("rejected")).items()]
    rejected.sort(key=lambda pair: (-pair[1], pair[0]))
    refused = sum(value for _, value in rejected)
    trained, held_out = _whole(said.get("trained")), _whole(said.get("held_out"))
    validation, test = _whole(said.get("validation_rows")), _whole(said.get("test_rows"))
    parts = [
        ("trained", "tuned", trained),
        ("validation", "validation", validation),
        ("test", "test", test),
        ("otherwise held out", "base", max(held_out - validation - test, 0)),
        ("rejected", "worse", refused),
    ]
    return LedgerView(
        parts=stacked(parts),
        rows_in=int(rows_in),
        rejected=tuple((plain(key), value) for key, value in rejected if value),
        tokens=tuple(_token_facts(said)),
        roles=tuple(
            _role(str(role), as_mapping(fields)) for role, fields in as_mapping(said.get("tokens_by_role")).items()
        ),
        sources=tuple(_source(as_mapping(one)) for one in as_list(said.get("per_source"))),
        notes=tuple(str(note) for note in as_list(said.get("notes"))),
        gap=int(rows_in) - trained - held_out - refused,
    )


def _whole(value: Any) -> int:
    return int(as_number(value) or 0)


def _token_facts(said: dict[str, Any]) -> list[tuple[str, str]]:
    tokens, trained = as_number(said.get("tokens")), as_number(said.get("trained_tokens"))
    share = trained / tokens if tokens and trained is not None else None
    found = [("Tokens in training rows", count(tokens)), ("Tokens trained on", f"{count(trained)} ({percent(share)})")]
    lengths = as_mapping(said.get("lengths"))
    shown = [
        f"{plain(str(key))} {count(value)}" for key, one in lengths.items() if (value := as_number(one)) is not None
    ]
    if shown:
        found.append(("Tokens in a row", ", ".join(shown)))
    if (windows := as_number(said.get("windows"))) and windows > _whole(said.get("trained")):
        found.append(("Windows cut from long documents", count(windows)))
    return found


def _role(role: str, fields: dict[str, Any]) -> RoleTokens:
    tokens, trained = as_number(fields.get("tokens")), as_number(fields.get("trained"))
    share = trained / tokens if tokens and trained is not None else None
    return RoleTokens(plain(role), count(tokens), count(trained), percent(share))


def _source(fields: dict[str, Any]) -> tuple[str, ...]:
    formats = ", ".join(plain(str(name)) for name in as_mapping(fields.get("formats")))
    counts = [count(as_number(fields.get(key))) for key in ("rows_in", "trained", "held_out", "rejected")]
    return (str(fields.get("path") or DASH), str(fields.get("role") or DASH), formats or DASH, *counts)
