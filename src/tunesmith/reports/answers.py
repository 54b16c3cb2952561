"""Base and tuned answers to the same prompts, grouped by what changed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tunesmith.reports.facts import Facts
from tunesmith.reports.framing import Frame, frame_of
from tunesmith.reports.measures import PROBE, claimed_on, is_share, task_kind
from tunesmith.reports.wording import as_list, as_mapping, as_number, excerpt, plain

FIRST = 12
MOST = 200
_PROMPT_CHARACTERS = 480
_ANSWER_CHARACTERS = 240
_INSTRUCTION_CHARACTERS = 600
_Row = dict[str, Any]


@dataclass(frozen=True)
class Quote:
    """A text of a user or a model, cut where it is long; ``more`` counts the characters left out."""

    text: str
    more: int = 0


@dataclass(frozen=True)
class Answer:
    """What one model answered, whether it was right, and what it wrote by itself where the answer was a choice of labels."""

    said: Quote
    right: bool
    wrote: Quote | None = None


@dataclass(frozen=True)
class Case:
    """One prompt with its reference and both answers."""

    id: str
    prompt: Quote
    reference: Quote
    base: Answer
    tuned: Answer


@dataclass(frozen=True)
class Group:
    """Cases of one kind: the first are shown, more are folded, the rest are only counted."""

    title: str
    css: str
    total: int
    first: tuple[Case, ...]
    folded: tuple[Case, ...]

    @property
    def left_out(self) -> int:
        """Cases that the page does not hold."""
        return self.total - len(self.first) - len(self.folded)


@dataclass(frozen=True)
class SideBySide:
    """All groups of one task, and what could not be paired."""

    task: str
    groups: tuple[Group, ...]
    both_right: int
    unpaired: int
    ranked: bool


@dataclass(frozen=True)
class Exchange:
    """An instruction of the probe with what base and tuned wrote."""

    kind: str
    prompt: Quote
    reference: Quote
    base: Quote
    tuned: Quote


@dataclass
class _Sorted:
    won: list[Case] = field(default_factory=list)
    lost: list[Case] = field(default_factory=list)
    both_wrong: list[Case] = field(default_factory=list)
    counts: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(("won", "lost", "both_wrong", "both_right"), 0)
    )
    unpaired: int = 0


def side_by_side(facts: Facts) -> SideBySide | None:
    """Group the claimed task's rows, or the first task's that has right and wrong answers; None where there is none."""
    task = _task(facts)
    if not task:
        return None
    base, tuned = _by_id(facts.base_rows, task), _by_id(facts.tuned_rows, task)
    written = _written_task(facts, task)
    base_wrote, tuned_wrote = _by_id(facts.base_rows, written), _by_id(facts.tuned_rows, written)
    frame = frame_of(facts)
    found = _Sorted(unpaired=len(base.keys() ^ tuned.keys()))
    for key, after in tuned.items():
        before = base.get(key)
        if before is None:
            continue
        if before.get("prompt_hash") != after.get("prompt_hash"):
            found.unpaired += 1
            continue
        _place(found, _case(key, (before, after), (base_wrote.get(key), tuned_wrote.get(key)), frame))
    groups = tuple(
        Group(title, css, found.counts[css], tuple(cases[:FIRST]), tuple(cases[FIRST:MOST]))
        for title, css, cases in (
            ("Won: the base was wrong, the tuned model is right", "won", found.won),
            ("Lost: the base was right, the tuned model is wrong", "lost", found.lost),
            ("Both wrong", "both_wrong", found.both_wrong),
        )
    )
    if not any(found.counts.values()) and not found.unpaired:
        return None
    return SideBySide(plain(task), groups, found.counts["both_right"], found.unpaired, ranked=bool(written))


def instructions(facts: Facts) -> list[Exchange]:
    """The instruction probe, base beside tuned, in the order of the tuned rows."""
    base = _by_id(facts.base_rows, PROBE + "instructions")
    found = []
    for key, after in _by_id(facts.tuned_rows, PROBE + "instructions").items():
        before = base.get(key, {})
        found.append(
            Exchange(
                kind=str(after.get("group") or ""),
                prompt=quote(after.get("prompt"), _INSTRUCTION_CHARACTERS),
                reference=quote(after.get("reference"), _INSTRUCTION_CHARACTERS),
                base=quote(before.get("answer"), _INSTRUCTION_CHARACTERS),
                tuned=quote(after.get("answer"), _INSTRUCTION_CHARACTERS),
            )
        )
    return found


def quote(text: Any, most: int) -> Quote:
    """A text cut to ``most`` characters."""
    return Quote(*excerpt(text, most))


def is_right(row: _Row) -> bool:
    """Whether a row counts as right: its score is true, or at least one half."""
    score = row.get("score")
    return score if isinstance(score, bool) else (as_number(score) or 0.0) >= 0.5


def _task(facts: Facts) -> str:
    """The claimed task where its rows are right or wrong, else another one whose rows are."""
    present = {str(row.get("task")) for row in facts.tuned_rows}
    task, metric = claimed_on(facts.comparison, facts.tuned)
    if task in present and is_share(metric):
        return task
    card = facts.tuned
    return next(
        (
            one
            for one in as_mapping(card.get("tasks"))
            if one in present and task_kind(one, card) in ("exact_match", "label_ranking")
        ),
        "",
    )


def _written_task(facts: Facts, task: str) -> str:
    """Where the answers of ``task`` are ranked labels: the task whose answers were generated, or nothing."""
    if task_kind(task, facts.tuned) != "label_ranking":
        return ""
    return next(
        (one for one in as_mapping(facts.tuned.get("tasks")) if task_kind(one, facts.tuned) == "exact_match"), ""
    )


def _by_id(rows: list[_Row], task: str) -> dict[str, _Row]:
    return {str(row.get("id")): row for row in rows if row.get("task") == task} if task else {}


def _case(key: str, pair: tuple[_Row, _Row], wrote: tuple[_Row | None, _Row | None], frame: Frame) -> Case:
    before, after = pair
    reference = after.get("reference")
    shown = " | ".join(map(str, as_list(reference))) if isinstance(reference, list) else reference
    return Case(
        id=key,
        prompt=quote(frame.strip(str(after.get("prompt") or "")), _PROMPT_CHARACTERS),
        reference=quote(shown, _ANSWER_CHARACTERS),
        base=_answer(before, wrote[0]),
        tuned=_answer(after, wrote[1]),
    )


def _answer(row: _Row, wrote: _Row | None) -> Answer:
    said = quote(row.get("answer"), _ANSWER_CHARACTERS)
    return Answer(said, is_right(row), quote(wrote.get("answer"), _ANSWER_CHARACTERS) if wrote else None)


def _place(found: _Sorted, case: Case) -> None:
    if case.base.right and case.tuned.right:
        found.counts["both_right"] += 1
        return
    name = "won" if case.tuned.right else "lost" if case.base.right else "both_wrong"
    found.counts[name] += 1
    cases: list[Case] = getattr(found, name)
    if len(cases) < MOST:
        cases.append(case)
