"""A workspace that liasece's sd-webui-train-tools made, read as it is; its files are never changed.

It has the same folders as ours, without `project.json`, `version.json` and `job.json`. A version's settings stand in
`dataset_config.json`, `train_config.json` and `preview_config.json`, with the ids of the page's controls as keys; a
train's folder has the LoRAs alone, and is called by its settings.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from lora_train.core.caption_settings import CaptionSettings
from lora_train.core.config import TrainSettings
from lora_train.core.dataset_settings import DatasetSettings
from lora_train.core.errors import ModelError
from lora_train.core.files import DAMAGED_JSON
from lora_train.core.grid_settings import GridSettings
from lora_train.core.host import BaseModelChoice
from lora_train.core.jobs import JobStatus
from lora_train.core.sd_script_args import known_part
from lora_train.core.settings import check_settings
from lora_train.core.tensorfiles import read_tensor_file

_CONFIGS = ("dataset_config.json", "train_config.json", "preview_config.json")

_DATASET = {
    "process_width": "width_px",
    "process_height": "height_px",
    "preprocess_txt_action": "caption_action",
    "process_flip": "flip",
    "process_split": "split",
    "process_split_threshold": "split_threshold",
    "process_overlap_ratio": "split_overlap",
    "process_focal_crop": "focal_crop",
    "process_focal_crop_face_weight": "focal_face_weight",
    "process_focal_crop_entropy_weight": "focal_entropy_weight",
    "process_focal_crop_edges_weight": "focal_edges_weight",
    "process_focal_crop_debug": "focal_debug",
    "process_multicrop": "multicrop",
    "process_multicrop_mindim": "multicrop_min_side_px",
    "process_multicrop_maxdim": "multicrop_max_side_px",
    "process_multicrop_minarea": "multicrop_min_area_px",
    "process_multicrop_maxarea": "multicrop_max_area_px",
    "process_multicrop_objective": "multicrop_objective",
    "process_multicrop_threshold": "multicrop_threshold",
}
_CAPTION = {"process_caption": "use_blip", "process_caption_deepbooru": "use_deepbooru"}
_TRAIN = {
    "train_num_repetitions": "repeats",
    "train_clip_skip": "clip_skip",
    "train_save_every_n_epochs": "save_every_epochs",
    "train_batch_size": "batch_size",
    "train_num_epochs": "epochs",
    "train_learning_rate": "learning_rate",
    "train_net_dim": "rank",
    "train_alpha": "alpha",
    "train_optimizer_type": "optimizer",
    "sd_script_args": "sd_script_args",
    "train_mixed_precision": "precision",
    "train_finish_generate_all_checkpoint_preview": "generate_previews",
    "preview_txt2img_prompt": "preview_prompts",
    "preview_txt2img_negative_prompt": "preview_negative_prompt",
    "preview_sampling_method": "preview_sampler",
    "preview_sampling_steps": "preview_steps",
    "preview_cfg_scale": "preview_cfg_scale",
    "preview_seed": "preview_seed",
    "preview_lora_multiplier": "preview_weights",
    "preview_width": "preview_size_px",
}
_PREVIEW = {
    "preview_width": "width_px",
    "preview_height": "height_px",
    "preview_batch_count": "batch_count",
    "preview_batch_size": "batch_size",
    "preview_include_sub_img": "include_sub_pictures",
}
_PREVIEW_LISTS = {
    "preview_txt2img_prompt": "prompt",
    "preview_txt2img_negative_prompt": "negative_prompt",
    "preview_sampling_method": "samplers",
    "preview_sampling_steps": "steps",
    "preview_cfg_scale": "cfg_scales",
    "preview_seed": "seeds",
    "preview_lora_multiplier": "weights",
}
"""Those that the previews of a training take too: what is wrong with them is told there."""
_ONE_OF_MANY = {
    "train_learning_rate": "Learning rate",
    "train_optimizer_type": "Optimizer type",
    "preview_sampling_method": "Preview sampler",
    "preview_sampling_steps": "Preview sampling steps",
    "preview_cfg_scale": "Preview CFG scale",
    "preview_seed": "Preview seed",
}
"""Lists there, one value here: the first."""

_PROCESSED = re.compile(r"\d{5,}-\d+-(.+)", re.DOTALL)
"""Number of the picture, number of its part (a flipped copy is one), name of its original."""
_TRAIN_NAME = re.compile(
    r"(.+)-bs-(?P<batch>\d+)-ep-(?P<epochs>\d+)-op-(?P<optimizer>.+)"
    r"-lr-(?P<rate>[0-9e_-]+)-net-(?P<rank>\d+)-ap-(?P<alpha>[0-9_]+)"
)
_EPOCH = re.compile(r"-(\d{6})$")
_MOST_DIGITS = 9
_HASH = re.compile(r"\s*\[[0-9a-fA-F]+\]$")


class OriginalSettings(msgspec.Struct, frozen=True):
    """The settings of a version, by our names: those that were saved and that we know."""

    train: dict[str, object]
    dataset: dict[str, object]
    caption: dict[str, object]
    preview: dict[str, object]
    base_model: str
    """The title of a checkpoint in a WebUI, which may end in ` [hash]`; "" where none was chosen."""
    notes: list[str]
    """A sentence for everything that could not be taken over."""


class TrainFacts(NamedTuple):
    """What the name of a train's folder tells."""

    base_model: str
    summary: str
    epochs: int


