"""Heads that answer with labels or numbers: pooling of hidden states, and the layers on top.

Shapes: T tokens of a pack, D documents in it, S scored positions, N vectors that are read (documents or words), H hidden
width, W inner width, K outputs.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.nn import functional as F

from tunesmith.errors import ModelError
from tunesmith.files import write_bytes, write_json
from tunesmith.models.head_shape import NAME, TENSORS, HeadFile, HeadShape, read_head
from tunesmith.types import Batch

FEATURES, WORD_FEATURES = "feature_D", "feature_S"
"""Names among a batch's extras of vectors that were pooled before: one a row, or one a scored position."""
_START_STD = 0.02


class TaskHead(nn.Module):
    """The layers of a head, in fp32 whatever the precision around them.

    Args:
        shape: what it is.
        seed: of its random start, a normal distribution of deviation 0.02 with biases at zero, as transformers starts heads.
    """

    def __init__(self, shape: HeadShape, seed: int = 0) -> None:
        super().__init__()
        self.shape = shape
        read = shape.width or shape.inputs
        if shape.kind == "mlp":
            self.dense = nn.Linear(shape.inputs, shape.width, bias=shape.dense_bias)
            if shape.norm:
                self.norm = nn.LayerNorm(shape.width, bias=False)
        self.out = nn.Linear(read, shape.outputs, bias=shape.bias)
        self._start(seed)

    @torch.no_grad()
    def _start(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        for layer in self.children():
            if isinstance(layer, nn.Linear):
                layer.weight.normal_(0.0, _START_STD, generator=generator)
                if layer.bias is not None:
                    layer.bias.zero_()

    def forward(self, read_NH: Tensor) -> Tensor:
        """Logits, or the number, of each vector: ``[N, K]``."""
        with torch.autocast(read_NH.device.type, enabled=False):
            x = F.dropout(read_NH.float(), self.shape.dropout, self.training)
            if self.shape.kind == "mlp":
                x = self.dense(x)
                x = torch.tanh(x) if self.shape.activation == "tanh" else F.gelu(x)
                if self.shape.norm:
                    x = self.norm(x)
                x = F.dropout(x, self.shape.dropout, self.training)
            logits_NK: Tensor = self.out(x)
            return logits_NK


def pool(hidden_TH: Tensor, batch: Batch, pooling: str) -> Tensor:
    """One vector a document ``[D, H]``, or for ``words`` one a scored position ``[S, H]``.

    Args:
        hidden_TH: hidden states of the pack.
        batch: the pack.
        pooling: ``last``, ``first``, ``mean`` or ``words``.
    """
    if pooling == "words":
        return hidden_TH.index_select(0, batch.scored_S)
    starts_D = batch.starts_D1[:-1].long()
    if pooling == "first":
        return hidden_TH.index_select(0, starts_D)
    ends_D = batch.starts_D1[1:].long()
    if pooling == "last":
        return hidden_TH.index_select(0, ends_D - 1)
    lengths_D = ends_D - starts_D
    documents_T = torch.repeat_interleave(
        torch.arange(len(batch.lengths), device=hidden_TH.device), lengths_D, output_size=hidden_TH.shape[0]
    )
    sums_DH = torch.zeros(len(batch.lengths), hidden_TH.shape[1], dtype=torch.float32, device=hidden_TH.device)
    sums_DH = sums_DH.index_add(0, documents_T, hidden_TH.float())
    return sums_DH / lengths_D[:, None]


def save_head(folder: Path, head: TaskHead, described: HeadFile) -> None:
    """Write ``head.json`` and ``head.safetensors`` into a folder."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in head.state_dict().items()}
    write_bytes(folder / TENSORS, save(tensors, metadata={"format": "pt"}))
    write_json(folder / NAME, described.to_json())


def load_head(folder: Path) -> tuple[TaskHead, HeadFile]:
    """The head that a folder holds.

    Raises:
        ModelError: its files are missing, damaged, or do not belong together.
    """
    described = read_head(folder)
    head = TaskHead(described.shape)
    try:
        head.load_state_dict(load_file(folder / TENSORS))
    except Exception as error:  # safetensors and torch each fail in ways of their own
        raise ModelError(
            f"the head's tensors do not fit what {NAME} says: {str(error).splitlines()[0]}",
            where=str(folder / TENSORS),
            hint="the files are damaged or not of one head: copy both again",
        ) from error
    return head.eval(), described
