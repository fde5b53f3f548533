"""The ss_* and modelspec.* metadata of a LoRA file (kohya-ss/sd-scripts' keys, ModelSpec 1.0.1).

Values are texts: numbers and booleans as Python prints them, missing ones "None", structures as JSON.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec

from lora_train.core.conditioning import conditioning_of, trains_text_encoders
from lora_train.core.config import TrainSettings
from lora_train.core.optimizers import metadata_text
from lora_train.core.private_use import DATASET_KEYS, PRIVATE_METADATA
from lora_train.core.ranks import ranks_of
from lora_train.engine.diffusion import TIMESTEPS

_LOSS_NAMES = {"mse": "l2"}
"""kohya's name, where it is another one than ours."""


class FamilyNames(NamedTuple):
    """What metadata calls a family: kohya's `ss_base_model_version`, ModelSpec's architecture and implementation."""

    base_version: str
    architecture: str
    implementation: str = "diffusers"


_SD1_NAMES = FamilyNames("sd_v1", "stable-diffusion-v1/lora")
_SD1_V_NAMES = FamilyNames("sd_v1_v", "stable-diffusion-v1/lora")
_SD2_NAMES = FamilyNames("sd_v2", "stable-diffusion-v2-512/lora")
_SD2_V_NAMES = FamilyNames("sd_v2_v", "stable-diffusion-v2-768-v/lora")
_SDXL_NAMES = FamilyNames(
    "sdxl_base_v1-0", "stable-diffusion-xl-v1-base/lora", "https://github.com/Stability-AI/generative-models"
)
"""SDXL's layers have the original layout's names in files, which is what the implementation tells."""


class NetworkFacts(msgspec.Struct, frozen=True, kw_only=True):
    """Of a network that was taken over from a finished LoRA; empty for one that the settings describe."""

    continued_from: str = ""
    """The stem of its file, no folder."""
    ranks: tuple[int, ...] = ()
    alphas: tuple[float, ...] = ()
    """The different values in it."""


class RunFacts(msgspec.Struct, kw_only=True):
    """What the metadata tells besides the settings. Counts of pictures include their repeats."""

    session_id: int
    started_at: float
    base_model_name: str
    base_model_legacy_hash: str = ""
    base_model_sha256: str = ""
    vae_name: str = ""
    vae_legacy_hash: str = ""
    vae_sha256: str = ""
    prediction: str
    zero_terminal_snr: bool = False
    compute_precision: str
    resolution_px: int
    train_views: int
    regularisation_views: int
    held_out_views: int = 0
    batches_per_epoch: int
    total_steps: int
    dataset_dirs: dict[str, dict[str, int]]
    regularisation_dirs: dict[str, dict[str, int]]
    tag_frequency: dict[str, dict[str, int]]
    bucket_info: dict[str, Any]
    trigger_phrase: str = ""
    family: str = "sd1"
    network: NetworkFacts = NetworkFacts()


def build_metadata(
    settings: TrainSettings, facts: RunFacts, *, output_name: str, step: int, epoch: int
) -> dict[str, str]:
    """All metadata of one saved LoRA except its hashes. `epoch` counts the finished ones."""
    values: dict[str, Any] = {
        **_run_values(settings, facts),
        **_dataset_values(facts),
        **_setting_values(settings, facts),
        **_noise_values(settings),
        "ss_clip_skip": _clip_skip(settings, facts),
        "ss_zero_terminal_snr": facts.zero_terminal_snr,
        "ss_output_name": output_name,
        "ss_training_finished_at": time.time(),
        "ss_epoch": epoch,
        "ss_steps": step,
        **_modelspec_values(settings, facts, output_name),
    }
    if settings.private_metadata or settings.private_use:
        values = {key: value for key, value in values.items() if key not in DATASET_KEYS}
    if settings.private_use:
        values |= PRIVATE_METADATA
    return {key: _text(value) for key, value in values.items() if value != ""}