def read_settings(version_dir: Path) -> OriginalSettings | None:
    """The settings in the original's files; None where there are none. Raises OSError when one can't be read.

    Whoever changes something of it makes a copy: files that did not change are not read again.
    """
    paths = [path for path in (version_dir / name for name in _CONFIGS) if path.is_file()]
    return _read_settings(tuple((path, path.stat().st_mtime_ns) for path in paths)) if paths else None


@lru_cache(maxsize=1000)
def _read_settings(files: tuple[tuple[Path, int], ...]) -> OriginalSettings:
    """Of files and the times of their last changes."""
    notes: list[str] = []
    values: dict[str, Any] = {}
    for path, _ in files:
        try:
            values |= msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
        except DAMAGED_JSON:
            notes.append(f"{path.name} is damaged; its settings are the usual ones.")
    title = values.get("train_base_model")
    preview = _taken_over(values, _PREVIEW_LISTS, GridSettings(), [])
    preview |= _taken_over(values, _PREVIEW, GridSettings(), notes)
    _prepare(values, notes)
    return OriginalSettings(
        train=_taken_over(values, _TRAIN, TrainSettings(), notes),
        dataset=_taken_over(values, _DATASET, DatasetSettings(), notes),
        caption=_taken_over(values, _CAPTION, CaptionSettings(), notes),
        preview=preview,
        base_model=title if isinstance(title, str) else "",
        notes=notes,
    )


def _prepare(values: dict[str, Any], notes: list[str]) -> None:
    """Bring the values into our form, and drop those that have none here."""
    for name, label in _ONE_OF_MANY.items():
        if name in values:
            values[name] = _first(values[name], label, notes)
    if isinstance(repeats := values.get("train_num_repetitions"), int | float) and repeats < 0:
        values["train_num_repetitions"] = -1
    if values.get("preview_seed") in (-1, "-1", ""):  # another one each time
        del values["preview_seed"]
    if isinstance(prompt := values.get("preview_txt2img_prompt"), str):  # one prompt there, one on each line here
        values["preview_txt2img_prompt"] = " ".join(prompt.split())
    if values.get("preview_width") != values.get("preview_height"):
        notes.append("Preview size: previews are square here; the usual size is taken.")
        values.pop("preview_width", None)
    if isinstance(arguments := values.get("sd_script_args"), str):
        values["sd_script_args"], problems = known_part(arguments)
        notes += [f"{problem}." for problem in problems]


def _first(value: Any, label: str, notes: list[str]) -> Any:
    """The first of a list, or of a comma list."""
    parts: Sequence[Any] = [part.strip() for part in value.split(",")] if isinstance(value, str) else value
    if not isinstance(parts, list) or not parts:
        return value
    if len(parts) > 1:
        notes.append(f"{label}: of {', '.join(map(str, parts))}, the first is taken.")
    return parts[0]


def _taken_over(
    values: Mapping[str, Any], names: Mapping[str, str], usual: msgspec.Struct, notes: list[str]
) -> dict[str, object]:
    """The values that the schema allows, by our names; the others are told."""
    ours = {name: values[theirs] for theirs, name in names.items() if theirs in values}
    settings, problems = check_settings(ours, usual)
    notes += [f"{problem.rstrip('.')}; the usual value is taken." for problem in problems]
    wrong = {problem.partition(":")[0].partition(" ")[0] for problem in problems}
    found = msgspec.structs.asdict(settings)
    return {name: found[name] for name in ours if name not in wrong and found[name] != getattr(usual, name)}


