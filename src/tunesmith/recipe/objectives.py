"""What to minimise: a tagged union whose defaults are the vetted setting."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from tunesmith.recipe.section import Section


class SftSection(Section):
    """Supervised fine-tuning: next token of the answers in conversations."""

    type: Literal["sft"] = "sft"
    loss_on: Literal["responses", "last_response", "all_turns", "everything"] = "responses"
    """Trained tokens: assistant answers; only the last; contents of all turns; or every token.
    A message's own ``train`` flag overrides the first three."""


class ClmSection(Section):
    """Continued pre-training: next token of raw text; long documents become windows without loss of text."""

    type: Literal["clm"] = "clm"
    add_end_token: bool = True
    """Close each document with the end-of-text token."""


def _default_type(value: Any) -> Any:
    return {"type": "sft", **value} if isinstance(value, dict) and "type" not in value else value


ObjectiveField = Annotated[SftSection | ClmSection, Field(discriminator="type"), BeforeValidator(_default_type)]
