"""Virtual tokens that train: prompt tuning (Lester et al. 2021) and P-tuning (Liu et al. 2021, arXiv 2103.10385).

Prompt tuning trains a table of embedded tokens. P-tuning trains another table and the network that makes embedded tokens of it, the
networks of PEFT's ``PromptEncoder``. Both change the model from the first step on; switched off, they leave the exact base.

Shapes: V virtual tokens, H width of the embedding, M inner width.
"""

from __future__ import annotations

import hashlib
import inspect
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from tunesmith.adapters import peft_prompts
from tunesmith.adapters.added import AddedAdapter
from tunesmith.adapters.peft_layout import Layout
from tunesmith.adapters.sites import Part, parts
from tunesmith.adapters.targets import input_embedding
from tunesmith.errors import RecipeError
from tunesmith.models.virtual_tokens import NAME, holder_of
from tunesmith.recipe.prompts import VirtualSection
from tunesmith.types import CannotMerge

_COMMON_ROWS = 5000
"""Tokens of a vocabulary come by frequency; the paper draws from the 5,000 most frequent (§3.2)."""


class VirtualPart(Part):
    """Virtual tokens of one adapter; follows ``virtual_tokens.Source``."""

    def embedded(self) -> Tensor | None:
        """In the place of embedded tokens ``[V, H]``."""
        return None

    def cached(self) -> list[tuple[Tensor, Tensor]] | None:
        """Keys and values of each layer ``[V, K, W]``."""
        return None

    def table(self) -> Tensor:
        """As files have them ``[V, numbers of a virtual token]``, made by the network where there is one."""
        return cast(Tensor, self.embedded())

    def named(self) -> dict[str, Tensor]:
        """All parameters by their names."""
        return dict(self.named_parameters())


class Table(VirtualPart):
    """Embedded tokens that train as they are."""

    def __init__(self, values_VH: Tensor) -> None:
        super().__init__()
        self.embedding = table_of(values_VH)

    def embedded(self) -> Tensor | None:
        """The table."""
        return self.embedding.weight


def table_of(values_VH: Tensor) -> nn.Embedding:
    """A table of these numbers, as a module, so that no weight decay pulls them to zero."""
    num_rows, width = values_VH.shape
    return nn.Embedding(num_rows, width, _weight=values_VH.detach().float().cpu().clone())


class Dense(nn.Module):
    """A linear layer that is no target of other adapters."""

    def __init__(self, num_in: int, num_out: int) -> None:
        super().__init__()
        start = nn.Linear(num_in, num_out)
        self.weight, self.bias = start.weight, start.bias

    def forward(self, x: Tensor) -> Tensor:
        """W x + b."""
        return functional.linear(x, self.weight, self.bias)


class EncodedTable(VirtualPart):
    """A table, and the network that makes embedded tokens of it; starts as PEFT's does.

    Args:
        count: V.
        width: H.
        section: the recipe's.
    """

    def __init__(self, count: int, width: int, section: Any) -> None:
        super().__init__()
        inner = section.encoder_width or width
        self.embedding = nn.Embedding(count, width)
        self.lstm_head: nn.LSTM | None = None
        if section.encoder == "lstm":
            layers = section.encoder_layers
            self.lstm_head = nn.LSTM(
                width, inner, layers, dropout=section.dropout if layers > 1 else 0.0, bidirectional=True, batch_first=True
            )  # fmt: skip
            self.mlp_head = nn.Sequential(Dense(2 * inner, 2 * inner), nn.ReLU(), Dense(2 * inner, width))
        else:
            self.mlp_head = nn.Sequential(
                Dense(width, inner), nn.ReLU(), Dense(inner, inner), nn.ReLU(), Dense(inner, width)
            )

    def embedded(self) -> Tensor | None:
        """The network's output."""
        hidden_1VH = self.embedding.weight[None]
        if self.lstm_head is not None:
            hidden_1VH = self.lstm_head(hidden_1VH)[0]
        return cast(Tensor, self.mlp_head(hidden_1VH)[0])


