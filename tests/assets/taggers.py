"""Taggers in the form of WD14's, made on the spot: one that scores colours, and MobileNetV2 as a tagger of things.

Both take BGR pixels from 0 to 255 and are run by onnxruntime as a downloaded tagger is.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from lora_train.core.tensor_infos import tensor_bytes
from lora_train.core.tensorfiles import read_tensor_file

_OPSET, _IR_VERSION = 13, 8
"""Of 2020 and 2021, so that every onnxruntime can run them."""

THINGS = {
    281: "tabby",
    282: "tiger_cat",
    283: "persian_cat",
    284: "siamese_cat",
    285: "egyptian_cat",
    504: "coffee_mug",
    665: "moped",
    967: "espresso",
    968: "cup",
}
"""Some classes of ImageNet by their number."""


class Colour(NamedTuple):
    """A tag whose score is the mean of the picture's colours (0 to 1) times `bgr`, plus `always`."""

    name: str
    category: int
    bgr: tuple[float, float, float] = (0, 0, 0)
    always: float = 0.0


COLOURS = (
    *(Colour("general", 9, always=0.8), Colour("explicit", 9, always=0.1)),
    *(Colour("red_rose", 0, (0, 0, 1)), Colour("blue_sky", 0, (1, 0, 0)), Colour("green_grass", 0, (0, 1, 0))),
    *(Colour(">_<", 0, always=0.5), Colour("rose_(ruby)", 4, (0, 0, 1))),
)


def write_tags(folder: Path, tags: Sequence[tuple[str, int]]) -> None:
    with (folder / "selected_tags.csv").open("w", encoding="utf-8", newline="") as stream:
        rows = [(number, name, category, 1000 - number) for number, (name, category) in enumerate(tags)]
        csv.writer(stream).writerows([("tag_id", "name", "category", "count"), *rows])


def make_colour_tagger(
    folder: Path,
    colours: Sequence[Colour] = COLOURS,
    *,
    side_px: int = 16,
    channels_last: bool = True,
    half: bool = False,
) -> Path:
    """A tagger of colours in `folder`; returns it."""
    folder.mkdir(parents=True)
    kind, dtype = (TensorProto.FLOAT16, np.float16) if half else (TensorProto.FLOAT, np.float32)
    sides = (side_px, side_px)
    shape = ["batch", *sides, 3] if channels_last else ["batch", 3, *sides]
    weights = np.array([colour.bgr for colour in colours]).T / 255
    nodes = [
        helper.make_node("ReduceMean", ["input"], ["mean"], axes=[1, 2] if channels_last else [2, 3], keepdims=0),
        helper.make_node("MatMul", ["mean", "weights"], ["products"]),
        helper.make_node("Add", ["products", "always"], ["scores"]),
    ]
    constants = {"weights": weights, "always": np.array([colour.always for colour in colours])}
    _save(
        folder / "model.onnx",
        nodes,
        {name: value.astype(dtype) for name, value in constants.items()},
        helper.make_tensor_value_info("input", kind, shape),
        helper.make_tensor_value_info("scores", kind, ["batch", len(colours)]),
    )
    write_tags(folder, [(colour.name, colour.category) for colour in colours])
    return folder


def make_thing_tagger(folder: Path, weights: Path) -> Path:
    """MobileNetV2 (Sandler et al. 2018) with torchvision's weights for ImageNet as a tagger; returns the folder."""
    folder.mkdir(parents=True)
    graph = _MobileNet(weights)
    _save(
        folder / "model.onnx",
        graph.nodes(),
        graph.constants,
        helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 224, 224, 3]),
        helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", 1000]),
    )
    write_tags(folder, [(THINGS.get(number, f"class_{number}"), 0) for number in range(1000)])
    return folder