def _run_values(settings: TrainSettings, facts: RunFacts) -> dict[str, Any]:
    return {
        "ss_session_id": facts.session_id,
        "ss_training_started_at": facts.started_at,
        "ss_base_model_version": names_of(facts.family, facts.prediction).base_version,
        "ss_v2": facts.family.startswith("sd2"),
        "ss_sd_model_name": facts.base_model_name,
        "ss_sd_model_hash": facts.base_model_legacy_hash,
        "ss_new_sd_model_hash": facts.base_model_sha256,
        "ss_vae_name": facts.vae_name,
        "ss_vae_hash": facts.vae_legacy_hash,
        "ss_new_vae_hash": facts.vae_sha256,
        "ss_network_module": "networks.lora",
        **_network_values(settings, facts),
        "ss_network_dropout": settings.network_dropout or None,
        "ss_scale_weight_norms": settings.scale_weight_norms or None,
        "ss_mixed_precision": {"fp32": "no"}.get(facts.compute_precision, facts.compute_precision),
        "ss_full_fp16": False,
        "ss_fp8_base": False,
        "ss_lowram": False,
    }


def names_of(family: str, prediction: str) -> FamilyNames:
    """Of a family that is trained."""
    is_v = prediction == "v_prediction"
    if family.startswith("sdxl"):
        return _SDXL_NAMES
    if family.startswith("sd2"):
        return _SD2_V_NAMES if is_v else _SD2_NAMES
    return _SD1_V_NAMES if is_v else _SD1_NAMES


def _clip_skip(settings: TrainSettings, facts: RunFacts) -> int | None:
    """SD2 and SDXL take no notice of it."""
    return settings.clip_skip if conditioning_of(facts.family).clip_skip_matters else None


_DYNAMIC = "Dynamic"
"""What kohya's tools write where modules differ in a way that no argument tells."""


def dims_values(ranks: Sequence[int], alphas: Sequence[float]) -> dict[str, Any]:
    """ss_network_dim and ss_network_alpha of a network with these different ranks and alphas."""
    return {
        "ss_network_dim": ranks[0] if len(ranks) == 1 else _DYNAMIC,
        "ss_network_alpha": float(alphas[0]) if len(alphas) == 1 else _DYNAMIC,
    }


def _network_values(settings: TrainSettings, facts: RunFacts) -> dict[str, Any]:
    dropouts = {"rank_dropout": settings.rank_dropout, "module_dropout": settings.module_dropout}
    arguments = {name: str(value) for name, value in dropouts.items() if value}
    if facts.network.continued_from:
        values = dims_values(facts.network.ranks, facts.network.alphas)
        return {**values, "ss_network_args": arguments or "", "ss_continued_from": facts.network.continued_from}
    values = {"ss_network_dim": settings.rank, "ss_network_alpha": settings.alpha}
    return {**values, "ss_network_args": {**_ranks_arguments(settings, facts.family), **arguments} or ""}


def _ranks_arguments(settings: TrainSettings, family: str) -> dict[str, str]:
    """kohya's names, except for the text encoder's, which has no rank of its own there."""
    arguments: dict[str, str] = {}
    ranks = ranks_of(settings)
    if settings.conv_rank:
        arguments |= {"conv_dim": str(settings.conv_rank), "conv_alpha": str(settings.conv_alpha)}
    whole = ranks["linear"]
    if any(ranks[group] != whole for group in ("input", "middle", "output")):
        blocks = [group for group, count in _blocks(family) for group in [group] * count]
        arguments["block_dims"] = ",".join(str(ranks[group][0]) for group in blocks)
        arguments["block_alphas"] = ",".join(f"{ranks[group][1]:g}" for group in blocks)
    if ranks["text_encoder"] != whole and trains_text_encoders(settings, family):
        rank, alpha = ranks["text_encoder"]
        arguments |= {"text_encoder_dim": str(rank), "text_encoder_alpha": f"{alpha:g}"}
    return arguments


def _blocks(family: str) -> tuple[tuple[str, int], ...]:
    """How many numbers kohya's block arguments have: 12 + 1 + 12; for SDXL 9 + 3 + 9, with one more at each end."""
    if family.startswith("sdxl"):
        return ("input", 10), ("middle", 3), ("output", 10)
    return ("input", 12), ("middle", 1), ("output", 12)


def _dataset_values(facts: RunFacts) -> dict[str, Any]:
    return {
        "ss_num_train_images": facts.train_views,
        "ss_num_validation_images": facts.held_out_views,
        "ss_num_reg_images": facts.regularisation_views,
        "ss_num_batches_per_epoch": facts.batches_per_epoch,
        "ss_max_train_steps": facts.total_steps,
        "ss_resolution": f"({facts.resolution_px}, {facts.resolution_px})",
        "ss_enable_bucket": True,
        "ss_bucket_no_upscale": False,
        "ss_min_bucket_reso": facts.resolution_px // 2,
        "ss_max_bucket_reso": facts.resolution_px * 2,
        "ss_bucket_info": facts.bucket_info,
        "ss_dataset_dirs": facts.dataset_dirs,
        "ss_reg_dataset_dirs": facts.regularisation_dirs,
        "ss_tag_frequency": facts.tag_frequency,
        "ss_cache_latents": True,
    }


