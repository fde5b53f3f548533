"""LoRAs for the small demo model that are good, or bad each in its own way: what a judge has to tell apart.

All are taught from the demo's pictures. `take` collects them in the folder of the good training, as if it had saved
them all, so that one judgement ranks them.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from lora_train.app.judge_planning import judge_spec
from lora_train.core import presets
from lora_train.core.assets import DEMO_PICTURES
from lora_train.core.jobs import JobFolder
from lora_train.core.judgement import FILE_NAME, Judged, Judgement

if TYPE_CHECKING:
    from lora_train.app import App

GOOD = "good"
BAD = ("still", "shuffled", "diverged", "overtrained", "copying")
KINDS = (GOOD, *BAD)

_CHANGES: dict[str, dict[str, Any]] = {
    GOOD: {"epochs": 30},
    "still": {"epochs": 1, "learning_rate": 0, "text_encoder_lr": 0},
    "shuffled": {"epochs": 20},
    "diverged": {"epochs": 6, "learning_rate": 0.1, "text_encoder_lr": 0.1},
    "overtrained": {"epochs": 25, "batch_size": 1, "learning_rate": 0.01, "text_encoder_lr": 0.01},
    "copying": {"epochs": 300, "batch_size": 1, "learning_rate": 0.008, "text_encoder_lr": 0.008},
}
"""240, 8, 160, 48, 400 and 300 steps."""


def plan(app: App, kind: str, seed: int, root: Path, **changes: Any) -> JobFolder:
    """The training that makes a LoRA of this kind; its pictures are put below `root`. `changes` are settings."""
    values = {
        **presets.DEMO_SETTINGS,
        "generate_previews": False,
        "cpu_threads": 1,
        "seed": seed,
        "repeats": 1,
        **_CHANGES[kind],
        **changes,
    }
    return app.plan_train(name=kind, images=_pictures(kind, seed, root / f"{kind}-{seed}"), values=values).job


def take(lora: Path, kind: str, train: JobFolder) -> str:
    """Put a LoRA beside those of the training `train` and return its name there, by which its kind is known."""
    name = f"{kind}.safetensors"
    shutil.copyfile(lora, train.path / name)
    return name


def _pictures(kind: str, seed: int, folder: Path) -> Path:
    if kind in (GOOD, "still", "diverged"):
        return DEMO_PICTURES
    if kind == "copying":
        folder.mkdir(parents=True)
        for file in sorted((DEMO_PICTURES / "1_sks").glob(f"sks_{seed:02}.*")):
            shutil.copyfile(file, folder / file.name)
        return folder
    leave_out = shutil.ignore_patterns("reg") if kind == "overtrained" else None
    shutil.copytree(DEMO_PICTURES, folder, ignore=leave_out)
    if kind == "shuffled":
        _shuffle_captions(folder, seed)
    return folder


def _shuffle_captions(folder: Path, seed: int) -> None:
    """Deal all captions out anew, those of the concept and ordinary ones alike."""
    files = sorted(folder.rglob("*.txt"))
    captions = [file.read_text(encoding="utf-8") for file in files]
    random.Random(seed).shuffle(captions)
    for file, caption in zip(files, captions, strict=True):
        file.write_text(caption, encoding="utf-8")


def train_and_judge(app: App, seed: int, root: Path, kinds: Sequence[str] = KINDS) -> dict[str, Judged]:
    """Train every kind with this seed, and judge all at weight 1 together, in this process. Rows by kind."""
    from lora_train import worker

    trains = {kind: plan(app, kind, seed, root) for kind in kinds}
    files: dict[str, str] = {}
    for kind, job in trains.items():
        assert worker.main([str(job.path)]) == 0, job.log_tail(20)
        files[kind] = take(next(job.path.glob("*.safetensors")), kind, trains[GOOD])
    spec = judge_spec(app.workspace, app.datasets, trains[GOOD], weights=(1.0,))
    judging = JobFolder(app.workspace.new_job_dir("judge"))
    judging.create(msgspec.structs.replace(spec, loras=tuple(files.values())))
    assert worker.main([str(judging.path)]) == 0, judging.log_tail(20)
    judgement = msgspec.json.decode((trains[GOOD].path / FILE_NAME).read_bytes(), type=Judgement)
    return {row.lora.removesuffix(".safetensors"): row for row in judgement.rows}
