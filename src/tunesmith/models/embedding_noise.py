"""NEFTune: uniform noise on the embeddings that a training pass reads (Jain et al. 2023, arXiv 2310.05914).

Each document of L tokens and width d gets ``α / sqrt(L · d) · u`` with u uniform in −1 to 1, so that the expected length of a
document's noise, ``α / sqrt 3``, depends on neither. Drawn from torch's default generator, as dropout's masks are: the engine seeds it anew
for each pass.

Shapes: T tokens of a pack, H width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


class EmbeddingNoise:
    """Adds noise to what an embedding gives while ``lengths`` are set.

    Args:
        embedding: the model's input embedding; its output is ``[1, T, H]`` or ``[T, H]``.
        alpha: size of the noise; 5, 10 and 15 are the paper's.
    """

    def __init__(self, embedding: nn.Module, alpha: float) -> None:
        self.alpha = alpha
        self.lengths: Sequence[int] | None = None
        """Lengths of the documents of the pack that is read; None for no noise."""
        embedding.register_forward_hook(self._add)

    def _add(self, module: nn.Module, given: Any, embedded: Tensor) -> Tensor:
        if self.lengths is None:
            return embedded
        width = embedded.shape[-1]
        bounds = [self.alpha / math.sqrt(length * width) for length in self.lengths]
        bounds_D = torch.tensor(bounds, dtype=torch.float32).to(embedded.device, non_blocking=True)
        repeats_D = torch.tensor(list(self.lengths)).to(embedded.device, non_blocking=True)
        bounds_T1 = torch.repeat_interleave(bounds_D, repeats_D, output_size=sum(self.lengths))[:, None]
        noise = torch.empty(embedded.shape, dtype=torch.float32, device=embedded.device).uniform_(-1.0, 1.0)
        return embedded + (noise * bounds_T1).to(embedded.dtype)
