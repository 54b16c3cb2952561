"""What of a rendered conversation is trained: characters first, then the tokens that begin there. Torch-free."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence

from tunesmith.data.chat_template import Span
from tunesmith.data.tokenizer import Offsets
from tunesmith.data.turns import Conversation, LostTurn
from tunesmith.recipe.objectives import ClmSection, SftSection
from tunesmith.records import Message


def trained_tokens(
    conversation: Conversation, objective: SftSection | ClmSection, last: Span, offsets: Offsets
) -> list[bool]:
    """Per token, whether it is a target of the loss; never the first.

    Args:
        conversation: what was rendered.
        objective: says which turns are trained; a message's own flag goes before it, those of its stretches before both.
        last: span of the last answer, which ends the row.
        offsets: per token, the characters it stands for.

    Raises:
        LostTurn: where a turn that should be trained stands is not certain.
    """
    if isinstance(objective, ClmSection) or objective.loss_on == "everything":
        trained = [True] * len(offsets)
    else:
        painted = paint(bytearray(last[1] + 1), _spans(conversation, objective, last), 1)
        for index, message in enumerate(conversation.messages):
            wanted = _wants(objective, conversation.messages, index)
            for value in (False, True):
                if any(item.train == value != wanted for item in message.stretches):
                    paint(painted, _stretches(conversation, index, value, last, offsets), int(value))
        trained = [painted[begin] == 1 for begin, _ in offsets]
    trained[:1] = [False]
    return trained


def paint(characters: bytearray, spans: Iterable[Span], value: int) -> bytearray:
    """Set the bytes of each span to ``value``, in place."""
    for start, end in spans:
        characters[start:end] = bytes([value]) * (end - start)
    return characters


def _spans(conversation: Conversation, objective: SftSection, last: Span) -> list[Span]:
    """Characters to train: answers whole, contents of the other roles."""
    messages = conversation.messages
    chosen = [index for index in range(len(messages)) if _wants(objective, messages, index)]
    answers = [index for index in chosen if messages[index].role == "assistant"]
    others = [span for index in chosen if index not in answers and (span := conversation.content(index)) is not None]
    if conversation.marks is not None:
        return others + (conversation.marks_of(answers) if answers else [])
    final = len(messages) - 1
    return others + [last if index == final else conversation.answer(index) for index in answers]


def _stretches(conversation: Conversation, index: int, value: bool, last: Span, offsets: Offsets) -> list[Span]:
    """Characters of a turn's stretches with the flag ``value``.

    What stands before the content in an answer goes with the first of its characters, what closes the answer with the last.
    """
    message = conversation.messages[index]
    place = conversation.content(index)
    if place is None:
        return []
    core = message.content.strip()
    if conversation.text[place[0] : place[1]] != core:
        raise LostTurn(f"the template rewrites turn {index + 1}: where its flagged parts stand is not certain")
    lead = len(message.content) - len(message.content.lstrip())
    around = _answers(conversation, index, last) if message.role == "assistant" else [place]
    found: list[Span] = []
    for item in message.stretches:
        if item.train != value:
            continue
        start, end = (
            _border(min(max(edge - lead, 0), len(core)) + place[0], conversation.text, offsets)
            for edge in (item.start, item.end)
        )
        start = around[0][0] if item.start <= lead else start
        end = around[-1][1] if item.end >= lead + len(core) else end
        found += [(max(start, begin), min(end, close)) for begin, close in around if start < close and begin < end]
    return found


def _answers(conversation: Conversation, index: int, last: Span) -> list[Span]:
    """What the model produces as turn ``index``; several spans where the template marks them so."""
    if conversation.marks is not None:
        return conversation.marks_of([index])
    return [last if index == len(conversation.messages) - 1 else conversation.answer(index)]


def _border(edge: int, text: str, offsets: Offsets) -> int:
    """The edge between two stretches, moved before a token that has nothing but white space before it.

    Tokenizers write the space behind one word into the token of the next.
    """
    token = bisect_left(offsets, edge, key=lambda offset: offset[0]) - 1
    if token < 0:
        return edge
    begin, end = offsets[token]
    return begin if end > edge and text[begin:edge].isspace() else edge


def _wants(objective: SftSection, messages: Sequence[Message], index: int) -> bool:
    message = messages[index]
    if message.train is not None:
        return message.train
    if objective.loss_on == "all_turns":
        return True
    return message.role == "assistant" and (objective.loss_on == "responses" or index == len(messages) - 1)
