"""Ask a model: answers stream as text, multi-turn, through the renderer it was trained with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tunesmith.errors import UserError
from tunesmith.records import Chat, Message
from tunesmith.types import Sampling
from tunesmith.workshop.opening import Opened, open_machine

_TORN = "\ufffd"


class Answerer:
    """A model that answers conversations, piece by piece."""

    def __init__(self, opened: Opened) -> None:
        self.name = opened.name
        self._machine = opened.machine
        self._renderer = opened.renderer

    def stream(self, messages: Sequence[Message], sampling: Sampling) -> Iterator[str]:
        """Yield the answer to the last message as text; characters split over tokens are held back until whole.

        Raises:
            UserError: the conversation leaves no room in the context.
        """
        prompt = self._renderer.prompt_ids(Chat((*messages, Message("assistant", ""))))
        room = self._machine.context - len(prompt)
        if room < 1:
            raise UserError(
                f"the conversation has {len(prompt)} tokens, the model takes {self._machine.context}",
                where="conversation",
                hint="ask something shorter; in a chat /reset forgets what was said before",
            )
        limit = Sampling(
            max_new_tokens=min(sampling.max_new_tokens, room), temperature=sampling.temperature,
            top_p=sampling.top_p, top_k=sampling.top_k, seed=sampling.seed,
        )  # fmt: skip
        ids: list[int] = []
        said = ""
        for token in self._machine.generator.stream(prompt, limit):
            ids.append(token)
            text = self._machine.tokenizer.decode(ids, skip_special=True)
            if not text.endswith(_TORN) and text.startswith(said):
                yield text[len(said) :]
                said = text
        whole = self._machine.tokenizer.decode(ids, skip_special=True)
        if len(whole) > len(said):
            yield whole[len(said) :]


def open_answerer(model_text: str) -> Answerer:
    """Load what a MODEL argument names.

    Raises:
        ModelError: nothing of that name, or it does not load.
    """
    return Answerer(open_machine(model_text))
