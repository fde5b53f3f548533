"""Real workers in a workspace of their own, small pictures, and looks into the files that they leave."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import lora_train
from lora_train.app import App
from lora_train.core import events as ev
from lora_train.core.jobs import JobFolder, JobStatus
from lora_train.core.workspace import Workspace
from lora_train.launch.launcher import Worker

WAIT_S = 300
"""For anything a worker does in these tests; the slowest takes about 20 s on one slow core."""

QUICK: dict[str, Any] = {
    "base_model": "demo",
    "hold_out": 0,
    "rank": 2,
    "alpha": 2,
    "learning_rate": 4e-3,
    "text_encoder_lr": 4e-3,
    "repeats": 1,
    "save_every_epochs": 0,
    "cpu_threads": 1,
}
"""The small demo model, 64 px: a step takes about 0.05 s on one core."""


class Studio:
    """An App over a new workspace, and the processes that a test started."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.app = App(Workspace(root / "workspace"))
        self._processes: list[subprocess.Popen[bytes]] = []

    def pictures(
        self,
        folder: str,
        captions: Sequence[str],
        *,
        sizes_px: Sequence[tuple[int, int]] = ((64, 64),),
        seed: int = 0,
    ) -> Path:
        """A folder of soft random pictures, one for each caption, their sizes taken in turn."""
        path = self.root / folder
        path.mkdir(parents=True, exist_ok=True)
        numbers = np.random.default_rng(seed)
        for index, caption in enumerate(captions):
            coarse = numbers.integers(0, 256, (4, 4, 3), dtype=np.uint8)
            picture = Image.fromarray(coarse).resize(sizes_px[index % len(sizes_px)], Image.Resampling.BICUBIC)
            picture.save(path / f"{seed}-{index}.png")
            (path / f"{seed}-{index}.txt").write_text(caption, encoding="utf-8")
        return path

    def plan(self, images: Path, *, name: str = "person", publish_to: Path | None = None, **settings: Any) -> JobFolder:
        values = {**QUICK, **settings}
        return self.app.plan_train(name=name, images=images, values=values, publish_to=publish_to).job

    def start(self, job: JobFolder) -> Worker:
        process = self.app.start(job)
        self._processes.append(process)
        return process

    def run(self, job: JobFolder) -> JobStatus:
        """Start or go on, to the end."""
        return self.end(job, self.start(job))

    def work(self, job: JobFolder) -> None:
        """Run the worker alone: `App.start` lifts limits that were reached."""
        command = [sys.executable, "-m", "lora_train.worker", str(job.path)]
        subprocess.run(command, check=True, env=environment(), timeout=WAIT_S)

    def end(self, job: JobFolder, process: Worker) -> JobStatus:
        process.wait(WAIT_S)
        return self.app.status(job, process)

    def cli(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        """Run one `lora-train` command to its end."""
        return self._run_to_the_end(command_line(*arguments))

    def python(self, code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
        """Run a few lines of Python in a process of their own."""
        return self._run_to_the_end([sys.executable, "-c", code, *map(str, arguments)])

    def _run_to_the_end(self, command: list[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            cwd=self.root,
            env=environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            timeout=2 * WAIT_S,
            check=False,
        )

    def background(self, *arguments: object, **options: Any) -> subprocess.Popen[bytes]:
        """Start one `lora-train` command; its output is read with `communicate`."""
        process = subprocess.Popen(
            command_line(*arguments),
            cwd=self.root,
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            **options,
        )
        self._processes.append(process)
        return process

    def wait_for_step(self, job: JobFolder, process: subprocess.Popen[bytes], step: int) -> int:
        """Wait until the worker told of `step` or a later one; returns the last one it told of."""

        def told() -> int:
            steps = [event.step for event in job.events() if isinstance(event, ev.Step)]
            return steps[-1] if steps and steps[-1] >= step else 0

        self.wait_until(told, process)
        return told()

    def wait_until(self, is_true: Callable[[], object], process: subprocess.Popen[bytes]) -> None:
        """Wait for something that a running process brings about."""
        until = time.monotonic() + WAIT_S
        while not is_true():
            assert process.poll() is None, "the process ended too early"
            assert time.monotonic() < until, "waited too long"
            time.sleep(0.02)

    def close(self) -> None:
        for process in self._processes:
            if process.poll() is None:
                process.kill()
            process.communicate()
        for path in self.root.rglob("job.json"):  # workers of a command line that was ended
            self.app.kill(JobFolder(path.parent))


@pytest.fixture
def studio(tmp_path: Path) -> Iterator[Studio]:
    opened = Studio(tmp_path)
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def shared_studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    """For runs that several tests of a file look at."""
    opened = Studio(tmp_path_factory.mktemp("shared"))
    yield opened
    opened.close()


class Files:
    """What is inside .safetensors files, read without the library under test."""

    @staticmethod
    def header(path: Path) -> dict[str, Any]:
        with path.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            return json.loads(stream.read(length))

    @staticmethod
    def metadata(path: Path) -> dict[str, str]:
        return Files.header(path)["__metadata__"]

    @staticmethod
    def tensor_bytes(path: Path) -> bytes:
        """Everything behind the header."""
        content = path.read_bytes()
        (length,) = struct.unpack("<Q", content[:8])
        return content[8 + length :]

    @staticmethod
    def are_finite(path: Path) -> bool:
        from safetensors.torch import load_file

        return all(bool(tensor.isfinite().all()) for tensor in load_file(path).values())

    @staticmethod
    def clock(state: Path) -> dict[str, int]:
        """Step, epoch and step within it of a state file."""
        return json.loads(Files.metadata(state)["state"])["clock"]

    @staticmethod
    def states(job: JobFolder) -> list[Path]:
        """Oldest first."""
        return sorted(job.state_dir.glob("*.safetensors"))

    @staticmethod
    def final(job: JobFolder) -> Path:
        return job.path / f"{job.path.name}.safetensors"


@pytest.fixture
def files() -> type[Files]:
    return Files


def command_line(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "lora_train", *map(str, arguments)]


def environment() -> dict[str, str]:
    """As a person's, except that the package is found also where it is not installed."""
    package_root = str(Path(lora_train.__file__).parents[1])
    paths = [package_root, os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "PYTHONIOENCODING": "utf-8"}
