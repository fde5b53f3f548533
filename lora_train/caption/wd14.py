"""WD14 taggers and others of their kind: a folder with `model.onnx` and `selected_tags.csv`, run by onnxruntime."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lora_train.caption.devices import choose_device
from lora_train.caption.files import fingerprint_of, require_files
from lora_train.caption.tags import read_tags, tags_of
from lora_train.core.caption_settings import CaptionSettings
from lora_train.core.errors import ModelError

_USUAL_SIDE_PX = 448
"""Of the WD14 taggers, for a model that leaves its input's size open."""

_DTYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
_CPU = ["CPUExecutionProvider"]
_SETTINGS = (
    *("wd14_threshold", "wd14_character_threshold", "wd14_rating", "underscores_to_blanks"),
    *("excluded_tags", "sort_by_score", "max_tags"),
)
"""Those that a caption depends on."""


class Input(NamedTuple):
    """What a tagger wants to be given."""

    name: str
    width_px: int
    height_px: int
    has_channels_last: bool
    dtype: Any


class Wd14Tagger:
    """Writes tags. Nothing is loaded before `loaded`."""

    def __init__(self, folder: Path, settings: CaptionSettings) -> None:
        """Raises ModelError where a file is missing."""
        require_files(folder, ("model.onnx", "selected_tags.csv"), "a WD14 tagger")
        self._folder = folder
        self._settings = settings
        self.fingerprint = fingerprint_of(folder, [getattr(settings, name) for name in _SETTINGS])

    @contextmanager
    def loaded(self) -> Generator[Callable[[Image.Image], str], None, None]:
        """What turns an RGB picture into its tags, joined by ", "; the model is freed at the end.

        Raises ModelError where onnxruntime or the model can't be used, or the list of tags is another model's.
        """
        tags = read_tags(self._folder / "selected_tags.csv")
        path = self._folder / "model.onnx"
        session = _open_session(path, self._settings)
        first = session.get_inputs()[0]
        wanted = input_of(path, first.name, first.shape, first.type)

        def describe(picture: Image.Image) -> str:
            scores = _run(session, path, {wanted.name: prepared(picture, wanted)})
            if len(scores) != len(tags):
                raise ModelError(
                    f"{path} scores {len(scores)} tags, and its selected_tags.csv lists {len(tags)}.",
                    "Take model.onnx and selected_tags.csv from the same place.",
                )
            return ", ".join(tags_of(scores, tags, self._settings))

        yield describe


def input_of(path: Path, name: str, shape: Sequence[int | str | None], kind: str) -> Input:
    """What the model at `path` wants, from its input's shape (B, H, W, 3) or (B, 3, H, W) and onnxruntime's word
    for its numbers. Raises ModelError for a model that takes no RGB picture.
    """
    if len(shape) != 4 or 3 not in (shape[1], shape[3]) or kind not in _DTYPES:
        raise ModelError(
            f"{path} is no tagger: its input is {kind} of the shape {tuple(shape)}.", "Choose a WD14 tagger."
        )
    has_channels_last = shape[3] == 3
    sides = shape[1:3] if has_channels_last else shape[2:]
    height_px, width_px = (side if isinstance(side, int) and side > 0 else _USUAL_SIDE_PX for side in sides)
    return Input(name, width_px, height_px, has_channels_last, _DTYPES[kind])


def prepared(picture: Image.Image, wanted: Input) -> NDArray[Any]:
    """The picture as WD14 taggers were trained: padded with white to a square, resized (bicubic), blue first, 0-255.

    Returns (1, H, W, 3), or (1, 3, H, W) where the model wants that.
    """
    side_px = max(picture.size)
    square = Image.new("RGB", (side_px, side_px), (255, 255, 255))
    square.paste(picture, ((side_px - picture.width) // 2, (side_px - picture.height) // 2))
    resized = square.resize((wanted.width_px, wanted.height_px), Image.Resampling.BICUBIC)
    pixels = np.asarray(resized)[None, :, :, ::-1]
    if not wanted.has_channels_last:
        pixels = pixels.transpose(0, 3, 1, 2)
    return np.ascontiguousarray(pixels, dtype=wanted.dtype)


def _open_session(path: Path, settings: CaptionSettings) -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise ModelError(
            "The tagger needs the package onnxruntime, which is not installed.",
            f"Install it with: {sys.executable} -m pip install onnxruntime",
        ) from error
    can_use_card = "CUDAExecutionProvider" in onnxruntime.get_available_providers()
    on_card = can_use_card and choose_device(settings.device, path.stat().st_size) == "cuda"
    providers = ["CUDAExecutionProvider", *_CPU] if on_card else _CPU
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors; its warnings are about the graph
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=providers)
    except Exception as error:  # onnxruntime has a class for each cause, below no common one
        raise ModelError(
            f"{path} can't be loaded: {_first_line(error)}",
            "The download may be incomplete: download the file again.",
        ) from error


def _run(session: Any, path: Path, inputs: dict[str, NDArray[Any]]) -> list[float]:
    try:
        scores = session.run(None, inputs)[0]
    except Exception as error:
        hint = "" if session.get_providers() == _CPU else "Set Caption device to cpu."
        raise ModelError(f"{path} can't be run: {_first_line(error)}", hint) from error
    return np.asarray(scores, dtype=np.float64).reshape(-1).tolist()


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
