"""Whether pictures follow their prompts: by the base model itself as a classifier, or by an encoder that reads text.

A diffusion model explains a picture better the smaller its error is when it predicts the noise in it under a prompt
(Li et al. 2023, "Your Diffusion Model is Secretly a Zero-Shot Classifier"). Errors are compared under the same noise.

Legend: N pictures, P prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from PIL import Image

from lora_train.engine import diffusion
from lora_train.engine.denoiser import drawn_sizes, full_mask, predict
from lora_train.engine.features import encode_pictures
from lora_train.engine.loading import BaseModel
from lora_train.engine.text import Embeddings, Prompts

RIVALS = 3
"""With so many other prompts a picture's own one is compared: each costs as much as two steps of drawing."""
_TIMESTEPS = (600, 800)
"""Where large things are decided: what is where, and in which colour. On the small model 300 to 500 told less."""
_LEAST_OF_BASE = 0.1
"""So much the base model itself has to be better than chance, or else nothing can be said."""

Explain = Callable[[Sequence[Image.Image], Sequence[Sequence[int]]], list[list[float]]]
"""How well each picture is explained by some prompts, told by their numbers: the higher the better."""


class DiffusionClassifier:
    """Explains pictures with the base model. No LoRA may be in force (multiplier 0) while it does."""

    def __init__(self, model: BaseModel, prompts: Prompts, texts: Sequence[str]) -> None:
        self._model = model
        schedule = diffusion.alphas_cumprod(zero_terminal_snr=model.zero_terminal_snr)
        self._alphas = schedule[list(_TIMESTEPS)].to(model.device)
        self._timesteps = torch.tensor(_TIMESTEPS, device=model.device)
        with torch.no_grad():
            self._texts = prompts.encode_each(texts)

    @torch.no_grad()
    def __call__(self, pictures: Sequence[Image.Image], chosen: Sequence[Sequence[int]]) -> list[list[float]]:
        """For each picture minus the error under each of its chosen prompts."""
        width_px, height_px = pictures[0].size
        sizes = drawn_sizes(self._model, width_px, height_px, len(_TIMESTEPS))
        inpaint = full_mask(self._model, width_px, height_px)
        rows: list[list[float]] = []
        for picture, numbers in zip(pictures, chosen, strict=True):
            latents = encode_pictures(self._model, [picture])
            shape = (len(_TIMESTEPS), *latents.shape[1:])
            noise = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(latents.device)
            repeated = latents.expand(len(_TIMESTEPS), -1, -1, -1)
            noisy = diffusion.add_noise(repeated, noise, self._alphas)
            target = diffusion.target(repeated, noise, self._alphas, self._model.prediction)

            def error(text: Embeddings, noisy: torch.Tensor = noisy, target: torch.Tensor = target) -> float:
                text = text.expand(len(_TIMESTEPS))
                output = predict(self._model.unet, noisy, self._timesteps, text, sizes, inpaint).float()
                return (output - target).square().mean().item()

            rows.append([-error(self._texts[number]) for number in numbers])
        return rows


def rivals(own: int, count: int) -> list[int]:
    """A prompt's own number and those of `RIVALS` others of `count` at most, spread over all."""
    others = [(own + step) % count for step in range(1, count)]
    wanted = min(RIVALS, len(others))
    return [own, *(others[index * len(others) // wanted] for index in range(wanted))]


def wins(explained: Sequence[Sequence[float]]) -> float:
    """Of all pairs of a picture's own prompt (the first) and another: the share that the own one explains better.

    0.5 is chance. A tie, or a number that is not one, is half of a win.
    """
    pairs = [(row[0], other) for row in explained for other in row[1:]]
    return sum(0.5 if not own > other and not own < other else float(own > other) for own, other in pairs) / max(
        1, len(pairs)
    )


class Obedience:
    """Obedience as a share of the base model's, 0 to 1: (wins - 0.5) / (the base model's wins - 0.5)."""

    def __init__(self, explain: Explain, prompt_of: Sequence[int], base: Sequence[Image.Image]) -> None:
        """`prompt_of` is the number of each picture's prompt, `base` what the base model draws of them."""
        count = len(set(prompt_of))
        self._explain = explain
        self._chosen = [rivals(own, count) for own in prompt_of]
        self._base = wins(explain(base, self._chosen)) - 0.5 if count > 1 else 0.0
        self.is_known = self._base >= _LEAST_OF_BASE
        """Whether prompts differ, and in something that the base model itself draws."""

    def of(self, pictures: Sequence[Image.Image]) -> float:
        """Of pictures of the same prompts; 1 where nothing can be said."""
        if not self.is_known:
            return 1.0
        share = (wins(self._explain(pictures, self._chosen)) - 0.5) / self._base
        return min(1.0, max(0.0, share))
