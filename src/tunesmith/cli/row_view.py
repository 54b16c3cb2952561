"""One row of a data set from file to tokens: raw, rendered, and what of it is trained."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from tunesmith.data.prepared import Prepared, Split
from tunesmith.data.reading import ReadRow, read, resolve
from tunesmith.errors import DataError
from tunesmith.recipe.root import Recipe
from tunesmith.visible import visible

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

    from tunesmith.data.rendering import Renderer

_MOST_TOKENS_SHOWN = 4_000
_STYLES = {True: "black on green", False: "dim"}
_MARKS = {True: ("⟦", "⟧"), False: ("", "")}


@dataclass(frozen=True)
class Token:
    """A token of the row; ``trained`` where it is a target of the loss."""

    id: int
    text: str
    trained: bool


@dataclass(frozen=True)
class RowView:
    """What `data show` shows.

    Attributes:
        id: identity of the row; of a piece of a document, with ``#k`` behind it.
        origin: file and line.
        raw: columns as they stood in the file.
        rendered: what the template made of it.
        tokens: of the row as it is stored: with what the context cut away left out.
        weight: what each trained token counts in the loss.
    """

    id: str
    origin: str
    raw: Mapping[str, Any]
    rendered: str
    tokens: list[Token]
    weight: float = 1.0

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        tokens = [{"id": token.id, "text": token.text, "trained": token.trained} for token in self.tokens]
        raw = json.loads(json.dumps(dict(self.raw), default=str))
        return {
            "id": self.id, "origin": self.origin, "raw": raw, "rendered": self.rendered, "tokens": tokens,
            "weight": self.weight,
        }  # fmt: skip

    def renderables(self, *, has_colour: bool) -> list[RenderableType]:
        """Parts for a rich console."""
        from rich.text import Text

        raw = json.dumps(dict(self.raw), ensure_ascii=False, indent=2, default=str)
        num_trained = sum(token.trained for token in self.tokens)
        legend = Text(f"tokens: {len(self.tokens)}, of them ")
        legend.append(*_marked(f"{num_trained} trained", True, has_colour))
        legend.append(" and ")
        legend.append(*_marked(f"{len(self.tokens) - num_trained} not trained", False, has_colour))
        if self.weight != 1.0:
            legend.append(f"; each trained one weighs {self.weight:g}")
        bold = "bold" if has_colour else ""
        return [
            Text("raw", bold),
            Text(visible(raw)),
            Text(),
            Text("rendered", bold),
            Text(visible(self.rendered)),
            Text(),
            legend,
            self._tokens(has_colour),
        ]

    def _tokens(self, has_colour: bool) -> Text:
        """Tokens one after another with ``·`` between; line ends are shown and kept."""
        from rich.text import Text

        text = Text()
        shown = self.tokens[:_MOST_TOKENS_SHOWN]
        is_line_start = True
        for token in shown:
            text.append("" if is_line_start else "·", "dim" if has_colour else "")
            text.append(*_marked(visible(token.text.replace("\n", "⏎")), token.trained, has_colour))
            text.append("\n" * token.text.count("\n"))
            is_line_start = token.text.endswith("\n")
        if len(self.tokens) > len(shown):
            text.append(f"\n… and {len(self.tokens) - len(shown)} more; --json has them all")
        return text


def _marked(text: str, trained: bool, has_colour: bool) -> tuple[str, str]:
    before, after = ("", "") if has_colour else _MARKS[trained]
    return f"{before}{text}{after}", _STYLES[trained] if has_colour else ""


def find_row(recipe: Recipe, prepared: Prepared, renderer: Renderer, split: str, index: int) -> RowView:
    """Row ``index`` (from 0) of a split, with its tokens from the cache and the rest read from its file again.

    Raises:
        DataError: there is no such row, or its file changed since.
    """
    store = {"train": prepared.train, "validation": prepared.validation, "test": prepared.test}[cast("Split", split)]
    num_rows = store.num_rows if store is not None else 0
    if store is None or index >= num_rows:
        holds = f"rows 0 to {num_rows - 1}" if num_rows else "no rows"
        raise DataError(f"there is no row {index} in {split}", where=f"{recipe.name} [data]", hint=f"it has {holds}")
    ids, trained = store.row(index)
    tokens = [
        Token(int(token), renderer.tokenizer.token_text(int(token)), bool(is_trained))
        for token, is_trained in zip(ids, trained, strict=True)
    ]
    row_id, origin = store.row_id(index), store.origin(index)
    found = _read_again(recipe, row_id.partition("#")[0], str(origin))
    rendered = renderer.render(found.row.record).text
    return RowView(row_id, str(origin), found.raw.values, rendered, tokens, float(store.weights[index]))


def _read_again(recipe: Recipe, row_id: str, origin: str) -> ReadRow:
    for source in resolve(recipe):
        if not any(origin.startswith(f"{shown}:") for _, shown in source.files):
            continue
        for item in read(source):
            if isinstance(item, ReadRow) and item.row.id == row_id:
                return item
    raise DataError(
        "the row is no longer in its file", where=origin, hint="the file changed while it was read: run it again"
    )
