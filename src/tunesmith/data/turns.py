"""Where each turn of a conversation stands in the rendered text, exactly or not at all. Torch-free.

A template without generation markers is asked instead of guessed at:

* its *habits* are read once from a conversation of known words: what closes a turn, what opens an answer;
* *contents* are found by rendering them again between two private-use characters. Only where the text without those
  characters equals the plain rendering are the places believed;
* an answer *begins* where its prompt ends (the turns before it, with generation prompt), when that prompt is a prefix of
  the whole. Templates that rewrite history (Qwen 3 drops earlier thinking) fail this test; then it begins after what the
  prompt writes behind the turn before, or after the one generation prompt between that turn's content and its own;
* it *ends* with the end-of-turn token after its content. White space and tokens behind that belong to nobody.

What stays ambiguous raises ``LostTurn``: a row is rejected rather than masked wrongly.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from tunesmith.data.chat_template import REASONING_KEYS, ChatTemplate, Span, TemplateError, Tools, template_dict
from tunesmith.data.message_content import TRAIN_KEYS
from tunesmith.data.template_habits import Habits, prompt_text
from tunesmith.records import Message

_PLANES = (0xF0000, 0x100000)
_PLANE_SIZE = 0xFFFC


_TOLD_OTHERWISE = frozenset({"tool_calls", "tool_call_id", *REASONING_KEYS})
"""Keys whose absence has a sentence of its own, and the number of a call, which the order of turns says as well."""


class LostTurn(Exception):
    """A turn cannot be found in the rendered text without doubt."""


@dataclass(frozen=True)
class Place:
    """Where a message's content stands, without white space around it; None where the template dropped that edge."""

    start: int | None
    end: int | None


