"""BLIP and other image-to-text models of transformers, from a folder on the disk."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from PIL import Image

from lora_train.caption.devices import choose_device
from lora_train.caption.files import fingerprint_of, require_files
from lora_train.caption.weights import Kind, load_model, read_kind, weight_files
from lora_train.core.caption_settings import CaptionSettings
from lora_train.core.errors import DeviceMemoryError, ModelError, TrainToolsError

_SETTINGS = ("blip_prompt", "blip_beams", "blip_min_length", "blip_max_length")
"""Those that a caption depends on."""

_TASK = "<DETAILED_CAPTION>"
"""What Florence-2 is asked for, which goes by the name of a task instead of the beginning of an answer."""


class ImageToText:
    """Writes sentences. Nothing is loaded before `loaded`."""

    def __init__(self, folder: Path, settings: CaptionSettings) -> None:
        """Raises ModelError where a file is missing or `config.json` can't be used."""
        require_files(folder, ("config.json",), "an image-to-text model")
        self._kind = read_kind(folder)
        self._weights_bytes = sum(path.stat().st_size for path in weight_files(folder))
        self._folder = folder
        self._settings = settings
        self.fingerprint = fingerprint_of(folder, [getattr(settings, name) for name in _SETTINGS])

    @contextmanager
    def loaded(self) -> Generator[Callable[[Image.Image], str], None, None]:
        """What turns an RGB picture into a sentence; half precision on a card, float32 on the processor.

        Raises ModelError where the model can't be used, DeviceMemoryError where the device is too small for it.
        """
        import torch

        device = choose_device(self._settings.device, self._weights_bytes)
        dtype = torch.float16 if device == "cuda" else torch.float32
        prompt = " ".join(self._settings.blip_prompt.split())
        with _explained(self._folder):
            processor = _load_processor(self._folder, self._kind)
            model = load_model(self._folder, self._kind).to(device, dtype)
            echo = _decoded(processor, processor.tokenizer(prompt)["input_ids"])

        def describe(picture: Image.Image) -> str:
            with _explained(self._folder), torch.no_grad():
                inputs = _inputs(self._kind, processor, model, picture, prompt)
                inputs = {
                    name: value.to(device, dtype) if value.is_floating_point() else value.to(device)
                    for name, value in inputs.items()
                }
                text = _decoded(processor, model.generate(**inputs, **_generation(self._settings))[0])
            return continued(prompt, echo, text)

        try:
            yield describe
        finally:
            if device == "cuda":
                model.to("cpu")  # frees the card, whoever may still hold the model
                torch.cuda.empty_cache()


def continued(prompt: str, echo: str, text: str) -> str:
    """The caption on one line, which begins with the prompt once, as it was typed.

    `text` is what a model wrote. Some repeat the prompt first, in the spelling of their vocabulary (`echo`: BLIP's has
    no capitals), some only go on from it.
    """
    text, echo = " ".join(text.split()), " ".join(echo.split())
    if not prompt:
        return text
    if echo and text.startswith(echo):
        return (prompt + text[len(echo) :]).strip()
    return f"{prompt} {text}".strip()


def _generation(settings: CaptionSettings) -> dict[str, Any]:
    """Lengths count what comes after the prompt. A minimum above the maximum is the maximum."""
    return {
        "num_beams": settings.blip_beams,
        "min_new_tokens": min(settings.blip_min_length, settings.blip_max_length),
        "max_new_tokens": settings.blip_max_length,
        "do_sample": False,
    }


def _load_processor(folder: Path, kind: Kind) -> Any:
    """Something with `image_processor` and `tokenizer`, which for most models can be called with both."""
    import transformers

    path = str(folder)
    options: dict[str, Any] = {"local_files_only": True}
    if kind.model_type == "blip":
        return transformers.BlipProcessor.from_pretrained(path, **options)
    options["trust_remote_code"] = False
    if kind.model_type == "vision-encoder-decoder":  # has no processor of its own
        return SimpleNamespace(
            image_processor=transformers.AutoImageProcessor.from_pretrained(path, **options),
            tokenizer=transformers.AutoTokenizer.from_pretrained(path, **options),
        )
    return transformers.AutoProcessor.from_pretrained(path, **options)


def _inputs(kind: Kind, processor: Any, model: Any, picture: Image.Image, prompt: str) -> dict[str, Any]:
    """What `generate` is given: the picture, and the prompt in the way of this kind of model."""
    import torch

    if kind.model_type not in ("git", "vision-encoder-decoder"):
        # BLIP takes its own beginning where there is no text, BLIP-2 the places for the picture from an empty one.
        text = {"florence2": _TASK, "blip": prompt or None}.get(kind.model_type, prompt)
        return dict(processor(images=picture, text=text, return_tensors="pt"))
    inputs = {"pixel_values": processor.image_processor(images=picture, return_tensors="pt")["pixel_values"]}
    if prompt:  # without its end mark, which the tokenizer would add
        ids = processor.tokenizer(prompt, add_special_tokens=False)["input_ids"]
        if kind.model_type == "git":
            inputs["input_ids"] = torch.tensor([[processor.tokenizer.cls_token_id, *ids]])
        else:
            inputs["decoder_input_ids"] = torch.tensor([[model.config.decoder_start_token_id, *ids]])
    return inputs


def _decoded(processor: Any, ids: Any) -> str:
    return processor.tokenizer.decode(ids, skip_special_tokens=True)


@contextmanager
def _explained(folder: Path) -> Generator[None, None, None]:
    """What transformers and torch raise, which is anything, in words for the person who chose the model."""
    import torch

    try:
        yield
    except TrainToolsError:
        raise
    except torch.cuda.OutOfMemoryError as error:
        raise DeviceMemoryError(
            f"The card has too little free memory for the captions of {folder}.", "Set Caption device to cpu."
        ) from error
    except Exception as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ModelError(
            f"{folder} can't write captions: {reason}", "Choose the folder of an image-to-text model, such as BLIP."
        ) from error
