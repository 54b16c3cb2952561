"""The template around every prompt: found as what all prompts share, shown once, and left out of each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tunesmith.reports.facts import Facts
from tunesmith.reports.measures import PROBE

_ENDS = ">]\n"
_STARTS = "<[\n"


@dataclass(frozen=True)
class Frame:
    """What stands before and after every prompt; empty where prompts share nothing that looks like a template."""

    before: str = ""
    after: str = ""

    def __bool__(self) -> bool:
        """Whether there is anything to leave out."""
        return bool(self.before or self.after)

    def strip(self, prompt: str) -> str:
        """The prompt without its frame; as it is where it has another."""
        if (
            self
            and len(prompt) >= len(self.before) + len(self.after)
            and prompt.startswith(self.before)
            and prompt.endswith(self.after)
        ):
            return prompt[len(self.before) : len(prompt) - len(self.after)]
        return prompt


def frame_of(facts: Facts) -> Frame:
    """The frame of a run's scored prompts and samples; probes have their own and are not asked."""
    rows = [row.get("prompt") for row in facts.tuned_rows if not str(row.get("task")).startswith(PROBE)]
    return shared_frame(
        str(prompt) for prompt in [*rows, *(sample.get("prompt") for sample in facts.samples)] if prompt
    )


def shared_frame(prompts: Iterable[str]) -> Frame:
    """Longest shared start up to a mark that ends a tag or a line, and longest shared end from one that begins it."""
    distinct = sorted(set(prompts))
    if len(distinct) < 2:
        return Frame()
    before = _common(distinct)
    before = before[: max(before.rfind(mark) for mark in _ENDS) + 1]
    after = _common([prompt[len(before) :][::-1] for prompt in distinct])[::-1]
    starts = [place for mark in _STARTS if (place := after.find(mark)) >= 0]
    return Frame(before, after[min(starts) :] if starts else "")


def _common(texts: Sequence[str]) -> str:
    """What all texts begin with: what the first and the last in order share."""
    first, last = min(texts), max(texts)
    for place, (one, other) in enumerate(zip(first, last, strict=False)):
        if one != other:
            return first[:place]
    return first
