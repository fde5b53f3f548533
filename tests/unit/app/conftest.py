"""An App over a new workspace within a host of two folders; trains are written by hand, no worker is started."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from PIL import Image

from lora_train.app import App, sweep_planning
from lora_train.app.snapshot import DatasetSnapshot
from lora_train.core import events as ev
from lora_train.core.config import TrainSettings
from lora_train.core.events import EventWriter
from lora_train.core.host import BaseModelChoice, NoHost
from lora_train.core.jobs import JobFolder
from lora_train.core.specs import DatasetSpec, TrainSpec
from lora_train.core.workspace import Workspace
from lora_train.data.update import update_dataset
from lora_train.launch import launcher
from tests.unit.app.floor import Floor

PICTURES = [f"9_cat/{number}.png" for number in range(18)]
"""For `Desk.trained`: as many as in the tutorial, in a folder of its repeats."""


class TwoFolders(NoHost):
    """A host with a LoRA folder and a sub-folder in it for ours."""

    name = "tested host"

    def __init__(self, root: Path) -> None:
        self.root = root / "models" / "Lora"
        self.sub_folder = ""
        self.publishes = True
        self.is_local = True
        self.refreshed = 0
        self.checkpoints: list[BaseModelChoice] = []

    def base_models(self) -> list[BaseModelChoice]:
        return self.checkpoints

    def lora_dir(self) -> Path | None:
        return self.root / self.sub_folder

    def lora_root(self) -> Path | None:
        return self.root

    def auto_publish(self) -> bool:
        return self.publishes

    def refresh_loras(self) -> None:
        self.refreshed += 1

    def takes_paths(self) -> bool:
        return self.is_local


class Desk:
    """What a test does and looks at: the App, and the files around it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.host = TwoFolders(root)
        self.app = App(Workspace(root / "work space"), self.host)
        self.workspace = self.app.workspace

    def again(self) -> App:
        """Another App over the same folders, as after a restart."""
        return App(Workspace(self.workspace.root), self.host)

    def version(self, project: str = "cat", version: str = "v1") -> tuple[str, str]:
        """The ids of a version, made if it is not there."""
        found = self.workspace.project(project).version(version)
        return found.project.path.name, found.path.name

    def picture(self, size: tuple[int, int] = (64, 64), color: tuple[int, int, int] = (200, 10, 10)) -> Path:
        """A picture file outside the workspace."""
        path = self.root / f"picture-{time.time_ns()}.png"
        Image.new("RGB", size, color).save(path)
        return path

    def save(self, **settings: Any) -> None:
        """Settings of a quick training of `cat v1`, without held-out pictures unless they say so."""
        self.version()
        assert self.app.settings.save("cat", "v1", train={"base_model": "demo", "hold_out": 0, **settings}) == []

    def trained(self, *files: str, size: tuple[int, int] = (64, 64), project: str = "cat") -> Path:
        """Pictures in the trained set of a version; where that is."""
        found = self.workspace.find_version(*self.version(project))
        for number, file in enumerate(files):
            path = found.dataset_dir / file
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", size, (number, 10, 200)).save(path)
            path.with_suffix(".txt").write_text(f"caption of {path.name}", encoding="utf-8")
        return found.dataset_dir

    def upload(self, *names: str) -> None:
        """Pictures of different colours into the version's originals."""
        self.version()
        files = [(name, self.picture(color=(number, 0, 0))) for number, name in enumerate(names)]
        assert self.app.datasets.add("cat", "v1", files) == []

    def update(self, **settings: object) -> None:
        self.app.settings.save("cat", "v1", train={"repeats": 4}, dataset={"width_px": 64, "height_px": 64, **settings})
        self.app.datasets.start_update("cat", "v1")

    def shown(self) -> DatasetSnapshot:
        return self.app.datasets.snapshot("cat", "v1")

    def files(self) -> list[tuple[str, bool]]:
        """Each picture that is shown, and whether it waits."""
        return [(entry.file, entry.is_waiting) for entry in self.shown().pictures]

    def train(
        self,
        name: str = "cat-v1",
        *,
        project: str = "cat",
        events: Sequence[ev.Event] = (),
        loras: Sequence[str] = (),
        created: float = 1.0,
        **settings: Any,
    ) -> str:
        """A train in the version `v1` of a project, its LoRAs saved, `events` told after that; its id."""
        found = self.workspace.find_version(*self.version(project))
        job = JobFolder(found.trains_dir / name)
        spec = TrainSpec(
            name=name,
            dataset="../../dataset/processed",
            dataset_fingerprint="0" * 32,
            trash="../../../../../../trash",
            settings=TrainSettings(**{"base_model": "demo", **settings}),
            concept=project,
            created=created,
            version="v1",
        )
        job.create(spec)
        told: list[ev.Event] = []
        for number, lora in enumerate(loras):
            self.write_lora(job.path / lora, number, trigger=settings.get("trigger_word", project))
            told.append(ev.Saved(lora, step=10 * (number + 1), epoch=number + 1))
        if told or events:
            started = ev.Started(pid=0, total_steps=10 * len(loras), epochs=len(loras), device="CPU", step=0)
            self.tell(job, started, *told, *events)
        return self.workspace.id_of(job.path)

    def finished(self, name: str = "cat-v1", *, loras: Sequence[str] | None = None, **options: Any) -> str:
        """A train that came to its end."""
        files = [f"{name}.safetensors"] if loras is None else loras
        return self.train(name, loras=files, events=[ev.Finished(step=10 * len(files))], **options)

    @staticmethod
    def write_lora(path: Path, value: int = 0, trigger: str = "cat") -> None:
        """A .safetensors file of one tensor, as small as can be."""
        metadata = {"ss_output_name": path.stem, "modelspec.title": path.stem, "modelspec.trigger_phrase": trigger}
        header = {"__metadata__": metadata, "alpha": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}
        text = json.dumps(header).encode("utf-8")
        text += b" " * (-len(text) % 8)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(struct.pack("<Q", len(text)) + text + struct.pack("<f", float(value)))

    def job(self, job: str) -> JobFolder:
        return JobFolder(self.workspace.root / job)

    def publishes_to(self, job: str, folder: Path) -> None:
        """Have a training published to a folder by itself."""
        own = self.job(job)
        own.replace_spec(msgspec.structs.replace(own.read_spec(), publish_to=folder.as_posix()))

    def tell(self, job: JobFolder, *events: ev.Event) -> None:
        writer = ev.EventWriter(job.events_path)
        writer.write(*events)
        writer.close()

    def previews(self, job: str, *names: str) -> None:
        folder = self.job(job).samples_dir
        folder.mkdir(exist_ok=True)
        for number, name in enumerate(names):
            Image.new("RGB", (8, 8), (number, 0, 0)).save(folder / name)


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


@pytest.fixture
def updates_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """An update is done in this process instead, at once."""

    def start(job: JobFolder) -> None:
        spec = job.read_spec()
        assert isinstance(spec, DatasetSpec)
        events = EventWriter(job.events_path)
        events.write(ev.Started(pid=0))
        events.write(ev.Finished(result=update_dataset(spec, job, events)))
        events.close()

    class Ended(launcher.Worker):
        def __init__(self, job: JobFolder) -> None:
            start(job)

        def poll(self) -> int:
            return 0

    monkeypatch.setattr(launcher, "start_worker", Ended)
    monkeypatch.setattr(Ended, "__del__", lambda self: None)


@pytest.fixture
def floor(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> Floor:
    """A version `cat v1` of 4 pictures, whose trainings have 40 steps."""
    opened = Floor(desk)
    desk.trained(*(f"1_cat/{number}.png" for number in range(4)))
    desk.app.settings.save("cat", "v1", train={"base_model": "demo", "epochs": 10, "save_every_epochs": 0})
    monkeypatch.setattr(time, "time", lambda: opened.now)
    monkeypatch.setattr(sweep_planning, "deadline", lambda text, now: opened.finish_by)
    return opened
