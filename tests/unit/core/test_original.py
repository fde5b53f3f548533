"""What the original extension left on the disk, in our words."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from lora_train.core.host import BaseModelChoice
from lora_train.core.original import (
    OriginalSettings,
    finished_train,
    origin_stem,
    path_of_title,
    read_facts,
    read_selection,
    read_settings,
)

# Every id with the value that its page shows at the start.
DATASET: dict[str, Any] = {
    "process_width": 512,
    "process_height": 512,
    "preprocess_txt_action": "ignore",
    "process_flip": True,
    "process_split": False,
    "process_split_threshold": 0.5,
    "process_overlap_ratio": 0.2,
    "process_focal_crop": False,
    "process_focal_crop_face_weight": 0.9,
    "process_focal_crop_entropy_weight": 0.15,
    "process_focal_crop_edges_weight": 0.5,
    "process_focal_crop_debug": False,
    "process_multicrop": False,
    "process_multicrop_mindim": 384,
    "process_multicrop_maxdim": 768,
    "process_multicrop_minarea": 4096,
    "process_multicrop_maxarea": 409600,
    "process_multicrop_objective": "Maximize area",
    "process_multicrop_threshold": 0.1,
    "process_caption": False,
    "process_caption_deepbooru": False,
    "train_num_repetitions": -1,
}
TRAIN: dict[str, Any] = {
    "train_base_model": "v1-5-pruned-emaonly.safetensors [6ce0161689]",
    "train_base_on_sd_v2": False,
    "use_sdxl": False,
    "train_xformers": True,
    "train_clip_skip": 2,
    "train_save_every_n_epochs": 2,
    "train_batch_size": 1,
    "train_num_epochs": 20,
    "train_learning_rate": "0.0001",
    "sd_script_args": "",
    "train_net_dim": 128,
    "train_alpha": 64,
    "train_optimizer_type": ["Lion"],
    "train_mixed_precision": "fp16",
    "train_finish_generate_all_checkpoint_preview": True,
}
PREVIEW: dict[str, Any] = {
    "preview_txt2img_prompt": "best quality,Amazing,\nfinely detail",
    "preview_txt2img_negative_prompt": "low quality",
    "preview_width": 512,
    "preview_height": 512,
    "preview_batch_count": 1,
    "preview_batch_size": 1,
    "preview_sampling_method": ["Euler a"],
    "preview_sampling_steps": "28",
    "preview_cfg_scale": "10",
    "preview_seed": "-1",
    "preview_lora_multiplier": "0.6,0.7,0.8,1",
    "preview_include_sub_img": False,
}


def read(folder: Path, **changes: Any) -> OriginalSettings:
    folder.mkdir(parents=True, exist_ok=True)
    for name, values in (("dataset", DATASET), ("train", TRAIN), ("preview", PREVIEW)):
        mine = {key: changes.get(key, value) for key, value in values.items()}
        (folder / f"{name}_config.json").write_text(json.dumps(mine, indent="\t"), encoding="utf-8")
    found = read_settings(folder)
    assert found is not None
    return found


def test_the_settings_at_its_start(tmp_path: Path) -> None:
    found = read(tmp_path)
    assert found.notes == []
    assert found.base_model == "v1-5-pruned-emaonly.safetensors [6ce0161689]"
    assert found.dataset == {"flip": True, "caption_action": "ignore"}, "the others are our defaults too"
    assert found.caption == {}
    assert found.train == {
        "clip_skip": 2,
        "epochs": 20,
        "rank": 128,
        "alpha": 64.0,
        "optimizer": "Lion",
        "precision": "fp16",
        "preview_prompts": ("best quality,Amazing, finely detail",),
        "preview_negative_prompt": "low quality",
        "preview_steps": 28,
        "preview_cfg_scale": 10.0,
        "preview_weights": (0.6, 0.7, 0.8, 1.0),
        "preview_size_px": 512,
    }
    assert found.preview == {
        "prompt": "best quality,Amazing,\nfinely detail",
        "negative_prompt": "low quality",
        "width_px": 512,
        "height_px": 512,
        "cfg_scales": (10.0,),
    }, "the others are our defaults too"


def test_lists_of_previews_stay_lists(tmp_path: Path) -> None:
    """The previews of a training take the first value, and say so; the preview panel takes all."""
    found = read(
        tmp_path,
        preview_sampling_method=["DPM++ 2M SDE Karras", "DDIM"],
        preview_sampling_steps="20, 30",
        preview_seed="-1,7",
        preview_width=640,
        preview_include_sub_img=True,
        preview_batch_size=101,
    )
    assert (
        found.preview.items()
        >= {
            "samplers": ("DPM++ 2M SDE Karras", "DDIM"),
            "steps": (20, 30),
            "seeds": (-1, 7),
            "width_px": 640,
            "height_px": 512,
            "include_sub_pictures": True,
        }.items()
    )
    assert "batch_size" not in found.preview
    assert [note for note in found.notes if note.startswith("batch_size (Batch size): 101 is not")]


def test_every_control_is_taken_over(tmp_path: Path) -> None:
    """Numbers may be written as its sliders write them, with a point."""
    found = read(
        tmp_path,
        process_width=640.0,
        process_height=960,
        preprocess_txt_action="prepend",
        process_split=True,
        process_split_threshold=0.6,
        process_overlap_ratio=0.3,
        process_focal_crop=True,
        process_focal_crop_face_weight=0.1,
        process_focal_crop_entropy_weight=0.2,
        process_focal_crop_edges_weight=0.3,
        process_focal_crop_debug=True,
        process_multicrop=True,
        process_multicrop_mindim=512,
        process_multicrop_maxdim=1024,
        process_multicrop_minarea=65536,
        process_multicrop_maxarea=640000,
        process_multicrop_objective="Minimize error",
        process_multicrop_threshold=0.2,
        process_caption=True,
        process_caption_deepbooru=True,
        train_num_repetitions=7,
        train_save_every_n_epochs=5,
        train_batch_size=4.0,
        train_learning_rate="0.0002",
        train_optimizer_type="AdamW",
        train_mixed_precision="bf16",
        train_finish_generate_all_checkpoint_preview=False,
        preview_seed="42",
        preview_sampling_method=["DDIM"],
    )
    assert found.notes == []
    assert found.dataset == {
        "width_px": 640,
        "height_px": 960,
        "caption_action": "prepend",
        "flip": True,
        "split": True,
        "split_threshold": 0.6,
        "split_overlap": 0.3,
        "focal_crop": True,
        "focal_face_weight": 0.1,
        "focal_entropy_weight": 0.2,
        "focal_edges_weight": 0.3,
        "focal_debug": True,
        "multicrop": True,
        "multicrop_min_side_px": 512,
        "multicrop_max_side_px": 1024,
        "multicrop_min_area_px": 65536,
        "multicrop_max_area_px": 640000,
        "multicrop_objective": "Minimize error",
        "multicrop_threshold": 0.2,
    }
    assert found.caption == {"use_blip": True, "use_deepbooru": True}
    wanted = {"repeats": 7, "save_every_epochs": 5, "batch_size": 4, "learning_rate": 0.0002, "precision": "bf16"}
    assert found.train.items() >= {**wanted, "generate_previews": False, "preview_seed": 42}.items()
    assert found.train["preview_sampler"] == "DDIM"
    assert "optimizer" not in found.train, "AdamW is our default"


@pytest.mark.parametrize(
    "name", ["Adam", "AdamW8bit", "Lion", "SGDNesterov", "SGDNesterov8bit", "DAdaptation", "AdaFactor"]
)
def test_every_optimizer_of_the_original_is_taken_over(tmp_path: Path, name: str) -> None:
    found = read(tmp_path, train_optimizer_type=[name])
    assert found.train["optimizer"] == name
    assert found.notes == []


def test_arguments_for_sd_script_are_taken_over_as_far_as_they_are_known(tmp_path: Path) -> None:
    """The example of its page, and one that it had and we have not."""
    text = '--lr_scheduler="constant_with_warmup" --max_grad_norm=0.0'
    found = read(tmp_path, sd_script_args=f"{text} --vae_batch_size 4")
    assert found.train["sd_script_args"] == "--lr_scheduler constant_with_warmup --max_grad_norm 0.0"
    assert found.notes == ["sd_script_args: --vae_batch_size is not known here."]


@pytest.mark.parametrize(
    ("name", "value", "note"),
    [
        ("train_learning_rate", "0.0001,0.0002", "Learning rate: of 0.0001, 0.0002, the first is taken."),
        ("train_optimizer_type", ["Lion", "AdamW"], "Optimizer type: of Lion, AdamW, the first is taken."),
        ("train_optimizer_type", ["Sophia"], "optimizer (Optimizer type): 'Sophia' is not one of AdamW"),
        ("train_optimizer_type", [], "optimizer (Optimizer type): [] is not one of AdamW"),
        (
            "process_width",
            9999,
            "width_px (Width): 9999 is not a whole number from 64 to 2048; the usual value is taken.",
        ),
        (
            "process_width",
            "wide",
            "width_px (Width): 'wide' is not a whole number from 64 to 2048; the usual value is taken.",
        ),
        (
            "process_width",
            None,
            "width_px (Width): None is not a whole number from 64 to 2048; the usual value is taken.",
        ),
        ("process_width", {"a": [1]}, "width_px (Width): {'a': [1]} is not a whole number"),
        (
            "train_clip_skip",
            0,
            "clip_skip (Clip skip): 0 is not a whole number from 1 to 12; the usual value is taken.",
        ),
        ("train_num_repetitions", 0, "repeats (Train number of repetitions): 0 would train nothing"),
        ("preview_width", 768, "Preview size: previews are square here; the usual size is taken."),
        ("preview_sampling_method", ["Restart"], "preview_sampler (Preview sampler): 'Restart' is not one of DDIM"),
        ("preview_lora_multiplier", "", "Preview LoRA weights: type a comma list of numbers"),
        ("sd_script_args", "--seed=1 --xformers", "sd_script_args: --xformers is not known here."),
        ("sd_script_args", '--lr_scheduler="constant', "sd_script_args: a quotation mark is not closed."),
    ],
)
def test_what_can_not_be_taken_over_is_told(tmp_path: Path, name: str, value: Any, note: str) -> None:
    found = read(tmp_path, **{name: value})
    assert len(found.notes) == 1, found.notes
    assert found.notes[0].startswith(note)
    assert found.notes[0].endswith(".")
    assert "repeats" not in found.train
    assert found.dataset["flip"] is True, "the others are taken over"


def test_files_that_are_missing_or_damaged(tmp_path: Path) -> None:
    assert read_settings(tmp_path) is None
    (tmp_path / "train_config.json").write_text(json.dumps(TRAIN), encoding="utf-8")
    (tmp_path / "dataset_config.json").write_bytes(b'{"process_width": ')
    (tmp_path / "preview_config.json").write_bytes(b'"\xff"')
    found = read_settings(tmp_path)
    assert found is not None
    assert (found.train["rank"], found.dataset) == (128, {})
    assert found.notes == [
        f"{name}_config.json is damaged; its settings are the usual ones." for name in ("dataset", "preview")
    ]


@pytest.mark.parametrize(
    ("title", "path"),
    [
        ("a.safetensors", "/m/a.safetensors"),
        ("a.safetensors [6ce0161689]", "/m/a.safetensors"),
        ("A.safetensors", "/m/a.safetensors"),
        ("a", "/m/a.safetensors"),
        ("sub\\b.ckpt [0123abcdef]", "/m/sub/b.ckpt"),
        ("b.ckpt", "/m/sub/b.ckpt"),
        ("one/twin.safetensors", "/m/one/twin.safetensors"),
        ("twin.safetensors [00ff00ff00]", ""),
        ("none.safetensors", ""),
        ("", ""),
    ],
)
def test_titles_of_checkpoints(title: str, path: str) -> None:
    names = ("a.safetensors", "sub/b.ckpt", "one/twin.safetensors", "two/twin.safetensors")
    assert path_of_title(title, [BaseModelChoice(name, f"/m/{name}") for name in names]) == path


@pytest.mark.parametrize(
    ("stem", "origin"),
    [
        ("00003-0-猫", "猫"),
        ("00003-1-猫", "猫"),
        ("123456-12-a-b", "a-b"),
        ("00003-0-00001-0-x", "00001-0-x"),
        ("00003-0-か\u3099", "が"),
        ("0003-0-x", ""),
        ("00003-x", ""),
        ("x", ""),
    ],
)
def test_originals_of_processed_pictures(stem: str, origin: str) -> None:
    assert origin_stem(stem) == origin


def test_last_selection(tmp_path: Path) -> None:
    assert read_selection(tmp_path) == ("", "")
    path = tmp_path / "train_tools_config.json"
    path.write_text('{"select_project": "猫", "select_version": null}', encoding="utf-8")
    assert read_selection(tmp_path) == ("猫", "")
    path.write_bytes(b"[")
    assert read_selection(tmp_path) == ("", "")


# --- trains ---

NAME = "v1-5-pruned-emaonly-bs-10-ep-10-op-Lion-lr-0_0001-net-128-ap-64"


def lora(path: Path, **metadata: str) -> None:
    text = json.dumps({"__metadata__": metadata, "a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(4))


@pytest.mark.parametrize(
    ("name", "facts"),
    [
        (NAME, ("v1-5-pruned-emaonly", "Lion 0.0001 · rank 128 · batch 10 · epochs 10", 10)),
        (
            "a-bs-2-bs-1-ep-3-op-AdamW8bit-lr-1e-05-net-8-ap-0_5",
            ("a-bs-2", "AdamW8bit 1e-05 · rank 8 · batch 1 · epochs 3", 3),
        ),
        ("mine", ("", "", 0)),
    ],
)
def test_what_the_name_of_a_train_tells(name: str, facts: tuple[str, str, int]) -> None:
    assert read_facts(name) == facts


def test_a_train_is_known_by_its_loras(tmp_path: Path) -> None:
    train = tmp_path / NAME
    assert finished_train(train) is None
    for number in (8, 2, 4):
        lora(train / f"猫-v1-{number:06}.safetensors", ss_steps=str(number * 51), ss_epoch=str(number))
    lora(train / "猫-v1.safetensors", ss_steps="510", ss_epoch="10")
    (train / "猫-v1.txt").write_text("cat 10", encoding="utf-8")
    (train / "猫-v1" / "images").mkdir(parents=True)
    status = finished_train(train)
    assert status is not None
    assert status.state == "finished"
    assert status.saved == [*(f"猫-v1-{number:06}.safetensors" for number in (2, 4, 8)), "猫-v1.safetensors"]
    assert [*status.epoch_of_file.values()] == [2, 4, 8, 10]
    assert [*status.step_of_file.values()] == [102, 204, 408, 510]
    assert (status.step, status.epoch, status.epochs) == (510, 10, 10)
    (train / "job.json").write_bytes(b"{}")
    assert finished_train(train) is None, "it is one of ours"


def test_a_damaged_lora_hides_no_other(tmp_path: Path) -> None:
    train = tmp_path / "renamed"
    lora(train / "a.safetensors", ss_epoch="7", ss_steps="many")
    (train / "a-000002.safetensors").write_bytes(b"damaged")
    status = finished_train(train)
    assert status is not None
    assert status.epoch_of_file == {"a-000002.safetensors": 2, "a.safetensors": 7}
    assert status.step_of_file == {"a-000002.safetensors": 0, "a.safetensors": 0}
