"""Whose each token is: of a turn, of a document, or of the template itself. Torch-free.

An answer is all that the model produces, from the end of its prompt to its end-of-turn token; of the other turns only their
contents are theirs. What is left is the template's: headers, line ends, the end of other turns, tools, a system message that
the template brings along. A token belongs to where it begins, as in the mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import compress

from tunesmith.data.chat_template import Span
from tunesmith.data.masks import paint
from tunesmith.data.tokenizer import Offsets
from tunesmith.data.turns import Conversation, LostTurn

TOKEN_ROLES = ("template", "system", "user", "assistant", "tool", "text")
"""Roles of tokens; a token's code is the index of its role. ``text`` is that of plain documents."""

_CODES = {role: code for code, role in enumerate(TOKEN_ROLES)}


def document_roles(num_tokens: int) -> bytes:
    """Codes of a plain document's tokens, the one that closes it included."""
    return bytes([_CODES["text"]]) * num_tokens


def conversation_roles(conversation: Conversation, last: Span, offsets: Offsets) -> tuple[bytes, list[str]]:
    """Code of each token, and sentences about turns whose place is not certain.

    Args:
        conversation: what was rendered.
        last: span of the last answer, which ends the row.
        offsets: per token, the characters it stands for.
    """
    characters = bytearray(last[1] + 1)
    lost: dict[str, None] = {}
    for index, message in enumerate(conversation.messages):
        try:
            span = _content(conversation, index)
        except LostTurn:
            lost[message.role] = None
            continue
        if span is not None:
            paint(characters, [span], _CODES[message.role])
    spans, is_certain = _answers(conversation, last)
    if not is_certain:
        lost["assistant"] = None
    paint(characters, spans, _CODES["assistant"])
    said = [
        f"where a turn of role {role} begins or ends is not certain: tokens of it may be counted as the template's"
        for role in lost
    ]
    return bytes([characters[begin] for begin, _ in offsets]), said


def _content(conversation: Conversation, index: int) -> Span | None:
    """Where a message's content stands, with the white space around it that the template kept."""
    text, content = conversation.text, conversation.messages[index].content
    core = content.strip()
    start = text.find(core)
    if len(conversation.messages) == 2 and core and start >= 0 and text.find(core, start + 1) < 0:
        # The question of most rows stands there once: the template need not be asked again.
        end = start + len(core)
    elif (span := conversation.content(index)) is not None:
        start, end = span
    else:
        return None
    lead, _, tail = content.partition(core)
    start -= len(lead) if text.endswith(lead, 0, start) else 0
    end += len(tail) if text.startswith(tail, end) else 0
    return start, end


def _answers(conversation: Conversation, last: Span) -> tuple[list[Span], bool]:
    """Spans of all answers, trained or not, and whether each of them is certain."""
    final = len(conversation.messages) - 1
    answers = [index for index, message in enumerate(conversation.messages) if message.role == "assistant"]
    if conversation.marks is not None:
        return conversation.marks_of(answers), True
    spans = [last]
    for index in answers:
        if index != final:
            try:
                spans.append(conversation.answer(index))
            except LostTurn:
                return spans, False
    return spans, True


class RoleTally:
    """Tokens and targets by role."""

    def __init__(self) -> None:
        self._tokens = [0] * len(TOKEN_ROLES)
        self._trained = [0] * len(TOKEN_ROLES)

    def add(self, roles: bytes, trained: Sequence[bool], *, first_trains: bool = False) -> None:
        """Count a stored row: the code of each token, and whether it is trained; the first only with ``first_trains``."""
        skipped = 0 if first_trains else 1
        targets = bytes(compress(roles[skipped:], trained[skipped:]))
        for code in set(roles):
            self._tokens[code] += roles.count(code)
            self._trained[code] += targets.count(code)

    def to_json(self) -> dict[str, dict[str, int]]:
        """Role -> ``{"tokens", "trained"}`` of the roles that occur, the template last."""
        order = [*range(1, len(TOKEN_ROLES)), 0]
        return {
            TOKEN_ROLES[code]: {"tokens": self._tokens[code], "trained": self._trained[code]}
            for code in order
            if self._tokens[code]
        }
