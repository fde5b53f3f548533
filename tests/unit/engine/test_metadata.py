"""Metadata: every value a text, in kohya's spelling, and nothing private when asked."""

from __future__ import annotations

import datetime
import json
import re
from typing import Any

import pytest

from lora_train.core.config import TrainSettings
from lora_train.engine.metadata import NetworkFacts, RunFacts, build_metadata

TAGS = {"10_cat": {"1girl": 20, "solo": 18}, "5_猫": {"白い猫": 3}}


def make(
    family: str = "sd1",
    network: NetworkFacts | None = None,
    *,
    prediction: str = "epsilon",
    zero: bool = False,
    **settings: Any,
) -> dict[str, str]:
    facts = RunFacts(
        family=family,
        zero_terminal_snr=zero,
        network=network or NetworkFacts(),
        session_id=3495676067,
        started_at=1726639674.92,
        base_model_name="animefull.safetensors",
        base_model_legacy_hash="e6e99610",
        base_model_sha256="ab" * 32,
        vae_name="kl.safetensors",
        vae_sha256="cd" * 32,
        prediction=prediction,
        compute_precision="fp16",
        resolution_px=512,
        train_views=400,
        regularisation_views=40,
        held_out_views=3,
        batches_per_epoch=110,
        total_steps=1100,
        dataset_dirs={"10_cat": {"n_repeats": 10, "img_count": 20}, "5_猫": {"n_repeats": 5, "img_count": 3}},
        regularisation_dirs={"reg/1_animal": {"n_repeats": 1, "img_count": 40}},
        tag_frequency=TAGS,
        bucket_info={
            "buckets": {"0": {"resolution": [512, 768], "count": 40}},
            "mean_img_ar_error": 0.01,
        },
        trigger_phrase="zzcat",
    )
    return build_metadata(TrainSettings(**settings), facts, output_name="mycat-000010", step=1500, epoch=10)


def test_every_value_is_a_text() -> None:
    for values in (make(), make(private_metadata=True), make(conv_rank=8, noise_offset=0.1)):
        assert all(isinstance(value, str) and value for value in values.values())


# kohya's own examples of these keys, and the settings that lead to them.
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("ss_session_id", "3495676067"),
        ("ss_training_started_at", "1726639674.92"),
        ("ss_output_name", "mycat-000010"),
        ("ss_base_model_version", "sd_v1"),
        ("ss_v2", "False"),
        ("ss_network_module", "networks.lora"),
        ("ss_network_dim", "32"),
        ("ss_network_alpha", "16.0"),
        ("ss_network_args", '{"conv_dim":"8","conv_alpha":"4.0"}'),
        ("ss_network_dropout", "None"),
        ("ss_sd_model_name", "animefull.safetensors"),
        ("ss_sd_model_hash", "e6e99610"),
        ("ss_new_sd_model_hash", "ab" * 32),
        ("ss_vae_name", "kl.safetensors"),
        ("ss_new_vae_hash", "cd" * 32),
        ("ss_learning_rate", "0.0001"),
        ("ss_unet_lr", "0.0001"),
        ("ss_text_encoder_lr", "5e-05"),
        ("ss_optimizer", "torch.optim.adamw.AdamW(weight_decay=0.1)"),
        ("ss_lr_scheduler", "cosine"),
        ("ss_lr_warmup_steps", "100"),
        ("ss_max_grad_norm", "1.0"),
        ("ss_num_train_images", "400"),
        ("ss_num_reg_images", "40"),
        ("ss_num_validation_images", "3"),
        ("ss_validate_every_n_steps", "None"),
        ("ss_num_batches_per_epoch", "110"),
        ("ss_num_epochs", "10"),
        ("ss_max_train_steps", "1100"),
        ("ss_epoch", "10"),
        ("ss_steps", "1500"),
        ("ss_batch_size_per_device", "4"),
        ("ss_total_batch_size", "8"),
        ("ss_gradient_accumulation_steps", "2"),
        ("ss_gradient_checkpointing", "False"),
        ("ss_resolution", "(512, 512)"),
        ("ss_enable_bucket", "True"),
        ("ss_min_bucket_reso", "256"),
        ("ss_max_bucket_reso", "1024"),
        ("ss_clip_skip", "2"),
        ("ss_max_token_length", "225"),
        ("ss_seed", "42"),
        ("ss_mixed_precision", "fp16"),
        ("ss_noise_offset", "None"),
        ("ss_min_snr_gamma", "5.0"),
        ("ss_debiased_estimation", "False"),
        ("ss_loss_type", "l2"),
        ("ss_huber_schedule", "None"),
        ("ss_huber_c", "None"),
        ("ss_multires_noise_iterations", "None"),
        ("ss_multires_noise_discount", "None"),
        ("ss_masked_loss", "False"),
        ("ss_ema_decay", "None"),
        ("ss_timestep_sampling", "uniform"),
        ("ss_shuffle_caption", "False"),
        ("ss_keep_tokens", "0"),
        ("ss_flip_aug", "False"),
        ("ss_caption_dropout_rate", "0.0"),
        ("modelspec.sai_model_spec", "1.0.1"),
        ("modelspec.architecture", "stable-diffusion-v1/lora"),
        ("modelspec.implementation", "diffusers"),
        ("modelspec.title", "mycat-000010"),
        ("modelspec.resolution", "512x512"),
        ("modelspec.prediction_type", "epsilon"),
        ("modelspec.encoder_layer", "2"),
        ("modelspec.trigger_phrase", "zzcat"),
    ],
)
def test_spelling(key: str, value: str) -> None:
    settings: dict[str, Any] = {
        "rank": 32,
        "alpha": 16.0,
        "conv_rank": 8,
        "conv_alpha": 4.0,
        "weight_decay": 0.1,
        "lr_warmup_steps": 100,
        "batch_size": 4,
        "gradient_accumulation_steps": 2,
        "clip_skip": 2,
        "max_tokens": 225,
        "seed": 42,
    }
    assert make(**settings)[key] == value


