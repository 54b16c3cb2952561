"""Ask a model: answers stream as text, multi-turn, through the renderer it was trained with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from tunesmith.data.tag_rendering import TagRenderer
from tunesmith.data.words import words_of
from tunesmith.errors import ModelError, UserError
from tunesmith.evaluation.headed import probabilities
from tunesmith.models.encoder_lm import EncoderLM
from tunesmith.records import Chat, Labelled, Message
from tunesmith.tags import chunks
from tunesmith.types import Sampling
from tunesmith.workshop.headed import HeadedMachine
from tunesmith.workshop.opening import Opened, open_machine
from tunesmith.workshop.word_tags import marked, spans_of, tags_of

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
        """Yield the label, the labels, the number or the tagged text; ``details`` then hold ``probabilities`` or ``words``.

        Raises:
            UserError: the text is longer than the context.
        """
        head = self._machine.headed
        assert head is not None
        text = messages[-1].content
        if isinstance(self._renderer, TagRenderer):
            yield self._tagged(head, self._renderer, text)
            return
        ids = self._renderer.prompt_ids(Labelled(text, "?"))
        self._fits(ids)
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

    def _fits(self, ids: Sequence[int]) -> None:
        if len(ids) > self._machine.context:
            raise UserError(
                f"the text has {len(ids)} tokens, the model takes {self._machine.context}",
                where="prompt",
                hint="give a shorter text",
            )

    def _tagged(self, head: HeadedMachine, renderer: TagRenderer, text: str) -> str:
        """The text with its spans, or each word with its label; ``details`` then hold ``words`` and ``spans``."""
        places = words_of(text)
        if not places:
            raise UserError("the text has no words", where="prompt", hint="give a text with words")
        ids, read = renderer.words_in(text, places)
        self._fits(ids)
        described = head.described
        (said,) = tags_of(head, [read], [np.asarray(ids)])
        sure = [float(np.exp(logprob_K.max())) for logprob_K in said.logprob_WK]
        words = [
            {"text": text[start:end], "start": start, "end": end, "label": tag, "probability": probability}
            for (start, end), tag, probability in zip(places, said.tags, sure, strict=True)
        ]
        self.details = {"words": words}
        if not described.spans:
            return " ".join(f"{word['text']}/{word['label']}" for word in words)
        spans = spans_of(words, chunks(said.tags, described.outside), text)
        self.details["spans"] = spans
        return marked(text, spans)
