"""A version's dataset in a workspace, and its updates in this process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lora_train.core.dataset_settings import DatasetSettings
from lora_train.core.events import EventWriter, Note
from lora_train.core.jobs import JobFolder
from lora_train.core.specs import DatasetSpec
from lora_train.data.captioner import Captioner
from lora_train.data.dataset import scan_dataset
from lora_train.data.update import update_dataset

Colour = tuple[int, int, int]

RED, BLUE = (255, 0, 0), (0, 0, 255)


class Version:
    """Its folders, and what a test does with them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.dataset = root / "projects" / "cat" / "versions" / "v1" / "dataset"
        self.origin = self.dataset / "origin"
        self.processed = self.dataset / "processed"
        self.trash = root / "trash"
        self.job = JobFolder(root / "jobs" / "update")

    @staticmethod
    def halves(left: Colour, right: Colour, size: tuple[int, int] = (64, 64)) -> Image.Image:
        """Two colours, so that turned and flipped ones are told apart."""
        picture = Image.new("RGB", size, left)
        picture.paste(right, (size[0] // 2, 0, *size))
        return picture

    def upload(self, name: str, caption: str | None = None, content: Image.Image | None = None, **options: Any) -> Path:
        self.origin.mkdir(parents=True, exist_ok=True)
        path = self.origin / name
        (content or self.halves(RED, BLUE)).save(path, **options)
        if caption is not None:
            path.with_suffix(".txt").write_text(caption, encoding="utf-8")
        return path

    def spec(self, *, concept: str = "cat", project: str = "", repeats: int = 4, **settings: Any) -> DatasetSpec:
        values = {"width_px": 64, "height_px": 64, **settings}
        return DatasetSpec(
            dataset="../../projects/cat/versions/v1/dataset",
            trash="../../trash",
            settings=DatasetSettings(**values),
            concept=concept,
            project=project,
            repeats=repeats,
        )

    def update(self, captioner: Captioner | None = None, **settings: Any) -> list[str]:
        """What was told of single pictures."""
        self.job.path.mkdir(parents=True, exist_ok=True)
        writer = EventWriter(self.job.events_path)
        told = len(self.job.events())
        try:
            update_dataset(self.spec(**settings), self.job, writer, captioner)
        finally:
            writer.close()
        return [event.message for event in self.job.events()[told:] if isinstance(event, Note)]

    def put(self, file: str, caption: str | None = None) -> None:
        """A picture that a person put into the trained set directly."""
        path = self.processed / file
        path.parent.mkdir(parents=True, exist_ok=True)
        self.halves(BLUE, RED).save(path)
        if caption is not None:
            path.with_suffix(".txt").write_text(caption, encoding="utf-8")

    def captions(self) -> dict[str, str]:
        return {picture.path: picture.caption for picture in scan_dataset(self.processed).pictures}

    def edit(self, file: str, caption: str) -> None:
        (self.processed / file).with_suffix(".txt").write_text(caption, encoding="utf-8")

    def content(self) -> dict[str, bytes]:
        found = (path for path in self.processed.rglob("*") if path.is_file())
        return {path.relative_to(self.processed).as_posix(): path.read_bytes() for path in found}

    def trained(self, file: str) -> np.ndarray:
        with Image.open(self.processed / file) as picture:
            return np.asarray(picture.convert("RGB"))


@pytest.fixture
def version(tmp_path: Path) -> Version:
    return Version(tmp_path)
