"""What a person does to pictures, captions and LoRAs, each as a function that may die at any of its changes to files.

`set_up` makes the workspace that all of them begin with; `do` does one of them over it, in this process or another.
"""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
import pytest
from PIL import Image

from lora_train import worker
from lora_train.app import App
from lora_train.app.caption_writing import version_history
from lora_train.app.captions import AllPictures
from lora_train.app.clearing_up import start_clearing_up
from lora_train.caption import together
from lora_train.core import events as ev
from lora_train.core.caption_settings import CaptionSettings
from lora_train.core.host import NoHost
from lora_train.core.jobs import JobFolder
from lora_train.core.specs import CaptionPlan, CaptionSpec, DatasetSpec
from lora_train.core.workspace import Workspace
from lora_train.data.caption_edits import AddTags

IDS = ("cat", "v1")
_TRAIN = "projects/cat/versions/v1/trains/cat-v1"
_LORA = "cat-v1.safetensors"
_EARLIER_LORA = "cat-v1-000001.safetensors"
_CAPTIONS = ("red, 一", "blue, два", "", "grey")


class FolderHost(NoHost):
    """A host with a LoRA folder."""

    def __init__(self, root: Path) -> None:
        self._loras = root / "Lora"

    def lora_dir(self) -> Path:
        return self._loras

    def lora_root(self) -> Path:
        return self._loras

    def auto_publish(self) -> bool:
        return True


def open_app(root: Path) -> App:
    app = App(Workspace(root / "workspace"), FolderHost(root))
    app.proofs.on_published = lambda *_: None
    return app


def next_start(root: Path) -> App:
    """As the page starts, without a queue that is worked off."""
    app = open_app(root)
    start_clearing_up(app.workspace, [root / "Lora"]).join()
    return app


# --- the workspace ---


def set_up(root: Path) -> None:
    """A version with a trained set, captions by hand, a finished training with a published LoRA, and new uploads."""
    root.mkdir()
    app = open_app(root)
    app.projects.create(IDS[0])
    app.projects.create_version(*IDS)
    app.settings.save(*IDS, train={"base_model": "demo", "repeats": 2}, dataset={"width_px": 64, "height_px": 64})
    for index, caption in enumerate(_CAPTIONS):
        _add(app, root, index, caption)
    _update(app, root)
    app.datasets.set_caption(*IDS, "2_cat/1.png", "by hand, два")
    app.captions.edit(*IDS, AddTags("cute"), AllPictures())
    _finished_train(app)
    app.loras.publish(_TRAIN, _LORA)
    _add(app, root, 7, "waits, 七")
    _to_come(root / "to come")


def _picture(folder: Path, index: int) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / f"{index}.png"
    numbers = np.random.default_rng(index).integers(0, 256, (80, 72, 3), dtype=np.uint8)
    Image.fromarray(numbers).save(path)
    return path


def _add(app: App, root: Path, index: int, caption: str) -> None:
    picture = _picture(root / "pictures", index)
    files = [(picture.name, picture)]
    if caption:
        picture.with_suffix(".txt").write_text(caption, encoding="utf-8")
        files.append((f"{index}.txt", picture.with_suffix(".txt")))
    assert app.datasets.add(*IDS, files) == []


def _to_come(folder: Path) -> None:
    """What the deeds take in."""
    for index in (20, 21, 30, 40):
        _picture(folder, index)
    (folder / "again.txt").write_text("another caption", encoding="utf-8")
    with zipfile.ZipFile(folder / "more.zip", "w") as packed:
        for index in (20, 21):
            packed.write(folder / f"{index}.png", f"{index}.png")
        packed.writestr("20.txt", "twenty")


def _finished_train(app: App) -> None:
    plan = app.training.plan(app.workspace.find_version(*IDS), _settings(app))
    header = b'{"__metadata__":{"ss_output_name":"cat-v1"},"a":{"dtype":"F32","shape":[64],"data_offsets":[0,256]}}'
    events = ev.EventWriter(plan.job.events_path)
    events.write(ev.Started(pid=1, total_steps=8, epochs=2, step=0))
    for epoch, lora in enumerate((_EARLIER_LORA, _LORA), 1):
        plan.job.path.joinpath(lora).write_bytes(len(header).to_bytes(8, "little") + header + bytes([epoch]) * 256)
        events.write(ev.Saved(lora, 4 * epoch, epoch))
    events.write(ev.Finished(step=8))
    events.close()


def _settings(app: App) -> Any:
    from lora_train.app.version_settings import train_settings

    return train_settings(app.workspace.find_version(*IDS))


# --- jobs of workers, done in this process ---


def _job(app: App, name: str, spec: DatasetSpec | CaptionSpec) -> None:
    job = JobFolder(app.workspace.jobs_dir / name)
    shutil.rmtree(job.path, ignore_errors=True)
    job.create(spec)
    with patch.object(worker, "_isolate"):  # this process's modules and environment are other tests' too
        assert worker.main([str(job.path)]) == 0, job.events()


def _update(app: App, _: Path) -> None:
    from lora_train.app.version_settings import dataset_settings

    version = app.workspace.find_version(*IDS)
    _job(
        app,
        "update",
        DatasetSpec(
            dataset="../../projects/cat/versions/v1/dataset",
            trash="../../trash",
            settings=dataset_settings(version),
            project="cat",
            concept="cat",
            repeats=2,
        ),
    )


