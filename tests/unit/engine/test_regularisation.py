"""Drawing regularisation pictures in this process, with the small demo model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lora_train.core import events as ev
from lora_train.core.config import TrainSettings
from lora_train.core.errors import ConfigError, ModelError
from lora_train.core.jobs import JobFolder, RequestedEnd, StatusReader
from lora_train.core.specs import RegularisationSpec
from lora_train.engine import regularisation
from lora_train.engine.reporting import Reporter

pytestmark = pytest.mark.compat

Draw = Callable[..., JobFolder]
PROMPT = "a green triangle on a gray background"
SETTINGS = TrainSettings(base_model="demo", device="cpu", cpu_threads=1, preview_steps=2, preview_seed=5)


@pytest.fixture
def draw(tmp_path: Path) -> Draw:
    """Draws into the folder of this name; the job, as it is when the worker ends."""

    def go(folder: str, count: int, *, stop_at: int | None = None, prompt: str = PROMPT, **settings: Any) -> JobFolder:
        job = JobFolder(tmp_path / "jobs" / f"{folder} {len(list(tmp_path.glob('jobs/*')))}")
        changed = TrainSettings(**{name: getattr(SETTINGS, name) for name in SETTINGS.__struct_fields__} | settings)
        spec = RegularisationSpec(folder=f"../../{folder}", prompt=prompt, count=count, settings=changed)
        job.create(spec)
        events = ev.EventWriter(job.events_path)
        events.write(ev.Started(pid=0))
        with Reporter(job, events) as report:
            phase = report.phase

            def watched(name: str, done: int = 0, total: int = 0) -> None:
                if done == stop_at:
                    report.request = "stop"
                phase(name, done, total)

            report.phase = watched  # type: ignore[method-assign]
            try:
                events.write(ev.Finished(result=regularisation.draw_regularisation(spec, job, report)))
            finally:
                events.close()
        return job

    return go


def drawn(folder: Path) -> dict[str, np.ndarray[Any, Any]]:
    return {path.name: np.asarray(Image.open(path)).astype(np.int64) for path in sorted(folder.glob("*.png"))}


def test_a_picture_depends_on_its_number_alone(draw: Draw, tmp_path: Path) -> None:
    """However many are drawn with it, and in however many jobs. Larger batches are summed up in another order."""
    status = StatusReader(draw("once", 10)).read()
    assert (status.state, status.phase_done, status.phase_total) == ("finished", 10, 10)
    for count in (3, 6, 1):
        draw("in parts", count)
    once, in_parts = drawn(tmp_path / "once"), drawn(tmp_path / "in parts")
    assert list(once) == list(in_parts) == [f"{number:04}.png" for number in range(1, 11)]
    for name, picture in once.items():
        assert np.abs(picture - in_parts[name]).max() <= 2
    # Of other seeds, far more differs.
    assert min(np.abs(once["0001.png"] - once[name]).mean() for name in list(once)[1:]) > 2
    draw("other seed", 1, preview_seed=6)
    assert np.abs(drawn(tmp_path / "other seed")["0001.png"] - once["0001.png"]).mean() > 2


def test_the_size_of_previews(draw: Draw, tmp_path: Path) -> None:
    draw("wide", 1, preview_size_px=96)
    assert drawn(tmp_path / "wide")["0001.png"].shape == (96, 96, 3)


def test_stop_keeps_what_is_drawn(draw: Draw, tmp_path: Path) -> None:
    with pytest.raises(RequestedEnd):
        draw("shape", 20, stop_at=8)
    folder = tmp_path / "shape"
    assert len(drawn(folder)) == 8
    assert {path.read_text(encoding="utf-8") for path in folder.glob("*.txt")} == {PROMPT}
    draw("shape", 1)
    assert list(drawn(folder))[-1] == "0009.png"


def test_numbers_that_are_not_finite_become_no_picture(
    draw: Draw, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    denoise = regularisation.denoise
    calls: list[int] = []

    def broken(*arguments: Any) -> torch.Tensor:
        calls.append(1)
        latents = denoise(*arguments)
        if len(calls) == 2:
            latents[1, 0, 0, 0] = float("nan")
        return latents

    monkeypatch.setattr(regularisation, "denoise", broken)
    with pytest.raises(ModelError, match="not finite"):
        draw("shape", 12)
    assert len(drawn(tmp_path / "shape")) == 8


def test_a_slow_device_is_told(draw: Draw, monkeypatch: pytest.MonkeyPatch) -> None:
    assert StatusReader(draw("quick", 1)).read().notes == []
    times = iter(range(0, 10_000, 80))  # 80 s between any two looks at the clock
    monkeypatch.setattr(regularisation, "time", SimpleNamespace(monotonic=lambda: float(next(times))))
    monkeypatch.setattr(regularisation, "pictures_together", lambda settings: 1)
    (note,) = StatusReader(draw("slow", 9)).read().notes
    assert note == "80 s a picture here, about 12 minutes in all; Stop keeps what is drawn."


def test_long_prompts_are_told(draw: Draw) -> None:
    (note,) = StatusReader(draw("shape", 1, prompt="a shape, " * 60, max_tokens=75)).read().notes
    told, _, numbers = note.partition("\n")
    assert told == "A caption or prompt has more tokens than are read: its end was cut off."
    assert " / 75: a shape, a shape, " in numbers


def test_what_can_not_be_drawn_leaves_no_folder(draw: Draw, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="clip_skip"):
        draw("shape", 1, clip_skip=12)
    assert not (tmp_path / "shape").exists()
