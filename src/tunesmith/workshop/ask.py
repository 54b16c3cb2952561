"""Ask a model: answers stream as text, multi-turn, through the renderer it was trained with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from tunesmith.errors import ModelError, UserError
from tunesmith.evaluation.headed import probabilities
from tunesmith.models.encoder_lm import EncoderLM
from tunesmith.records import Chat, Labelled, Message
from tunesmith.types import Sampling
from tunesmith.workshop.opening import Opened, open_machine

_TORN = "\ufffd"
_LIKELY = 0.5


class Answerer:
    """A model that answers conversations, piece by piece."""

    def __init__(self, opened: Opened) -> None:
        self.name = opened.name
        self.details: dict[str, Any] = {}
        """What a head said beside its answer, once it was asked."""
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
    opened = open_machine(model_text)
    if opened.machine.headed is None and isinstance(opened.machine.model, EncoderLM):
        raise ModelError(
            f"{model_text} is an encoder: it writes no answers",
            where=f"model {model_text}",
            hint="put a head on it (`objective: {type: classify}`), or ask a causal language model",
        )
    return HeadedAnswerer(opened) if opened.machine.headed is not None else Answerer(opened)


class HeadedAnswerer(Answerer):
    """A model with a head: it answers the last message with a label or a number, and says how sure it is."""

    def stream(self, messages: Sequence[Message], sampling: Sampling) -> Iterator[str]:
        """Yield the label, the labels or the number; ``details`` then hold ``probabilities``.

        Raises:
            UserError: the text is longer than the context.
        """
        head = self._machine.headed
        assert head is not None
        ids = self._renderer.prompt_ids(Labelled(messages[-1].content, "?"))
        if len(ids) > self._machine.context:
            raise UserError(
                f"the text has {len(ids)} tokens, the model takes {self._machine.context}",
                where="prompt",
                hint="give a shorter text",
            )
        logits = [float(value) for value in head.logits([ids])[0]]
        shape = head.described.shape
        if shape.task == "regress":
            self.details = {"value": logits[0]}
            yield f"{logits[0]:.6g}"
            return
        each = shape.task == "multi_label"
        found = dict(zip(head.described.labels, probabilities(logits, each=each), strict=True))
        ordered = dict(sorted(found.items(), key=lambda item: -item[1]))
        self.details = {"probabilities": ordered}
        yield ", ".join(label for label, share in ordered.items() if share > _LIKELY) if each else next(iter(ordered))