class _Captioner:
    fingerprint = "made"

    def captions(self, pictures: Iterable[Path]) -> Iterator[str]:
        return (f"made of {path.name}" for path in pictures)


def _write_captions(app: App, _: Path) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(together, "open_captioner", lambda _: _Captioner())
        plan = CaptionPlan(settings=CaptionSettings(policy="overwrite"))
        _job(
            app,
            "captions",
            CaptionSpec(dataset="../../projects/cat/versions/v1/dataset", trash="../../trash", plan=plan),
        )


# --- the deeds ---


def _upload(app: App, root: Path) -> None:
    new = root / "to come"
    files = [("more.zip", new / "more.zip"), ("30.png", new / "30.png"), ("0.txt", new / "again.txt")]
    files.append(("mask/0.png", new / "30.png"))
    assert app.datasets.add(*IDS, files) == []


def _upload_bytes(app: App, root: Path) -> None:
    content = (root / "to come" / "30.png").read_bytes()
    assert app.datasets.add_bytes(*IDS, [("31.png", content), ("31.txt", b"thirty-one")]) == []


def _remove(app: App, _: Path) -> None:
    if any(entry.file == "2_cat/0.png" for entry in app.datasets.snapshot(*IDS).pictures):
        app.datasets.remove(*IDS, "2_cat/0.png")


def _replace(app: App, root: Path) -> None:
    app.datasets.replace(*IDS, "7.png", "new.png", root / "to come" / "40.png")


def _edit_captions(app: App, _: Path) -> None:
    app.captions.edit(*IDS, AddTags("fluffy"), AllPictures())


def _undo_captions(app: App, _: Path) -> None:
    if version_history(app.workspace.find_version(*IDS)).done == 2:
        app.captions.undo(*IDS)


def _publish(app: App, _: Path) -> None:
    app.loras.publish(_TRAIN, _EARLIER_LORA)


def _unpublish(app: App, root: Path) -> None:
    if (root / "Lora" / _LORA).exists():
        app.loras.unpublish(_TRAIN, _LORA)


def _delete_version(app: App, _: Path) -> None:
    if (app.workspace.root / "projects/cat/versions/v1").exists():
        app.projects.delete_version(*IDS)


def _restore_version(app: App, root: Path) -> None:
    _delete_version(app, root)
    for version in app.workspace.trash_dir.glob("* v1/v1"):
        app.projects.restore(version.parent.name)


def _duplicate(app: App, _: Path) -> None:
    if (app.workspace.root / "projects/cat/versions/v2").exists():
        app.projects.delete_version("cat", "v2")
    app.projects.duplicate_version(*IDS, "v2")


def _take_in(app: App, root: Path) -> None:
    app.plan_train(name="dog", images=root / "pictures", values={"base_model": "demo", "repeats": 1})


def _begin(app: App, _: Path) -> None:
    app.training.begin(*IDS)


def _save_settings(app: App, _: Path) -> None:
    app.settings.save(*IDS, train={"epochs": 3}, dataset={"flip": True})


class Deed(NamedTuple):
    do: Callable[[App, Path], None]
    result: str
    """A folder whose content is the same after the deed, whether it was done at once or again after a death."""
    is_edit: bool = False
    """What was there before is kept by the history of the captions, which can put it back."""


DEEDS: dict[str, Deed] = {
    "dataset update": Deed(_update, "workspace/projects/cat/versions/v1/dataset/processed"),
    "captioning": Deed(_write_captions, "workspace/projects/cat/versions/v1/dataset/processed"),
    "upload": Deed(_upload, "workspace/projects/cat/versions/v1/dataset/origin"),
    "upload over the network": Deed(_upload_bytes, "workspace/projects/cat/versions/v1/dataset/origin"),
    "removal of a picture": Deed(_remove, "workspace/projects/cat/versions/v1/dataset"),
    "replacement of a picture": Deed(_replace, "workspace/projects/cat/versions/v1/dataset/origin"),
    "edit of captions": Deed(_edit_captions, "workspace/projects/cat/versions/v1/dataset/processed", is_edit=True),
    "undoing of an edit": Deed(_undo_captions, "workspace/projects/cat/versions/v1/dataset/processed", is_edit=True),
    "publishing": Deed(_publish, "Lora"),
    "taking back": Deed(_unpublish, "Lora"),
    "deletion of a version": Deed(_delete_version, "workspace/projects"),
    "return of a version": Deed(_restore_version, "workspace/projects"),
    "copy of a version": Deed(_duplicate, "workspace/projects/cat/versions/v2/dataset"),
    "intake of a folder": Deed(_take_in, "workspace/projects/dog/versions/v1/dataset/processed"),
    "beginning of a training": Deed(_begin, "workspace/projects/cat/versions/v1/dataset"),
    "saving of settings": Deed(_save_settings, "workspace/projects/cat/versions/v1/dataset"),
}


def do(name: str, root: str) -> int:
    """For a process of its own."""
    DEEDS[name].do(open_app(Path(root)), Path(root))
    return 0
