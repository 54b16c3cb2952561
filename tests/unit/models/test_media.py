"""Features of pictures and clips against what the encoders of transformers give by themselves."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from tests.tiny import family
from tests.tiny_media import media_model
from tunesmith.errors import DataError, ModelError, UserError
from tunesmith.models.media import load_media_encoder


def inputs(name, count=5, seed=0):
    generator = np.random.default_rng(seed)
    shape = (400,) if name == "wav2vec2" else (3, 16, 16)
    return [generator.standard_normal(shape).astype(np.float32) for _ in range(count)]


@pytest.mark.parametrize("name", ["resnet", "vit", "wav2vec2"])
def test_the_mean_is_that_of_the_encoder_s_own_states(tmp_path, name):
    model = media_model(tmp_path, name)
    given = inputs(name)
    found = load_media_encoder(tmp_path).features(given, batch_size=2)
    with torch.no_grad():
        states = model(torch.from_numpy(np.stack(given))).last_hidden_state
    expected = states.mean((2, 3)) if name == "resnet" else states.mean(1)
    assert found.shape == (5, 16)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-4, atol=1e-5)


def test_first_token_and_inner_layers(tmp_path):
    model = media_model(tmp_path, "vit")
    given, encoder = inputs("vit"), load_media_encoder(tmp_path)
    with torch.no_grad():
        result = model(torch.from_numpy(np.stack(given)), output_hidden_states=True)
    first = encoder.features(given, pooling="first")
    np.testing.assert_allclose(first, result.last_hidden_state[:, 0].numpy(), rtol=1e-4, atol=1e-5)
    inner = encoder.features(given, layer=1)
    np.testing.assert_allclose(inner, result.hidden_states[1].mean(1).numpy(), rtol=1e-4, atol=1e-5)


def test_clips_of_different_lengths_come_back_in_order_and_unpadded(tmp_path):
    model = media_model(tmp_path, "wav2vec2")
    generator = np.random.default_rng(0)
    given = [generator.standard_normal(length).astype(np.float32) for length in (400, 200, 400, 300)]
    found = load_media_encoder(tmp_path).features(given)
    for row, clip in zip(found, given, strict=True):
        with torch.no_grad():
            expected = model(torch.from_numpy(clip)[None]).last_hidden_state.mean(1)[0]
        np.testing.assert_allclose(row, expected.numpy(), rtol=1e-4, atol=1e-5)


def test_refusals(tmp_path):
    for name in ("resnet", "vit"):
        media_model(tmp_path / name, name)
    encoder = load_media_encoder(tmp_path / "vit")
    with pytest.raises(DataError, match="nothing to read"):
        encoder.features([])
    with pytest.raises(DataError, match=r"input 1 has shape \(3, 16\)"):
        encoder.features([np.zeros((3, 16, 16)), np.zeros((3, 16))])
    with pytest.raises(DataError, match="not finite"):
        encoder.features([np.full((3, 16, 16), np.nan)])
    with pytest.raises(DataError, match="cannot read arrays of shape"):
        encoder.features([np.zeros((3, 24, 24))])
    with pytest.raises(UserError, match="`last` is no pooling"):
        encoder.features(inputs("vit"), pooling="last")
    with pytest.raises(UserError, match="`layer` is 9, the encoder has 2 layers"):
        encoder.features(inputs("vit"), layer=9)
    with pytest.raises(UserError, match="no first token"):
        load_media_encoder(tmp_path / "resnet").features(inputs("resnet"), pooling="first")
    family("llama").save_pretrained(tmp_path / "text")
    with pytest.raises(ModelError, match="no encoder of pictures or clips"):
        load_media_encoder(tmp_path / "text")
    with pytest.raises(ModelError):
        load_media_encoder(tmp_path / "nowhere")
    config = json.loads((tmp_path / "vit" / "config.json").read_text(encoding="utf-8"))
    (tmp_path / "vit" / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}), encoding="utf-8")
    with pytest.raises(ModelError, match="weights are missing"):
        load_media_encoder(tmp_path / "vit")
