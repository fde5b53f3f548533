"""An App whose queue is worked off by real workers, within a host of two folders that parks its card."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from lora_train.app import App
from lora_train.app.snapshot import TrainSnapshot
from lora_train.core import events as ev
from lora_train.core.errors import TrainToolsError
from lora_train.core.host import NoHost
from lora_train.core.jobs import JobFolder
from lora_train.core.workspace import Workspace
from lora_train.launch import launcher
from lora_train.publish import Published

if TYPE_CHECKING:
    from tests.integration.conftest import Files

WAIT_S = 300

QUICK: dict[str, Any] = {
    "base_model": "demo",
    "hold_out": 0,
    "epochs": 1,
    "repeats": 1,
    "rank": 2,
    "alpha": 2,
    "save_every_epochs": 0,
    "generate_previews": False,
    "preview_steps": 2,
    "preview_sampler": "DDIM",
    "cpu_threads": 1,
}
"""The small demo model, 64 px: a step takes about 0.05 s on one core."""


class ParkingHost(NoHost):
    """A host with a LoRA folder, whose card is asked for and given back."""

    name = "tested host"

    def __init__(self, root: Path) -> None:
        self.loras = root / "models" / "Lora"
        self.publishes = True
        self.parked_for: list[str] = []

    def lora_dir(self) -> Path:
        return self.loras

    def lora_root(self) -> Path:
        return self.loras

    def auto_publish(self) -> bool:
        return self.publishes

    @contextmanager
    def parked(self, device: str) -> Iterator[None]:
        self.parked_for.append(f"in {device}")
        try:
            yield
        finally:
            self.parked_for.append("out")


def _no_proof(train: JobFolder, file: str, published: Published) -> None:
    """A proof after each publishing would come between the jobs that are counted here."""


class House:
    """The App, a version `cat v1`, and what a test does with them."""

    project, version = "cat", "v1"

    def __init__(self, root: Path) -> None:
        self.root = root
        self.host = ParkingHost(root)
        self.app = App(Workspace(root / "work space"), self.host)
        self.app.proofs.on_published = _no_proof
        self.app.projects.create("cat")
        self.app.projects.create_version("cat", "v1")

    def picture(self, size: tuple[int, int] = (64, 64), seed: int = 0) -> Path:
        path = self.root / f"{seed}-{size[0]}x{size[1]}.png"
        coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(path)
        return path

    def upload(self, count: int = 2, size: tuple[int, int] = (64, 64)) -> None:
        files = [(f"{number}.png", self.picture(size, seed=number)) for number in range(count)]
        assert self.app.datasets.add("cat", "v1", files) == []

    def save(self, train: dict[str, Any] | None = None, **dataset: Any) -> None:
        given = {**QUICK, **(train or {})}
        assert self.app.settings.save("cat", "v1", given, {"width_px": 64, "height_px": 64, **dataset}) == []

    def update(self) -> None:
        """*Update Dataset*, to its end."""
        self.app.datasets.start_update("cat", "v1")
        self.wait(lambda: not self.app.datasets.is_updating(self.app.workspace.find_version("cat", "v1")))

    def set_up(self, count: int = 2, **train: Any) -> None:
        """A trained set of `count` pictures and quick settings."""
        self.save(train)
        self.upload(count)
        self.update()

    def train(self, job: str) -> TrainSnapshot:
        return next(train for train in self.app.training.list("cat", "v1") if train.job == job)

    def state(self, job: str) -> str:
        return self.train(job).status.state

    def folder(self, job: str) -> JobFolder:
        return JobFolder(self.app.workspace.root / job)

    def steps(self, job: str) -> list[int]:
        return [event.step for event in self.folder(job).events() if isinstance(event, ev.Step)]

    def wait(self, is_true: Callable[[], object]) -> None:
        until = time.monotonic() + WAIT_S
        while not is_true():
            assert time.monotonic() < until, "waited too long"
            time.sleep(0.02)

    def wait_for(self, job: str, state: str) -> None:
        """Also until the queue is done with it."""
        ends = ("finished", "stopped", "paused", "failed")

        def is_there() -> bool:
            train = self.train(job)
            assert train.place is not None or train.status.state in (state, *ends), train.status
            return train.status.state == state and (state not in ends or train.place is None)

        self.wait(is_there)

    def trashed(self) -> list[str]:
        trash = self.app.workspace.trash_dir
        return [path.name for path in trash.iterdir()] if trash.exists() else []

    def close(self) -> None:
        self.app.stop_background()
        for path in self.app.workspace.root.rglob("job.json"):
            try:
                launcher.kill_worker(JobFolder(path.parent))
            except (OSError, TrainToolsError):
                continue


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    opened = House(tmp_path)
    yield opened
    opened.close()


@pytest.fixture
def finite(files: type[Files]) -> Callable[[Path], bool]:
    return files.are_finite
