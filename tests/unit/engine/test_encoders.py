"""Image encoders from a local folder or file: small random ones, made here, read as real ones are."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lora_train.core.assets import DEMO_HELD_OUT
from lora_train.core.errors import ModelError
from lora_train.engine.encoders import ClipClassifier, ClipEncoder, open_encoder
from tests.assets.small_encoders import save_clip

CPU = torch.device("cpu")
PICTURES = [Image.open(path).convert("RGB") for path in sorted(DEMO_HELD_OUT.glob("*.png"))[:3]]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_clip(tmp_path_factory.mktemp("clip"))


def test_clip_has_features_and_compares_texts(clip: Path) -> None:
    encoder = open_encoder(clip, CPU)
    assert isinstance(encoder, ClipEncoder)
    features = encoder.read(PICTURES)
    assert features.shape == (3, 8)
    assert bool(torch.isfinite(features).all())
    assert (features[0] - features[1]).abs().max() > 1e-4
    torch.testing.assert_close(encoder.read(PICTURES[1:2])[0], features[1])

    told = ClipClassifier(encoder, ["a red star", "a cat " * 100, ""])(PICTURES, [[0, 1], [1, 2], [2, 0]])
    assert [len(row) for row in told] == [2, 2, 2]
    assert all(-1.001 <= value <= 1.001 for row in told for value in row)
    assert told[0][0] == pytest.approx(
        float(encoder.texts(["a red star"])[0] @ features[0] / features[0].norm()), abs=1e-5
    )


def test_pictures_are_prepared_as_the_encoder_says(clip: Path, tmp_path: Path) -> None:
    """With twice the standard deviation the features are others."""
    for file in clip.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    told = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(told), encoding="utf-8")
    usual, own = open_encoder(clip, CPU).read(PICTURES[:1]), open_encoder(tmp_path, CPU).read(PICTURES[:1])
    assert (usual - own).abs().max() > 1e-4
    (tmp_path / "preprocessor_config.json").write_text("{", encoding="utf-8")
    with pytest.raises(ModelError, match="can't be read"):
        open_encoder(tmp_path, CPU)


def test_dino_reads_pictures_only(tmp_path: Path) -> None:
    import transformers

    config = transformers.Dinov2Config(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14
    )
    transformers.Dinov2Model(config).save_pretrained(tmp_path)
    encoder = open_encoder(tmp_path, CPU)
    assert not isinstance(encoder, ClipEncoder)
    assert encoder.read(PICTURES).shape == (3, 16)


def test_what_is_no_encoder_is_told(tmp_path: Path) -> None:
    import transformers

    with pytest.raises(ModelError, match="has no model"):
        open_encoder(tmp_path, CPU)
    layers = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    transformers.CLIPTextModel(transformers.CLIPTextConfig(vocab_size=60, **layers)).save_pretrained(tmp_path)
    with pytest.raises(ModelError):
        open_encoder(tmp_path, CPU).read(PICTURES)
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ModelError, match="can't be loaded as an image encoder"):
        open_encoder(tmp_path, CPU)


def onnx_file(path: Path, shape: list[Any], *, tokens: bool = False) -> Path:
    """Means over the picture: one number for each channel."""
    onnx = pytest.importorskip("onnx")
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    nodes = [helper.make_node("ReduceMean", ["pixels"], ["features"], axes=[2, 3], keepdims=0)]
    output = helper.make_tensor_value_info("features", kind, ["n", 3])
    if tokens:
        nodes.append(helper.make_node("Unsqueeze", ["features", "one"], ["tokens"]))
        output = helper.make_tensor_value_info("tokens", kind, ["n", 1, 3])
    axis = onnx.numpy_helper.from_array(np.array([1], np.int64), "one")
    graph = helper.make_graph(
        nodes, "encoder", [helper.make_tensor_value_info("pixels", kind, shape)], [output], [axis] if tokens else []
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.parametrize("tokens", [False, True])
def test_an_onnx_file_reads_pictures(tmp_path: Path, tokens: bool) -> None:
    pytest.importorskip("onnxruntime")
    (tmp_path / "preprocessor_config.json").write_text(
        json.dumps({"image_mean": [0, 0, 0], "image_std": [1, 1, 1]}), encoding="utf-8"
    )
    encoder = open_encoder(onnx_file(tmp_path / "small.onnx", ["n", 3, 16, 16], tokens=tokens), CPU)
    plain = Image.new("RGB", (64, 64), (255, 51, 0))
    torch.testing.assert_close(encoder.read([plain, plain]), torch.tensor([[1, 0.2, 0.0]] * 2))


def test_an_onnx_file_that_is_no_encoder_is_told(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no model")
    with pytest.raises(ModelError, match="can't be loaded as ONNX"):
        open_encoder(broken, CPU)
    with pytest.raises(ModelError, match="is no image encoder"):
        open_encoder(onnx_file(tmp_path / "grey.onnx", ["n", 1, 16, 16]), CPU)


def test_without_onnxruntime_it_is_said_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ModelError, match="onnxruntime") as told:
        open_encoder(tmp_path / "encoder.onnx", CPU)
    assert "pip install onnxruntime" in told.value.hint
