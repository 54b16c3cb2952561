"""Which linear layers an adapter goes on: by keyword or by glob over module names.

The output head is never a target: it is fused with the loss, and in many models it is the embedding.
Families differ in the names of their layers; what is in attention is told by the parent's name first, so that GPT-2's
``attn.c_proj`` and ``mlp.c_proj``, or Phi's ``self_attn.dense``, fall on the right side.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from tunesmith.adapters.lora_layer import is_linear, own_weight, widths
from tunesmith.adapters.parameters import suggest, summarise
from tunesmith.errors import RecipeError
from tunesmith.models.names import in_attention, in_feed_forward, is_router, matches

WHERE = "adapter.targets"


def linear_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Name -> layer of every ``nn.Linear`` and ``Conv1D`` except the output head and routers, in module order, each once."""
    heads = _heads(model)
    return {
        name: module
        for name, module in model.named_modules()
        if is_linear(module) and id(module) not in heads and not is_router(name)
    }


def resolve(model: nn.Module, targets: Sequence[str]) -> list[str]:
    """Names of the layers that any target names, in module order.

    Args:
        model: the model, wrapped already or not.
        targets: ``all-linear``, ``attention``, ``feed-forward``, or globs over full names or last components.

    Raises:
        RecipeError: a target fits no layer; lists the layers there are.
    """
    layers = linear_layers(model)
    chosen: set[str] = set()
    for target in targets:
        found = [name for name in layers if _fits(name, target)]
        if not found:
            raise _nothing(model, layers, target)
        chosen.update(found)
    return [name for name in layers if name in chosen]


_KEYWORDS = {"all-linear": lambda name: True, "attention": in_attention, "feed-forward": in_feed_forward}


def _fits(name: str, target: str) -> bool:
    keyword = _KEYWORDS.get(target)
    return keyword(name) if keyword else matches(name, target)


def _heads(model: nn.Module) -> set[int]:
    """Ids of the output head's modules: what the model calls its output embeddings, and linears tied to an embedding."""
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    heads = {id(module) for module in model.modules() if is_linear(module) and id(own_weight(module)) in embeddings}
    head = output_head(model)
    return heads | ({id(head)} if head is not None else set())


def output_head(model: nn.Module) -> nn.Module | None:
    """The module that maps hidden states to logits, where the model has one."""
    getter = getattr(model, "get_output_embeddings", None)
    head = getter() if getter is not None else None
    return head if isinstance(head, nn.Module) else None


def input_embedding(model: nn.Module) -> nn.Module | None:
    """The module that maps token ids to vectors, where the model names one."""
    getter = getattr(model, "get_input_embeddings", None)
    embedding = getter() if getter is not None else None
    return embedding if isinstance(embedding, nn.Module) else None


def _nothing(model: nn.Module, layers: dict[str, nn.Module], target: str) -> RecipeError:
    others = [name for name, module in model.named_modules() if name and name not in layers and matches(name, target)]
    if others:
        return RecipeError(
            f"`{target}` matches `{others[0]}`, which is no linear layer that an adapter goes on (the output head is none either)",
            where=WHERE,
            hint=f'to train it fully beside the adapter: `also_train: ["{others[0]}.*"]`',
        )
    names = [name.rpartition(".")[2] for name in layers]
    shapes = ["→".join(map(str, widths(layer))) for layer in layers.values()]
    listing = summarise(zip(names, shapes, strict=True)) or "none"
    hint = f"{suggest(target, [*names, *_KEYWORDS, *layers])}linear layers here: {listing}"
    return RecipeError(f"`{target}` matches no linear layer of the model", where=WHERE, hint=hint)
