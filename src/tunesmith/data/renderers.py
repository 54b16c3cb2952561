"""The renderer that a recipe's objective asks for. Torch-free."""

from __future__ import annotations

from pathlib import Path

from tunesmith.data import rendering
from tunesmith.data.head_rendering import HeadRenderer
from tunesmith.data.rendering import Renderer
from tunesmith.data.sum_rendering import SumRenderer, conversations_of
from tunesmith.data.tag_rendering import TagRenderer
from tunesmith.recipe.heads import HeadedSection, TagSection
from tunesmith.recipe.model import ModelSection
from tunesmith.recipe.objectives import ClmSection, MlmSection, SftSection, SumSection


def make_renderer(
    model_folder: Path,
    model: ModelSection,
    objective: SftSection | ClmSection | MlmSection | HeadedSection | SumSection,
    recipe_folder: Path,
) -> tuple[Renderer, list[str]]:
    """The renderer of a recipe, and sentences to say aloud.

    Args:
        model_folder: the base model.
        model: names a template that replaces the model's own, and the day that templates are told.
        objective: what is trained; of ``tag`` with ``pieces`` settled.
        recipe_folder: where a relative template path starts.

    Raises:
        ModelError: no usable tokenizer.
        DataError: the template is missing, does not compile or fails on a plain question and answer.
    """
    if isinstance(objective, MlmSection):  # its tokens are those of documents; what is hidden is drawn later
        objective = ClmSection(add_end_token=False)
    if isinstance(objective, SumSection):
        plain, notes = rendering.make_renderer(model_folder, model, conversations_of(objective), recipe_folder)
        return SumRenderer(plain, objective), notes
    if not isinstance(objective, HeadedSection):
        return rendering.make_renderer(model_folder, model, objective, recipe_folder)
    plain, _ = rendering.make_renderer(model_folder, model, ClmSection(), recipe_folder)
    if isinstance(objective, TagSection):
        return TagRenderer(plain.tokenizer, plain.template, objective), []
    return HeadRenderer(plain.tokenizer, plain.template, objective), []
