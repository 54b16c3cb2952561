"""From a record to what a head reads and what it should answer. Torch-free.

A head reads the text alone, as the ids that ``tokenizer(text)`` gives in transformers: what is trained here is what
``pipeline("text-classification")`` asks of the exported model. There is no chat template in it.
"""

from __future__ import annotations

import math
from typing import Any

from tunesmith.data.bad_row import BadRow
from tunesmith.data.chat_template import ChatTemplate
from tunesmith.data.labels import is_single_turn
from tunesmith.data.rendering import RENDERING_VERSION, Examined, Rendered, Renderer
from tunesmith.data.token_roles import document_roles
from tunesmith.data.tokenizer import Tokenizer
from tunesmith.json_values import loads
from tunesmith.recipe.heads import ClassifySection, HeadedSection, RegressSection
from tunesmith.recipe.objectives import ClmSection
from tunesmith.records import Chat, Labelled, Record, Tagged, Text

_DECIDES = ("type", "labels", "multi_label", "separator", "outside", "pieces", "scheme")
"""Keys of a section that decide ids or targets; how the head is shaped does not."""
_SYSTEM = "the system message is left out: a head reads the text alone"


class HeadRenderer(Renderer):
    """Turns records into the ids that a head reads, and into its targets.

    Labelled texts are read as they are; a conversation of one question and its answer is a text and its label.

    Args:
        tokenizer: of the model.
        template: of the model, kept with what is exported; never applied.
        section: what the head answers.
    """

    def __init__(self, tokenizer: Tokenizer, template: ChatTemplate, section: HeadedSection) -> None:
        super().__init__(tokenizer, template, ClmSection())
        self.section = section
        self.seen: dict[str, None] = {}
        """Labels of the records that were rendered, in the order they were met."""

    @property
    def numbers(self) -> bool:
        """Whether targets are numbers instead of labels."""
        return isinstance(self.section, RegressSection)

    @property
    def notes(self) -> list[str]:
        """Nothing: no template is applied."""
        return []

    @property
    def decides(self) -> dict[str, Any]:
        """What decides ids and targets of a record, by name."""
        section = self.section.model_dump(mode="json")
        return {
            "version": RENDERING_VERSION, "tokenizer": self.tokenizer.sha256,
            "special_tokens": self.tokenizer.special_tokens,
            "objective": {key: section[key] for key in _DECIDES if key in section},
        }  # fmt: skip

    def text_of(self, record: Record) -> str:
        """The text that is read.

        Raises:
            BadRow: no_answer for a document, wrong_type for a conversation of several turns, empty_text.
        """
        if isinstance(record, Text):
            raise BadRow("no_answer", "a plain document has no label; give the rows a `label` column")
        if isinstance(record, Tagged):
            raise BadRow(
                "wrong_type", "tagged words have no label of the whole text; `objective: {type: tag}` trains on them"
            )
        if not is_single_turn(record):
            raise BadRow("wrong_type", "a conversation of several turns has no single text to label")
        text = record.text if isinstance(record, Labelled) else _said(record, "user")
        if not text.strip():
            raise BadRow("empty_text", "the text is empty")
        return text

    def names(self, record: Record) -> tuple[str, ...]:
        """Labels of a record; one for ``classify``, none where the target is a number.

        Raises:
            BadRow: empty_answer, or unknown_label where the recipe names the labels.
        """
        if not isinstance(self.section, ClassifySection):
            return ()
        label = self.reference(record)
        if self.section.multi_label:
            return self._known(_listed(label, self.section.separator), self.section.labels)
        if not label:
            raise BadRow("empty_answer", "the label is empty")
        return self._known((label,), self.section.labels)

    def number(self, record: Record) -> float:
        """The number of a record.

        Raises:
            BadRow: wrong_type where its label is no finite number.
        """
        label = self.reference(record)
        try:
            value = float(label)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise BadRow("wrong_type", f"the label {label!r} is not a number")
        return value

    def render(self, record: Record) -> Rendered:
        """Ids of the text. Of the mask one token stands for the row: a row is one unit of the loss.

        Raises:
            BadRow: the record has no text to read, or no label that the head could answer.
        """
        text = self.text_of(record)
        if self.numbers:
            self.number(record)
        self.seen.update(dict.fromkeys(self.names(record)))
        ids = self.tokenizer.encode_document(text)
        return Rendered(ids, [place == 1 for place in range(len(ids))], text)

    def examine(self, record: Record) -> Examined:
        """The same, with what should be said about the row."""
        found = self.render(record)
        said = []
        if isinstance(record, Chat) and _said(record, "system"):
            said.append(_SYSTEM)
        return Examined(found.ids, found.trained, document_roles(len(found.ids)), said)

    def closed(self, ids: list[int], cut: list[int]) -> list[int]:
        """The beginning of a row that was cut, with the row's closing special token at its end where it has one."""
        if len(cut) == len(ids) or ids[-1] not in self.tokenizer.special_ids:
            return cut
        return [*cut[:-1], ids[-1]]

    def prompt_text(self, record: Record) -> str:
        """The text that is read."""
        return self.text_of(record)

    def prompt_ids(self, record: Record) -> list[int]:
        """Ids of the text."""
        return self.tokenizer.encode_document(self.text_of(record))

    def reference(self, record: Record) -> str:
        """The label as it was written, without white space around it."""
        if isinstance(record, Text | Tagged):
            return ""
        label = record.label if isinstance(record, Labelled) else _said(record, "assistant")
        return label.strip()

    def _known(self, names: tuple[str, ...], labels: list[str] | None) -> tuple[str, ...]:
        strange = next((name for name in names if labels is not None and name not in labels), None)
        if strange is not None:
            raise BadRow("unknown_label", f"the label {strange!r} is none of those that `objective.labels` names")
        return names


def _listed(label: str, separator: str) -> tuple[str, ...]:
    """Labels of a row that may have several: a JSON list, or texts with ``separator`` between them; each once."""
    items: list[Any] = []
    if label.startswith("["):
        try:
            items = loads(label)
        except (ValueError, RecursionError):
            raise BadRow("wrong_type", f"the label {label!r} begins as a list and is none") from None
    names = [item.strip() for item in items or label.split(separator) if isinstance(item, str)]
    if len(names) < len(items):
        raise BadRow("wrong_type", "a label in the list is not a text")
    return tuple(dict.fromkeys(name for name in names if name and name != "[]"))


def _said(record: Chat, role: str) -> str:
    """What the only turn of a role says; nothing where there is none."""
    return next((message.content for message in record.messages if message.role == role), "")
