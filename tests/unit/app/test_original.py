"""A workspace of the original extension, as it lies on the disk, is opened, shown, and worked on."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from lora_train.app import App
from lora_train.app.snapshot import Selection
from lora_train.core.dataset_settings import DatasetSettings
from lora_train.core.errors import JobError
from lora_train.core.events import EventWriter
from lora_train.core.host import BaseModelChoice
from lora_train.core.jobs import JobFolder
from lora_train.core.specs import DatasetSpec
from lora_train.data.update import update_dataset
from tests.unit.core.test_original import DATASET, NAME, PREVIEW, TRAIN

if TYPE_CHECKING:
    from tests.unit.app.conftest import Desk

TRAIN_ID = f"projects/猫 cat/versions/v1/trains/{NAME}"


def write_lora(path: Path, step: int, epoch: int) -> None:
    """As kohya's scripts write it: no key of ours in the metadata."""
    metadata = {"ss_steps": str(step), "ss_epoch": str(epoch), "ss_output_name": path.stem, "ss_network_dim": "128"}
    header = {"__metadata__": metadata, "lora_unet_x.alpha": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}
    text = json.dumps(header).encode("utf-8")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack("<Q", len(text)) + text + struct.pack("<f", float(step)))


def write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent="\t"), encoding="utf-8")


@pytest.fixture
def original(desk: Desk) -> Path:
    """Two projects; the first has two pictures with flipped copies and captions, and a finished train. Its folder."""
    projects = desk.workspace.projects_dir
    version = projects / "猫 cat" / "versions" / "v1"
    processed = version / "dataset" / "processed" / "51_猫 cat"
    preload = version / "dataset" / "origin" / "preload"
    for folder in (processed, preload, projects / "dog" / "versions"):
        folder.mkdir(parents=True)
    for number, name in enumerate(("ねこ.jpg", "b.png")):
        Image.new("RGB", (80, 60), (number, 0, 0)).save(preload.parent / name)
        Image.new("RGB", (80, 60), (number, 0, 0)).save(preload / name)
        for part in (0, 1):
            path = processed / f"{number:05}-{part}-{name.partition('.')[0]}.png"
            Image.new("RGB", (64, 64), (number, part, 0)).save(path)
            path.with_suffix(".txt").write_text(f"caption {number} {part}", encoding="utf-8")
    write_json(version / "dataset_config.json", DATASET)
    write_json(version / "train_config.json", TRAIN)
    write_json(version / "preview_config.json", PREVIEW)
    train = version / "trains" / NAME
    for epoch in (2, 4):
        write_lora(train / f"猫 cat-v1-{epoch:06}.safetensors", epoch * 102, epoch)
    write_lora(train / "猫 cat-v1.safetensors", 510, 10)
    (train / "猫 cat-v1.txt").write_text("cat 20\n", encoding="utf-8")
    images = train / "猫 cat-v1" / "images"
    images.mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(images / "grid-0001.png")
    write_json(projects / "train_tools_config.json", {"select_project": "猫 cat", "select_version": "v1"})
    desk.host.checkpoints = [BaseModelChoice("v1-5-pruned-emaonly.safetensors", "/m/v1-5-pruned-emaonly.safetensors")]
    return version


def files_below(folder: Path) -> dict[str, bytes]:
    found = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


def test_it_opens_as_it_is(desk: Desk, original: Path) -> None:
    before = files_below(desk.workspace.root)
    app = App(desk.workspace, desk.host)
    assert app.projects.selection() == Selection("猫 cat", "v1"), "what was looked at last"
    assert {(entry.name, *(v.name for v in entry.versions)) for entry in app.projects.list()} == {
        ("猫 cat", "v1"),
        ("dog",),
    }
    assert all(entry.created > 1e9 for entry in app.projects.list())
    snapshot = app.snapshot("猫 cat", "v1")
    trained = {entry.file: entry.caption for entry in snapshot.dataset.pictures if not entry.is_waiting}
    assert trained == {
        f"51_猫 cat/{number:05}-{part}-{stem}.png": f"caption {number} {part}"
        for number, stem in enumerate(("ねこ", "b"))
        for part in (0, 1)
    }
    assert {entry.repeats for entry in snapshot.dataset.pictures if not entry.is_waiting} == {51}
    settings = app.settings.train("猫 cat", "v1")
    assert settings["base_model"] == "/m/v1-5-pruned-emaonly.safetensors"
    assert (settings["rank"], settings["optimizer"], settings["epochs"]) == (128, "Lion", 20)
    assert app.settings.dataset("猫 cat", "v1")["flip"] is True
    assert app.settings.notes("猫 cat", "v1") == []
    assert app.training.forecast("猫 cat", "v1").pictures == 4
    assert files_below(desk.workspace.root) == before, "looking changes nothing"