def test_loss_and_noise_that_are_not_the_usual_ones() -> None:
    values = make(
        loss="huber",
        huber_c=0.2,
        debiased_estimation=True,
        multires_noise_iterations=6,
        masked_loss=True,
        ema_decay=0.999,
        min_timestep=100,
        max_timestep=900,
        timestep_sampling="logit_normal",
        logit_mean=-0.5,
    )
    expected = {
        "ss_loss_type": "huber",
        "ss_huber_schedule": "snr",
        "ss_huber_c": "0.2",
        "ss_debiased_estimation": "True",
        "ss_min_snr_gamma": "None",
        "ss_multires_noise_iterations": "6",
        "ss_multires_noise_discount": "0.3",
        "ss_masked_loss": "True",
        "ss_ema_decay": "0.999",
        "ss_min_timestep": "100",
        "ss_max_timestep": "900",
        "ss_timestep_sampling": "logit_normal(mean=-0.5, std=1.0)",
    }
    assert {key: values[key] for key in expected} == expected
    assert make(loss="smooth_l1")["ss_loss_type"] == "smooth_l1"


def test_times_and_dates() -> None:
    values = make()
    now = datetime.datetime.now().timestamp()
    assert abs(float(values["ss_training_finished_at"]) - now) < 60
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d", values["modelspec.date"])
    assert abs(datetime.datetime.fromisoformat(values["modelspec.date"]).timestamp() - now) < 60


def test_what_is_not_there_is_left_out_or_none() -> None:
    values = make(train_text_encoder=False, min_snr_gamma=0.0)
    assert "ss_network_args" not in values, "only when there are any"
    assert values["ss_text_encoder_lr"] == "None"
    assert values["ss_min_snr_gamma"] == "None"


def test_structures_are_those_that_card_editors_read() -> None:
    """Two levels of tags, objects of folders, buckets as [width, height]; another shape breaks the editor."""
    values = make()
    assert json.loads(values["ss_tag_frequency"]) == TAGS
    folders = json.loads(values["ss_dataset_dirs"])
    assert sum(folder["img_count"] for folder in folders.values()) == 23
    assert json.loads(values["ss_reg_dataset_dirs"]) == {"reg/1_animal": {"n_repeats": 1, "img_count": 40}}
    buckets = json.loads(values["ss_bucket_info"])
    assert buckets["buckets"]["0"] == {"resolution": [512, 768], "count": 40}
    assert buckets["mean_img_ar_error"] == 0.01
    # Hosts parse what begins with a brace; everything else must not.
    parsed = {key for key, value in values.items() if value.startswith(("{", "["))}
    assert parsed == {"ss_tag_frequency", "ss_dataset_dirs", "ss_reg_dataset_dirs", "ss_bucket_info"}


PRIVATE_WORDS = ("1girl", "solo", "白い猫", "10_cat", "5_猫", "animal", "zzcat", "secret", "hidden")


def test_privacy_switch_leaves_the_dataset_out() -> None:
    settings = {"trigger_word": "secret", "preview_prompts": ("hidden",), "preview_negative_prompt": "hidden"}
    open_text, private_text = (
        json.dumps(make(private_metadata=switch, **settings), ensure_ascii=False) for switch in (False, True)
    )
    assert all(word in open_text for word in PRIVATE_WORDS[:7])
    assert [word for word in PRIVATE_WORDS if word in private_text] == []
    # What kohya keeps even without metadata, and what hosts need to tell the family.
    kept = {
        "ss_v2",
        "ss_base_model_version",
        "ss_network_module",
        "ss_network_dim",
        "ss_network_alpha",
        "ss_output_name",
        "modelspec.architecture",
    }
    assert kept <= make(private_metadata=True, **settings).keys()


