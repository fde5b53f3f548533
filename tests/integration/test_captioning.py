"""Captioning as a person starts it: a job in a worker process of its own, with a tagger and a BLIP."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lora_train.core.caption_settings import CaptionSettings
from lora_train.core.jobs import JobFolder, StatusReader
from lora_train.core.specs import CaptionPlan, CaptionSpec
from lora_train.data.captioning import Change, read_changes
from lora_train.data.captions import read_caption
from lora_train.launch import launcher

WAIT_S = 300


class Version:
    """A trained set of one-coloured pictures, and a captioning job for it."""

    def __init__(self, root: Path) -> None:
        self.processed = root / "dataset" / "processed"
        self.job = JobFolder(root / "jobs" / "caption")
        (self.processed / "4_rose").mkdir(parents=True)
        self.job.path.mkdir(parents=True)

    def put(self, name: str, colour: str, caption: str = "") -> None:
        path = self.processed / "4_rose" / name
        Image.new("RGB", (64, 64), colour).save(path)
        path.with_suffix(".txt").write_text(caption, encoding="utf-8")

    def start(self, plan: CaptionPlan) -> Any:
        self.job.create(CaptionSpec(dataset="../../dataset", trash="../../trash", plan=plan, concept="rose"))
        return launcher.start_worker(self.job)

    def captions(self) -> dict[str, str]:
        return {path.name: read_caption(path) for path in sorted(self.processed.rglob("*.png"))}


@pytest.fixture
def version(tmp_path: Path) -> Version:
    return Version(tmp_path)


@pytest.fixture
def tagger(taggers: Any, tmp_path: Path) -> str:
    return str(taggers.make_colour_tagger(tmp_path / "タガー"))


def test_a_job_from_start_to_end(version: Version, tagger: str) -> None:
    version.put("赤.png", "red", "rose")
    version.put("sky.png", "blue", "by hand")
    version.put("black.png", "black")
    plan = CaptionPlan(wd14=tagger, settings=CaptionSettings(policy="prepend", wd14_threshold=0.4, device="cpu"))
    assert version.start(plan).wait(WAIT_S) == 0
    status = StatusReader(version.job).read()
    assert (status.state, status.result) == ("finished", {"captions": 3, "kept": 0})
    assert (status.phase, status.phase_done, status.phase_total) == ("writing captions", 3, 3)
    expected = {"black.png": ">_<", "sky.png": "by hand, blue sky, >_<", "赤.png": "rose, red rose, rose (ruby), >_<"}
    assert version.captions() == expected
    assert read_changes(version.job)["4_rose/sky.png"] == Change("by hand", expected["sky.png"])


def test_a_damaged_model_is_told_and_changes_nothing(version: Version, tagger: str) -> None:
    version.put("a.png", "red", "by hand")
    (Path(tagger) / "model.onnx").write_bytes(b"<html>")
    plan = CaptionPlan(wd14=tagger, settings=CaptionSettings(policy="overwrite"))
    assert version.start(plan).wait(WAIT_S) == 1
    status = StatusReader(version.job).read()
    assert (status.state, status.error) == ("failed", "ModelError")
    assert "model.onnx can't be loaded" in status.message
    assert version.captions() == {"a.png": "by hand"}


def test_a_sentence_then_tags(version: Version, tagger: str, small_blip: Path) -> None:
    version.put("a.png", "red")
    settings = CaptionSettings(blip_prompt="A photo of", blip_min_length=2, blip_max_length=2)
    assert version.start(CaptionPlan(blip=str(small_blip), wd14=tagger, settings=settings)).wait(WAIT_S) == 0
    sentence, *tags = version.captions()["a.png"].split(", ")
    assert sentence.startswith("A photo of ")
    assert len(sentence.split(" ")) == 5
    assert tags == ["red rose", "rose (ruby)", ">_<"]


def test_a_stop_that_waits_is_heeded(version: Version, tagger: str) -> None:
    version.put("a.png", "red")
    version.job.request("stop")
    assert version.start(CaptionPlan(wd14=tagger)).wait(WAIT_S) == 0
    assert StatusReader(version.job).read().state == "stopped"
    assert version.captions() == {"a.png": ""}


def test_the_worker_needs_no_torch_for_a_tagger(version: Version, tagger: str) -> None:
    """Its import takes seconds and hundreds of megabytes."""
    version.put("a.png", "red")
    plan = CaptionPlan(wd14=tagger)
    version.job.create(CaptionSpec(dataset="../../dataset", trash="../../trash", plan=plan))
    code = (
        "import sys; from lora_train import worker; code = worker.main(sys.argv[1:]); "
        "print(code, 'torch' in sys.modules, 'transformers' in sys.modules)"
    )
    command = [sys.executable, "-c", code, str(version.job.path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=WAIT_S)
    assert done.stdout.split() == ["0", "False", "False"]