def test_settings_are_saved_into_a_file_of_ours(desk: Desk, original: Path) -> None:
    desk.host.checkpoints = []
    assert desk.app.settings.train("猫 cat", "v1")["base_model"] == "", "the host does not know it"
    assert desk.app.settings.notes("猫 cat", "v1") == [
        "Train base model: v1-5-pruned-emaonly.safetensors [6ce0161689] is not in the list of checkpoints; choose one."
    ]
    before = files_below(original)
    assert desk.app.settings.save("猫 cat", "v1", train={"epochs": 3}) == []
    after = files_below(original)
    assert after.keys() - before.keys() == {"version.json"}
    assert {name: after[name] for name in before} == before
    for app in (desk.app, desk.again()):
        settings = app.settings.train("猫 cat", "v1")
        assert (settings["epochs"], settings["rank"], settings["optimizer"]) == (3, 128, "Lion")
        assert app.settings.dataset("猫 cat", "v1")["flip"] is True
        assert app.settings.notes("猫 cat", "v1") == []


def test_its_trains_are_finished_ones(desk: Desk, original: Path) -> None:
    (train,) = desk.app.training.list("猫 cat", "v1")
    assert (train.job, train.name, train.status.state, train.place) == (TRAIN_ID, NAME, "finished", None)
    assert (train.base_model, train.summary) == (
        "v1-5-pruned-emaonly",
        "Lion 0.0001 · rank 128 · batch 10 · epochs 10",
    )
    assert train.is_original
    assert [(lora.file, lora.epoch, lora.step) for lora in train.loras] == [
        ("猫 cat-v1.safetensors", 10, 510),
        ("猫 cat-v1-000004.safetensors", 4, 408),
        ("猫 cat-v1-000002.safetensors", 2, 204),
    ]
    assert train.loras[0].size_bytes == (original / "trains" / NAME / "猫 cat-v1.safetensors").stat().st_size
    assert train.loras[0].prompt == "<lora:猫 cat-v1:1>"
    snapshot = desk.app.snapshot("猫 cat", "v1")
    assert (snapshot.shown, snapshot.curve, snapshot.log_tail) == (train, [], "")
    path = desk.app.training.file_path(TRAIN_ID, "猫 cat-v1-000002.safetensors")
    assert path.read_bytes() == (original / "trains" / NAME / "猫 cat-v1-000002.safetensors").read_bytes()
    assert desk.app.status(desk.job(TRAIN_ID)).saved == train.status.saved
    for call in (desk.app.training.resume, desk.app.training.draw_previews):
        with pytest.raises(JobError, match="was trained by the original extension"):
            call(TRAIN_ID)
    for call in (desk.app.training.stop, desk.app.training.pause, desk.app.training.kill):
        with pytest.raises(JobError, match="is not running"):
            call(TRAIN_ID)
    assert desk.app.queue.entries() == []