def _setting_values(settings: TrainSettings, facts: RunFacts) -> dict[str, Any]:
    return {
        "ss_learning_rate": settings.learning_rate,
        "ss_unet_lr": settings.learning_rate,
        "ss_text_encoder_lr": settings.text_encoder_lr if trains_text_encoders(settings, facts.family) else None,
        "ss_optimizer": metadata_text(settings),
        "ss_lr_scheduler": settings.lr_scheduler,
        "ss_lr_warmup_steps": settings.lr_warmup_steps,
        "ss_max_grad_norm": settings.max_grad_norm,
        "ss_num_epochs": settings.epochs,
        "ss_validate_every_n_steps": settings.validate_every_steps or None,
        "ss_batch_size_per_device": settings.batch_size,
        "ss_total_batch_size": settings.batch_size * settings.gradient_accumulation_steps,
        "ss_gradient_accumulation_steps": settings.gradient_accumulation_steps,
        "ss_gradient_checkpointing": settings.gradient_checkpointing,
        "ss_max_token_length": settings.max_tokens,
        "ss_seed": settings.seed,
        "ss_shuffle_caption": settings.shuffle_captions,
        "ss_keep_tokens": settings.keep_tags,
        "ss_flip_aug": settings.flip,
        "ss_color_aug": False,
        "ss_random_crop": False,
        "ss_caption_dropout_rate": settings.caption_dropout,
        "ss_caption_dropout_every_n_epochs": 0,
        "ss_caption_tag_dropout_rate": 0.0,
        "ss_face_crop_aug_range": None,
        "ss_adaptive_noise_scale": None,
        "ss_ip_noise_gamma": None,
        "ss_training_comment": None,
    }


def _noise_values(settings: TrainSettings) -> dict[str, Any]:
    """Loss, noise and timesteps; what a setting that is off would have said is None."""
    is_robust = settings.loss != "mse"
    iterations = settings.multires_noise_iterations
    return {
        "ss_loss_type": _LOSS_NAMES.get(settings.loss, settings.loss),
        "ss_huber_schedule": settings.huber_schedule if is_robust else None,
        "ss_huber_c": settings.huber_c if is_robust else None,
        "ss_min_snr_gamma": None if settings.debiased_estimation else settings.min_snr_gamma or None,
        "ss_debiased_estimation": settings.debiased_estimation,
        "ss_prior_loss_weight": settings.prior_loss_weight,
        "ss_noise_offset": settings.noise_offset or None,
        "ss_multires_noise_iterations": iterations or None,
        "ss_multires_noise_discount": settings.multires_noise_discount if iterations else None,
        "ss_masked_loss": settings.masked_loss,
        "ss_ema_decay": settings.ema_decay or None,
        "ss_min_timestep": settings.min_timestep or None,
        "ss_max_timestep": settings.max_timestep if settings.max_timestep < TIMESTEPS else None,
        "ss_timestep_sampling": _timestep_sampling(settings),
    }


def _timestep_sampling(settings: TrainSettings) -> str:
    if settings.timestep_sampling == "uniform":
        return settings.timestep_sampling
    return f"{settings.timestep_sampling}(mean={settings.logit_mean}, std={settings.logit_std})"


def _modelspec_values(settings: TrainSettings, facts: RunFacts, output_name: str) -> dict[str, Any]:
    names = names_of(facts.family, facts.prediction)
    return {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": names.architecture,
        "modelspec.implementation": names.implementation,
        "modelspec.title": output_name,
        "modelspec.resolution": f"{facts.resolution_px}x{facts.resolution_px}",
        "modelspec.date": time.strftime("%Y-%m-%dT%H:%M:%S"),
        "modelspec.prediction_type": "epsilon" if facts.prediction == "epsilon" else "v",
        "modelspec.encoder_layer": _clip_skip(settings, facts) or "",
        "modelspec.trigger_phrase": facts.trigger_phrase,
    }


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return msgspec.json.encode(value).decode("utf-8")
    return str(value)
