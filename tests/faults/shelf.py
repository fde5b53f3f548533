"""A workspace with everything in it, as weeks of work leave it, and what a person does there. No worker is started."""

from __future__ import annotations

import io
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

from PIL import Image

from lora_train.app.captions import AllPictures
from lora_train.core import events as ev
from lora_train.core.jobs import JobFolder
from lora_train.core.judgement import Judged, Judgement
from lora_train.core.records import write_json
from lora_train.data.caption_edits import AddTags
from lora_train.launch import launcher
from lora_train.launch.queue import JobQueue
from tests.faults.conftest import nobody_is_left
from tests.unit.app.conftest import Desk

LORAS = ("cat-v1-000001.safetensors", "cat-v1.safetensors")
IDS = ("cat", "v1")
OTHER_IDS = ("owl", "v1")
TRAIN = "projects/cat/versions/v1/trains/cat-v1"
PAUSED = "projects/cat/versions/v1/trains/paused"
FILE = "4_cat/a.png"


def fill(desk: Desk) -> None:
    """Pictures, captions, two trainings, a published LoRA, a judgement, previews, presets, something in the trash, and
    a queue whose first entry is of another project.
    """
    desk.trained("4_owl/d.png", project=OTHER_IDS[0])
    assert desk.app.settings.save(*OTHER_IDS, train={"base_model": "demo", "epochs": 2}) == []
    desk.app.training.begin(*OTHER_IDS)
    desk.trained(FILE, "4_cat/b.png", "4_cat/c.png")
    origin = desk.workspace.find_version(*IDS).origin_dir
    for number, name in enumerate(("o.png", "p.png")):
        incoming = desk.root / name
        Image.new("RGB", (96, 96), (number, 200, 10)).save(incoming)
        caption = incoming.with_suffix(".txt")
        caption.write_text(f"original caption {number}", encoding="utf-8")
        assert desk.app.datasets.add(*IDS, [(name, incoming), (caption.name, caption)]) == []
    assert origin.is_dir()
    train = {"base_model": "demo", "epochs": 2, "repeats": 4, "rank": 2}
    assert desk.app.settings.save(*IDS, train=train, dataset={"width_px": 64, "height_px": 64}) == []
    job = desk.finished(loras=LORAS)
    desk.previews(job, "cat-v1-p1-w1.0.png", "cat-v1-grid.png")
    rows = (
        Judged(lora=LORAS[0], weight=0.8, likeness=0.7, score=0.6),
        Judged(lora=LORAS[1], weight=1.0, likeness=0.2, score=0.1),
    )
    write_json(desk.job(job).path / "judgement.json", Judgement(rows=rows, lora=LORAS[0], weight=0.8, reason="Best."))
    desk.train("paused", events=[ev.Paused(step=5)])
    desk.app.loras.publish(job, LORAS[0])
    desk.app.captions.edit(*IDS, AddTags(tags="fluffy"), AllPictures())
    desk.app.presets.save("mine", *IDS)
    desk.app.projects.create("old")
    desk.app.projects.delete("old")
    desk.app.grids.begin(job, LORAS[1])
    desk.app.training.begin(*IDS)
    desk.app.sweeps.begin(*IDS) if desk.app.settings.save(*IDS, sweep={"learning_rates": "0.001,0.002"}) == [] else None


@cache
def _kept_incoming() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory()


def _incoming() -> Path:
    """Where uploads come from, whatever is wrong with the workspace's disk."""
    return Path(_kept_incoming().name)


def picture_at(color: int = 77) -> Path:
    path = _incoming() / f"new-{color}.png"
    Image.new("RGB", (80, 80), (color, 5, 5)).save(path)
    return path


def zip_at() -> Path:
    path = _incoming() / "many.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(2):
            stream = io.BytesIO()
            Image.new("RGB", (64, 64), (number, 1, 99)).save(stream, "PNG")
            archive.writestr(f"z{number}.png", stream.getvalue())
            archive.writestr(f"z{number}.txt", f"zipped {number}")
    return path


