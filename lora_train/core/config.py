"""The one schema: every setting of a version is declared here once, with type, range, label and help.

The page, the command line, the JSON files and the docs are derived from it (`core.settings`). A struct of msgspec has
one base at most, so the parts of the schema build on one another: validation, previews, noise, network, the rest here.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta

from lora_train.core.memory_settings import MemorySettings

Optimizer = Literal[
    "AdamW",
    "Adam",
    "AdamW8bit",
    "AdamWScheduleFree",
    "Lion",
    "SGDNesterov",
    "SGDNesterov8bit",
    "DAdaptation",
    "Prodigy",
    "AdaFactor",
]
Scheduler = Literal["constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]
SavePrecision = Literal["fp16", "bf16", "fp32"]
Device = Literal["auto", "cpu", "cuda", "mps", "xpu"]

_BASIC: dict[str, Any] = {"basic": True}
"""Settings with a command-line flag of their own; every other one is reached by `--set key=value`."""


class TrainSettings(MemorySettings, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Everything a training run can be told. Lengths are pixels, times seconds, rates per optimizer step."""

    base_model: Annotated[
        str,
        Meta(
            title="Train base model",
            description="Checkpoint (.safetensors, .ckpt), diffusers folder, or 'demo'.",
            extra=_BASIC,
        ),
    ] = ""
    vae: Annotated[str, Meta(title="VAE", description="A VAE file to use instead of the checkpoint's own.")] = ""
    epochs: Annotated[
        int,
        Meta(
            title="Number of epochs",
            description="How often every picture (times its repeats) is seen.",
            ge=1,
            le=10_000,
            extra=_BASIC,
        ),
    ] = 10
    batch_size: Annotated[
        int,
        Meta(
            title="Batch size",
            description="Pictures per step; more needs more memory.",
            ge=1,
            le=256,
            extra=_BASIC,
        ),
    ] = 1
    clip_skip: Annotated[
        int,
        Meta(
            title="Clip skip",
            description="Which text-encoder layer is used, counted from the end; 2 for anime models.",
            ge=1,
            le=12,
            extra=_BASIC,
        ),
    ] = 1
    optimizer: Annotated[
        Optimizer,
        Meta(
            title="Optimizer type",
            description="AdamW suits most; Lion wants a third to a tenth of its learning rate, Prodigy and "
            "DAdaptation want 1.",
            extra=_BASIC,
        ),
    ] = "AdamW"
    learning_rate: Annotated[
        float,
        Meta(
            title="Learning rate",
            description="How fast the picture part (UNet) learns; 0.0001 suits most models with AdamW, too much "
            "spoils pictures.",
            ge=0,
            le=10,
            extra=_BASIC,
        ),
    ] = 1e-4
    text_encoder_lr: Annotated[
        float,
        Meta(
            title="Text encoder learning rate",
            description="How fast the words (text encoder) learn, where they are trained.",
            ge=0,
            le=10,
            extra=_BASIC,
        ),
    ] = 5e-5
    train_text_encoder: Annotated[
        bool,
        Meta(title="Train text encoder", description="Teaches words a new meaning too; off saves memory and time."),
    ] = True
    train_sdxl_text_encoders: Annotated[
        bool,
        Meta(
            title="Train SDXL's text encoders",
            description="As Train text encoder, for SDXL's two; off saves much memory and time.",
        ),
    ] = False
    rank: Annotated[
        int,
        Meta(
            title="Net dim (rank)",
            description="Capacity of the LoRA; 16 is about 18 MB, 128 about 144 MB.",
            ge=1,
            le=1024,
            extra=_BASIC,
        ),
    ] = 16
    alpha: Annotated[
        float,
        Meta(
            title="Alpha",
            description="The LoRA's strength is alpha / rank; half of rank is usual.",
            gt=0,
            le=1024,
            extra=_BASIC,
        ),
    ] = 8.0
    repeats: Annotated[
        int,
        Meta(
            title="Train number of repetitions",
            description="How often an epoch shows each picture; -1 chooses by Steps aimed at, else takes the folder's "
            "number.",
            ge=-1,
            le=10_000,
            extra=_BASIC,
        ),
    ] = -1
    aimed_steps: Annotated[
        int,
        Meta(
            title="Steps aimed at",
            description="With repetitions at -1: about how many steps the whole training should have; 0 is no aim.",
            ge=0,
            le=1_000_000,
        ),
    ] = 0
    save_every_epochs: Annotated[
        int,
        Meta(
            title="Save every n epochs",
            description="Keep a LoRA each n epochs; 0 keeps the last one alone.",
            ge=0,
            le=10_000,
            extra=_BASIC,
        ),
    ] = 2
    resolution: Annotated[
        int,
        Meta(
            title="Resolution",
            description="Training size in pixels; 0 is the base model's own.",
            ge=0,
            le=2048,
            extra=_BASIC,
        ),
    ] = 0
    bucket_step_px: Annotated[
        int,
        Meta(
            title="Bucket step",
            description="Sides of the aspect-ratio buckets are multiples of this; 0 chooses.",
            ge=0,
            le=256,
        ),
    ] = 0
    upscale_limit: Annotated[
        float,
        Meta(
            title="Upscale limit",
            description="How many times a small picture may be enlarged.",
            ge=1,
            le=16,
        ),
    ] = 2.0
    precision: Annotated[
        Precision,
        Meta(
            title="Mixed precision",
            description="auto takes bf16 where the device has it, else fp16, and fp32 on a CPU.",
            extra=_BASIC,
        ),
    ] = "auto"
    seed: Annotated[
        int,
        Meta(
            title="Seed",
            description="The same seed and settings give the same LoRA.",
            ge=0,
            le=2**32 - 1,
            extra=_BASIC,
        ),
    ] = 23
    optimizer_args: Annotated[
        tuple[str, ...],
        Meta(
            title="Optimizer arguments",
            description="One key=value per line, by the optimizer's own names, such as betas=0.9,0.99.",
        ),
    ] = ()
    sd_script_args: Annotated[
        str,
        Meta(
            title="Append or override the sd_script args",
            description="Options of kohya's sd-scripts by their own names, such as --max_grad_norm=0.5 --seed=7.",
        ),
    ] = ""
    lr_scheduler: Annotated[
        Scheduler,
        Meta(title="Learning rate schedule", description="How the rate changes over the run."),
    ] = "cosine"
    lr_warmup_steps: Annotated[
        int, Meta(title="Warm-up steps", description="Steps of rising rate.", ge=0, le=1_000_000)
    ] = 0
    lr_cycles: Annotated[
        int,
        Meta(
            title="Schedule cycles",
            description="How often the rate falls and starts again; for cosine_with_restarts.",
            ge=1,
            le=1000,
        ),
    ] = 1
    weight_decay: Annotated[
        float,
        Meta(title="Weight decay", description="Pulls the LoRA towards zero.", ge=0, le=10),
    ] = 0.01
    gradient_accumulation_steps: Annotated[
        int,
        Meta(
            title="Gradient accumulation",
            description="Batches that make one step: works like a larger batch size, without its memory.",
            ge=1,
            le=1024,
        ),
    ] = 1
    max_grad_norm: Annotated[
        float,
        Meta(
            title="Max gradient norm",
            description="Tames steps that would change too much at once; 1 is usual, 0 is off.",
            ge=0,
            le=1e6,
        ),
    ] = 1.0
    gradient_checkpointing: Annotated[
        bool,
        Meta(
            title="Gradient checkpointing",
            description="Much less memory for about a third more time.",
        ),
    ] = False
    max_tokens: Annotated[
        Literal[75, 150, 225],
        Meta(title="Max tokens", description="Longer captions are cut here."),
    ] = 150
    trigger_word: Annotated[str, Meta(title="Trigger word", description="Put first into every caption.")] = ""
    shuffle_captions: Annotated[bool, Meta(title="Shuffle tags", description="Tags change places at each view.")] = (
        False
    )
    keep_tags: Annotated[
        int,
        Meta(title="Keep first n tags", description="These are not shuffled.", ge=0, le=100),
    ] = 0
    caption_dropout: Annotated[
        float,
        Meta(
            title="Caption dropout",
            description="Share of views without their caption.",
            ge=0,
            le=1,
        ),
    ] = 0.0
    prune_common_tags: Annotated[
        int,
        Meta(
            title="Leave out common tags (%)",
            description="Tags in more than this share of the captions are left out: the trigger word takes their "
            "meaning; 0 keeps all.",
            ge=0,
            le=100,
        ),
    ] = 0
    flip: Annotated[bool, Meta(title="Flip", description="Half of the views are mirrored.")] = False
    ema_decay: Annotated[
        float,
        Meta(
            title="EMA decay",
            description="Saves an average over the last steps, which is smoother; 0.999 is usual, 0 is off.",
            ge=0,
            le=0.9999,
        ),
    ] = 0.0
    save_precision: Annotated[
        SavePrecision, Meta(title="Save precision", description="Number format of the LoRA file.")
    ] = "fp16"
    private_metadata: Annotated[
        bool,
        Meta(
            title="Private metadata",
            description="Leave captions, tags and folder names out of the LoRA file.",
        ),
    ] = False
    private_use: Annotated[
        bool,
        Meta(
            title="Private use",
            description="For real people and other people's characters: asks in file and card not to share it, and "
            "leaves captions, tags and folder names out.",
        ),
    ] = False
    state_every_s: Annotated[
        int,
        Meta(
            title="Save state every n seconds",
            description="A crash loses at most this much work.",
            ge=0,
            le=86_400,
        ),
    ] = 120
    device: Annotated[Device, Meta(title="Device", description="auto takes the fastest there is.")] = "auto"
    cpu_threads: Annotated[
        int,
        Meta(title="CPU threads", description="0 takes one for each core.", ge=0, le=1024),
    ] = 0
