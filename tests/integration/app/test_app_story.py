"""From dropped pictures to a published card, as a person does it, with real workers."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from lora_train.core import events as ev
from lora_train.core.errors import JobError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.integration.app.conftest import House


def test_the_whole_story(house: House, finite: Callable[[Path], bool]) -> None:
    """Upload, update, the sum, begin, previews, published with its card, un-published, previews of the rest."""
    app, host = house.app, house.host
    house.save({"epochs": 2, "save_every_epochs": 1, "trigger_word": "sks", "generate_previews": True})
    house.upload(3, size=(90, 70))
    house.update()
    forecast = app.training.forecast("cat", "v1")
    assert (forecast.problems, forecast.total_steps, forecast.seconds) == ([], 6, None)
    job = app.training.begin("cat", "v1")
    assert house.state(job) == "waiting"

    app.start_background()
    app.start_background()
    house.wait_for(job, "running")
    assert [entry.state for entry in app.queue.entries()] == ["running"]
    house.wait_for(job, "finished")
    assert host.parked_for == ["in auto", "out"]
    assert house.steps(job) == [1, 2, 3, 4, 5, 6]
    train = app.snapshot("cat", "v1").shown
    assert train is not None
    assert [lora.file for lora in train.loras] == ["cat-v1.safetensors", "cat-v1-000001.safetensors"]
    for lora in train.loras:
        assert lora.previews == [f"samples/{lora.stem}-p1-w1.png", f"samples/{lora.stem}-grid.png"]
        assert lora.prompt == f"<lora:{lora.stem}:1> sks"
        assert finite(app.training.file_path(job, lora.file))
    assert [point.step for point in app.snapshot("cat", "v1").curve] == [1, 2, 3, 4, 5, 6]

    assert {path.name for path in host.loras.iterdir()} == {"cat-v1.safetensors", "cat-v1.json", "cat-v1.png"}
    card = json.loads((host.loras / "cat-v1.json").read_text(encoding="utf-8"))
    assert card["activation text"].split(", ")[0] == "sks"
    assert card["description"] == "cat v1, 6 steps, base model tiny_sd.safetensors"
    assert card["sd version"] == "SD1"
    undo = app.loras.unpublish(job, "cat-v1.safetensors")
    assert list(host.loras.iterdir()) == []
    app.projects.restore(undo.entry)
    assert len(list(host.loras.iterdir())) == 3
    assert house.train(job).loras[0].published == "cat-v1"

    with pytest.raises(JobError, match="has its previews"):
        app.training.draw_previews(job)
    kept = app.training.file_path(job, "samples/cat-v1-p1-w1.png").stat().st_mtime_ns
    for file in ("cat-v1-000001-grid.png", "cat-v1-000001-p1-w1.png"):
        (house.folder(job).samples_dir / file).unlink()
    drawing = app.training.draw_previews(job)
    house.wait(lambda: app.queue.entries() == [])
    assert app.training.events(drawing, 0)[0][-1]["result"] == {"drawn": 1}
    assert house.train(job).loras[1].previews == [
        "samples/cat-v1-000001-p1-w1.png",
        "samples/cat-v1-000001-grid.png",
    ]
    assert app.training.file_path(job, "samples/cat-v1-p1-w1.png").stat().st_mtime_ns == kept
    assert host.parked_for == ["in auto", "out"] * 2


def test_previews_afterwards_equal_those_of_the_training(house: House) -> None:
    """A LoRA in the file format has half the precision, so nearly."""
    house.set_up(2, generate_previews=True, save_precision="fp32", resolution=96, learning_rate=4e-3, epochs=3)
    job = house.app.training.begin("cat", "v1")
    house.app.start_background()
    house.wait_for(job, "finished")
    samples = house.folder(job).samples_dir
    drawn: list[Any] = []
    for _ in range(2):
        with Image.open(samples / "cat-v1-p1-w1.png") as picture:
            drawn.append((picture.size, picture.text["parameters"], picture.convert("RGB").resize((4, 4)).tobytes()))
        if len(drawn) == 1:
            for path in samples.iterdir():
                path.unlink()
            house.app.training.draw_previews(job)
            house.wait(lambda: house.app.queue.entries() == [])
    (size, parameters, pixels), after = drawn
    assert size == (96, 96)
    assert (size, parameters) == after[:2]
    assert max(abs(one - other) for one, other in zip(pixels, after[2], strict=True)) <= 3


def test_no_previews_where_none_are_wanted(house: House) -> None:
    house.host.publishes = False
    house.set_up(1, preview_prompts=("a cat",))
    job = house.app.training.begin("cat", "v1")
    house.app.start_background()
    house.wait_for(job, "finished")
    assert not list(house.folder(job).samples_dir.glob("*"))
    assert house.train(job).loras[0].previews == []
    assert not house.host.loras.exists(), "nor is published what nobody wants published"
    (house.folder(job).path / "cat-v1.safetensors").rename(house.root / "moved away")
    with pytest.raises(JobError, match="has its previews"):
        house.app.training.draw_previews(job)
    (house.root / "moved away").rename(house.folder(job).path / "cat-v1.safetensors")
    house.app.training.draw_previews(job)
    house.wait(lambda: house.app.queue.entries() == [])
    assert len(house.train(job).loras[0].previews) == 2


@pytest.mark.parametrize(
    ("train", "regularisation"),
    [
        ({"epochs": 3, "batch_size": 2, "repeats": 3}, False),
        ({"epochs": 2, "batch_size": 3, "repeats": 2, "gradient_accumulation_steps": 2}, True),
        ({"epochs": 3, "batch_size": 256, "repeats": 2}, True),
    ],
    ids=["several buckets", "accumulation and regularisation", "more in a batch than there are"],
)
def test_the_sum_is_what_the_loop_does(house: House, train: dict[str, Any], regularisation: bool) -> None:
    """Five pictures of three shapes, in two folders with repeats of their own where the settings leave them so."""
    house.save(train, as_is=True)
    shapes = [(64, 64), (64, 64), (128, 64), (128, 64), (64, 128)]
    files = [(f"{number}.png", house.picture(size, number)) for number, size in enumerate(shapes)]
    house.app.datasets.add("cat", "v1", files)
    house.update()
    if regularisation:
        folder = house.app.workspace.find_version("cat", "v1").dataset_dir / "reg" / "2_person"
        folder.mkdir(parents=True)
        for number in range(3):
            house.picture((64, 64), 10 + number).rename(folder / f"{number}.png")
    forecast = house.app.training.forecast("cat", "v1")
    assert forecast.problems == []
    assert not forecast.is_exact
    job = house.app.training.begin("cat", "v1")
    house.app.start_background()
    house.wait_for(job, "finished")
    assert house.steps(job) == [*range(1, forecast.total_steps + 1)]
    starts = [event for event in house.folder(job).events() if isinstance(event, ev.Started) and event.step == 0]
    assert starts[-1].total_steps == forecast.total_steps
    after = house.app.training.forecast("cat", "v1")
    if forecast.total_steps >= 10:
        assert after.seconds == pytest.approx(house.train(job).status.s_per_step * forecast.total_steps)
