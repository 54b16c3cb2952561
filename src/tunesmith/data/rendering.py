"""The one path from a record to token ids and a mask. Training, evaluation and serving all come here. Torch-free.

The promise: what is trained is what is served. A row's ids are the ids of its prompt, exactly as a server would encode that
prompt, followed by the ids of the answer up to and including its end-of-turn token. Whatever a template writes behind the
last end-of-turn token (a line's end, Phi's end-of-text) is never read, trained or served, and is left out.

Where a tokenizer would merge the last character of the prompt with the first of the answer, the text is encoded in two
pieces, split there. Earlier answers of the conversation are encoded as the history of a prompt is; a token that begins
before such an answer is not trained.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from tunesmith.data.bad_row import BadRow
from tunesmith.data.chat_template import (
    ChatTemplate,
    Span,
    TemplateError,
    Tools,
    default_template,
    find_template,
    read_template,
)
from tunesmith.data.dialogue import called_names, messages_of, must_answer
from tunesmith.data.joining import NoBorder, join
from tunesmith.data.masks import trained_tokens
from tunesmith.data.template_habits import Habits, learn_habits, prompt_text
from tunesmith.data.token_roles import conversation_roles, document_roles
from tunesmith.data.tokenizer import Offsets, Tokenizer, stop_ids_of
from tunesmith.data.tools_text import written_out
from tunesmith.data.turns import Conversation, LostTurn
from tunesmith.recipe.fingerprint import fingerprint
from tunesmith.recipe.model import ModelSection
from tunesmith.recipe.objectives import ClmSection, SftSection
from tunesmith.records import Chat, Labelled, Message, Record, Tagged, Text

RENDERING_VERSION = 1


@dataclass(frozen=True)
class Rendered:
    """A row for the model.

    Attributes:
        ids: token ids, T of them.
        trained: per token, whether it is a target of the loss; never the first, which nothing predicts.
        text: the text the ids were made from.
    """

    ids: list[int]
    trained: list[bool]
    text: str


@dataclass(frozen=True)
class Examined:
    """A row for the model and for the account.

    Attributes:
        ids: token ids, T of them.
        trained: per token, whether it is a target of the loss.
        roles: per token, the code of its role (``token_roles.TOKEN_ROLES``).
        warnings: sentences that hold for the row, without its values: equal sentences can be counted over rows.
    """

    ids: list[int]
    trained: list[bool]
    roles: bytes
    warnings: list[str]


class _Answered(NamedTuple):
    """A rendered conversation with what its tokens were made from."""

    rendered: Rendered
    conversation: Conversation
    last: Span
    offsets: Offsets
    written: list[str]


class Renderer:
    """Turns records into ids and masks, and prompts and answers into the same ids.

    Args:
        tokenizer: of the model.
        template: chat template.
        objective: says which tokens are trained. Under ``clm`` all but the first are, whatever the record.
        template_name: shown to people.
        extra_stop_ids: further ids that end an answer, such as those of generation_config.json.

    Raises:
        TemplateError: under ``sft``, when the template fails on a plain question and answer.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        template: ChatTemplate,
        objective: SftSection | ClmSection,
        template_name: str = "chat template",
        extra_stop_ids: frozenset[int] = frozenset(),
    ) -> None:
        self.tokenizer = tokenizer
        self.template = template
        self.objective = objective
        self.template_name = template_name
        self._extra_stop_ids = extra_stop_ids
        if isinstance(objective, SftSection):
            _ = self._habits

    @cached_property
    def _habits(self) -> Habits:
        return learn_habits(self.template, self.tokenizer)

    @cached_property
    def stop_ids(self) -> frozenset[int]:
        """Ids after which an answer is over: end of turn where that is one token, and end of text."""
        stops = set(self._extra_stop_ids)
        if self.tokenizer.eos_id is not None:
            stops.add(self.tokenizer.eos_id)
        if self._end_id is not None:
            stops.add(self._end_id)
        return frozenset(stops)

    @cached_property
    def _end_id(self) -> int | None:
        """Last token of what closes the last answer, if it is a token of its own."""
        ids = self.tokenizer.encode(self._habits.ends[0]) if self._habits.ends else []
        return ids[-1] if ids and (ids[-1] in self.tokenizer.added or ids[-1] in self.tokenizer.special_ids) else None

    @property
    def notes(self) -> list[str]:
        """What should be said aloud about this template under this objective."""
        if isinstance(self.objective, ClmSection):
            missing = self.objective.add_end_token and self.tokenizer.eos_id is None
            return ["the tokenizer names no end-of-text token: documents are not closed"] if missing else []
        habits = self._habits
        said: list[str] = []
        if not habits.ends:
            said.append(f"{self.template_name} closes answers with nothing: the model cannot learn where to stop")
        elif self._end_id is None:
            said.append(
                f"{self.template_name} closes answers with {habits.ends[0]!r}, which is not one token: generation cannot stop on it"
            )
        if habits.surplus:
            said.append(
                f"{self.template_name} opens answers with {habits.surplus!r} when asked for one but leaves that out of finished "
                "answers: prompts here end before it"
            )
        if habits.rewrites_history and not self.template.has_markers and self.objective.loss_on != "last_response":
            said.append(
                f"{self.template_name} writes earlier answers otherwise than the last one; they are trained as they stand in the "
                "history (`objective.loss_on: last_response` trains only what is served)"
            )
        if self.template.has_markers and self._stretches():
            said.append(
                f"{self.template_name} marks answers without their end-of-turn token {habits.ends[0]!r}: it is trained as well"
            )
        return said

    @property
    def decides(self) -> dict[str, Any]:
        """What decides the ids and the mask of a record, by name."""
        return {
            "version": RENDERING_VERSION, "tokenizer": self.tokenizer.sha256,
            "special_tokens": self.tokenizer.special_tokens, "template": self.template.source,
            "template_tokens": self.template.special_tokens, "date": self.template.date,
            "objective": self.objective.masking(),
        }  # fmt: skip

    def fingerprint(self) -> str:
        """Hex sha256 that changes whenever the same record would get other ids or another mask."""
        return fingerprint(self.decides)

    def render(self, record: Record) -> Rendered:
        """Ids and mask of a record.

        Raises:
            BadRow: empty_text, no_answer, empty_answer, template_failed, nothing_trained, wrong_type.
        """
        return self._document(record) if isinstance(record, Text) else self._answered(record).rendered

    def examine(self, record: Record) -> Examined:
        """The same, with whose each token is and what should be said about the row.

        Raises:
            BadRow: as ``render``.
        """
        inside = self.special_tokens_inside(record)
        said = (
            ["the text itself contains special tokens of the model: they are encoded as those tokens"] if inside else []
        )
        if isinstance(record, Text):
            document = self._document(record)
            return Examined(document.ids, document.trained, document_roles(len(document.ids)), said)
        found = self._answered(record)
        roles, doubts = conversation_roles(found.conversation, found.last, found.offsets)
        if isinstance(record, Chat):
            said += found.written + found.conversation.omissions()
        return Examined(found.rendered.ids, found.rendered.trained, roles, said + doubts)

    def prompt_text(self, record: Record) -> str:
        """Everything before the last answer, generation prompt included; all turns where the last is not an answer.

        Raises:
            BadRow: template_failed.
        """
        if isinstance(record, Text):
            return ""
        messages, tools, _ = self._conversation(record)
        before = messages[:-1] if messages and messages[-1].role == "assistant" else messages
        try:
            return prompt_text(self.template, self._habits, before, tools)
        except TemplateError as error:
            raise BadRow("template_failed", error.what) from None

    def prompt_ids(self, record: Record) -> list[int]:
        """Ids of ``prompt_text``, as a server encodes it."""
        return self.tokenizer.encode(self.prompt_text(record))

    def answer_ids(self, record: Record, answer: str) -> list[int]:
        """What follows ``prompt_ids`` when the last answer says ``answer``, up to and including the end-of-turn token.

        Tool calls and reasoning of the record's own last answer stay.

        Raises:
            BadRow: template_failed; wrong_type for a document.
        """
        if isinstance(record, Text):
            raise BadRow("wrong_type", "a plain document has no answer")
        messages, tools, _ = self._conversation(record)
        if messages and messages[-1].role == "assistant":
            turns = (*messages[:-1], replace(messages[-1], content=answer))
        else:
            turns = (*messages, Message("assistant", answer))
        conversation = self._rendered(turns, tools)
        start, end = self._answer_span(conversation)
        ids, _, border = self._join(conversation.text[:start], conversation.text[start:end])
        return ids[border:]

    def reference(self, record: Record) -> str:
        """The answer a record holds: content of the last answer, the label, or the document itself.

        Tool calls are part of it only where the template leaves them out and they are written as text.
        """
        if isinstance(record, Text):
            return record.text
        if isinstance(record, Labelled):
            return record.label
        messages, _, _ = self._conversation(record)
        answers = [message.content for message in messages if message.role == "assistant"]
        return answers[-1] if answers else ""

    def special_tokens_inside(self, record: Record) -> list[str]:
        """Special token strings that stand in the record's own text, in order of the alphabet.

        They are encoded as the special tokens they spell, as ``apply_chat_template`` does; a reader should know.
        """
        if self._special_pattern is None:
            return []
        texts = [record.text] if isinstance(record, Text) else [message.content for message in messages_of(record)]
        return sorted({match for text in texts for match in self._special_pattern.findall(text)})

    @cached_property
    def _special_pattern(self) -> re.Pattern[str] | None:
        texts = sorted(
            (self.tokenizer.token_text(token) for token in self.tokenizer.special_ids), key=len, reverse=True
        )
        known = [re.escape(text) for text in texts if text.strip()]
        return re.compile("|".join(known)) if known else None

    def _stretches(self) -> bool:
        """Whether the template's own markers stop before the end-of-turn token."""
        try:
            probe = Conversation(
                self.template, self._habits, (Message("user", "velvet"), Message("assistant", "saffron")), None
            )
        except TemplateError:
            return False
        return any(probe.stretched(span) != span for span in probe.marks or [])

    def _document(self, record: Text) -> Rendered:
        if isinstance(self.objective, SftSection):
            raise BadRow(
                "no_answer", "a plain document has no answer to train on; `objective: {type: clm}` trains on documents"
            )
        if not record.text.strip():
            raise BadRow("empty_text", "the document is empty")
        ids = self.tokenizer.encode_document(record.text)
        end = self.tokenizer.eos_id
        if self.objective.add_end_token and end is not None and ids[-1:] != [end]:
            ids = [*ids, end]
        if len(ids) < 2:
            raise BadRow("nothing_trained", "the document is a single token, which nothing predicts")
        return Rendered(ids, [False] + [True] * (len(ids) - 1), record.text)

    def _answered(self, record: Chat | Labelled | Tagged) -> _Answered:
        messages, tools, written = self._conversation(record)
        must_answer(messages)
        conversation = self._rendered(messages, tools)
        start, end = last = self._answer_span(conversation)
        ids, offsets, _ = self._join(conversation.text[:start], conversation.text[start:end])
        try:
            trained = trained_tokens(conversation, self.objective, last, offsets)
        except LostTurn as error:
            raise BadRow("template_failed", str(error)) from None
        if not any(trained):
            raise BadRow(
                "nothing_trained", "no token of this row is trained: every turn is masked by its flags or by loss_on"
            )
        return _Answered(Rendered(ids, trained, conversation.text[:end]), conversation, last, offsets, written)

    def _conversation(self, record: Chat | Labelled | Tagged) -> tuple[tuple[Message, ...], Tools | None, list[str]]:
        tools = record.tools if isinstance(record, Chat) else None
        return written_out(self.template, messages_of(record), tools)

    def _rendered(self, messages: Sequence[Message], tools: Tools | None) -> Conversation:
        try:
            conversation = Conversation(self.template, self._habits, messages, tools)
        except TemplateError as error:
            raise BadRow("template_failed", error.what) from None
        names = [str(name) for message in messages for name in called_names(message)]
        missing = next((name for name in names if name not in conversation.text), None)
        if missing is not None:
            raise BadRow("template_failed", f"the chat template leaves out the call of `{missing}`")
        return conversation

    def _answer_span(self, conversation: Conversation) -> Span:
        """The last answer, which must begin where the prompt that is served ends."""
        last = len(conversation.messages) - 1
        prompt = conversation.prompt_before(last)
        text = conversation.text
        if prompt is None or not text.startswith(prompt):
            raise BadRow(
                "template_failed",
                "the rendered conversation does not begin with the prompt that its last answer would be served with: "
                "the template rewrites earlier turns, or answers otherwise than its generation prompt announces",
            )
        found = conversation.only_end(len(prompt))
        if found is not None:
            return len(prompt), found
        try:
            return conversation.answer(last)
        except LostTurn as error:
            raise BadRow("template_failed", str(error)) from None

    def _join(self, prompt: str, rest: str) -> tuple[list[int], Offsets, int]:
        try:
            return join(self.tokenizer, prompt, rest)
        except NoBorder:
            raise BadRow(
                "template_failed", "the tokenizer cannot separate the prompt from the answer in this row"
            ) from None


