"""What the judge is told to do with a training, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lora_train.app import App
from lora_train.app.judge_planning import judge_spec
from lora_train.core import events as ev
from lora_train.core.assets import DEMO_PICTURES
from lora_train.core.errors import ConfigError, JobError
from lora_train.core.jobs import JobFolder
from lora_train.core.presets import DEMO_ORDINARY_PROMPTS, DEMO_PROMPTS, DEMO_SETTINGS
from lora_train.core.specs import BenchSpec, JudgeSpec
from lora_train.core.workspace import Workspace


@pytest.fixture
def app(tmp_path: Path) -> App:
    return App(Workspace(tmp_path / "workspace"))


def trained(app: App, **values: Any) -> JobFolder:
    """A training of the demo's pictures that told of three LoRAs, one of which was deleted."""
    job = app.plan_train(name="sks", images=DEMO_PICTURES, values={**DEMO_SETTINGS, **values}).job
    writer = ev.EventWriter(job.events_path)
    for step in (8, 16, 24):
        writer.write(ev.Saved(path=f"sks-{step}.safetensors", step=step, epoch=step // 8))
    writer.close()
    for step in (8, 24):
        (job.path / f"sks-{step}.safetensors").write_bytes(b"")
    return job


def test_all_loras_that_are_there_are_judged(app: App) -> None:
    train = trained(app)
    job = app.judging.plan(train, weights=(0.6, 1.0, 0.6), pictures=4)
    spec = job.read_spec()
    assert isinstance(spec, JudgeSpec)
    assert (job.path / spec.train).resolve() == train.path
    assert spec.loras == ("sks-8.safetensors", "sks-24.safetensors")
    assert spec.weights == (0.6, 1.0)
    assert spec.pictures == 4
    assert spec.prompts == DEMO_PROMPTS
    assert spec.ordinary_prompts == DEMO_ORDINARY_PROMPTS


def test_prompts_begin_with_the_trigger_word(app: App) -> None:
    spec = judge_spec(app.workspace, app.datasets, trained(app, trigger_word="star"))
    assert "star, white background" in spec.prompts
    assert "star, sks, white background" in spec.prompts


def test_all_that_is_wrong_is_told_at_once(app: App, tmp_path: Path) -> None:
    train = trained(app)
    with pytest.raises(ConfigError) as told:
        judge_spec(
            app.workspace, app.datasets, train, weights=(0.0, float("nan")), pictures=1, encoder=str(tmp_path / "none")
        )
    assert [problem.partition(":")[0] for problem in told.value.problems] == ["weights", "pictures", "encoder"]
    for encoder, why in ((tmp_path, "has no config.json"), (Path(__file__), "neither a folder nor an .onnx file")):
        with pytest.raises(ConfigError, match=why):
            judge_spec(app.workspace, app.datasets, train, encoder=str(encoder))
    with pytest.raises(ConfigError, match="give 1 to 16"):
        judge_spec(app.workspace, app.datasets, train, weights=())


def test_without_a_lora_there_is_nothing_to_judge(app: App, tmp_path: Path) -> None:
    train = app.plan_train(name="sks", images=DEMO_PICTURES, values=DEMO_SETTINGS).job
    with pytest.raises(JobError, match="has no LoRA yet"):
        judge_spec(app.workspace, app.datasets, train)
    other = JobFolder(tmp_path / "bench")
    spec = train.read_spec()
    assert not isinstance(spec, JudgeSpec)
    other.create(BenchSpec(settings=getattr(spec, "settings"), pictures=1, steps=1))  # noqa: B009
    with pytest.raises(JobError, match="is not a training"):
        judge_spec(app.workspace, app.datasets, other)
