"""What of a rendered conversation is trained: characters first, then the tokens that begin there. Torch-free."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tunesmith.data.chat_template import Span
from tunesmith.data.tokenizer import Offsets
from tunesmith.data.turns import Conversation
from tunesmith.recipe.objectives import ClmSection, SftSection
from tunesmith.records import Message


def trained_tokens(
    conversation: Conversation, objective: SftSection | ClmSection, last: Span, offsets: Offsets
) -> list[bool]:
    """Per token, whether it is a target of the loss; never the first.

    Args:
        conversation: what was rendered.
        objective: says which turns are trained; a message's own flag goes before it.
        last: span of the last answer, which ends the row.
        offsets: per token, the characters it stands for.

    Raises:
        LostTurn: where a turn that should be trained stands is not certain.
    """
    if isinstance(objective, ClmSection) or objective.loss_on == "everything":
        trained = [True] * len(offsets)
    else:
        painted = paint(bytearray(last[1] + 1), _spans(conversation, objective, last), 1)
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


def _wants(objective: SftSection, messages: Sequence[Message], index: int) -> bool:
    message = messages[index]
    if message.train is not None:
        return message.train
    if objective.loss_on == "all_turns":
        return True
    return message.role == "assistant" and (objective.loss_on == "responses" or index == len(messages) - 1)