class VirtualAdapter(AddedAdapter):
    """Virtual tokens at the model's holder of them. Follows ``types.Adapter``.

    Args:
        section: the recipe's.
        seed: fixes the start.
        rows: embedding or head -> token ids, in place of the section's ``train_tokens``; for adapters read from files.
        folded: start from zeros in the shape that files have, without any network; for adapters read from files.
    """

    def __init__(
        self,
        section: VirtualSection,
        seed: int,
        rows: Mapping[str, Sequence[int]] | None = None,
        *,
        folded: bool = False,
    ) -> None:
        super().__init__(section, seed, rows)
        self.virtual_tokens = section.num_tokens
        self._folded = folded
        self._host: Any = None

    @abstractmethod
    def started(self, host: Any) -> VirtualPart:
        """The part at its start on a model; torch's generator is seeded."""

    def folded_width(self, host: Any) -> int:
        """Numbers of a virtual token in files. Raises RecipeError where the model cannot take any."""
        self.require_taken(host)
        return _width(host)

    def folded(self, host: Any) -> VirtualPart:
        """A part of zeros in the shape of files."""
        return Table(torch.zeros(self.section.num_tokens, self.folded_width(host)))

    def choose_sites(self, model: nn.Module) -> dict[str, nn.Module]:
        """The holder, where the model can take embedded tokens and has room for them."""
        self.require_taken(model)
        if not self._folded:
            self.require_start(model)
        self._host = model
        return {NAME: holder_of(model)}

    def require_taken(self, host: Any) -> None:
        """Raise RecipeError where the model cannot take the virtual tokens, or has no room behind them."""
        require_room(host, self.section.num_tokens)
        base = getattr(host, getattr(host, "base_model_prefix", ""), None)
        if base is None or "inputs_embeds" not in inspect.signature(base.forward).parameters:
            raise _cannot_take(host)

    def require_start(self, host: Any) -> None:
        """Raise RecipeError where the start cannot be made on this model."""
        text, vocabulary = getattr(self.section, "init_text", None), len(_embedding(host).weight)
        if isinstance(text, str):
            raise RecipeError(
                "`init_text` is a text, and there is no tokenizer here",
                where="adapter.init_text",
                hint="plan the recipe, which makes token ids of it, or give a list of ids",
            )
        if text is not None and max(text) >= vocabulary:
            raise RecipeError(
                f"there is no token {max(text)}: the model has {vocabulary:,}",
                where="adapter.init_text",
                hint=f"give ids below {vocabulary}",
            )

    def new_part(self, name: str, site: nn.Module) -> Part:
        """The part at its start, on the model's device; the holder becomes the model's."""
        device = _embedding(self._host).weight.device
        if getattr(self._host, NAME, None) is None:
            self._host.add_module(NAME, site)
        if self._folded:
            return self.folded(self._host).to(device)
        digest = hashlib.sha256(f"{self.seed}\n{name}".encode()).digest()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int.from_bytes(digest[:8], "big") >> 1)
            part = self.started(self._host)
        return part.to(device)

    def require_mergeable(self) -> None:
        """Virtual tokens are no weights."""
        raise CannotMerge(
            f"`{self.section.type}` puts tokens in front of the input, which no weight of the base can hold: "
            "export the adapter without merging, and load it beside the base"
        )

    def start_ids(self, host: Any) -> Tensor:
        """Tokens to start from: the section's text, cut or repeated to its number of tokens, or random common ones."""
        weight_NH, count, text = _embedding(host).weight, self.section.num_tokens, self.section.init_text
        if text is None:
            return torch.randint(min(_COMMON_ROWS, len(weight_NH)), (count,)).to(weight_NH.device)
        return torch.tensor([text[place % len(text)] for place in range(count)], device=weight_NH.device)

    @torch.no_grad()
    def layout(self) -> Layout:
        """As PEFT's own method."""
        part = cast(VirtualPart, self.part_at(self._sites[NAME]))
        beside = {key: value for key, value in self.state().items() if not key.startswith(f"{NAME}.")}
        return peft_prompts.layout(self.model, self.section, part.table(), self._tokens.ids, beside)

    def _forget(self) -> None:
        model, holder = self.model, self._sites[NAME]
        super()._forget()
        if not hasattr(holder, "added") or not len(parts(holder)):
            delattr(model, NAME)


class PromptAdapter(VirtualAdapter):
    """Prompt tuning by a recipe's section."""

    def started(self, host: Any) -> VirtualPart:
        """Embedded tokens of the start text, or random ones of the vocabulary."""
        with torch.no_grad():
            return Table(_embedding(host)(self.start_ids(host)))


class PTuningAdapter(VirtualAdapter):
    """P-tuning by a recipe's section."""

    def started(self, host: Any) -> VirtualPart:
        """Table and network at random."""
        return EncodedTable(self.section.num_tokens, _width(host), self.section)


def _cannot_take(model: Any) -> RecipeError:
    return RecipeError(
        f"`{type(model).__name__}` cannot take virtual tokens: it reads token ids only, or has an encoder of its own",
        where="adapter.type",
        hint="use `adapter: {type: lora}`",
    )


def require_room(model: Any, num_tokens: int) -> None:
    """Raise RecipeError where a model has no positions for so many virtual tokens, or has an encoder and a decoder."""
    if input_embedding(model) is None or model.config.is_encoder_decoder:
        raise _cannot_take(model)
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if limit is not None and num_tokens >= limit - 1:
        raise RecipeError(
            f"`num_tokens` is {num_tokens:,}, the model reads at most {limit:,} tokens: no example has room behind them",
            where="adapter.num_tokens",
            hint="usual are 5 to 100",
        )


def _embedding(model: Any) -> nn.Embedding:
    return cast(nn.Embedding, input_embedding(model))


def _width(model: Any) -> int:
    return int(_embedding(model).weight.shape[1])
