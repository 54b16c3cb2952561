"""Adapters of low rank on linear layers, and what all adapters that add parts to a frozen base share."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from tunesmith.recipe.section import Section


def _as_patterns(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _as_tokens(value: Any) -> Any:
    tokens = value if isinstance(value, list) else [value]
    if not tokens or not all((isinstance(item, str) and item) or (type(item) is int and item >= 0) for item in tokens):
        raise ValueError("`train_tokens` is `auto`, `none`, or a list of token texts and ids")
    return value if isinstance(value, list) or value in ("auto", "none") else tokens


Patterns = Annotated[list[str], BeforeValidator(_as_patterns, json_schema_input_type=str | list[str])]


class AddedSection(Section):
    """What trains beside the parts that an adapter adds."""

    merges: ClassVar[bool] = True
    """Whether what is added is a change of the base's weights."""
    also_train: list[str] = Field(default_factory=list)
    """Globs over parameter names that train fully beside the adapter, such as ``*embed_tokens*``."""
    train_tokens: Annotated[Literal["auto", "none"] | list[str | int], BeforeValidator(_as_tokens)] = "auto"
    """Tokens whose rows of the embedding and of the output head train beside the adapter, by text or id, while all other
    rows are frozen. ``auto``: those of the chat template's own tokens that were never trained; ``none``: none."""


class LowRankSection(AddedSection):
    """What adapters on linear layers share."""

    rank: int = Field(default=16, gt=0)
    """Inner width r."""
    alpha: float = Field(default=32.0, gt=0)
    """Scale numerator; the update is multiplied by alpha / rank, or alpha / sqrt(rank) with rslora."""
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Dropout on the input of A."""
    targets: Annotated[Patterns, Field(min_length=1)] = Field(default_factory=lambda: ["all-linear"])
    """``all-linear``, ``attention``, ``feed-forward``, or globs over module names."""


class LoraSection(LowRankSection):
    """Low-rank adaptation (Hu et al. 2021): W + alpha/r · B A with A random and B zero at the start."""

    type: Literal["lora"] = "lora"
    rslora: bool = False
    """Scale by 1/sqrt(rank) (Kalajdzievski 2023)."""
    dora: bool = False
    """Train the length of each row of the weight apart from its direction (Liu et al. 2024, DoRA)."""
    init: Literal["default", "pissa", "orthogonal"] = "default"
    """Start of A and B: ``default`` (A random, B zero), ``pissa`` (the weight's principal directions, Meng et al. 2024; the
    base stays as it is), ``orthogonal`` (both random and orthogonal to each other; the rank must be even)."""
    rate_ratio: float = Field(default=1.0, gt=0)
    """Rate of B over that of A (Hayou et al. 2024, LoRA+, takes 16 with a smaller ``training.learning_rate``)."""
    rank_pattern: dict[str, int] = Field(default_factory=dict)
    """Glob over module names -> rank in place of ``rank``; the first that fits counts."""
    alpha_pattern: dict[str, float] = Field(default_factory=dict)
    """Glob over module names -> alpha in place of ``alpha``; the first that fits counts."""

    @field_validator("rank_pattern", "alpha_pattern")
    @classmethod
    def _positive(cls, values: dict[str, float]) -> dict[str, float]:
        wrong = [f"`{name}: {value}`" for name, value in values.items() if not 0 < value < float("inf")]
        if wrong:
            raise ValueError(f"{wrong[0]} is not above 0")
        return values

    @model_validator(mode="after")
    def _start_fits(self) -> LoraSection:
        ranks = [self.rank, *self.rank_pattern.values()]
        if self.init == "orthogonal" and any(rank % 2 for rank in ranks):
            raise ValueError("`init: orthogonal` halves the rank, which must be even")
        if self.init == "pissa" and self.dora:
            raise ValueError("`init: pissa` and `dora` cannot be combined: both say what the direction starts from")
        return self


class AfloraSection(LowRankSection):
    """Adaptive freezing of low-rank adaptation (Liu et al. 2024): W + diag(b) B diag(d) A. The vectors d and b train all the
    time; the matrices A and B start random and are frozen on the way, those first whose gradients are small and steady.
    """

    type: Literal["aflora"] = "aflora"
    rank: int = Field(default=4, gt=0)
    """Inner width r."""
    alpha: float = Field(default=8.0, gt=0)
    """Scale numerator with ``scaling: alpha``; without effect otherwise."""
    scaling: Literal["none", "alpha"] = "none"
    """Factor of the update: ``none``, as the authors' code for GLUE, or ``alpha`` for alpha / rank, as theirs for GSM8K."""
    train_projections: Literal["feed-forward", "all", "none"] = "feed-forward"
    """Layers whose A and B train at first; elsewhere they stay as they were drawn."""
    vector_rate: float = Field(default=30.0, gt=0)
    """Rate of d and b over ``training.learning_rate``, which is that of A and B and of what trains beside."""
    procedure: Literal["released", "paper"] = "released"
    """What is frozen at a boundary: ``released`` freezes each matrix whose mean score is below that quantile of the scores of
    all elements that still train; ``paper`` freezes the matrices with the lowest mean scores, up to that share of all of them."""
    freeze_from: float | None = Field(default=None, ge=0, lt=1)
    """Share of the steps before freezing begins; unset is one epoch, and at most half of ``freeze_by``."""
    freeze_by: float = Field(default=0.3, gt=0, le=1)
    """Share of the steps after which all of A and B are frozen."""
    boundaries: int = Field(default=6, ge=1, le=6)
    """Steps at which something may be frozen, evenly between the two."""
    window: int = Field(default=10, gt=0)
    """Steps whose mean gradient size is one observation for the score."""
    level_decay: float = Field(default=0.85, ge=0, lt=1)
    """Decay of the running mean of the gradient's size."""
    spread_decay: float = Field(default=0.95, ge=0, lt=1)
    """Decay of the running mean of its distance from that."""

    @model_validator(mode="after")
    def _in_order(self) -> AfloraSection:
        if self.freeze_from is not None and self.freeze_from >= self.freeze_by:
            raise ValueError(
                f"`freeze_from` is {self.freeze_from:g}, and `freeze_by`, {self.freeze_by:g}, is not after it"
            )
        return self

    def trains_matrices(self, in_feed_forward: bool) -> bool:
        """Whether A and B of a layer train at first."""
        return self.train_projections == "all" or (self.train_projections == "feed-forward" and in_feed_forward)


class GraloraSection(LowRankSection):
    """Granular low-rank adaptation (Jung et al. 2025): blocks × blocks low-rank blocks of the weight, as many parameters as
    LoRA of the same rank, and an update of up to ``blocks`` times that rank.
    """

    type: Literal["gralora"] = "gralora"
    rank: int = Field(default=32, gt=0)
    """Rank r of each row and column of blocks; a block has rank r / blocks. Hybrid rank comes on top."""
    alpha: float = Field(default=64.0, gt=0)
    """Scale numerator; the update is multiplied by alpha / (rank + hybrid_rank)."""
    blocks: int = Field(default=2, gt=0)
    """k: the weight is cut into k × k blocks. The paper keeps rank / k² near 8."""
    hybrid_rank: int = Field(default=0, ge=0)
    """Rank of a plain LoRA path beside the blocks; helps at 16 ranks in all and below."""

    @model_validator(mode="after")
    def _divides(self) -> GraloraSection:
        if self.rank % self.blocks:
            raise ValueError(f"`blocks` is {self.blocks}, which does not divide `rank` {self.rank}")
        return self
