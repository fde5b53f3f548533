"""Image encoders that a person has on the disk: a folder of transformers (CLIP, DINOv2, SigLIP ...) or an ONNX file.

Nothing is downloaded, and code that comes with a model is never run.

Legend: N pictures, F features.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import normalize

from lora_train.core.errors import ModelError
from lora_train.engine.features import Reader
from lora_train.engine.loading import load_tokenizer

_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
"""Of the pictures that CLIP learned from (Radford et al. 2021): what a model wants that says nothing else."""
_USUAL_SIDE_PX = 224


def open_encoder(path: Path, device: torch.device) -> Reader:
    """The encoder at `path`; a `ClipEncoder` where it reads text too. Raises ModelError where it can't be used."""
    if path.is_dir():
        return _open_folder(path, device)
    return OnnxEncoder(path)


class _Preparing:
    """Pictures as an encoder wants them: `preprocessor_config.json` beside it says how."""

    def __init__(self, folder: Path, side_px: int) -> None:
        config: dict[str, Any] = {}
        path = folder / "preprocessor_config.json"
        if path.is_file():
            try:
                config = json.loads(path.read_bytes())
            except (OSError, ValueError) as error:
                raise ModelError(f"{path} can't be read: {error}.", "Download the encoder again.") from error
        self._mean = np.asarray(config.get("image_mean") or _CLIP_MEAN, np.float32)
        self._std = np.asarray(config.get("image_std") or _CLIP_STD, np.float32)
        self._side_px = side_px

    def __call__(self, picture: Image.Image) -> np.ndarray[Any, np.dtype[np.float32]]:
        """(3, side, side) float32."""
        resized = picture.convert("RGB").resize((self._side_px, self._side_px), Image.Resampling.BICUBIC)
        values = (np.asarray(resized, np.float32) / 255 - self._mean) / self._std
        return np.ascontiguousarray(values.transpose(2, 0, 1))


def _open_folder(folder: Path, device: torch.device) -> Reader:
    import transformers

    if not list(folder.glob("model*.safetensors")):
        raise ModelError(
            f"{folder} has no model.safetensors.", "Choose an encoder whose weights are there as safetensors."
        )
    try:
        config = transformers.AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
        model: Any = transformers.AutoModel.from_pretrained(
            str(folder), config=config, local_files_only=True, trust_remote_code=False, use_safetensors=True
        )
    except (OSError, ValueError, KeyError, ImportError) as error:
        first_line = str(error).partition("\n")[0].rstrip(".")
        raise ModelError(
            f"{folder} can't be loaded as an image encoder: {first_line}.",
            "Choose the folder of CLIP, DINOv2 or SigLIP in the form of transformers.",
        ) from error
    model = model.to(device, torch.float32).eval().requires_grad_(False)
    kind = ClipEncoder if hasattr(model, "get_text_features") and config.model_type == "clip" else FolderEncoder
    return kind(folder, model)


class FolderEncoder:
    """An image encoder of transformers."""

    def __init__(self, folder: Path, model: Any) -> None:
        vision = getattr(model.config, "vision_config", model.config)
        side_px = getattr(vision, "image_size", None) or _USUAL_SIDE_PX
        if not hasattr(model, "get_image_features") and model.main_input_name != "pixel_values":
            raise ModelError(f"{folder} is no image encoder.", "Choose the folder of CLIP, DINOv2 or SigLIP.")
        self._prepare = _Preparing(folder, int(side_px))
        self._model = model

    @torch.no_grad()
    def read(self, pictures: Sequence[Image.Image]) -> torch.Tensor:
        """(N, F) float32 on the CPU."""
        return torch.cat([self._read(picture) for picture in pictures]).float().cpu()

    def _read(self, picture: Image.Image) -> torch.Tensor:
        pixels = torch.from_numpy(self._prepare(picture))[None].to(self._model.device)
        if hasattr(self._model, "get_image_features"):
            return _pooled(self._model.get_image_features(pixel_values=pixels))
        return _pooled(self._model(pixel_values=pixels))


def _pooled(output: Any) -> torch.Tensor:
    """(1, F): newer versions of transformers wrap it; a model without a pooled output has its first token."""
    if isinstance(output, torch.Tensor):
        return output
    pooled = getattr(output, "pooler_output", None)
    return output.last_hidden_state[:, 0] if pooled is None else pooled


class ClipEncoder(FolderEncoder):
    """CLIP with its text encoder: tells how well texts describe a picture."""

    def __init__(self, folder: Path, model: Any) -> None:
        super().__init__(folder, model)
        has_own = any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json"))
        self._tokenizer = load_tokenizer(folder if has_own else None)

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> torch.Tensor:
        """(number of texts, F), each of length 1."""
        longest = self._model.config.text_config.max_position_embeddings
        rows: list[torch.Tensor] = []
        for text in texts:
            ids = self._tokenizer(text, truncation=True, max_length=longest, return_tensors="pt").input_ids
            rows.append(_pooled(self._model.get_text_features(input_ids=ids.to(self._model.device))))
        return normalize(torch.cat(rows).float(), dim=1).cpu()


class ClipClassifier:
    """An `obedience.Explain`: the cosine between a picture and each of its chosen texts."""

    def __init__(self, encoder: ClipEncoder, texts: Sequence[str]) -> None:
        self._encoder = encoder
        self._texts = encoder.texts(texts)

    def __call__(self, pictures: Sequence[Image.Image], chosen: Sequence[Sequence[int]]) -> list[list[float]]:
        features = normalize(self._encoder.read(pictures), dim=1)
        return [(self._texts[list(numbers)] @ row).tolist() for row, numbers in zip(features, chosen, strict=True)]


class OnnxEncoder:
    """An image encoder as an ONNX file: one picture (1, 3, H, W) in, its features (1, F) or tokens (1, T, F) out."""

    def __init__(self, path: Path) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise ModelError(
                "An encoder in the form of ONNX needs the package onnxruntime, which is not installed.",
                f"Install it with: {sys.executable} -m pip install onnxruntime",
            ) from error
        self._path = path
        try:
            self._session: Any = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime has a class for each cause, below no common one
            raise ModelError(f"{path} can't be loaded as ONNX.", "Download the encoder again.") from error
        inputs = self._session.get_inputs()
        first = inputs[0]
        if len(inputs) != 1 or len(first.shape) != 4 or first.shape[1] != 3 or first.type != "tensor(float)":
            raise ModelError(
                f"{path} is no image encoder: it wants {first.type} of the shape {tuple(first.shape)}.",
                "Choose a model that takes one picture (1, 3, height, width).",
            )
        side = first.shape[2]
        self._name = first.name
        self._prepare = _Preparing(path.parent, side if isinstance(side, int) and side > 0 else _USUAL_SIDE_PX)

    def read(self, pictures: Sequence[Image.Image]) -> torch.Tensor:
        """(N, F) float32 on the CPU. Raises ModelError where the model gives no features."""
        rows: list[torch.Tensor] = []
        for picture in pictures:
            output = self._session.run(None, {self._name: self._prepare(picture)[None]})[0]
            features = torch.from_numpy(np.asarray(output, np.float32))
            if features.ndim not in (2, 3) or len(features) != 1:
                raise ModelError(f"{self._path} is no image encoder: it gives the shape {tuple(features.shape)}.")
            rows.append(features if features.ndim == 2 else features[:, 0])
        return torch.cat(rows)
