"""What a masked language model hides: the recipe's choice and what the tokenizer says."""

from __future__ import annotations

from dataclasses import replace

from tunesmith.data.masked_batches import Masking, masked_documents
from tunesmith.data.rendering import Renderer
from tunesmith.errors import ModelError
from tunesmith.models.scoring import PackScorer
from tunesmith.recipe.objectives import MlmSection
from tunesmith.recipe.root import Recipe
from tunesmith.workshop.machinery import Machinery


def masking_of(recipe: Recipe, renderer: Renderer) -> Masking | None:
    """How tokens are hidden; None where the objective hides none.

    Raises:
        ModelError: the tokenizer has no token that stands for a hidden one.
    """
    section = recipe.objective
    if not isinstance(section, MlmSection):
        return None
    tokenizer = renderer.tokenizer
    text = tokenizer.special_tokens.get("mask_token")
    mask_id = None if text is None else tokenizer.id_of(text)
    if mask_id is None:
        raise ModelError(
            "the tokenizer has no mask token, which masked language modelling shows in place of hidden ones",
            where=recipe.where("model.name"),
            hint="take an encoder whose tokenizer_config.json names a `mask_token`",
        )
    plain = section.replacement == "mask"
    return Masking(mask_id, section.mask_share, plain, tokenizer.special_ids, tokenizer.vocab_size)


def hides_in(machine: Machinery, masking: Masking | None) -> Machinery:
    """The same machine, whose losses are those of hidden tokens."""
    if masking is None:
        return machine
    old = machine.scorer
    scorer = PackScorer(machine.model, masked_documents(masking), context=old.context, batch_tokens=old.batch_tokens)
    return replace(machine, scorer=scorer)