def test_a_lora_of_it_is_published_taken_back_and_deleted(desk: Desk, original: Path) -> None:
    before = files_below(original / "trains")
    file = "猫 cat-v1.safetensors"
    assert desk.app.loras.publish(TRAIN_ID, file) == "猫 cat-v1"
    assert (desk.host.root / file).is_file()
    card = json.loads((desk.host.root / "猫 cat-v1.json").read_text(encoding="utf-8"))
    assert card["description"] == "猫 cat v1, 510 steps"
    assert desk.app.training.list("猫 cat", "v1")[0].loras[0].published == "猫 cat-v1"
    desk.app.loras.unpublish(TRAIN_ID, file)
    assert not list(desk.host.root.iterdir())

    undo = desk.app.loras.delete(TRAIN_ID, file)
    assert len(desk.app.training.list("猫 cat", "v1")[0].loras) == 2
    desk.app.projects.restore(undo.entry)
    undo = desk.app.training.delete(TRAIN_ID)
    assert desk.app.training.list("猫 cat", "v1") == []
    desk.app.projects.restore(undo.entry)
    after = files_below(original / "trains")
    assert {name: after[name] for name in before} == before
    assert len(desk.app.training.list("猫 cat", "v1")[0].loras) == 3


def test_a_new_train_beside_it_takes_no_name_of_it(desk: Desk, original: Path) -> None:
    version = desk.workspace.find_version("猫 cat", "v1")
    assert desk.workspace.free_stem(version.stem()) == "猫 cat-v1-r2"


def test_it_is_renamed_and_copied(desk: Desk, original: Path) -> None:
    before = files_below(original)
    copy = desk.app.projects.duplicate_version("猫 cat", "v1", "v2")
    assert desk.app.settings.train(copy.project, copy.version)["rank"] == 128
    assert len(desk.app.datasets.snapshot(copy.project, copy.version).pictures) >= 4
    assert files_below(original) == before
    desk.app.projects.rename_version("猫 cat", "v1", "first")
    assert desk.app.projects.rename("猫 cat", "neu").project == "neu"
    assert desk.app.settings.train("neu", "first")["rank"] == 128
    (train,) = desk.app.training.list("neu", "first")
    assert len(train.loras) == 3
    renamed = files_below(desk.workspace.projects_dir / "neu" / "versions" / "first")
    assert {name: renamed[name] for name in before} == before


def test_its_pictures_are_made_anew_and_keep_their_captions(desk: Desk, original: Path) -> None:
    assert not any(entry.is_waiting for entry in desk.app.datasets.snapshot("猫 cat", "v1").pictures), "all are in"
    before = files_below(original)
    version = desk.workspace.find_version("猫 cat", "v1")
    job = JobFolder(desk.workspace.new_job_dir("dataset"))
    spec = DatasetSpec(
        dataset=str(version.path / "dataset"),
        trash=str(desk.workspace.trash_dir),
        settings=DatasetSettings(width_px=64, height_px=64),
        concept="猫 cat",
        repeats=-1,
        project="猫 cat",
    )
    job.create(spec)
    update_dataset(spec, job, EventWriter(job.events_path))
    entries = desk.app.datasets.snapshot("猫 cat", "v1").pictures
    assert {entry.file: entry.caption for entry in entries} == {
        "16_猫 cat/b.png": "caption 1 0",
        "16_猫 cat/ねこ.png": "caption 0 0",
    }
    after = files_below(original)
    assert {name: after[name] for name in before if "processed" not in name} == {
        name: content for name, content in before.items() if "processed" not in name
    }
    lost = {content for name, content in before.items() if "processed" in name}
    assert lost <= {*files_below(desk.workspace.trash_dir).values(), *after.values()}, "the old set is in the trash"


def test_a_picture_of_it_is_removed_with_its_parts(desk: Desk, original: Path) -> None:
    desk.app.datasets.remove("猫 cat", "v1", "51_猫 cat/00000-1-ねこ.png")
    assert {entry.file for entry in desk.app.datasets.snapshot("猫 cat", "v1").pictures} == {
        f"51_猫 cat/00001-{part}-b.png" for part in (0, 1)
    }


def test_the_page_tells_what_was_not_taken_over(desk: Desk, original: Path) -> None:
    settings = original / "train_config.json"
    values = json.loads(settings.read_text(encoding="utf-8"))
    settings.write_text(json.dumps({**values, "train_base_model": "gone.safetensors"}), encoding="utf-8")
    told = ["Train base model: gone.safetensors is not in the list of checkpoints; choose one."]
    assert App(desk.workspace, desk.host).snapshot("猫 cat", "v1").notes == told