def test_private_use_leaves_the_dataset_out_and_says_so() -> None:
    values = make(private_use=True, trigger_word="secret")
    assert [word for word in PRIVATE_WORDS if word in json.dumps(values, ensure_ascii=False)] == []
    assert values["modelspec.usage_hint"] == "Private use: please don't share."
    assert values["modelspec.license"] == "Private use only, not for sharing"
    assert "modelspec.usage_hint" not in make(private_metadata=True)


def test_block_ranks_by_the_names_of_kohya() -> None:
    """12 + 1 + 12 numbers; for SDXL 9 + 3 + 9 and one more at each end, as its scripts count them."""
    settings: dict[str, Any] = {"rank": 8, "alpha": 4.0, "middle_rank": 2, "output_alpha": 1.0, "text_encoder_rank": 3}
    made = make(**settings)
    assert (made["ss_network_dim"], made["ss_network_alpha"]) == ("8", "4.0")
    arguments = json.loads(made["ss_network_args"])
    assert arguments == {
        "block_dims": ",".join(["8"] * 12 + ["2"] + ["8"] * 12),
        "block_alphas": ",".join(["4"] * 12 + ["1"] + ["1"] * 12),
        "text_encoder_dim": "3",
        "text_encoder_alpha": "1.5",
    }
    arguments = json.loads(make("sdxl", **settings, train_text_encoder=False)["ss_network_args"])
    assert arguments["block_dims"] == ",".join(["8"] * 10 + ["2"] * 3 + ["8"] * 10)
    assert arguments["block_dims"].count(",") == 22
    assert "text_encoder_dim" not in arguments


def test_dropouts_and_bounded_norms() -> None:
    made = make(network_dropout=0.1, rank_dropout=0.2, module_dropout=0.3, scale_weight_norms=1.0)
    assert (made["ss_network_dropout"], made["ss_scale_weight_norms"]) == ("0.1", "1.0")
    assert json.loads(made["ss_network_args"]) == {"rank_dropout": "0.2", "module_dropout": "0.3"}
    assert make()["ss_scale_weight_norms"] == "None"


def test_a_continued_lora_has_its_own_ranks() -> None:
    one = make(network=NetworkFacts(continued_from="cat-v1", ranks=(4,), alphas=(2.0,)), rank=64, conv_rank=8)
    assert (one["ss_network_dim"], one["ss_network_alpha"], one["ss_continued_from"]) == ("4", "2.0", "cat-v1")
    assert "ss_network_args" not in one
    mixed = make(network=NetworkFacts(continued_from="cat-v1", ranks=(2, 4), alphas=(1.0,)))
    assert (mixed["ss_network_dim"], mixed["ss_network_alpha"]) == ("Dynamic", "1.0")
    assert "ss_continued_from" not in make()


SGM = "https://github.com/Stability-AI/generative-models"


# What kohya's scripts write for each family, and ModelSpec 1.0.1's architectures.
@pytest.mark.parametrize(
    ("family", "prediction", "base", "v2", "architecture", "implementation", "clip_skip"),
    [
        ("sd1", "epsilon", "sd_v1", "False", "stable-diffusion-v1", "diffusers", "2"),
        ("sd1", "v_prediction", "sd_v1_v", "False", "stable-diffusion-v1", "diffusers", "2"),
        ("sd1-inpaint", "epsilon", "sd_v1", "False", "stable-diffusion-v1", "diffusers", "2"),
        ("sd2", "epsilon", "sd_v2", "True", "stable-diffusion-v2-512", "diffusers", "None"),
        ("sd2", "v_prediction", "sd_v2_v", "True", "stable-diffusion-v2-768-v", "diffusers", "None"),
        ("sd2-inpaint", "epsilon", "sd_v2", "True", "stable-diffusion-v2-512", "diffusers", "None"),
        ("sdxl", "epsilon", "sdxl_base_v1-0", "False", "stable-diffusion-xl-v1-base", SGM, "None"),
        ("sdxl", "v_prediction", "sdxl_base_v1-0", "False", "stable-diffusion-xl-v1-base", SGM, "None"),
        ("sdxl-inpaint", "epsilon", "sdxl_base_v1-0", "False", "stable-diffusion-xl-v1-base", SGM, "None"),
    ],
)
def test_families(
    family: str, prediction: str, base: str, v2: str, architecture: str, implementation: str, clip_skip: str
) -> None:
    is_v = prediction == "v_prediction"
    values = make(family=family, prediction=prediction, zero=is_v, clip_skip=2)
    assert (values["ss_base_model_version"], values["ss_v2"], values["ss_clip_skip"]) == (base, v2, clip_skip)
    assert values["modelspec.architecture"] == f"{architecture}/lora"
    assert values["modelspec.implementation"] == implementation
    assert values["modelspec.prediction_type"] == ("v" if is_v else "epsilon")
    assert values.get("modelspec.encoder_layer") == ("2" if family.startswith("sd1") else None)
    assert values["ss_zero_terminal_snr"] == str(is_v)
