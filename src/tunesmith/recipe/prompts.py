"""Adapters that put virtual tokens in front of every document of a frozen base."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from tunesmith.recipe.low_rank import AddedSection
from tunesmith.recipe.section import Section


def _as_text(value: Any) -> Any:
    if isinstance(value, list) and not (value and all(type(item) is int and item >= 0 for item in value)):
        raise ValueError("`init_text` is a text, or a list of token ids")
    if isinstance(value, str) and not value.strip():
        raise ValueError("`init_text` is empty: leave it out to start from random tokens of the vocabulary")
    return value


StartText = Annotated[str | list[int] | None, BeforeValidator(_as_text)]


class VirtualSection(AddedSection):
    """What adapters with virtual tokens share."""

    merges: ClassVar[bool] = False
    num_tokens: int = Field(default=20, gt=0)
    """Virtual tokens in front of every example; they take as many positions of the model's context."""


class PromptSection(VirtualSection):
    """Prompt tuning (Lester et al. 2021): embedded tokens in front of the input train, the base is frozen."""

    type: Literal["prompt"] = "prompt"
    init_text: StartText = None
    """Text whose embedded tokens are the start, cut or repeated to ``num_tokens``; a plan makes token ids of it. Unset: random
    tokens among the first 5,000 of the vocabulary."""


class PTuningSection(VirtualSection):
    """P-tuning (Liu et al. 2021): as prompt tuning, but a small network makes the embedded tokens while training."""

    type: Literal["p-tuning"] = "p-tuning"
    encoder: Literal["mlp", "lstm"] = "mlp"
    """The network: three linear layers, or a bidirectional LSTM and two linear layers. It is folded away in what is saved."""
    encoder_width: int | None = Field(default=None, gt=0)
    """Inner width of the network; unset is the width of the model's embedding."""
    encoder_layers: int = Field(default=2, gt=0)
    """Layers of the LSTM; the MLP always has three."""
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Dropout between the layers of the LSTM."""


class PrefixSection(VirtualSection):
    """Prefix tuning (Li and Liang 2021): keys and values of every layer train that stand in front of each example."""

    type: Literal["prefix"] = "prefix"
    init_text: StartText = None
    """Text that the base reads; the keys and values that it caches are the start. Cut or repeated to ``num_tokens``; a plan makes
    token ids of it. Unset: the same of random tokens among the first 5,000 of the vocabulary."""
    projection: bool = False
    """Let a small network make keys and values of a table while training; it is folded away in what is saved."""
    projection_width: int = Field(default=512, gt=0)
    """Inner width of that network."""

    @model_validator(mode="after")
    def _one_start(self) -> PrefixSection:
        if self.projection and self.init_text is not None:
            raise ValueError(
                "`init_text` and `projection` cannot be combined: a network's output has no start from text"
            )
        return self


def virtual_tokens_of(section: Section) -> int:
    """Positions that an adapter section takes of the context, in front of every example."""
    return section.num_tokens if isinstance(section, VirtualSection) else 0


def has_network(section: VirtualSection) -> bool:
    """Whether a network makes the virtual tokens while training."""
    return isinstance(section, PTuningSection) or (isinstance(section, PrefixSection) and section.projection)
