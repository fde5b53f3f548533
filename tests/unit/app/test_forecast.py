"""What a training would do, and why it can't begin; no worker is started."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest

from lora_train.app.datasets import Datasets
from lora_train.core.errors import ConfigError
from lora_train.core.specs import TrainSpec
from tests.unit.app.conftest import PICTURES

if TYPE_CHECKING:
    from tests.unit.app.conftest import Desk


def test_forecast_by_hand(desk: Desk) -> None:
    """The tutorial's own sum: 18 pictures x 9 repeats x 10 epochs / batch 1."""
    desk.trained(*PICTURES)
    desk.save(epochs=10)
    forecast = desk.app.training.forecast("cat", "v1")
    assert (forecast.pictures, forecast.repeats, forecast.epochs, forecast.batch_size) == (18, 9, 10, 1)
    assert (forecast.views_per_epoch, forecast.total_steps, forecast.is_exact) == (162, 1620, True)
    assert (forecast.regularisation_pictures, forecast.seconds, forecast.problems) == (0, None, [])


@pytest.mark.parametrize(
    ("settings", "steps", "is_exact"),
    [
        ({"batch_size": 4}, 41 * 2, False),  # 162 = 40 x 4 + 2
        ({"batch_size": 3}, 54 * 2, True),
        ({"batch_size": 256}, 2, False),
        ({"batch_size": 4, "gradient_accumulation_steps": 4}, 11 * 2, False),
        ({"repeats": 1, "batch_size": 6, "gradient_accumulation_steps": 3}, 2, True),
        ({"repeats": 2, "batch_size": 5}, 8 * 2, False),
    ],
)
def test_batches_and_accumulation_by_hand(desk: Desk, settings: dict[str, Any], steps: int, is_exact: bool) -> None:
    desk.trained(*PICTURES)
    desk.save(epochs=2, **settings)
    forecast = desk.app.training.forecast("cat", "v1")
    assert (forecast.total_steps, forecast.is_exact) == (steps, is_exact)


def test_several_sizes_folders_and_regularisation_by_hand(desk: Desk) -> None:
    """Pictures of different shapes never share a batch; a regularisation view comes with each training view."""
    desk.trained("3_cat/wide.png", size=(128, 64))
    desk.trained("5_dog/a.png", "5_dog/b.png")
    desk.save(epochs=4, batch_size=4)
    forecast = desk.app.training.forecast("cat", "v1")
    assert (forecast.pictures, forecast.repeats, forecast.views_per_epoch) == (3, None, 13)
    assert (forecast.total_steps, forecast.is_exact) == ((1 + 3) * 4, False)
    desk.trained("reg/1_person/r.png", "reg/s.png")
    forecast = desk.app.training.forecast("cat", "v1")
    assert (forecast.pictures, forecast.regularisation_pictures, forecast.views_per_epoch) == (3, 2, 26)
    assert forecast.total_steps == (1 + 6) * 4  # 3 wide ones; 10 + 13 square ones


def test_time_is_that_of_the_last_training_like_it(desk: Desk) -> None:
    desk.trained(*PICTURES)
    desk.save(epochs=1)
    save_speed(desk, "demo", 0.5)
    assert desk.app.training.forecast("cat", "v1").seconds == pytest.approx(81)
    desk.save(batch_size=2)
    assert desk.app.training.forecast("cat", "v1").seconds is None, "another batch size is another pace"


def save_speed(desk: Desk, base_model: str, s_per_step: float) -> None:
    from lora_train.app.paces import remember_pace
    from lora_train.core.jobs import JobStatus

    spec = desk.job(desk.train("measured", batch_size=1, base_model=base_model)).read_spec()
    assert isinstance(spec, TrainSpec)
    remember_pace(desk.workspace.root, spec, JobStatus(s_per_step=99.0, step=9))
    remember_pace(desk.workspace.root, spec, JobStatus(s_per_step=s_per_step, step=10))
    remember_pace(desk.workspace.root, spec, JobStatus(s_per_step=None, step=10))


def test_many_epochs_are_counted_at_once(desk: Desk) -> None:
    """The sum is asked for every second."""
    desk.trained(*PICTURES, "reg/1_person/r.png", "reg/s.png", "reg/t.png")
    desk.save(epochs=10_000)
    desk.app.training.forecast("cat", "v1")
    begun = time.process_time()
    forecast = desk.app.training.forecast("cat", "v1")
    assert time.process_time() - begun < 0.2
    assert forecast.total_steps == 10_000 * 324


def test_why_it_can_not_begin_all_at_once(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    desk.version()
    with desk.workspace.find_version("cat", "v1").changing() as info:
        info.train = {"rank": 0, "repeats": 0, "base_model": "not there.safetensors", "vae": "nor this.pt"}
    monkeypatch.setattr(Datasets, "is_updating", lambda self, version: True)
    with pytest.raises(ConfigError) as error:
        desk.app.training.begin("cat", "v1")
    text = "\n".join(error.value.problems)
    for part in (
        "rank (Net dim (rank)): 0",
        "repeats",
        "not there.safetensors does not exist",
        "VAE",
        "no pictures yet",
    ):
        assert part in text
    assert "being updated" in text
    assert len(error.value.problems) == 6
    assert desk.app.training.list("cat", "v1") == []
    assert desk.app.queue.entries() == []


def test_pictures_that_still_wait(desk: Desk) -> None:
    desk.save()
    desk.app.datasets.add("cat", "v1", [("a.png", desk.picture())])
    assert desk.app.training.forecast("cat", "v1").problems == [
        "The uploaded pictures are not in the dataset yet: press Update Dataset."
    ]


def test_a_resolution_without_buckets(desk: Desk) -> None:
    desk.trained("4_cat/a.png")
    desk.save(resolution=32, bucket_step_px=64)
    assert ["bucket step" in problem for problem in desk.app.training.forecast("cat", "v1").problems] == [True]


def test_no_base_model(desk: Desk) -> None:
    desk.trained("4_cat/a.png")
    assert desk.app.training.forecast("cat", "v1").problems == ["Train base model: choose a checkpoint."]