class _MobileNet:
    # Table 2 of the paper: expansion, channels, blocks, stride of the first block.
    _STAGES = (
        (1, 16, 1, 1),
        (6, 24, 2, 2),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    )
    _MEAN = np.array([0.485, 0.456, 0.406], np.float32)
    _STD = np.array([0.229, 0.224, 0.225], np.float32)

    def __init__(self, path: Path) -> None:
        self._weights: dict[str, NDArray[Any]] = {}
        for name, info in read_tensor_file(path).tensors.items():
            if info.dtype == "F32":
                self._weights[name] = np.frombuffer(tensor_bytes(path, info), np.float32).reshape(info.shape)
        self.constants: dict[str, NDArray[Any]] = {}
        self._nodes: list[Any] = []

    def nodes(self) -> list[Any]:
        x = self._begin()
        x = self._convolution(x, "features.0.0", "features.0.1", stride=2)
        number = 0
        for expansion, channels, blocks, first_stride in self._STAGES:
            for block in range(blocks):
                number += 1
                x = self._block(x, f"features.{number}.conv", expansion, channels, first_stride if block == 0 else 1)
        x = self._convolution(x, "features.18.0", "features.18.1")
        x = self._add("GlobalAveragePool", [x])
        x = self._add("Flatten", [x])
        head = [
            self._constant(f"classifier.1.{part}", self._weights[f"classifier.1.{part}"]) for part in ("weight", "bias")
        ]
        x = self._add("Gemm", [x, *head], transB=1)
        self._nodes.append(helper.make_node("Softmax", [x], ["scores"], axis=1))
        return self._nodes

    def _begin(self) -> str:
        """BGR pixels (B, H, W, 3) to normalized RGB (B, 3, H, W)."""
        x = self._add("Transpose", ["input"], perm=[0, 3, 1, 2])
        x = self._add("Gather", [x, self._constant("rgb", np.array([2, 1, 0]))], axis=1)
        x = self._add("Mul", [x, self._constant("scale", (1 / (255 * self._STD)).reshape(1, 3, 1, 1))])
        return self._add("Sub", [x, self._constant("shift", (self._MEAN / self._STD).reshape(1, 3, 1, 1))])

    def _block(self, x: str, name: str, expansion: int, channels: int, stride: int) -> str:
        given, number = x, 0
        if expansion > 1:
            x = self._convolution(x, f"{name}.0.0", f"{name}.0.1")
            number = 1
        x = self._convolution(x, f"{name}.{number}.0", f"{name}.{number}.1", stride=stride, grouped=True)
        x = self._convolution(x, f"{name}.{number + 1}", f"{name}.{number + 2}", bounded=False)
        has_shortcut = stride == 1 and self._weights[f"{name}.0.0.weight"].shape[1] == channels and expansion > 1
        return self._add("Add", [given, x]) if has_shortcut else x

    def _convolution(
        self, x: str, name: str, norm: str, *, stride: int = 1, grouped: bool = False, bounded: bool = True
    ) -> str:
        """With its batch normalization (epsilon 1e-5) folded in, and ReLU6."""
        weight, norms = self._weights[f"{name}.weight"], self._weights
        scale = norms[f"{norm}.weight"] / np.sqrt(norms[f"{norm}.running_var"] + 1e-5)
        bias = norms[f"{norm}.bias"] - norms[f"{norm}.running_mean"] * scale
        inputs = [x, self._constant(name, weight * scale[:, None, None, None]), self._constant(norm, bias)]
        size = weight.shape[-1]
        group = weight.shape[0] if grouped else 1
        x = self._add("Conv", inputs, strides=[stride] * 2, pads=[size // 2] * 4, kernel_shape=[size] * 2, group=group)
        if not bounded:
            return x
        limits = [self._constant("zero", np.float32(0)), self._constant("six", np.float32(6))]
        return self._add("Clip", [x, *limits])

    def _add(self, kind: str, inputs: Sequence[str], **attributes: Any) -> str:
        output = f"{kind}-{len(self._nodes)}"
        self._nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    def _constant(self, name: str, value: Any) -> str:
        self.constants[name] = np.asarray(value)
        return name


def _save(path: Path, nodes: list[Any], constants: dict[str, NDArray[Any]], given: Any, scores: Any) -> None:
    initializers = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "tagger", [given], [scores], initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION)
    onnx.checker.check_model(model)
    onnx.save(model, path)
