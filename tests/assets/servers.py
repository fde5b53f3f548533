"""A server over a real App in this process, and calls to it.

Used by the tests of the API and of security (`servers` in `tests/conftest.py`).
"""

from __future__ import annotations

import asyncio
import io
import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from lora_train.app import App
from lora_train.core import events as ev
from lora_train.core.config import TrainSettings
from lora_train.core.host import NoHost
from lora_train.core.jobs import JobFolder
from lora_train.core.specs import TrainSpec
from lora_train.core.workspace import Workspace

if TYPE_CHECKING:
    import httpx

PREFIX = "/train-tools/v1/"


def call(server: Any, method: str, path: str, **kwargs: Any) -> httpx.Response:
    """`call(server, method, path, **what httpx takes)` gives the answer; what the server raises is raised.

    FastAPI's TestClient does not fit every httpx that hosts bring.
    """
    import httpx

    async def go() -> httpx.Response:
        transport = httpx.ASGITransport(app=server)
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            return await client.request(method, path, **kwargs)

    return asyncio.run(go())


class LocalHost(NoHost):
    """A host with a LoRA folder, open to this machine alone."""

    name = "tested host"

    def __init__(self, loras: Path) -> None:
        self.loras = loras
        self.is_local = True

    def lora_dir(self) -> Path:
        return self.loras

    def lora_root(self) -> Path:
        return self.loras

    def takes_paths(self) -> bool:
        return self.is_local


class World:
    """A server, an App and its workspace; `root` is the folder around all that."""

    def __init__(self, root: Path) -> None:
        from fastapi import FastAPI

        from lora_train.api import PageGate, add_routes

        self.root = root
        self.host = LocalHost(root / "models" / "Lora")
        self.app = App(Workspace(root / "workspace"), self.host)
        self.server = FastAPI()
        self.server.tokens, self.server.auth = {}, None  # type: ignore[attr-defined]
        self.asked: list[Mapping[str, str]] = []
        add_routes(self.server, self.app, PageGate(list, lambda: True), self.live)

    @staticmethod
    def png(size: tuple[int, int] = (400, 300), color: str = "red") -> bytes:
        stream = io.BytesIO()
        Image.new("RGB", size, color).save(stream, "PNG")
        return stream.getvalue()

    @staticmethod
    def lora_bytes() -> bytes:
        """The smallest file that a LoRA can be."""
        header = {
            "__metadata__": {"modelspec.trigger_phrase": "猫"},
            "lora_unet_x.alpha": {"dtype": "F32", "shape": [], "data_offsets": [0, 4]},
        }
        text = json.dumps(header).encode()
        return struct.pack("<Q", len(text)) + text + struct.pack("<f", 1.0)

    def live(self, query: Mapping[str, str]) -> dict[str, Any]:
        self.asked.append(query)
        return {"busy": False}

    def ask(self, method: str, path: str, headers: Mapping[str, str] | None = None, **kwargs: Any) -> httpx.Response:
        from lora_train.api import TOKEN

        return call(self.server, method, PREFIX + path, headers={"X-Train-Tools": TOKEN, **(headers or {})}, **kwargs)

    def get(self, path: str, **query: Any) -> Any:
        answer = self.ask("GET", path, params=query)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def post(self, path: str, **body: Any) -> Any:
        answer = self.ask("POST", path, json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def fill(self) -> World:
        """A version with a picture and a finished training."""
        ids = self.post("projects", name="猫 Cat")
        self.ids = self.post("versions", project=ids["project"], name="v1")
        version = self.app.workspace.find_version(self.ids["project"], self.ids["version"])
        folder = version.dataset_dir / "3_cat"
        folder.mkdir(parents=True)
        folder.joinpath("a.png").write_bytes(self.png())
        folder.joinpath("a.txt").write_text("a cat", encoding="utf-8")
        job = JobFolder(version.trains_dir / "猫-v1")
        job.create(TrainSpec(name="猫-v1", dataset="x", dataset_fingerprint="", trash="x", settings=TrainSettings()))
        job.path.joinpath("猫-v1.safetensors").write_bytes(self.lora_bytes())
        job.samples_dir.mkdir()
        job.samples_dir.joinpath("猫-v1-grid.png").write_bytes(self.png())
        job.path.joinpath("notes.svg").write_text("<svg/>", encoding="utf-8")
        job.log_path.write_text("hello from the worker\n", encoding="utf-8")
        writer = ev.EventWriter(job.events_path)
        writer.write(
            ev.Started(pid=0, total_steps=2, epochs=1, device="cpu", step=0),
            ev.Step(step=2, epoch=1, loss=0.5, lr=0.1, s_per_step=0.1),
            ev.Saved(path="猫-v1.safetensors", step=2, epoch=1),
            ev.Sampled(path="samples/猫-v1-grid.png", step=2),
            ev.Finished(step=2),
        )
        writer.close()
        self.train = self.app.workspace.id_of(job.path)
        self.train_dir = job.path
        return self
