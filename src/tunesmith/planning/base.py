"""The base of a plan: found, checked, and fit for what the objective asks of it. Torch-free."""

from __future__ import annotations

from dataclasses import replace

from tunesmith.errors import ModelError, RecipeError
from tunesmith.models.facts import ModelFacts, headless, read_facts
from tunesmith.models.head_shape import shape_of
from tunesmith.models.locate import ModelFolder, check_weights, locate
from tunesmith.planning.settings import Counts
from tunesmith.recipe.heads import HeadedSection, TagSection
from tunesmith.recipe.objectives import MlmSection, ObjectiveSection, SftSection
from tunesmith.recipe.prompts import PrefixSection, VirtualSection
from tunesmith.recipe.root import Recipe

_FEWEST_LABELS = 2


def settled_objective(recipe: Recipe, facts: ModelFacts) -> ObjectiveSection:
    """The recipe's objective with nothing left that the model's kind decides."""
    section = recipe.objective
    if isinstance(section, TagSection) and section.pieces == "auto":
        return section.model_copy(update={"pieces": "first" if facts.is_encoder else "last"})
    return section


def open_base(recipe: Recipe) -> tuple[ModelFolder, ModelFacts]:
    """The recipe's base and its facts, without its language head where the objective brings a head of its own.

    Raises:
        ModelError: it is missing, torn or pickled, or of a kind that the objective cannot use.
    """
    folder = locate(recipe.model.name, recipe.folder)
    check_weights(folder.path)
    facts = read_facts(folder.path)
    where = str(folder.path / "config.json")
    _require_packs(recipe, facts)
    if isinstance(recipe.objective, HeadedSection):
        if not facts.is_causal_lm and not facts.is_encoder:
            raise ModelError(
                f"`{facts.architecture}` is neither a causal language model nor an encoder that Tunesmith knows",
                where=where,
                hint="a head goes on a model whose architecture ends in ForCausalLM, or on an encoder such as BERT: docs/reference/models.md",
            )
        return folder, headless(facts)
    if isinstance(recipe.objective, MlmSection):
        if not facts.is_encoder:
            raise ModelError(
                f"`{facts.architecture}` is not an encoder that Tunesmith knows, which `mlm` needs",
                where=where,
                hint="give an encoder such as BERT (docs/reference/models.md); text trains a causal language model by `objective: {type: clm}`",
            )
        return folder, facts
    if facts.is_encoder_decoder and isinstance(recipe.objective, SftSection):
        _require_two_halves(recipe, facts)
        return folder, facts
    if not facts.is_causal_lm:
        raise ModelError(
            f"`{facts.architecture}` is not a causal language model, which `sft` and `clm` need",
            where=where,
            hint="give a model whose architecture ends in ForCausalLM",
        )
    return folder, facts


def _require_two_halves(recipe: Recipe, facts: ModelFacts) -> None:
    """Refuse what an encoder–decoder model cannot do: all that stands before the last answer goes to its encoder.

    Raises:
        RecipeError: names it.
    """
    section = recipe.objective
    if isinstance(section, SftSection) and section.loss_on != "last_response":
        raise RecipeError(
            f"the encoder of `{facts.model_type}` reads all that stands before the last answer, so only that can be trained, "
            f"not `loss_on: {section.loss_on}`",
            where=recipe.where("objective.loss_on"),
            hint="set `objective: {type: sft, loss_on: last_response}`",
        )
    if isinstance(recipe.adapter, VirtualSection):
        raise RecipeError(
            f"`{recipe.adapter.type}` puts virtual tokens before a document of one row, and `{facts.model_type}` has two",
            where=recipe.where("adapter.type"),
            hint="take `adapter: {type: lora}`, or `full`",
        )


def _require_packs(recipe: Recipe, facts: ModelFacts) -> None:
    """Refuse what only a model that packs can do.

    Raises:
        RecipeError: names it.
    """
    if facts.unpacked is None:
        return
    why = f"`{facts.model_type}` {facts.unpacked.reason}, so its documents do not share a row"
    if isinstance(recipe.adapter, PrefixSection):
        raise RecipeError(
            f"{why}: keys and values cannot stand in front of each",
            where=recipe.where("adapter.type"),
            hint="take `adapter: {type: prompt}`, whose virtual tokens go into the input only",
        )
    if recipe.training.neftune_alpha is not None:
        raise RecipeError(
            f"{why}: noise by document is not built for it",
            where=recipe.where("training.neftune_alpha"),
            hint="leave `neftune_alpha` out",
        )


def packing_notes(facts: ModelFacts) -> list[str]:
    """How documents run where they cannot lie in one row."""
    if facts.unpacked is None:
        return []
    return [
        f"`{facts.model_type}` {facts.unpacked.reason}, so it cannot pack: {facts.unpacked.how}{'' if facts.unpacked.cached else ', and answers are made without a cache'}"
    ]


def asked_tokens(recipe: Recipe, counts: Counts) -> Counts:
    """The counts with the tokens that a pass is asked for: under ``mlm`` the hidden ones."""
    if not isinstance(recipe.objective, MlmSection):
        return counts
    return replace(counts, trained_tokens=round(counts.trained_tokens * recipe.objective.mask_share))


def num_head(recipe: Recipe, facts: ModelFacts, counts: Counts) -> int:
    """Elements of the head that the objective puts on the model; 0 where it puts none.

    Raises:
        RecipeError: the model cannot have such a head.
    """
    section = recipe.objective
    if not isinstance(section, HeadedSection):
        return 0
    named = getattr(section, "labels", None)
    return shape_of(section, facts, len(named) if named else max(_FEWEST_LABELS, counts.labels)).num_parameters
