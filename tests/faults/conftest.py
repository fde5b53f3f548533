"""Workers that are forked and die where a test says, and fingerprints of what may never be lost."""

from __future__ import annotations

import hashlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from PIL import Image

import lora_train
from lora_train.core.jobs import JobFolder
from lora_train.launch import launcher

_FORKS = Path(__file__).with_name("forks.py")
_PADDING = "x" * 2048
_WAIT_S = 300

_DATA = "lora_train.worker,lora_train.data.update,lora_train.data.captioning,lora_train.app,tests.faults.deeds"
TRAINING = (
    f"{_DATA},lora_train.engine.train,lora_train.engine.loading,diffusers:AutoencoderKL,diffusers:UNet2DConditionModel,"
    "diffusers:DDIMScheduler,transformers:CLIPTextModel,transformers:CLIPTokenizer"
)


class Forker:
    """`forks.py` at work: starts processes of ours within milliseconds, one at a time."""

    def __init__(self, modules: str) -> None:
        self.root = Path("/")
        """Changes to files below it count."""
        self.dies_at = 0
        """At which change the next process dies; at none where it is 0."""
        self.changes = 0
        """How many the last process made that came to its end."""
        self.before_start: Callable[[], object] = lambda: None
        self._answers: queue.Queue[Any] = queue.Queue()
        self._process = subprocess.Popen(
            [sys.executable, str(_FORKS), modules, _PADDING],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            encoding="utf-8",
            env={**os.environ, "PYTHONPATH": str(Path(lora_train.__file__).parents[1]), "PYTHONUTF8": "1"},
        )
        threading.Thread(target=self._read, daemon=True).start()
        assert self.heard() == "ready"

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._answers.put(json.loads(line))

    def start(self, function: str, arguments: Sequence[Any], log: Path, command: Sequence[str] = ()) -> int:
        """Call `module:function` in a new process, and return its number."""
        assert self._process.stdin is not None
        self.before_start()
        call = {
            "function": function,
            "arguments": list(arguments),
            "log": str(log),
            "command": list(command),
            "root": str(self.root),
            "dies_at": self.dies_at,
        }
        self._process.stdin.write(json.dumps(call) + "\n")
        self._process.stdin.flush()
        return self.heard()

    def heard(self, limit_s: float = _WAIT_S) -> Any:
        """The next answer. Raises queue.Empty where none comes."""
        return self._answers.get(timeout=limit_s)

    def ended(self, limit_s: float = _WAIT_S) -> int:
        """The exit code of the last process: -9 where it was killed."""
        code, self.changes = self.heard(limit_s)
        return code

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(_WAIT_S)


class ForkedWorker:
    """A `launcher.Worker` that was forked."""

    forker: Forker
    returncode: int | None = None
    told_before_bytes = 0

    def __init__(self, command: Sequence[str], **_: Any) -> None:
        arguments = [*command[3:]]  # behind `python -m lora_train.worker`
        log = JobFolder(Path(arguments[-1])).log_path
        self.pid = self.forker.start("lora_train.worker:main", [arguments], log, command[2:])

    def has_begun(self, job: JobFolder) -> bool:
        return job.has_told_since(self.told_before_bytes)

    def poll(self) -> int | None:
        if self.returncode is None:
            with suppress(queue.Empty):
                self.returncode = self.forker.ended(0.0005)
        return self.returncode

    def wait(self, limit_s: float = _WAIT_S) -> int:
        if self.returncode is None:
            self.returncode = self.forker.ended(limit_s)
        return self.returncode

    def kill(self) -> None:
        if self.returncode is None:
            with suppress(ProcessLookupError):  # it has just ended by itself
                os.kill(self.pid, signal.SIGKILL)


def _forker(modules: str) -> Iterator[Forker]:
    if sys.platform != "linux":
        pytest.skip("it forks, and reads /proc")
    forker = Forker(modules)
    yield forker
    forker.close()


@pytest.fixture(scope="session")
def training_forker() -> Iterator[Forker]:
    """With torch."""
    yield from _forker(TRAINING)


@pytest.fixture(scope="session")
def data_forker() -> Iterator[Forker]:
    """Without torch."""
    yield from _forker(_DATA)


@pytest.fixture(scope="session")
def forge() -> Iterator[Any]:
    """A `forge.Forge`, in memory where that can be."""
    from tests.faults.forge import Forge

    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None, ignore_cleanup_errors=True) as root:
        yield Forge(Path(root))


def fork_workers(forker: Forker, root: Path, monkeypatch: pytest.MonkeyPatch) -> Forker:
    """From now on the launcher's workers are forked by it; changes below `root` count."""
    forker.root, forker.dies_at, forker.before_start = root, 0, lambda: None
    monkeypatch.setattr(launcher, "Worker", type("Worker", (ForkedWorker,), {"forker": forker}))
    return forker


def fingerprint(folders: Iterable[Path], without: Callable[[Path], bool] = lambda _: False) -> dict[Path, str]:
    """Every file below some folders, with the hash of its content."""
    files = (path for folder in folders for path in sorted(folder.rglob("*")) if path.is_file() and not without(path))
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def temporary_files(root: Path) -> list[str]:
    """What a write leaves when its process dies."""
    return [str(path.relative_to(root)) for path in root.rglob("*") if ".tmp" in path.name or ".incoming" in path.name]


def zombies() -> list[int]:
    """Children of this process, and theirs, that ended and were never asked how."""
    return _zombies(_children())


def _zombies(children: Iterable[psutil.Process]) -> list[int]:
    found: list[int] = []
    for child in children:
        with suppress(psutil.NoSuchProcess):
            if child.status() == psutil.STATUS_ZOMBIE:
                found.append(child.pid)
    return found


def _children() -> list[psutil.Process]:
    return psutil.Process().children(recursive=True)


def workers_below(root: Path, processes: Iterable[psutil.Process] | None = None) -> list[psutil.Process]:
    """Those of jobs below a folder, among some processes or all of the machine."""
    found: list[psutil.Process] = []
    for process in psutil.process_iter() if processes is None else processes:
        with suppress(psutil.Error):
            words = process.cmdline()
            if "lora_train.worker" in words and str(root) in words[-1]:
                found.append(process)
    return found


def nobody_is_left(root: Path) -> None:
    """Asserts that what was done below a folder left no process: none that ended unasked, no worker at work."""
    children = _children()
    assert _zombies(children) == []
    assert workers_below(root, children) == []


def make_pictures(folder: Path, captions: Sequence[str], size_px: tuple[int, int] = (64, 64)) -> Path:
    """Soft random pictures, one for each caption; "" is none."""
    folder.mkdir(parents=True, exist_ok=True)
    numbers = np.random.default_rng(len(captions))
    for index, caption in enumerate(captions):
        coarse = numbers.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize(size_px, Image.Resampling.BICUBIC).save(folder / f"{index}.png")
        if caption:
            (folder / f"{index}.txt").write_text(caption, encoding="utf-8")
    return folder


def wait_until(is_true: Callable[[], object], limit_s: float = _WAIT_S) -> None:
    until = time.monotonic() + limit_s
    while not is_true():
        assert time.monotonic() < until, "waited too long"
        time.sleep(0.01)
