"""From a text of tagged words to what a head reads and what it should answer for each word. Torch-free.

The text is tokenised whole, as ``tokenizer(text)`` gives it, and words are found in it by their characters: what is trained
on a list of words is what is asked of raw text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from tunesmith.data.bad_row import BadRow
from tunesmith.data.chat_template import ChatTemplate
from tunesmith.data.head_rendering import HeadRenderer
from tunesmith.data.rendering import Examined, Rendered
from tunesmith.data.token_roles import document_roles
from tunesmith.data.tokenizer import Tokenizer
from tunesmith.data.words import NO_TOKEN, Span, tokens_of_words
from tunesmith.recipe.heads import TagSection
from tunesmith.records import Record, Tagged
from tunesmith.tags import continued, marks_spans, stray

Reads = Literal["first", "last"]
_STRAY = "a tag goes on with a span that no tag began: it is read as a beginning, as conlleval does (objective.scheme)"
_SHARED = "two words share a token: it is trained on the first of them"
_UNREAD = "a word has no token: it is not trained, and counts as outside when it is scored"


@dataclass(frozen=True)
class Placed:
    """A row with its targets.

    Attributes:
        ids: of the whole text.
        reads: for each word the token that answers for it, ``NO_TOKEN`` where it has none.
        asked: token -> the tag it is trained on.
    """

    ids: list[int]
    reads: list[int]
    asked: dict[int, str]


class TagRenderer(HeadRenderer):
    """Turns tagged texts into ids, and into a tag for some of their tokens.

    Args:
        tokenizer: of the model.
        template: of the model; never applied.
        section: of the recipe, with ``pieces`` settled.
    """

    def __init__(self, tokenizer: Tokenizer, template: ChatTemplate, section: TagSection) -> None:
        super().__init__(tokenizer, template, section)
        self.tags = section
        self._last: tuple[Record, Placed] | None = None

    @property
    def reads(self) -> Reads:
        """Which token of a word answers for it."""
        return "last" if self.tags.pieces == "last" else "first"

    def text_of(self, record: Record) -> str:
        """The text that is read.

        Raises:
            BadRow: no_answer for anything but tagged words, empty_text.
        """
        if not isinstance(record, Tagged):
            raise BadRow(
                "no_answer", "the row has no tags of words; give it `tokens` and `tags`, or `text` and `spans`"
            )
        if not record.words:
            raise BadRow("empty_text", "the text has no words")
        return record.text

    def names(self, record: Record) -> tuple[str, ...]:
        """The tag of each word; of tags that are numbers the label with that number.

        Raises:
            BadRow: unknown_label, or wrong_tags under a span scheme.
        """
        if not isinstance(record, Tagged):
            return ()
        labels, scheme = self.tags.labels, self.tags.scheme
        names = tuple(self._named(tag) for tag in record.tags)
        strange = next((name for name in names if labels is not None and name not in labels), None)
        if strange is not None:
            raise BadRow("unknown_label", f"the tag {strange!r} is none of those that `objective.labels` names")
        if scheme == "bio":
            self._hold_against_scheme(names)
        return names

    def _named(self, tag: str) -> str:
        if not tag.isdecimal():
            return tag
        labels = self.tags.labels
        if labels is None:
            raise BadRow(
                "unknown_label", f"the tag {tag} is a number: name all tags in their order in `objective.labels`"
            )
        return tag if tag in labels or int(tag) >= len(labels) else labels[int(tag)]

    def _hold_against_scheme(self, names: Sequence[str]) -> None:
        outside = self.tags.outside
        strange = next((name for name in names if not marks_spans([name, "B"], outside)), None)
        if strange is not None:
            raise BadRow(
                "wrong_tags", f"the tag {strange!r} is none of a span scheme: `B-TYPE`, `I-TYPE` or {outside!r}"
            )
        place = stray(names, outside)
        if place is not None:
            raise BadRow("wrong_tags", f"word {place + 1} has the tag {names[place]!r}, which goes on with nothing")

    def placed(self, record: Record) -> Placed:
        """Ids, and which token answers for which word.

        Raises:
            BadRow: the record has no words, or a tag that the head could not answer.
        """
        if self._last is not None and self._last[0] is record:
            return self._last[1]
        text, names = self.text_of(record), self.names(record)
        assert isinstance(record, Tagged)
        ids, offsets = self.tokenizer.encode_document_with_offsets(text)
        pieces = tokens_of_words(record.words, offsets)
        reads = [self._answering(tokens) for tokens in pieces]
        asked: dict[int, str] = {}
        for tokens, token, name in zip(pieces, reads, names, strict=True):
            if token != NO_TOKEN:
                asked.setdefault(token, name)
            for further in tokens if self.tags.pieces == "all" else ():
                asked.setdefault(further, continued(name, self.tags.outside))
        found = Placed(ids, reads, asked)
        self._last = record, found
        return found

    def words_in(self, text: str, words: Sequence[Span]) -> tuple[list[int], list[int]]:
        """Ids of a text, and for each of its words the token that answers for it, or ``NO_TOKEN``."""
        ids, offsets = self.tokenizer.encode_document_with_offsets(text)
        return ids, [self._answering(tokens) for tokens in tokens_of_words(words, offsets)]

    def _answering(self, tokens: range) -> int:
        return NO_TOKEN if not tokens else tokens[-1] if self.reads == "last" else tokens[0]

    def kept(self, ids: Sequence[int], stored: int) -> int:
        """How many of a row's first tokens are stored where they stood, when it was cut to ``stored``."""
        if stored == len(ids):
            return stored
        return stored - (ids[-1] in self.tokenizer.special_ids)

    def reading_tokens(self, record: Record, stored: int) -> list[int]:
        """For each word of a row that is stored with ``stored`` tokens, the token that answers for it, or ``NO_TOKEN``."""
        placed = self.placed(record)
        kept = self.kept(placed.ids, stored)
        return [token if token < kept else NO_TOKEN for token in placed.reads]

    def render(self, record: Record) -> Rendered:
        """Ids of the text; trained are the tokens that are asked for a tag.

        Raises:
            BadRow: as ``placed``, or nothing_trained where no word has a token.
        """
        found = self.placed(record)
        self.seen.update(dict.fromkeys(self.names(record)))
        if not found.asked:
            raise BadRow("nothing_trained", "no word of the row has a token")
        return Rendered(found.ids, [token in found.asked for token in range(len(found.ids))], self.text_of(record))

    def examine(self, record: Record) -> Examined:
        """The same, with what should be said about the row."""
        rendered, found, names = self.render(record), self.placed(record), self.names(record)
        outside, said = self.tags.outside, []
        if self.tags.scheme == "auto" and marks_spans([*names, "B"], outside) and stray(names, outside) is not None:
            said.append(_STRAY)
        tokens = [token for token in found.reads if token != NO_TOKEN]
        if len(tokens) < len(found.reads):
            said.append(_UNREAD)
        if len(set(tokens)) < len(tokens):
            said.append(_SHARED)
        return Examined(rendered.ids, rendered.trained, document_roles(len(rendered.ids)), said)

    def reference(self, record: Record) -> str:
        """The tags, with a space between."""
        return " ".join(self.names(record))
