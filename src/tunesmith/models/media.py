"""Image and audio encoders of transformers, frozen: one vector for each picture or clip, for a head to read.

They take what their own processors give (pixels or samples, resized and normalised); decoding files is not ours. Nothing is padded: clips
of one length share a pass, and so do pictures of one size.

Shapes: N inputs, H width, P patches or frames, C channels of a convolution with h × w places.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import AutoModel

from tunesmith.errors import DataError, ModelError, UserError
from tunesmith.models.links import refuse_links_out
from tunesmith.models.loading import read_config, weights_alone

Features = npt.NDArray[np.float32]
_KINDS: dict[str, Literal["image", "audio"]] = {
    "pixel_values": "image",
    "input_values": "audio",
    "input_features": "audio",
}
_DIMENSIONS = {"pixel_values": 3, "input_values": 1, "input_features": 2}
_UNUSED = "pooler."
"""Weights of a pooled output, which nothing here reads: checkpoints without a head lack them."""


@dataclass(frozen=True)
class MediaEncoder:
    """A frozen encoder.

    Attributes:
        hf: the module of transformers, in fp32 and evaluation mode.
        kind: what it reads.
        folder: where it came from.
    """

    hf: Any
    kind: Literal["image", "audio"]
    folder: Path

    @torch.no_grad()
    def features(
        self, inputs: Sequence[Any], *, pooling: str = "mean", layer: int | None = None, batch_size: int = 16
    ) -> Features:
        """One vector for each input ``[N, H]``.

        Args:
            inputs: arrays, each what the encoder's processor makes of a picture ``[channels, height, width]`` or a clip
                ``[samples]``.
            pooling: ``mean`` over patches, frames or places; ``first``, the first patch, which is a ViT's class token.
            layer: whose output is pooled; 0 is what the first layer reads, None the last layer after its norm.
            batch_size: most inputs of a pass.

        Raises:
            DataError: nothing is given, or an input is no array that the encoder takes.
            UserError: a pooling or a layer that the encoder does not have.
        """
        arrays = [np.asarray(item, dtype=np.float32) for item in inputs]
        self._check(arrays, pooling)
        by_shape: dict[tuple[int, ...], list[int]] = {}
        for place, item in enumerate(arrays):
            by_shape.setdefault(item.shape, []).append(place)
        found: dict[int, Tensor] = {}
        for places in by_shape.values():
            for start in range(0, len(places), batch_size):
                members = places[start : start + batch_size]
                batch = torch.from_numpy(np.stack([arrays[place] for place in members]))
                found |= dict(zip(members, self._read(batch, pooling, layer), strict=True))
        return torch.stack([found[place] for place in range(len(arrays))]).numpy()

    def _check(self, arrays: Sequence[npt.NDArray[np.float32]], pooling: str) -> None:
        dimensions = _DIMENSIONS[self.hf.main_input_name]
        if not arrays:
            raise DataError("there is nothing to read", where=str(self.folder), hint="give at least one array")
        for place, item in enumerate(arrays):
            if item.ndim != dimensions or not item.size or not np.isfinite(item).all():
                fault = (
                    "holds values that are not finite"
                    if item.size and item.ndim == dimensions
                    else f"has shape {item.shape}"
                )
                raise DataError(
                    f"input {place} {fault}; the encoder takes finite arrays of {dimensions} dimensions",
                    where=f"input {place}",
                    hint="give what the encoder's own processor returns, one input at a time",
                )
        if pooling not in ("mean", "first"):
            raise UserError(f"`{pooling}` is no pooling", where="pooling", hint="one of: mean, first")

    def _read(self, batch: Tensor, pooling: str, layer: int | None) -> Tensor:
        try:
            result = self.hf(**{self.hf.main_input_name: batch}, output_hidden_states=layer is not None)
        except Exception as error:  # each family refuses wrong sizes in words of its own
            raise DataError(
                f"the encoder cannot read arrays of shape {tuple(batch.shape[1:])}: {str(error).splitlines()[0][:200]}",
                where=str(self.folder),
                hint="give what the encoder's own processor returns",
            ) from None
        states = result.last_hidden_state
        if layer is not None:
            if not 0 <= layer < len(result.hidden_states):
                raise UserError(
                    f"`layer` is {layer}, the encoder has {len(result.hidden_states) - 1} layers",
                    where="layer",
                    hint="count from 1; 0 is what the first layer reads, and none at all is the last",
                )
            states = result.hidden_states[layer]
        if states.ndim == 4:  # a convolution's places: N, C, h, w
            if pooling == "first":
                raise UserError(
                    "a convolution has no first token", where="pooling", hint="take `mean`, over all places"
                )
            states = states.flatten(2).transpose(1, 2)
        pooled: Tensor = states[:, 0] if pooling == "first" else states.mean(1)
        return pooled.float()


def load_media_encoder(folder: Path) -> MediaEncoder:
    """Load an encoder of pictures or clips from a folder in Hugging Face layout, its head left out.

    Raises:
        ModelError: no such model, one that reads text or writes it, or weights that are missing.
    """
    refuse_links_out(folder)
    config = read_config(folder)
    try:
        with weights_alone(folder) as beside:
            hf, report = AutoModel.from_pretrained(
                beside, config=config, dtype=torch.float32, use_safetensors=True, local_files_only=True,
                trust_remote_code=False, output_loading_info=True,
            )  # fmt: skip
    except ModelError:
        raise
    except Exception as error:  # the classes of transformers fail on wrong values in every way there is
        raise ModelError(
            f"the encoder does not load: {str(error).splitlines()[0][:200]}",
            where=str(folder),
            hint="give a folder of an image or audio encoder, such as ResNet, ViT or Wav2Vec2",
        ) from error
    kind = _KINDS.get(hf.main_input_name)
    if kind is None or getattr(config, "is_encoder_decoder", False):
        raise ModelError(
            f"`{type(hf).__name__}` is no encoder of pictures or clips",
            where=str(folder),
            hint="language models train through a recipe; image-text models are out of scope",
        )
    missing = sorted(name for name in report["missing_keys"] if not name.startswith(_UNUSED))
    if missing:
        raise ModelError(
            f"{len(missing)} weights are missing from the model's files, the first is `{missing[0]}`",
            where=str(folder),
            hint="the folder may be incomplete: copy it again",
        )
    return MediaEncoder(hf.eval(), kind, folder)
