"""The renderer of a weighted sum: conversations as ``sft`` has them, plain documents as ``clm`` does. Torch-free."""

from __future__ import annotations

from typing import Any

from tunesmith.data.bad_row import BadRow
from tunesmith.data.rendering import Rendered, Renderer
from tunesmith.recipe.objectives import SftSection, SumSection
from tunesmith.records import Record, Text


class SumRenderer(Renderer):
    """Turns conversations and documents into ids and masks, each as its part of the sum asks.

    Args:
        plain: renders conversations.
        section: of the recipe.
    """

    def __init__(self, plain: Renderer, section: SumSection) -> None:
        super().__init__(plain.tokenizer, plain.template, plain.objective, plain.template_name, plain.stop_ids)
        self.section = section
        documents = section.part("clm")
        self._documents = None if documents is None else Renderer(plain.tokenizer, plain.template, documents)

    @property
    def decides(self) -> dict[str, Any]:
        """What decides the ids and the mask of a record, by name."""
        return {**super().decides, "objective": {"sum": [part.masking() for part in self.section.parts]}}

    def part_of(self, record: Record) -> int:
        """Number of the part that a record belongs to, by its kind.

        Raises:
            BadRow: no_answer where the sum has no such part.
        """
        kind = "clm" if isinstance(record, Text) else "sft"
        part = self.section.part(kind)
        if part is None:
            what = "a plain document belongs" if kind == "clm" else "a conversation belongs"
            raise BadRow("no_answer", f"{what} to a part `{kind}`, and the sum has none (objective.parts)")
        return self.section.parts.index(part)

    def _document(self, record: Text) -> Rendered:
        self.part_of(record)
        assert self._documents is not None
        return self._documents.render(record)

    def render(self, record: Record) -> Rendered:
        """Ids and mask of a record.

        Raises:
            BadRow: as the renderer of its part, or no_answer where there is no such part.
        """
        self.part_of(record)
        return super().render(record)


def conversations_of(section: SumSection) -> SftSection:
    """What decides how the sum's conversations are rendered."""
    part = section.part("sft")
    return part if isinstance(part, SftSection) else SftSection()
