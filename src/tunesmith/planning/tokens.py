"""Which single tokens train beside a LoRA adapter, and which ones of the chat template nothing ever trained. Torch-free."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tunesmith.data.rendering import Renderer
from tunesmith.data.template_habits import control_tokens
from tunesmith.data.tokenizer import Tokenizer
from tunesmith.errors import RecipeError
from tunesmith.models import names
from tunesmith.models.chat_tokens import untrained
from tunesmith.models.facts import ModelFacts
from tunesmith.planning.prompts import asks_text
from tunesmith.planning.scope import scope_of
from tunesmith.planning.settings import GIVEN, Derived
from tunesmith.recipe.adapters import AdapterSection
from tunesmith.recipe.low_rank import AddedSection
from tunesmith.recipe.objectives import trains_answers
from tunesmith.recipe.root import Recipe

WHERE = "adapter.train_tokens"
_NAMED = 4


@dataclass(frozen=True)
class UntrainedToken:
    """A token of the chat template whose row equals those of ``twins``; ``ends`` where it ends an answer."""

    token: int
    text: str
    twins: tuple[str, ...]
    ends: bool


def untrained_tokens(folder: Path, facts: ModelFacts, renderer: Renderer) -> list[UntrainedToken]:
    """Tokens of the chat template that the base cannot tell from other special tokens, since it never saw them."""
    tokenizer = renderer.tokenizer
    used = control_tokens(renderer.template, tokenizer)
    found = untrained(folder, facts, used, renderer.stop_ids, tokenizer.special_ids)
    return [
        UntrainedToken(
            token,
            tokenizer.token_text(token),
            tuple(tokenizer.token_text(other) for other in same),
            token in renderer.stop_ids,
        )
        for token, same in found.items()
    ]


def asks_tokenizer(recipe: Recipe) -> bool:
    """Whether ``settle_tokens`` or ``settle_text`` needs the recipe's renderer."""
    section = recipe.adapter
    if asks_text(recipe):
        return True
    if not isinstance(section, AddedSection) or section.train_tokens == "none":
        return False
    return section.train_tokens != "auto" or trains_answers(recipe.objective)


def settle_tokens(
    recipe: Recipe, facts: ModelFacts, folder: Path, renderer: Renderer | None
) -> tuple[Recipe, Derived[list[str]] | None]:
    """The recipe with ``train_tokens`` as ids or ``none``, and the tokens' texts with the reason; None without LoRA.

    Args:
        recipe: as written.
        facts: sizes of the base.
        folder: of the base.
        renderer: of the recipe; needed where ``asks_tokenizer`` says so.

    Raises:
        RecipeError: a token that the tokenizer does not have.
    """
    section = recipe.adapter
    if not isinstance(section, AddedSection):
        return recipe, None
    if section.train_tokens == "none":
        return recipe, Derived.given([])
    if section.train_tokens == "auto":
        ids, reason = _auto(recipe, section, facts, folder, renderer)
    else:
        assert renderer is not None
        ids, reason = _ids(section.train_tokens, renderer.tokenizer, facts), GIVEN
    texts = [renderer.tokenizer.token_text(token) for token in ids] if renderer is not None else []
    settled = section.model_copy(update={"train_tokens": ids or "none"})
    return recipe.model_copy(update={"adapter": settled}), Derived(texts, reason)


def _auto(
    recipe: Recipe, section: AddedSection, facts: ModelFacts, folder: Path, renderer: Renderer | None
) -> tuple[list[int], str]:
    if renderer is None or not trains_answers(recipe.objective):
        return [], "plain text is trained: no chat template is in play"
    without_rows: AdapterSection = section.model_copy(update={"train_tokens": "none"})  # type: ignore[assignment]
    trained = scope_of(facts, without_rows).trained
    if any(names.is_head(name) or (facts.tied and names.is_embedding(name)) for name in trained):
        return [], "`also_train` trains the head, all rows of it"
    found = untrained_tokens(folder, facts, renderer)
    if found:
        return [
            item.token for item in found
        ], "the chat template uses them and the base never saw them: their rows equal those of other special tokens"
    used = [renderer.tokenizer.token_text(token) for token in control_tokens(renderer.template, renderer.tokenizer)]
    if not used:
        return [], "the chat template uses no token of its own"
    return [], f"the base knows the tokens of the chat template: {listed(used)}"


def listed(texts: Sequence[str]) -> str:
    """Texts of tokens in a sentence; of many the first few."""
    more = f" and {len(texts) - _NAMED} more" if len(texts) > _NAMED else ""
    return ", ".join(texts[:_NAMED]) + more


def _ids(tokens: Sequence[str | int], tokenizer: Tokenizer, facts: ModelFacts) -> list[int]:
    ids: list[int] = []
    for token in tokens:
        number = token if isinstance(token, int) else tokenizer.id_of(token)
        if number is None:
            known = sorted(tokenizer.added.values())
            close = difflib.get_close_matches(str(token), known, n=1)
            raise RecipeError(
                f"`{token}` is not one token of the model's tokenizer",
                where=WHERE,
                hint=f"did you mean `{close[0]}`?" if close else f"its special tokens: {listed(known) or 'none'}",
            )
        if number >= facts.embedding_rows:
            raise RecipeError(
                f"there is no token {number}: the model has {facts.embedding_rows:,}",
                where=WHERE,
                hint=f"give a token's text, or an id below {facts.embedding_rows}",
            )
        ids.append(number)
    return list(dict.fromkeys(ids))
