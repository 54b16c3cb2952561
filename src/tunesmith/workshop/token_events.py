"""What a run says of the tokens of its chat template: which train by themselves, and which stay untrained. Torch-free."""

from __future__ import annotations

from pathlib import Path

from tunesmith.data.rendering import Renderer
from tunesmith.models import names
from tunesmith.models.facts import ModelFacts, read_facts
from tunesmith.planning.plan import Plan
from tunesmith.planning.scope import scope_of
from tunesmith.planning.tokens import listed, untrained_tokens
from tunesmith.recipe.low_rank import AddedSection
from tunesmith.recipe.objectives import trains_answers


def token_events(plan: Plan, base: Path, renderer: Renderer) -> list[tuple[str, str]]:
    """Kinds and sentences: ``trained_tokens`` for rows that train, ``untrained_token`` for an end of answers that stays frozen."""
    told: list[tuple[str, str]] = []
    recipe = plan.resolved
    tokens = plan.values.get("adapter.train_tokens")
    if tokens is not None and tokens.value:
        one = len(tokens.value) == 1
        rows, train = ("the row", "trains") if one else ("the rows", "train")
        told.append(("trained_tokens", f"{rows} of {listed(tokens.value)} {train} beside the adapter: {tokens.reason}"))
    facts = read_facts(base)
    if not trains_answers(recipe.objective):
        return told
    scope = scope_of(facts, recipe.adapter)
    if any(names.is_head(name) or (facts.tied and names.is_embedding(name)) for name in scope.trained):
        return told
    section = recipe.adapter
    settled = section.train_tokens if isinstance(section, AddedSection) else "none"
    own = set(settled) if isinstance(settled, list) else set()
    for item in untrained_tokens(base, facts, renderer):
        if item.ends and item.token not in own:
            told.append(
                (
                    "untrained_token",
                    f"{item.text} ends an answer here but was never trained: its row equals that of {', '.join(item.twins[:3])}, and "
                    f"this adapter leaves it so; the loss cannot reach zero and answers may not end. {_remedy(section, facts)} trains it",
                )
            )
            break
    return told


def _remedy(section: object, facts: ModelFacts) -> str:
    if isinstance(section, AddedSection):
        return "`adapter.train_tokens: auto`"
    return "`adapter.embeddings: true`" if facts.tied else "`adapter.head: true`"