def waiting(desk: Desk) -> str:
    return next((entry.job for entry in reversed(desk.app.queue.entries())), "none")


Action = Callable[[Desk], object]

ACTIONS: dict[str, Action] = {
    "create project": lambda desk: desk.app.projects.create("dog"),
    "create version": lambda desk: desk.app.projects.create_version("cat", "v2"),
    "open version": lambda desk: desk.app.projects.open("bird", "v1"),
    "select": lambda desk: desk.app.projects.select("cat", "v1"),
    "duplicate version": lambda desk: desk.app.projects.duplicate_version(*IDS, "copy"),
    "restore": lambda desk: desk.app.projects.restore(next(desk.workspace.trash_dir.glob("* old")).name),
    "save settings": lambda desk: desk.app.settings.save(*IDS, train={"epochs": 9}),
    "upload": lambda desk: desk.app.datasets.add(*IDS, [("n.png", picture_at()), ("n.txt", caption_at())]),
    "upload a zip": lambda desk: desk.app.datasets.add(*IDS, [("many.zip", zip_at())]),
    "upload bytes": lambda desk: desk.app.datasets.add_bytes(*IDS, [("b.png", picture_at(3).read_bytes())]),
    "upload a mask": lambda desk: desk.app.datasets.add(*IDS, masked(desk)),
    "replace": lambda desk: desk.app.datasets.replace(*IDS, FILE, "other.png", picture_at(5)),
    "remove": lambda desk: desk.app.datasets.remove(*IDS, FILE),
    "set caption": lambda desk: desk.app.datasets.set_caption(*IDS, FILE, "another caption"),
    "edit captions": lambda desk: desk.app.captions.edit(*IDS, AddTags(tags="new"), AllPictures()),
    "undo captions": lambda desk: desk.app.captions.undo(*IDS),
    "update dataset": lambda desk: desk.app.datasets.start_update(*IDS),
    "begin training": lambda desk: desk.app.training.begin(*IDS),
    "resume": lambda desk: desk.app.training.resume(PAUSED),
    "delete training": lambda desk: desk.app.training.delete(PAUSED),
    "draw previews": lambda desk: desk.app.training.draw_previews(TRAIN),
    "publish": lambda desk: desk.app.loras.publish(TRAIN, LORAS[1]),
    "publish again": lambda desk: desk.app.loras.publish(TRAIN, LORAS[0]),
    "unpublish": lambda desk: desk.app.loras.unpublish(TRAIN, LORAS[0]),
    "mark private": lambda desk: desk.app.loras.set_private(TRAIN, True),
    "delete lora": lambda desk: desk.app.loras.delete(TRAIN, LORAS[1]),
    "save preset": lambda desk: desk.app.presets.save("mine", *IDS),
    "save new preset": lambda desk: desk.app.presets.save("yours", *IDS),
    "rename preset": lambda desk: desk.app.presets.rename("mine", "ours"),
    "delete preset": lambda desk: desk.app.presets.delete("mine"),
    "take in preset": lambda desk: desk.app.presets.take_in("x.json", desk.app.presets.file_path("mine").read_bytes()),
    "apply preset": lambda desk: desk.app.presets.apply(*IDS, "character"),
    "move in queue": lambda desk: desk.app.queue.move(waiting(desk), 1),
    "cancel": lambda desk: desk.app.queue.cancel(waiting(desk)),
    "begin grid": lambda desk: desk.app.grids.begin(TRAIN, LORAS[0]),
    "begin judge": lambda desk: desk.app.judging.begin(TRAIN),
    "begin proof": lambda desk: desk.app.proofs.begin(TRAIN, LORAS[0]),
    "choose": lambda desk: desk.app.judging.choose(TRAIN, LORAS[1], 0.9),
    "use settings": lambda desk: desk.app.history.use_settings(TRAIN),
    "write curves": lambda desk: desk.app.reports.write_curves(desk.job(TRAIN), desk.workspace.root / "curve.csv"),
    "draw class pictures": lambda desk: desk.app.regularisation.generate(*IDS, "person", "a person", "", 2),
    "add class pictures": lambda desk: desk.app.regularisation.add(*IDS, "person", [("q.png", picture_at(8))]),
    "rename project": lambda desk: desk.app.projects.rename("cat", "tiger"),
    "rename version": lambda desk: desk.app.projects.rename_version(*IDS, "v7"),
    "delete project": lambda desk: desk.app.projects.delete("cat"),
    "delete version": lambda desk: desk.app.projects.delete_version(*IDS),
    "begin sweep": lambda desk: desk.app.sweeps.begin(*IDS),
}
"""What a person does."""

