"""A model ready to work: facade, generator and scorer over one loaded base, with what a recipe's renderer knows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from tunesmith.adapters import build
from tunesmith.adapters.peft_files import attach_read, read_adapter
from tunesmith.data.loader import make_batch
from tunesmith.data.prepared import Prepared
from tunesmith.data.rendering import Renderer
from tunesmith.data.tokenizer import Tokenizer
from tunesmith.engine.precision import DTYPES
from tunesmith.engine.randomness import seed_for
from tunesmith.models.causal_lm import CausalLM
from tunesmith.models.generation import Generator
from tunesmith.models.loading import load_model
from tunesmith.models.scoring import PackScorer
from tunesmith.objectives.headed import Headed
from tunesmith.planning.settings import Settings
from tunesmith.recipe.root import Recipe
from tunesmith.types import Adapter, Objective
from tunesmith.workshop.headed import HeadedMachine, describe_head, is_headed


@dataclass(frozen=True)
class Machinery:
    """What scoring and answering need of a model."""

    model: CausalLM
    tokenizer: Tokenizer
    generator: Generator
    scorer: PackScorer
    context: int
    headed: HeadedMachine | None = None
    """The model with its head, where it has one; it then neither generates nor ranks."""


def assemble(
    model: CausalLM, renderer: Renderer, context: int, batch_tokens: int, headed: HeadedMachine | None = None
) -> Machinery:
    """Put a generator and a scorer beside a model, and its head where it has one."""
    tokenizer = renderer.tokenizer
    pad = next((item for item in (tokenizer.pad_id, tokenizer.eos_id, tokenizer.bos_id) if item is not None), 0)
    generator = Generator(
        model,
        stop_ids=renderer.stop_ids,
        pad_id=pad,
        decode=lambda ids: tokenizer.decode(ids, skip_special=True),
        batch_tokens=batch_tokens,
        context=context,
    )
    scorer = PackScorer(model, make_batch, context=context, batch_tokens=batch_tokens)
    return Machinery(model, tokenizer, generator, scorer, context, headed)


def assemble_for(
    recipe: Recipe, settings: Settings, model: CausalLM, objective: Objective, data: Prepared, renderer: Renderer
) -> Machinery:
    """What scoring needs of a recipe's model, with its head where the objective puts one on it."""
    context, batch_tokens = settings.context, recipe.evaluation.batch_tokens
    head = None
    if isinstance(objective, Headed):
        head = HeadedMachine(model, objective, describe_head(recipe, data), context, batch_tokens)
    return assemble(model, renderer, context, batch_tokens, head)


def weights_dtype(settings: Settings) -> torch.dtype:
    """Type of the base's weights in memory."""
    return DTYPES[settings.weights_dtype]


def load_base(folder: Path, recipe: Recipe, settings: Settings) -> CausalLM:
    """The recipe's base, or its shape alone, on the plan's device and in the plan's type, with the recipe's dropout.

    Its language head is left out where the objective brings a head of its own.
    """
    torch.set_num_threads(settings.threads)
    return load_model(
        folder,
        device=settings.device,
        dtype=weights_dtype(settings),
        dropout=recipe.model.dropout.rates(),
        quantise=recipe.model.quantise,
        headless=is_headed(recipe),
        init_seed=seed_for(recipe.seed, "init") if recipe.model.init == "random" else None,
    )


def attach(model: CausalLM, recipe: Recipe, settings: Settings) -> Adapter:
    """Attach the recipe's adapter, freeze the rest, and switch noise and recomputation as planned."""
    adapter = build(recipe.adapter, recipe.seed)
    adapter.attach(model.hf)
    model.to(settings.device)
    if recipe.training.neftune_alpha is not None:
        model.add_embedding_noise(recipe.training.neftune_alpha)
    if settings.recompute:
        model.recompute_activations()
    return adapter


def attach_saved(model: CausalLM, folder: Path) -> Adapter:
    """Attach an adapter folder in PEFT's layout."""
    settings, tensors = read_adapter(folder)
    return attach_read(model.hf, settings, tensors)
