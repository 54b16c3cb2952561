"""How a chat template writes turns, read once from a conversation of known words. Torch-free."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from tunesmith.data.chat_template import ChatTemplate, TemplateError, Tools
from tunesmith.data.tokenizer import Tokenizer
from tunesmith.records import Message

MOST_AROUND = 100_000
"""Characters that a template writes around four words; the longest known system prompt has 20,000."""

MOST_PROMPT = 4_000
"""Characters of a generation prompt, all beginnings of which are tried; known ones are below 100."""

_WORDS = ("velvet", "cobalt", "marble", "saffron")


@dataclass(frozen=True)
class Habits:
    """How a template writes turns.

    Attributes:
        ends: texts that close an answer, the one of the last answer first; empty where nothing does.
        openings: generation prompts as they stand before answers in finished text, longest first.
        prompt: what ``add_generation_prompt`` adds.
        trailer: what stands behind the end of the last answer, such as Phi's end-of-text; neither read nor trained.
        surplus: end of ``prompt`` that finished last answers do not repeat (DeepSeek opens thinking and drops it).
        rewrites_history: whether an earlier answer is written otherwise than the last one.
    """

    ends: tuple[str, ...] = ()
    openings: tuple[str, ...] = ()
    trailer: str = ""
    prompt: str = ""
    surplus: str = ""
    rewrites_history: bool = False


def learn_habits(template: ChatTemplate, tokenizer: Tokenizer) -> Habits:
    """Read a template's habits from a conversation of known words.

    Raises:
        TemplateError: the template fails on a question and an answer, or does not write them.
    """
    asked, answered, again, last = (
        Message("assistant" if number % 2 else "user", word) for number, word in enumerate(_WORDS)
    )
    try:
        turns: tuple[Message, ...] = (asked, answered, again, last)
        text = template.render(turns)
    except TemplateError:
        turns = (replace(asked, content=_WORDS[2]), replace(last, content=_WORDS[3]))
        text = template.render(turns)
    _refuse_long(text, MOST_AROUND, "around a plain question and answer", template)
    if any(text.count(turn.content) != 1 for turn in turns):
        raise TemplateError(
            "the chat template does not write a plain question and answer once each",
            where=template.where,
            hint="it may be made for images: name a text template as model.chat_template",
        )
    ends = _ends(text, turns, tokenizer)
    prompt = _added_prompt(template, turns[:-1], tokenizer)
    kept = _kept(template, turns, len(turns) - 1, text, prompt, tokenizer)
    openings = {prompt, kept}
    rewrites = False
    if len(turns) == 4:
        earlier = _kept(template, turns, 1, text, prompt, tokenizer)
        openings.add(earlier)
        rewrites = bool(prompt) and _lead(text, earlier, _WORDS[0], _WORDS[1]) != _lead(
            text, kept, _WORDS[2], _WORDS[3]
        )
    return Habits(
        ends=ends,
        trailer=_trailer(text, ends),
        openings=tuple(sorted(openings - {""}, key=len, reverse=True)),
        prompt=prompt,
        surplus=prompt[len(kept) :],
        rewrites_history=rewrites,
    )


def control_tokens(template: ChatTemplate, tokenizer: Tokenizer) -> list[int]:
    """Ids of the tokens of its own, outside plain text, that a template writes around turns and before an answer.

    Read from conversations with and without a system message; what it writes for tools or pictures is not among them.
    """
    turns = tuple(Message("assistant" if number % 2 else "user", word) for number, word in enumerate(_WORDS))
    system = Message("system", _WORDS[0])
    seen: set[int] = set()
    for messages in (turns, turns[:2], (system, *turns[:2])):
        for length, prompting in ((len(messages), False), (len(messages) - 1, True)):
            try:
                text = template.render(messages[:length], add_generation_prompt=prompting)
            except TemplateError:  # some templates take no system message, or one exchange only
                continue
            seen.update(tokenizer.encode(text))
    return sorted(seen & (tokenizer.special_ids | tokenizer.added.keys()))


def _lead(text: str, opening: str, before: str, word: str) -> str:
    """An opening as it was learnt, and what stands between it and the answer."""
    region = text[text.index(before) + len(before) : text.index(word)]
    return opening + region[region.rfind(opening) + len(opening) :] if opening in region else opening


def _ends(text: str, turns: Sequence[Message], tokenizer: Tokenizer) -> tuple[str, ...]:
    """What stands directly behind both an earlier answer and the last one."""
    tail = text[text.index(_WORDS[3]) + len(_WORDS[3]) :]
    if len(turns) < 4:
        return _words_of(_first_special(tail, tokenizer))
    middle = text[text.index(_WORDS[1]) + len(_WORDS[1]) : text.index(_WORDS[2])]
    common = tail if middle.startswith(tail) else _common(tail, middle, tokenizer)
    if common.strip():
        return (common.split()[0],)
    last = _words_of(_first_special(tail, tokenizer))
    return tuple(dict.fromkeys(last + _words_of(_first_special(middle, tokenizer)))) if last else ()


def _trailer(text: str, ends: tuple[str, ...]) -> str:
    tail = text[text.index(_WORDS[3]) + len(_WORDS[3]) :].strip()
    return tail[len(ends[0]) :].strip() if ends and tail.startswith(ends[0]) else ""


def _words_of(text: str) -> tuple[str, ...]:
    return tuple(text.split()[:1])


def _first_special(text: str, tokenizer: Tokenizer) -> str:
    """The special token that ``text`` begins with, white space apart."""
    ids, offsets = tokenizer.encode_with_offsets(text)
    for token, (start, end) in zip(ids, offsets, strict=True):
        if token in tokenizer.special_ids:
            return text[start:end]
        if text[start:end].strip():
            break
    return ""


def _common(one: str, other: str, tokenizer: Tokenizer) -> str:
    """Longest common beginning in whole tokens."""
    first, offsets = tokenizer.encode_with_offsets(one)
    second, _ = tokenizer.encode_with_offsets(other)
    length = 0
    for token, match, (_, end) in zip(first, second, offsets, strict=False):
        if token != match:
            break
        length = end
    return one[:length]


def _added_prompt(template: ChatTemplate, messages: Sequence[Message], tokenizer: Tokenizer) -> str:
    """What ``add_generation_prompt`` adds after ``messages``."""
    bare = template.render(messages)
    prompted = template.render(messages, add_generation_prompt=True)
    shared = bare if prompted.startswith(bare) else _common(prompted, bare, tokenizer)
    added = prompted[len(shared) :]
    _refuse_long(added, MOST_PROMPT, "before an answer", template)
    return added


def _refuse_long(text: str, most: int, where: str, template: ChatTemplate) -> None:
    if len(text) > most:
        raise TemplateError(
            f"the chat template writes {len(text):,} characters {where}, at most {most:,} are taken",
            where=template.where,
            hint="shorten what it writes by itself, or name another as model.chat_template",
        )


def _kept(
    template: ChatTemplate, turns: Sequence[Message], index: int, text: str, prompt: str, tokenizer: Tokenizer
) -> str:
    """How much of the generation prompt finished text repeats before answer ``index``."""
    prompted = template.render(turns[:index], add_generation_prompt=True)
    base = len(prompted) - len(prompt)
    region = text[: text.index(turns[index].content)]
    return next((piece for piece in _cuts(prompt, tokenizer) if region.startswith(prompted[:base] + piece)), "")


def _cuts(prompt: str, tokenizer: Tokenizer) -> list[str]:
    """The prompt and its beginnings up to a special token or a line's end, longest first."""
    ids, offsets = tokenizer.encode_with_offsets(prompt)
    stops = {len(prompt)} | {match.end() for match in re.finditer("\n", prompt)}
    stops |= {end for token, (_, end) in zip(ids, offsets, strict=True) if token in tokenizer.special_ids}
    return [prompt[:stop] for stop in sorted(stops, reverse=True)]


def prompt_text(template: ChatTemplate, habits: Habits, messages: Sequence[Message], tools: Tools | None) -> str:
    """What stands before the answer to ``messages``: their text with the generation prompt, less its surplus."""
    text = template.render(messages, tools, add_generation_prompt=True)
    if habits.surplus and text.endswith(habits.prompt):
        text = text[: len(text) - len(habits.surplus)]
    return text
