"""The previews of a training: a part of its settings (see `core.config`)."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from lora_train.core.samplers import Sampler
from lora_train.core.validation_settings import ValidationSettings


class PreviewSettings(ValidationSettings, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is drawn with every saved LoRA, and how."""

    generate_previews: Annotated[
        bool,
        Meta(
            title="Generate all checkpoint preview after train finished",
            description="Draws every saved LoRA, as soon as it is saved, with the preview prompts.",
        ),
    ] = True
    preview_prompts: Annotated[
        tuple[str, ...],
        Meta(title="Preview prompts", description="One per line; drawn at every save."),
    ] = ()
    preview_negative_prompt: Annotated[
        str, Meta(title="Preview negative prompt", description="What previews should avoid.")
    ] = ""
    preview_weights: Annotated[
        tuple[Annotated[float, Meta(ge=-10, le=10)], ...],
        Meta(title="Preview LoRA weights", description="Comma list, drawn side by side.", min_length=1),
    ] = (1.0,)
    preview_sampler: Annotated[Sampler, Meta(title="Preview sampler", description="As named in the WebUI.")] = "Euler a"
    preview_steps: Annotated[int, Meta(title="Preview sampling steps", description="More is finer.", ge=1, le=500)] = 24
    preview_cfg_scale: Annotated[
        float, Meta(title="Preview CFG scale", description="How closely previews follow the prompt.", ge=1, le=50)
    ] = 7.0
    preview_seed: Annotated[
        int,
        Meta(title="Preview seed", description="The same for every LoRA.", ge=0, le=2**32 - 1),
    ] = 1
    preview_size_px: Annotated[
        int,
        Meta(title="Preview size", description="Pixels; 0 is the training size.", ge=0, le=2048),
    ] = 0
    judge_when_finished: Annotated[
        bool,
        Meta(
            title="Judge the LoRAs when finished",
            description="Draws and measures every saved LoRA at some weights, and publishes the one that is "
            "recommended.",
        ),
    ] = False
    judge_encoder: Annotated[
        str,
        Meta(
            title="Judge's image encoder",
            description="Folder of a CLIP or DINOv2 model, or an .onnx file, to compare pictures with; empty: the base "
            "model itself.",
        ),
    ] = ""