def make_renderer(
    model_folder: Path, model: ModelSection, objective: SftSection | ClmSection, recipe_folder: Path
) -> tuple[Renderer, list[str]]:
    """The renderer of a recipe, and sentences to say aloud.

    Args:
        model_folder: the base model.
        model: names a template that replaces the model's own, and the day that templates are told.
        objective: what is trained.
        recipe_folder: where a relative template path starts.

    Raises:
        ModelError: no usable tokenizer.
        DataError: the template is missing, does not compile or fails on a plain question and answer.
    """
    tokenizer = Tokenizer.from_folder(model_folder)
    notes: list[str] = []
    if model.chat_template is not None:
        path = recipe_folder / model.chat_template
        source, where, name = read_template(path), str(path), f"the chat template {path.name}"
        notes.append(f"the chat template is {path}, not the model's own")
    else:
        own = find_template(model_folder)
        where, name = str(model_folder), "the model's chat template"
        if own is None:
            bos = tokenizer.bos_id is not None and tokenizer.encode_document("a")[:1] == [tokenizer.bos_id]
            own, where, name = default_template(bos), "the default chat template", "the default chat template"
            if isinstance(objective, SftSection):
                notes.append(
                    "the model has no chat template: Tunesmith's own is used (### User:, ### Assistant:, end-of-text token), "
                    "and whoever serves the tuned model must use it too"
                )
        source = own
    template = ChatTemplate(source, tokenizer.special_tokens, model.date, where)
    renderer = Renderer(tokenizer, template, objective, name, stop_ids_of(model_folder))
    return renderer, notes + renderer.notes
