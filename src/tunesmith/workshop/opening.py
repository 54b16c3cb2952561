"""A MODEL argument to a model at work: embedded name, model folder, run folder or adapter folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from tunesmith.adapters.stored import read_base_sha256, read_packing
from tunesmith.data.renderers import make_renderer
from tunesmith.data.rendering import Renderer
from tunesmith.data.sum_rendering import conversations_of
from tunesmith.errors import ModelError
from tunesmith.models.causal_lm import CausalLM
from tunesmith.models.facts import read_facts
from tunesmith.models.head_shape import read_head
from tunesmith.models.loading import load_model
from tunesmith.models.locate import ModelFolder, ModelRef, check_weights, open_model
from tunesmith.objectives.headed import Headed
from tunesmith.planning.base import settled_objective
from tunesmith.planning.defaults import derive_context
from tunesmith.recipe.codec import parse
from tunesmith.recipe.heads import ClassifySection, HeadedSection, RegressSection, TagSection
from tunesmith.recipe.model import ModelSection
from tunesmith.recipe.objectives import SftSection, SumSection
from tunesmith.recipe.root import Recipe
from tunesmith.registry.result import check_result
from tunesmith.registry.runs import RunFolder
from tunesmith.workshop.headed import HeadedMachine
from tunesmith.workshop.headed_files import open_head
from tunesmith.workshop.machinery import Machinery, assemble, attach_saved


@dataclass(frozen=True)
class Opened:
    """A model that answers, with the renderer it was trained with."""

    name: str
    machine: Machinery
    renderer: Renderer


def open_machine(text: str, *, device: str | None = None, batch_tokens: int = 8192) -> Opened:
    """Load what a MODEL argument names, in fp32 on the CPU and bf16 on CUDA.

    Raises:
        ModelError: nothing of that name, or it does not load.
    """
    reference = open_model(text)
    where = device or ("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if where == "cuda" else torch.float32
    if reference.run is not None:
        check_result(reference.run)
    check_weights(reference.base.path)
    require_base(reference, reference.base)
    renderer, context = renderer_for(reference)
    trained_apart = reference.adapter is not None or reference.head not in (None, reference.base.path)
    quantise = packing_of(reference) if trained_apart else "none"
    headless = reference.head is not None
    model = load_model(reference.base.path, device=where, dtype=dtype, quantise=quantise, headless=headless)
    if reference.adapter is not None:
        adapter = attach_saved(model, reference.adapter)
        model.to(where)
        facts = read_facts(reference.base.path)
        context = min(context, facts.context - adapter.virtual_tokens) if facts.context_stated else context
    model.eval()
    head = None if reference.head is None else _head_on(model, reference.head, context, batch_tokens)
    return Opened(text, assemble(model, renderer, context, batch_tokens, head), renderer)


def _head_on(model: CausalLM, folder: Path, context: int, batch_tokens: int) -> HeadedMachine:
    head, described = open_head(folder)
    objective = Headed(described.shape)
    objective.head.load_state_dict(head.state_dict())
    objective.parts.to(model.device).eval()
    return HeadedMachine(model, objective, described, context, batch_tokens)


def renderer_for(reference: ModelRef) -> tuple[Renderer, int]:
    """The renderer a run was trained with, else the model's own; and the longest sequence."""
    recipe = recipe_of(reference)
    model, folder = recipe.model, recipe.folder
    objective = _rendered_by(reference, recipe)
    facts = read_facts(reference.base.path)
    settled = settled_objective(recipe.model_copy(update={"objective": objective}), facts)
    renderer, _ = make_renderer(reference.base.path, model, settled, folder)
    return renderer, derive_context(recipe, facts).value


def _rendered_by(reference: ModelRef, recipe: Recipe) -> SftSection | HeadedSection:
    """What decides how a question is rendered: conversations, or for a head the text alone."""
    section = recipe.objective
    if isinstance(section, SumSection):
        section = conversations_of(section)
    if isinstance(section, SftSection | HeadedSection) and isinstance(section, HeadedSection) == bool(reference.head):
        return section
    if reference.head is None:
        return SftSection()
    described = read_head(reference.head)
    task = described.shape.task
    if task == "tag":
        return TagSection(labels=list(described.labels), outside=described.outside, pieces=described.reads)
    return RegressSection() if task == "regress" else ClassifySection(multi_label=task == "multi_label")


def trained_on(reference: ModelRef) -> str:
    """Hash of the weights that an adapter was trained on, from its run or its file; empty where neither says.

    Args:
        reference: to an adapter.
    """
    if reference.run is not None:
        return str(RunFolder(reference.run).environment()["base_sha256"])
    return "" if reference.adapter is None else read_base_sha256(reference.adapter)


def require_base(reference: ModelRef, base: ModelFolder) -> None:
    """Refuse an adapter on a base that is not the one it was trained on.

    Raises:
        ModelError: its weights are others.
    """
    if reference.adapter is None or trained_on(reference) in ("", base.sha256):
        return
    where = reference.run or reference.adapter
    what, hint = (
        f"the adapter in {where} was trained on another base",
        "give the base it was trained on, or train again",
    )
    if reference.run is not None and base.path == reference.base.path:
        what = f"the base model changed since the run in {where} trained its adapter"
        hint = "put the base back as it was, or train again"
    raise ModelError(what, where=str(base.path), hint=hint)


def packing_of(reference: ModelRef) -> str:
    """How the base held its linear layers when a run, or an adapter by its file, was trained on it."""
    if reference.run is None and reference.adapter is not None:
        return read_packing(reference.adapter)
    return recipe_of(reference).model.quantise


def recipe_of(reference: ModelRef) -> Recipe:
    """The recipe of a run; for anything else one that names the model alone."""
    if reference.run is not None:
        run = RunFolder.open(reference.run)
        return run.recipe().placed(_recipe_folder(run))
    values = {"name": "model", "model": str(reference.base.path), "data": {"train": "none.jsonl"}}
    recipe = parse(values)
    return recipe.model_copy(update={"model": ModelSection(name=str(reference.base.path))})


def _recipe_folder(run: RunFolder) -> Path:
    """Where relative paths of a run's recipe start, as its environment has it."""
    return Path(run.environment().get("recipe_folder", ".")) if run.environment_path.exists() else Path()
