"""Workers that download from a hub on this machine."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest

from lora_train.core import captioners
from lora_train.core.captioners import CaptionerFile, CaptionerModel
from lora_train.core.jobs import JobFolder, JobStatus, StatusReader
from lora_train.core.specs import DownloadSpec

if TYPE_CHECKING:
    from tests.assets.hubs import Hub

CONTENTS = {"model.onnx": bytes(range(256)) * 4096, "selected_tags.csv": b"tag_id,name\n1,cat\n", "config.json": b"{}"}
"""Of a model that is small enough for tests: 1 MiB of weights."""

_LIMIT_S = 60
_WITH_SMALL_MODEL = """
import sys, msgspec
from lora_train.core import captioners
model = msgspec.json.decode(sys.argv[2].encode(), type=captioners.CaptionerModel)
captioners.MODELS = (model,) if model.files else ()
from lora_train.caption import downloads
import os, time
time.sleep = lambda pause_s, sleep=time.sleep: sleep(min(pause_s, 0.05))
from lora_train import worker
if "LARGEST_FILE_BYTES" in os.environ:
    import resource
    resource.setrlimit(resource.RLIMIT_FSIZE, 2 * (int(os.environ["LARGEST_FILE_BYTES"]),))
sys.exit(worker.main(sys.argv[1:2]))
"""
"""The worker as it is, but for a model of one megabyte in the registry, and short pauses between tries."""


class Desk:
    """Downloads, with the real huggingface_hub, into a folder of captioners."""

    def __init__(self, root: Path, hub: Hub) -> None:
        self.root = root
        self.hub = hub
        self.count = 0
        self.parent = root / "captioners"

    def job(self, model: CaptionerModel) -> JobFolder:
        self.count += 1
        job = JobFolder(self.root / f"job-{self.count}")
        kind = None if model.files else model.kind
        job.create(DownloadSpec(model=model.name, folder=str(self.parent / model.folder_name), captioner=kind))
        return job

    def start(self, model: CaptionerModel, job: JobFolder) -> subprocess.Popen[bytes]:
        """A worker in a process of its own, with the real huggingface_hub."""
        text = msgspec.json.encode(model).decode()
        command = [sys.executable, "-c", _WITH_SMALL_MODEL, str(job.path), text]
        return subprocess.Popen(command, cwd=Path(captioners.__file__).parents[2], env=dict(os.environ))

    def download(self, model: CaptionerModel) -> JobStatus:
        job = self.job(model)
        self.start(model, job).wait(_LIMIT_S)
        return StatusReader(job).read()

    def is_there(self, model: CaptionerModel) -> bool:
        return captioners.folder_of(model, self.parent, {"HF_HOME": str(self.root)}) is not None

    def visible(self) -> list[str]:
        """What a person sees in the folder of captioners."""
        return sorted(path.name for path in self.parent.iterdir() if not path.name.startswith("."))

    def contents(self, folder: Path) -> dict[str, bytes]:
        """Of the model's files; that which tells where they come from is not one."""
        return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".hub.json"}

    def half(self, model: CaptionerModel) -> Path:
        return self.parent / f".{model.folder_name}.part"


@pytest.fixture
def small_model(hub: Hub) -> CaptionerModel:
    """Offered by the hub. Of config.json we know no checksum."""
    files = tuple(
        CaptionerFile(name, len(content), "" if name == "config.json" else hashlib.sha256(content).hexdigest())
        for name, content in CONTENTS.items()
    )
    model = CaptionerModel(
        name="small-tagger",
        kind="wd14",
        label="Small tagger",
        good_for="tests",
        repository="somebody/small-tagger",
        revision="0123456789abcdef0123456789abcdef01234567",
        files=files,
    )
    hub.offer(model, CONTENTS)
    hub.large = {"model.onnx"}
    return model


@pytest.fixture
def desk(tmp_path: Path, hub: Hub) -> Desk:
    return Desk(tmp_path, hub)