class Conversation:
    """A rendered conversation whose turns can be asked for.

    Args:
        template: the chat template.
        habits: what ``learn_habits`` found.
        messages: all turns.
        tools: declared tools.

    Raises:
        TemplateError: the template fails on the conversation.
    """

    def __init__(
        self, template: ChatTemplate, habits: Habits, messages: Sequence[Message], tools: Tools | None
    ) -> None:
        self.messages = tuple(messages)
        self._template = template
        self._habits = habits
        self._tools = tools
        self.text, self.marks = template.render_with_spans(self.messages, tools)
        self._places: dict[int, Place | None] | None = None
        self._answers: dict[int, Span] = {}

    @property
    def places(self) -> dict[int, Place | None]:
        """Per message, where its content stands; None where that could not be verified."""
        if self._places is None:
            together = self._locate(range(len(self.messages)))
            self._places = together or {
                index: (self._locate([index]) or {}).get(index) for index in range(len(self.messages))
            }
        return self._places

    def content(self, index: int) -> Span | None:
        """Span of a message's content, or None where the template leaves it out.

        Raises:
            LostTurn: it is there, but where is not certain.
        """
        if not self.messages[index].content.strip():
            return None
        place = self.places[index]
        if place is None or (place.start is None) != (place.end is None):
            raise LostTurn(f"the content of turn {index + 1} cannot be found in the rendered text")
        return None if place.start is None or place.end is None else (place.start, place.end)

    def omissions(self) -> list[str]:
        """Sentences about what the template leaves out of this conversation."""
        said: dict[str, None] = {}
        for index, message in enumerate(self.messages):
            place = self.places[index]
            if message.content.strip() and place is not None and None in (place.start, place.end):
                done = "leaves out" if place.start is place.end else "rewrites part of"
                said[f"the chat template {done} a turn of role {message.role}"] = None
            reasoning = template_dict(message).get("reasoning_content")
            if isinstance(reasoning, str) and reasoning.strip() not in self.text:
                said["the chat template leaves out the reasoning of an answer"] = None
        said |= dict.fromkeys(self._unread_keys())
        return list(said)

    def _unread_keys(self) -> list[str]:
        """Sentences about keys of messages that change nothing in the text."""
        keys = {(message.role, key) for message in self.messages for key in message.extra or {}}
        said: list[str] = []
        for role, key in sorted(keys - self._template.keys_read):
            if key in _TOLD_OTHERWISE:
                continue
            if self._reads(role, key):
                self._template.keys_read.add((role, key))
                continue
            close = difflib.get_close_matches(key.removeprefix("content."), TRAIN_KEYS, n=1, cutoff=0.7)
            meant = f" (did you mean `{close[0]}`?)" if close else ""
            said.append(f"`{key}` of a turn of role {role} is not used{meant}: the chat template does not read it")
        return said

    def _reads(self, role: str, key: str) -> bool:
        """Whether the text would be another without this key."""
        if not self._template.names(key):
            return False
        without = [
            replace(message, extra={name: value for name, value in message.extra.items() if name != key})
            if message.role == role and message.extra
            else message
            for message in self.messages
        ]
        try:
            return self._template.render(without, self._tools) != self.text
        except TemplateError:
            return True

    def prompt_before(self, index: int) -> str | None:
        """The prompt that answer ``index`` would be served with, or None where the template refuses to give one."""
        try:
            return prompt_text(self._template, self._habits, self.messages[:index], self._tools)
        except TemplateError:
            return None

    def answer(self, index: int) -> Span:
        """Span of what the model produces as turn ``index``: from the end of its prompt to its end-of-turn token.

        Raises:
            LostTurn: beginning or end is not certain.
        """
        if index not in self._answers:
            self._answers[index] = self._answer(index)
        return self._answers[index]

    def _answer(self, index: int) -> Span:
        start = self._start(index)
        end = self._end(index, start)
        for other in range(len(self.messages)):
            place = self._place(other)
            inside = place.start is not None and start <= place.start < end
            if other != index and inside and self.messages[other].content.strip():
                raise LostTurn(f"turns {index + 1} and {other + 1} overlap in the rendered text")
        own = self._place(index)
        if (own.start is not None and own.start < start) or (own.end is not None and own.end > end):
            raise LostTurn(f"turn {index + 1} stands partly outside of its answer")
        return start, end

    def marks_of(self, wanted: Sequence[int]) -> list[Span]:
        """Generation spans of the given answers, each stretched to its end-of-turn token where it falls short.

        Raises:
            LostTurn: which span belongs to which answer is not certain.
        """
        spans = self.marks or []
        answers = [index for index, message in enumerate(self.messages) if message.role == "assistant"]
        if set(answers) <= set(wanted):
            return [self.stretched(span) for span in spans]
        chosen: list[Span] = []
        borders = [self._marks_before(index, first=index == answers[0]) for index in answers] + [len(spans)]
        if borders != sorted(borders):
            raise LostTurn("the template's generation markers change with the turns that follow")
        for index, first, last in zip(answers, borders, borders[1:], strict=False):
            if index in wanted:
                chosen += [self.stretched(span) for span in spans[first:last]]
        return chosen

    def stretched(self, span: Span) -> Span:
        """The span, with the end-of-turn token directly behind it."""
        for end in self._habits.ends:
            match = _after_space(end).match(self.text, span[1])
            if match:
                return span[0], match.end()
        return span

    def _marks_before(self, index: int, *, first: bool) -> int:
        if first:
            return 0
        try:
            _, spans = self._template.render_with_spans(self.messages[:index], self._tools, add_generation_prompt=True)
        except TemplateError as error:
            raise LostTurn(f"the template gives no prompt for turn {index + 1}: {error.what}") from None
        return len(spans or [])

    def _place(self, index: int) -> Place:
        return self.places[index] or Place(None, None)

    def _start(self, index: int) -> int:
        own = self._place(index)
        ceiling = next((edge for edge in (own.start, own.end) if edge is not None), None)
        if ceiling is None:
            later = [self._place(other).start for other in range(index + 1, len(self.messages))]
            ceiling = min((edge for edge in later if edge is not None), default=len(self.text))
        floor = max((edge for other in range(index) if (edge := self._place(other).end) is not None), default=0)
        prompt = self.prompt_before(index)
        if prompt is not None and floor <= len(prompt) <= ceiling and self.text.startswith(prompt):
            return len(prompt)
        behind = self._behind_previous(index)
        if behind is not None and floor <= behind <= ceiling:
            return behind
        for opening in self._habits.openings:
            found = [floor + match.start() for match in re.finditer(re.escape(opening), self.text[floor:ceiling])]
            if len(found) == 1:
                return found[0] + len(opening)
            if found:
                break
        raise LostTurn(f"where the answer of turn {index + 1} begins is not certain: the template rewrites its prompt")

    def only_end(self, start: int) -> int | None:
        """End of the last answer, which begins at ``start``, where the end-of-turn token stands behind it just once."""
        found = [
            match.end() for end in self._habits.ends[:1] for match in re.finditer(re.escape(end), self.text[start:])
        ]
        return start + found[0] if len(found) == 1 and self._is_closed(start + found[0], len(self.text)) else None

    def _is_closed(self, end: int, limit: int) -> bool:
        """Whether nothing of the answer is left behind its end."""
        return self.text[end:limit].strip() in ("", self._habits.trailer)

    def _behind_previous(self, index: int) -> int | None:
        """End of the prompt's last piece, where it stands behind the turn before as it does in the prompt by itself.

        Templates that move what comes first (Mistral puts tools before the last question) leave this piece alone.
        """
        previous = self._place(index - 1).end if index else None
        prompt = self.prompt_before(index)
        if previous is None or prompt is None:
            return None
        messages = list(self.messages[:index])
        mark = chr(_PLANES[0])
        if _in_plane(prompt, _PLANES[0]):
            return None
        content = messages[-1].content
        kept = content.rstrip()
        messages[-1] = replace(messages[-1], content=kept + mark + content[len(kept) :])
        try:
            marked = prompt_text(self._template, self._habits, messages, self._tools)
        except TemplateError:
            return None
        before, found, piece = marked.partition(mark)
        if not found or before + piece != prompt or not self.text.startswith(piece, previous):
            return None
        return previous + len(piece)

    def _end(self, index: int, start: int) -> int:
        own = self._place(index)
        anchor = own.end if own.end is not None else start
        simple = own.end is not None and not (self.messages[index].extra or {}).get("tool_calls")
        if not self._habits.ends:
            if own.end is None or not simple:
                raise LostTurn(f"nothing closes turn {index + 1} in this template")
            return own.end
        whole = self._text_until(index)
        exact = whole is not None and self.text.startswith(whole)
        later = [self._place(other).start for other in range(index + 1, len(self.messages))]
        next_start = min((edge for edge in later if edge is not None and edge >= anchor), default=len(self.text))
        limit = len(whole) if exact and whole is not None else next_start
        pattern = "|".join(re.escape(end) for end in self._habits.ends)
        found = [anchor + match.end() for match in re.finditer(pattern, self.text[anchor:limit])]
        if not found or (len(found) > 1 and not simple and not exact):
            raise LostTurn(f"which token closes turn {index + 1} is not certain")
        end = found[0] if simple else found[-1]
        if exact and not self._is_closed(end, limit):
            raise LostTurn(f"turn {index + 1} goes on behind its end-of-turn token")
        return end

    def _text_until(self, index: int) -> str | None:
        if index == len(self.messages) - 1:
            return self.text
        try:
            return self._template.render(self.messages[: index + 1], self._tools)
        except TemplateError:
            return None

    def _locate(self, indices: Sequence[int]) -> dict[int, Place | None] | None:
        """Render the given contents between private-use characters; None where that changes the text."""
        plane = next((base for base in _PLANES if not _in_plane(self.text, base)), None)
        if plane is None or 2 * len(self.messages) > _PLANE_SIZE:
            return None
        messages = list(self.messages)
        for index in indices:
            messages[index] = replace(messages[index], content=_between(messages[index].content, plane + 2 * index))
        try:
            marked = self._template.render(messages, self._tools)
        except TemplateError:
            return None
        edges: dict[int, list[int]] = {}
        pieces: list[str] = []
        position = length = 0
        for match in re.finditer(f"[{chr(plane)}-{chr(plane + _PLANE_SIZE)}]", marked):
            pieces.append(marked[position : match.start()])
            length += len(pieces[-1])
            position = match.end()
            edges.setdefault(ord(match.group()) - plane, []).append(length)
        if "".join(pieces) + marked[position:] != self.text:
            return None
        return {index: _placed(edges.get(2 * index, []), edges.get(2 * index + 1, [])) for index in indices}


@lru_cache(maxsize=64)
def _after_space(text: str) -> re.Pattern[str]:
    return re.compile(r"\s*" + re.escape(text))


def _in_plane(text: str, base: int) -> bool:
    return re.search(f"[{chr(base)}-{chr(base + _PLANE_SIZE)}]", text) is not None


def _between(content: str, opening: int) -> str:
    """The content with marks inside its outer white space, so that templates which trim still trim."""
    core = content.strip()
    lead = content[: len(content) - len(content.lstrip())]
    return f"{lead}{chr(opening)}{core}{chr(opening + 1)}{content[len(lead) + len(core) :]}"


def _placed(starts: list[int], ends: list[int]) -> Place | None:
    """One edge each at most; a content that is written twice has no one place."""
    if len(starts) > 1 or len(ends) > 1:
        return None
    return Place(starts[0] if starts else None, ends[0] if ends else None)
