"""Small models with the true blocks of SD2, SDXL and inpainting: trained by real workers, ended early, gone on with.

A worker takes seconds to begin. So the workers run beside the rest, two at a time, and what they left is gone on with
in this process, as is the straight run that it is compared with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pytest
from PIL import Image

from lora_train.core import events as ev
from lora_train.core.jobs import JobFolder
from lora_train.core.specs import PreviewSpec, TrainSpec
from lora_train.engine.preview_job import preview
from lora_train.engine.reporting import Reporter
from lora_train.engine.train import train

if TYPE_CHECKING:
    from tests.integration.conftest import Files, Studio

PICTURES_PX = 128
"""SD1 and SD2 halve a picture's latents three times: of 64 px a single value a channel would be left."""

SETTINGS: dict[str, Any] = {
    "epochs": 2,
    "repeats": 2,
    "batch_size": 1,
    "flip": True,
    "resolution": PICTURES_PX,
    "learning_rate": 1e-2,
    "text_encoder_lr": 1e-2,
    "preview_prompts": ["red"],
    "preview_steps": 2,
    "preview_size_px": PICTURES_PX,
}


class Case(NamedTuple):
    """A family with settings, and what its LoRA file says."""

    family: str
    settings: dict[str, Any]
    modules: tuple[int, int, int]
    """LoRAs in the UNet, the text encoder and SDXL's second one (HOSTS.md §5.4)."""
    metadata: dict[str, str]


_V = {"prediction": "v_prediction"}
_QUICK = {"repeats": 6}
"""SD1's and SD2's steps take a third of SDXL's: more are needed to end one in their middle."""
CASES = {
    "sd2": Case(
        "sd2",
        _QUICK,
        (192, 138, 0),
        {"ss_base_model_version": "sd_v2", "ss_v2": "True", "ss_clip_skip": "None"},
    ),
    "sd2 v": Case(
        "sd2", {**_V, **_QUICK, "train_text_encoder": False}, (192, 0, 0), {"ss_base_model_version": "sd_v2_v"}
    ),
    "sdxl": Case(
        "sdxl",
        {},
        (722, 0, 0),
        {"ss_base_model_version": "sdxl_base_v1-0", "ss_clip_skip": "None", "ss_text_encoder_lr": "None"},
    ),
    "sdxl v": Case(
        "sdxl",
        {**_V, "zero_terminal_snr": "on", "train_sdxl_text_encoders": True},
        (722, 72, 192),
        {"modelspec.prediction_type": "v", "ss_zero_terminal_snr": "True", "ss_text_encoder_lr": "0.01"},
    ),
    "sd1 inpainting": Case(
        "sd1-inpaint", _QUICK, (192, 12, 0), {"ss_base_model_version": "sd_v1", "ss_clip_skip": "1"}
    ),
    "sdxl inpainting": Case("sdxl-inpaint", {}, (722, 0, 0), {"ss_base_model_version": "sdxl_base_v1-0"}),
}


@pytest.fixture(scope="module")
def images(shared_studio: Studio) -> Path:
    return shared_studio.pictures(
        "pictures", ["a red thing", "a blue thing"], sizes_px=((PICTURES_PX, PICTURES_PX), (200, PICTURES_PX))
    )


@pytest.fixture(scope="module")
def plan(shared_studio: Studio, images: Path, checkpoint_of: Callable[[str], Path]) -> Callable[[str], JobFolder]:
    """A training of a case."""

    def plan(name: str) -> JobFolder:
        case = CASES[name]
        values = {**SETTINGS, **case.settings, "base_model": str(checkpoint_of(case.family))}
        return shared_studio.plan(images, name=name, **values)

    return plan


@pytest.fixture(scope="module")
def ended_early(shared_studio: Studio, plan: Callable[[str], JobFolder]) -> Iterator[dict[str, Future[JobFolder]]]:
    """A training of every case that its worker was asked to stop in the middle."""

    def run(job: JobFolder) -> JobFolder:
        process = shared_studio.start(job)
        shared_studio.wait_for_step(job, process, 1)
        shared_studio.app.request(job, "stop")
        status = shared_studio.end(job, process)
        assert status.state == "stopped", status.message
        return job

    jobs = {name: plan(name) for name in CASES}
    with ThreadPoolExecutor(2) as pool:
        yield {name: pool.submit(run, job) for name, job in jobs.items()}


def run_here(job: JobFolder) -> None:
    """Begin a training or go on with it, to the end."""
    job.clear_requests()
    spec = job.read_spec()
    assert isinstance(spec, TrainSpec)
    events = ev.EventWriter(job.events_path)
    with Reporter(job, events) as report:
        assert train(spec, job, report)[0] == "finished"
    events.close()


@pytest.mark.parametrize("name", CASES)
def test_ended_early_and_resumed_equals_straight(
    shared_studio: Studio,
    files: type[Files],
    plan: Callable[[str], JobFolder],
    ended_early: dict[str, Future[JobFolder]],
    name: str,
) -> None:
    straight = plan(name)
    run_here(straight)
    resumed = ended_early[name].result()
    clock = files.clock(files.states(resumed)[-1])
    assert clock["step"] > 0
    assert not files.final(resumed).exists(), "it was to be stopped in the middle"
    run_here(resumed)
    lora = files.final(resumed)
    assert files.tensor_bytes(lora) == files.tensor_bytes(files.final(straight))
    assert files.are_finite(lora)

    case = CASES[name]
    metadata = files.metadata(lora)
    assert {key: metadata.get(key) for key in case.metadata} == case.metadata
    told = shared_studio.app.inspect(lora).lora
    assert told is not None
    assert told.family == case.family.removesuffix("-inpaint")
    assert told.ranks == [2]
    assert (told.unet_modules, told.text_encoder_modules, told.second_text_encoder_modules) == case.modules
    check_pictures(resumed, lora)
    check_preview(shared_studio, straight, lora)


def check_pictures(job: JobFolder, lora: Path) -> None:
    """A preview was drawn: a picture of the right size, not a grey field."""
    drawn = np.asarray(Image.open(job.samples_dir / f"{lora.stem}-p1-w1.png"))
    assert drawn.shape == (PICTURES_PX, PICTURES_PX, 3)
    assert drawn.std() > 5


def check_preview(studio: Studio, job: JobFolder, lora: Path) -> None:
    """A preview job reads the file again and draws what the training drew."""
    spec = job.read_spec()
    assert isinstance(spec, TrainSpec)
    grid = studio.root / f"{lora.stem}.png"
    events = ev.EventWriter(job.events_path)
    with Reporter(job, events) as report:
        preview(PreviewSpec(lora=str(lora), out=str(grid), settings=spec.settings), report)
    events.close()
    drawn_by_training = Image.open(job.samples_dir / f"{job.path.name}-grid.png")
    difference = np.asarray(Image.open(grid)).astype(int) - np.asarray(drawn_by_training)
    assert np.abs(difference).mean() < 2, "fp16 in the file is all that differs"
