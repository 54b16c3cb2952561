"""How long and how fast to train."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from tunesmith.recipe.guards import GuardsSection, ZClipSection
from tunesmith.recipe.layers import FreezeOutSection, FreezingField, LayerRatesSection
from tunesmith.recipe.section import Section

ScheduleName = Literal["cosine", "linear", "constant", "wsd", "slanted"]
PrecisionName = Literal["auto", "fp32", "bf16", "fp16"]
OptimiserName = Literal["adamw", "adamw_8bit", "sgd"]
RecomputeChoice = Literal["auto", "on", "off"]


class EarlyStoppingSection(Section):
    """Stop when a measure of the validation rows has not improved; the best checkpoint becomes the result."""

    metric: Literal["loss", "exact_match", "label_ranking", "instruction_following"] = "loss"
    """``loss`` (lower is better); or of answers (higher is better) the share that is exactly right, the share of labels ranked first,
    or the Instruction Following Score."""
    patience: int = Field(default=3, gt=0)
    """Evaluations without improvement before stopping."""
    min_delta: float = Field(default=0.0, ge=0.0)
    """Improvement that counts: nats per token for the loss, a share from 0 to 1 for the others."""
    rows: int = Field(default=200, gt=0)
    """Validation rows that are answered at each evaluation for a metric of answers; the loss takes all rows."""


class TrainingSection(Section):
    """Budget, batch, optimiser, schedule and cadence. What is unset is derived by the plan, with its reason."""

    epochs: float | None = Field(default=None, gt=0)
    """Passes over the training rows; unset with no ``max_steps`` means 3."""
    max_steps: int | None = Field(default=None, gt=0)
    """Optimiser steps; excludes ``epochs``."""
    batch_size: int = Field(default=32, gt=0)
    """Examples in one optimiser step, over all ranks and micro-batches."""
    micro_batch_size: int | None = Field(default=None, gt=0)
    """Most examples in one forward pass; does not change the result. Free on resume."""
    learning_rate: float | None = Field(default=None, gt=0)
    """Peak rate; unset follows the rule by scope and width."""
    optimiser: OptimiserName = "adamw"
    """``adamw`` (betas 0.9, 0.999, epsilon 1e-8), ``adamw_8bit`` (the same with moments of 1 byte a number in blocks of 256, for
    tensors of at least 4,096 numbers) or ``sgd`` with momentum."""
    offload_optimiser: bool = False
    """Keep AdamW's moments in pinned memory of the host, and bring them to the CUDA device a piece at a time."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's decay of first and second moments."""
    momentum: float = Field(default=0.9, ge=0.0, lt=1.0)
    """SGD's momentum."""
    schedule: ScheduleName = "cosine"
    """``cosine``, ``linear``, ``constant``, ``wsd`` (warm-up, stable, decay) or ``slanted`` (ULMFiT)."""
    warmup: float | int = Field(default=0.03, ge=0)
    """Below 1: share of all steps; an integer: steps."""
    decay_share: float = Field(default=0.2, gt=0.0, le=1.0)
    """Share of the steps after warm-up in which ``wsd`` falls to zero."""
    neftune_alpha: float | None = Field(default=None, gt=0.0)
    """Noise on the embeddings that training reads (NEFTune), alpha / sqrt(length x width) at most; 5 is usual, unset is none."""
    layer_rates: LayerRatesSection | None = None
    """Slower rates for lower layers; ``{}`` takes a decay of 0.9. Goes with every scope and adapter."""
    freezing: FreezingField | None = None
    """Unfreeze or freeze layers on the way: ``unfreeze_gradually``, ``freezeout`` or ``autofreeze``."""
    weight_decay: float = Field(default=0.01, ge=0.0)
    """Decoupled decay of matrices; vectors (norms, biases) and embeddings are not decayed."""
    clip: float | None = Field(default=1.0, gt=0.0)
    """Largest global gradient norm; null switches clipping off."""
    adaptive_clip: ZClipSection | None = None
    """Clip by the norm's own history as well; ``{}`` takes ZClip's defaults."""
    precision: PrecisionName = "auto"
    """``auto`` takes bf16 where the hardware has it, else fp32 on CPU and fp16 on CUDA."""
    recompute: RecomputeChoice = "auto"
    """Gradient checkpointing: trade time for memory."""
    checkpoint_every: int | None = Field(default=None, gt=0)
    """Steps between checkpoints; unset is a tenth of the run, and always at the end."""
    keep_checkpoints: int = Field(default=2, ge=2)
    """Good checkpoints kept on disk."""
    evaluate_every: int | None = Field(default=None, gt=0)
    """Steps between validation losses; unset is a tenth of the run."""
    samples: int = Field(default=4, ge=0)
    """Validation prompts answered at each evaluation, to watch."""
    log_every: int = Field(default=1, gt=0)
    """Steps between lines of metrics.jsonl."""
    early_stopping: EarlyStoppingSection | None = None
    """Stop on a measure of the validation rows."""
    guards: GuardsSection = GuardsSection()
    """What happens when numbers, disk or time go wrong."""

    @model_validator(mode="after")
    def _one_budget(self) -> TrainingSection:
        if self.epochs is not None and self.max_steps is not None:
            raise ValueError("give either `epochs` or `max_steps`, not both")
        if isinstance(self.warmup, float) and self.warmup > 1:
            raise ValueError("`warmup` is a share of the steps below 1, or a whole number of steps")
        if isinstance(self.freezing, FreezeOutSection) and self.schedule != "cosine":
            raise ValueError("`freezeout` gives each layer a cosine of its own: leave `schedule` at `cosine`")
        if self.offload_optimiser and self.optimiser == "sgd":
            raise ValueError("`offload_optimiser` moves AdamW's moments: take `optimiser: adamw` or `adamw_8bit`")
        return self