def path_of_title(title: str, choices: Sequence[BaseModelChoice]) -> str:
    """The checkpoint of this title among those that a host offers; "" where none, or more than one, suits.

    A WebUI's title is the name, with a hash behind it once that is known, and the name has sub-folders in it.
    """
    wanted = _plain(title)
    by_name = {choice.path for choice in choices if _plain(choice.name) == wanted}
    by_file = {
        choice.path for choice in choices if wanted in (_plain(Path(choice.path).name), _plain(Path(choice.path).stem))
    }
    return next((found.pop() for found in (by_name, by_file) if len(found) == 1), "")


def _plain(title: str) -> str:
    return _HASH.sub("", title.strip()).replace("\\", "/").strip("/").casefold()


def read_selection(projects_dir: Path) -> tuple[str, str]:
    """The folders of the project and version that were looked at last; empty where that is not known."""
    try:
        saved = msgspec.json.decode((projects_dir / "train_tools_config.json").read_bytes(), type=dict[str, Any])
    except (OSError, *DAMAGED_JSON):
        return "", ""
    project, version = saved.get("select_project"), saved.get("select_version")
    return project if isinstance(project, str) else "", version if isinstance(version, str) else ""


def origin_stem(stem: str) -> str:
    """The stem (NFC) of the original that a processed picture `NNNNN-S-ORIGINALNAME` was made from; "" for others."""
    match = _PROCESSED.fullmatch(stem)
    return unicodedata.normalize("NFC", match[1]) if match else ""


def finished_train(train_dir: Path) -> JobStatus | None:
    """What a train's folder without `job.json` tells by its LoRAs; None for any other folder."""
    if (train_dir / "job.json").exists() or not train_dir.is_dir():
        return None
    files = [path for path in train_dir.iterdir() if path.suffix == ".safetensors" and path.is_file()]
    if not files:
        return None
    told = {path: path.stat() for path in files}
    saves = {path: _read_save(path, told[path].st_mtime_ns) for path in files}
    epochs = read_facts(train_dir.name).epochs
    epoch_of = {path: _numbered(path) or epochs or saves[path][1] for path in files}
    files.sort(key=lambda path: (_numbered(path) == 0, epoch_of[path], told[path].st_mtime, path.name))
    last = files[-1]
    return JobStatus(
        state="finished",
        job_dir=str(train_dir),
        step=saves[last][0],
        total_steps=saves[last][0],
        epoch=epoch_of[last],
        epochs=epoch_of[last],
        saved=[path.name for path in files],
        step_of_file={path.name: saves[path][0] for path in files},
        epoch_of_file={path.name: epoch_of[path] for path in files},
        last_event_t=max(stat.st_mtime for stat in told.values()),
    )


def _numbered(path: Path) -> int:
    """The epoch in `NAME-000002.safetensors`; 0 for the last file, which has none."""
    match = _EPOCH.search(path.stem)
    return int(match[1]) if match else 0


@lru_cache(maxsize=10_000)
def _read_save(lora: Path, mtime_ns: int) -> tuple[int, int]:  # noqa: ARG001  (a new time is a new file)
    """Step and epoch as kohya's metadata tells them, 0 where it doesn't."""
    try:
        metadata = read_tensor_file(lora).metadata
    except (ModelError, OSError):  # damaged: it is listed all the same
        return 0, 0
    step, epoch = (metadata.get(name, "") for name in ("ss_steps", "ss_epoch"))
    return _number(step), _number(epoch)


def _number(text: str) -> int:
    return int(text) if text.isdecimal() and len(text) <= _MOST_DIGITS else 0


def read_facts(train_name: str) -> TrainFacts:
    """From `BASE-bs-1-ep-20-op-Lion-lr-0_0001-net-128-ap-64`, in which points are written as `_`."""
    match = _TRAIN_NAME.fullmatch(train_name)
    if match is None:
        return TrainFacts("", "", 0)
    summary = (
        f"{match['optimizer']} {match['rate'].replace('_', '.')} · rank {match['rank']} · batch {match['batch']} · "
        f"epochs {match['epochs']}"
    )
    return TrainFacts(match[1], summary, int(match["epochs"]))
