"""Loss, noise and timesteps of a training: a part of its settings (see `core.config`)."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from lora_train.core.preview_settings import PreviewSettings

Loss = Literal["mse", "huber", "smooth_l1"]
HuberSchedule = Literal["constant", "exponential", "snr"]
TimestepSampling = Literal["uniform", "logit_normal"]
PredictionChoice = Literal["auto", "epsilon", "v_prediction"]
ZeroTerminalSnr = Literal["auto", "on", "off"]


class NoiseSettings(PreviewSettings, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What the model is asked to undo, and how its answer is judged."""

    loss: Annotated[
        Loss,
        Meta(
            title="Loss",
            description="mse learns every detail; huber and smooth_l1 mind odd pictures in the dataset less.",
        ),
    ] = "mse"
    huber_schedule: Annotated[
        HuberSchedule,
        Meta(
            title="Huber schedule",
            description="When odd pictures are forgiven: snr and exponential do so most where there is much noise.",
        ),
    ] = "snr"
    huber_c: Annotated[
        float,
        Meta(
            title="Huber c",
            description="Smaller forgives odd pictures more; for the losses huber and smooth_l1.",
            gt=0,
            le=100,
        ),
    ] = 0.1
    min_snr_gamma: Annotated[
        float,
        Meta(
            title="Min-SNR gamma",
            description="Balances large shapes and details, so that fewer steps are needed; 5 is usual, 0 is off.",
            ge=0,
            le=100,
        ),
    ] = 5.0
    noise_offset: Annotated[
        float,
        Meta(
            title="Noise offset",
            description="Lets the LoRA learn darker and brighter pictures; 0 is off.",
            ge=0,
            le=1,
        ),
    ] = 0.0
    prior_loss_weight: Annotated[
        float,
        Meta(
            title="Prior loss weight",
            description="How much a regularisation picture counts beside a training picture; 1 is the same.",
            ge=0,
            le=100,
        ),
    ] = 1.0
    debiased_estimation: Annotated[
        bool,
        Meta(
            title="Debiased estimation",
            description="Another balance of large shapes and details; instead of Min-SNR gamma.",
        ),
    ] = False
    multires_noise_iterations: Annotated[
        int,
        Meta(
            title="Multires noise iterations",
            description="Adds coarse noise, so that brightness and large shapes are learned; 6 is usual, 0 is off.",
            ge=0,
            le=10,
        ),
    ] = 0
    multires_noise_discount: Annotated[
        float,
        Meta(
            title="Multires noise discount",
            description="How strong each coarser noise is, as a share of the finer one; 0.3 is usual.",
            ge=0,
            le=1,
        ),
    ] = 0.3
    masked_loss: Annotated[
        bool,
        Meta(
            title="Masked loss",
            description="Learns nothing of what is transparent, or black in mask/NAME.png; upload masks in a zip or "
            "folder.",
        ),
    ] = False
    min_timestep: Annotated[
        int,
        Meta(
            title="Lowest timestep",
            description="0 learns the finest details too; a higher one leaves them out.",
            ge=0,
            le=999,
        ),
    ] = 0
    max_timestep: Annotated[
        int,
        Meta(
            title="Highest timestep",
            description="1000 learns the composition too; a lower one leaves it out.",
            ge=1,
            le=1000,
        ),
    ] = 1000
    timestep_sampling: Annotated[
        TimestepSampling,
        Meta(
            title="Timestep sampling",
            description="uniform trains details and composition alike; logit_normal prefers what lies between.",
        ),
    ] = "uniform"
    logit_mean: Annotated[
        float,
        Meta(
            title="Logit mean",
            description="Below 0 prefers details, above 0 composition; for logit_normal.",
            ge=-10,
            le=10,
        ),
    ] = 0.0
    logit_std: Annotated[
        float,
        Meta(
            title="Logit standard deviation",
            description="Smaller keeps closer to what Logit mean prefers; for logit_normal.",
            gt=0,
            le=10,
        ),
    ] = 1.0
    prediction: Annotated[
        PredictionChoice,
        Meta(
            title="Prediction type",
            description="auto is what the checkpoint says; choose only where that is known to be wrong.",
        ),
    ] = "auto"
    zero_terminal_snr: Annotated[
        ZeroTerminalSnr,
        Meta(
            title="Zero terminal SNR",
            description="Trains from pure noise on, for true black and white; v-prediction models only.",
        ),
    ] = "auto"