QUEUED = ("move in queue", "cancel")
"""Those for which something of this version must wait in the queue; for many others nothing may."""
BEGUN = (
    "begin training",
    "resume",
    "draw previews",
    "begin grid",
    "begin judge",
    "begin proof",
    "draw class pictures",
    "begin sweep",
)
"""What waits in the queue then."""
PROVEN = ("publish", "publish again", "mark private")
"""A proof of the copy may wait then."""


def empty_queue(desk: Desk) -> None:
    """Of what belongs to the version."""
    for job in jobs_of(desk):
        if OTHER_IDS[0] not in job:
            desk.app.queue.cancel(job)


def jobs_of(desk: Desk) -> list[str]:
    """What runs and waits, in this order."""
    queue = JobQueue(desk.workspace.root)
    return [*queue.all_running(), *queue.waiting()]


def all_is_in_order(desk: Desk, before: Sequence[str], name: str, told: str, *, may_lack: bool = False) -> None:
    """Asserts of what a person sees next, after an action with some fault (`told`, if it said so), that no process is
    left and the queue is right: it can be read, has what it had `before` and what was begun, and nothing of it runs
    whose worker has ended. `may_lack`: a queue that was damaged itself, or is gone, is what it was a change earlier.
    """
    nobody_is_left(desk.root)
    jobs = [entry.job for entry in desk.app.queue.entries()]
    kept = list(before[:-1] if name == "cancel" else before)
    there = [job for job in jobs if job in kept]
    if name == "move in queue":
        kept.sort(), there.sort()
    assert there == kept or may_lack, f"of {kept} there is {there}: {told}"
    new = [job for job in jobs if job not in before]
    assert len(set(jobs)) == len(jobs)
    assert not new or may_lack or name in BEGUN + PROVEN, new
    assert new or told or may_lack or name not in BEGUN, "it was begun, and does not wait"
    for job in new if not may_lack else ():
        JobFolder(desk.workspace.root / job).read_spec()
    queue = JobQueue(desk.workspace.root)
    for job in queue.all_running():
        process = launcher.process_of(JobFolder(desk.workspace.root / job))
        assert queue.is_starting(job) or process is not None, f"{job} runs without a worker"


def caption_at() -> Path:
    path = _incoming() / "new.txt"
    path.write_text("a new caption", encoding="utf-8")
    return path


def masked(desk: Desk) -> list[tuple[str, Path]]:
    path = _incoming() / "mask.png"
    Image.new("L", (96, 96), 255).save(path)
    return [("o.png", desk.root / "o.png"), ("mask/o.png", path)]


class Shelf:
    """The filled workspace, put back as it was before every case."""

    def __init__(self, root: Path, place: Path | None = None) -> None:
        self.place = place or root / "place"
        """Where workspace and LoRA folder are; their paths stand in some files."""
        self._kept = root / "kept"
        self.place.mkdir(exist_ok=True)
        fill(Desk(self.place))
        shutil.copytree(self.place, self._kept)

    def put_back(self, *, is_idle: bool = False) -> Desk:
        for own in self.place.iterdir():
            if own.is_dir():
                shutil.rmtree(own)
            else:
                own.unlink()
        shutil.copytree(self._kept, self.place, dirs_exist_ok=True)
        desk = Desk(self.place)
        if is_idle:
            empty_queue(desk)
        return desk


CAPTION_EDITS = ("set caption", "edit captions", "undo captions")
"""What they replace stands in the history of the captions, not in the trash."""
