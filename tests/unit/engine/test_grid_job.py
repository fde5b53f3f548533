"""Grids in this process, with the small demo model: pictures, sheets, stop and go on, and what is broken."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from lora_train.app.grid_planning import plan_grid_job
from lora_train.core import events as ev
from lora_train.core.config import TrainSettings
from lora_train.core.errors import ConfigError, DeviceMemoryError, ModelError
from lora_train.core.grid_settings import GridSettings
from lora_train.core.grids import ALL_GRIDS_FILE, cells, grid_file
from lora_train.core.jobs import JobFolder, JobStatus, RequestedEnd, StatusReader
from lora_train.core.specs import GridSpec
from lora_train.core.tensorfiles import read_tensor_file
from lora_train.core.workspace import Workspace
from lora_train.engine import grid_job
from lora_train.engine.grid_job import draw_grid
from lora_train.engine.network_file import checked, named_parts, save_lora
from lora_train.engine.reporting import Reporter

pytestmark = pytest.mark.compat

GRID: dict[str, Any] = {"prompt": "a red circle", "steps": (3,), "seeds": (5,), "weights": (0, 1)}


@pytest.fixture
def loras(demo_model: Any, make_lora: Callable[..., Any], tmp_path: Path) -> list[Path]:
    """Two different LoRAs for the demo model, which changes nothing of the model itself."""
    paths = [tmp_path / "猫-000002.safetensors", tmp_path / "猫.safetensors"]
    for path, up in zip(paths, (0.05, 0.1), strict=True):
        network = make_lora(demo_model, up=up)
        save_lora(path, checked(named_parts(network), torch.float32), {"ss_output_name": path.stem})
    return paths


class Desk:
    """Plans and does grid jobs in one workspace."""

    def __init__(self, root: Path) -> None:
        self._workspace = Workspace(root / "workspace")

    def plan(self, loras: list[Path], *, vae: str = "", **grid: Any) -> JobFolder:
        own = TrainSettings(base_model="demo", device="cpu", cpu_threads=1)
        spec = plan_grid_job(self._workspace, loras, GridSettings(**{**GRID, **grid}), own, fallback_prompt="")
        settings = TrainSettings(base_model="demo", device="cpu", cpu_threads=1, vae=vae)
        job = JobFolder(self._workspace.new_job_dir("grid"))
        job.create(GridSpec(loras=spec.loras, grid=spec.grid, settings=settings))
        return job

    def run(self, job: JobFolder, *, stop_after_looks: int | None = None) -> JobStatus:
        """As the worker does it; the person asks to stop while the UNet looks for the so manieth time."""
        spec = job.read_spec()
        assert isinstance(spec, GridSpec)
        events = ev.EventWriter(job.events_path)
        events.write(ev.Started(pid=0))
        looks = 0
        with Reporter(job, events) as report:
            ask = report.end_if_asked

            def watched() -> None:
                nonlocal looks
                looks += 1
                if looks == stop_after_looks:
                    report.request = "stop"
                ask()

            report.end_if_asked = watched  # type: ignore[method-assign]
            try:
                events.write(ev.Finished(result=draw_grid(spec, job, report)))
            except RequestedEnd:
                events.write(ev.Stopped(step=0))
            finally:
                events.close()
        return StatusReader(job).read()


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def drawn(job: JobFolder) -> dict[str, np.ndarray[Any, Any]]:
    spec = job.read_spec()
    assert isinstance(spec, GridSpec)
    names = [name for cell in cells(spec) for name in cell.files]
    return {name: np.asarray(Image.open(job.path / name)).astype(int) for name in names if (job.path / name).is_file()}


def parameters(path: Path) -> str:
    with Image.open(path) as picture:
        return picture.info["parameters"]


def test_pictures_grids_and_events(desk: Desk, loras: list[Path]) -> None:
    """Seeds count up within a place; the same place of two LoRAs, or of weight 0, begins with the same noise."""
    prompt = "a (red:1.2) circle <lora:猫:0.5>"
    job = desk.plan(loras, prompt=prompt, samplers=("Euler a", "DPM++ 2M"), batch_count=2, batch_size=2)
    status = desk.run(job)
    assert (status.state, status.notes) == ("finished", [])
    pictures = drawn(job)
    assert len(pictures) == 2 * 2 * 2 * 4
    spec = job.read_spec()
    assert isinstance(spec, GridSpec)
    by_place = {(cell.lora, cell.sampler, cell.weight): [pictures[name] for name in cell.files] for cell in cells(spec)}
    for sampler in ("Euler a", "DPM++ 2M"):
        for first, second in zip(by_place["猫", sampler, 0.0], by_place["猫-000002", sampler, 0.0], strict=True):
            assert np.array_equal(first, second), "weight 0 is the base model alone"
        assert np.abs(by_place["猫", sampler, 1.0][0] - by_place["猫", sampler, 0.0][0]).mean() > 1
        assert np.abs(by_place["猫", sampler, 0.0][0] - by_place["猫", sampler, 0.0][1]).mean() > 1, "other seeds"

    sha = read_tensor_file(loras[1]).metadata["sshs_model_hash"]
    (last,) = [cell for cell in cells(spec) if (cell.lora, cell.sampler, cell.weight) == ("猫", "DPM++ 2M", 1.0)]
    told = parameters(job.path / last.files[3])
    assert told.startswith("<lora:猫:1> a (red:1.2) circle\nNegative prompt: worst quality")
    assert (
        "Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7, Seed: 8, Size: 64x64, Model hash: d72ea81c81" in told
    )
    assert told.endswith(f'Lora hashes: "猫: {sha[:12]}"')

    grids = [grid_file("猫"), grid_file("猫-000002"), ALL_GRIDS_FILE]
    for name in grids:
        assert "Steps: 3, Sampler: Euler a" in parameters(job.path / name)
    sampled = [event for event in job.events() if isinstance(event, ev.Sampled)]
    assert {event.path for event in sampled} == {*pictures, *grids}
    assert len(sampled) == len(pictures) + 3
    assert [event.path for event in sampled if event.weight is None][-1] == ALL_GRIDS_FILE
    result = status.result
    assert (result["pictures"], result["width_px"], result["height_px"]) == (32, 64, 64)
    assert result["s_per_picture_step"] == pytest.approx(result["seconds"] / (32 * 3))
    assert (status.phase, status.phase_done, status.phase_total) == ("drawing previews", 32, 32)


def test_batches_change_nothing(desk: Desk, loras: list[Path]) -> None:
    one = desk.plan(loras[:1], batch_count=3, weights=(1,))
    three = desk.plan(loras[:1], batch_size=3, weights=(1,))
    for job in (one, three):
        assert desk.run(job).state == "finished"
    alone, together = drawn(one), drawn(three)
    assert list(alone) == list(together)
    for name, picture in alone.items():
        assert np.abs(picture - together[name]).max() <= 2
    assert not (one.path / ALL_GRIDS_FILE).exists(), "there is one LoRA only"


def test_stop_and_go_on(desk: Desk, loras: list[Path]) -> None:
    """A stop is heard before the next look of the UNet. What is there is not drawn again, and half a file is none."""
    job = desk.plan(loras, weights=(0, 0.5, 1))
    # Two pictures are three looks each, and one is asked before each of them too.
    assert desk.run(job, stop_after_looks=10).state == "stopped"
    before = {path.name: path.stat().st_mtime_ns for path in (job.path / "pictures").glob("*.png")}
    assert len(before) == 2
    assert not list(job.path.glob("*-grid.png"))
    (job.path / "pictures" / "00005-0.png.1-2.tmp").write_bytes(b"\x89PNG")
    status = desk.run(job)
    assert (status.state, status.result["pictures"]) == ("finished", 4)
    assert all((job.path / "pictures" / name).stat().st_mtime_ns == at for name, at in before.items())
    sampled = [event.path for event in job.events() if isinstance(event, ev.Sampled)]
    assert len(sampled) == len(set(sampled)) == 6 + 3
    desk.run(fresh := desk.plan(loras, weights=(0, 0.5, 1)))
    for name, picture in drawn(fresh).items():
        assert np.array_equal(picture, drawn(job)[name]), "as if it had never been stopped"


def test_a_lost_picture_is_drawn_again_with_its_grids(desk: Desk, loras: list[Path]) -> None:
    desk.run(job := desk.plan(loras, batch_size=2))
    before = drawn(job)
    made = {path.name: path.stat().st_mtime_ns for path in job.path.glob("*-grid.png")}
    (job.path / "pictures" / "00003-1.png").unlink()
    status = desk.run(job)
    assert status.result["pictures"] == 1
    assert np.abs(drawn(job)["pictures/00003-1.png"] - before["pictures/00003-1.png"]).max() <= 2
    anew = {path.name for path in job.path.glob("*-grid.png") if path.stat().st_mtime_ns != made[path.name]}
    assert anew == {grid_file(loras[1].stem), ALL_GRIDS_FILE}


def test_numbers_that_are_not_finite_are_told(desk: Desk, loras: list[Path], tmp_path: Path) -> None:
    """Such a picture would be black: its place stays empty. At weight 0 the LoRA does not count."""
    wild = tmp_path / "wild.safetensors"
    tensors = load_file(loras[0])
    save_file({name: tensor * (math.nan if "up" in name else 1) for name, tensor in tensors.items()}, wild)
    status = desk.run(job := desk.plan([wild, loras[0]]))
    assert status.state == "finished"
    (note,) = status.notes
    assert "wild.safetensors draws numbers that are not finite" in note
    assert list(drawn(job)) == [f"pictures/0000{index}-0.png" for index in (0, 2, 3)]
    assert {path.name for path in job.path.glob("*-grid.png")} == {
        ALL_GRIDS_FILE,
        grid_file("wild"),
        grid_file(loras[0].stem),
    }
    with pytest.raises(ModelError, match="at weight 2"):
        desk.run(desk.plan([wild], weights=(2,)))


def test_a_broken_lora_is_told_and_the_others_are_drawn(desk: Desk, loras: list[Path], tmp_path: Path) -> None:
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(loras[0].read_bytes()[:5000])
    status = desk.run(job := desk.plan([broken, loras[0]]))
    assert status.state == "finished"
    (note,) = status.notes
    assert "broken.safetensors" in note
    assert (job.path / grid_file(loras[0].stem)).is_file()
    assert (job.path / ALL_GRIDS_FILE).is_file(), "with empty places"
    assert not (job.path / grid_file("broken")).exists()
    assert len(drawn(job)) == 2

    with pytest.raises(ModelError, match=r"broken\.safetensors"):
        desk.run(desk.plan([broken]))


def test_a_broken_vae_is_named(desk: Desk, loras: list[Path], tmp_path: Path) -> None:
    vae = tmp_path / "bad.vae.safetensors"
    vae.write_bytes(b"\x00" * 100)
    job = desk.plan(loras[:1], vae=str(vae))
    with pytest.raises(ModelError, match=r"bad\.vae\.safetensors"):
        desk.run(job)
    assert not list(job.path.glob("**/*.png"))


def test_an_unknown_sampler_is_told_before_anything_is_loaded(desk: Desk, loras: list[Path]) -> None:
    """The host's, in a job that is not the host's."""
    job = desk.plan(loras[:1], samplers=("Euler a", "Restart"), drawn_by="host")
    with pytest.raises(ConfigError, match=r"'Restart'.*DPM\+\+ 2M"):
        desk.run(job)
    assert not [event for event in job.events() if isinstance(event, ev.Phase)]


def test_too_little_memory_is_told(desk: Desk, loras: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> torch.Tensor:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(grid_job, "denoise", full)
    with pytest.raises(DeviceMemoryError, match="for 4 pictures of 64x64") as error:
        desk.run(desk.plan(loras, batch_size=4))
    assert "batch size" in error.value.hint


def test_what_only_hosts_understand_is_told(desk: Desk, loras: list[Path]) -> None:
    (note,) = desk.run(desk.plan(loras[:1], prompt="a [cat:dog:0.5]", weights=(1,), steps=(1,))).notes
    assert note.startswith("[cat:dog:0.5] is drawn as plain words")
