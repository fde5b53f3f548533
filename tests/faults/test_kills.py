"""kill -9 of a training at random, seeded moments, again and again: it ends with a straight run's bytes and losses."""

from __future__ import annotations

import json
import random
import signal
import struct
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from PIL import Image

from lora_train.app import App
from lora_train.core import events as ev
from lora_train.core.jobs import JobFolder
from lora_train.core.workspace import Workspace
from lora_train.launch import launcher
from tests.faults.conftest import (
    Forker,
    fingerprint,
    fork_workers,
    make_pictures,
    temporary_files,
    wait_until,
    zombies,
)

_SEED = 8
_MOST_CHANGES = 50
"""A life of a worker makes about 15 changes to files before its first step, and 30 in an epoch."""

_SETTINGS: dict[str, Any] = {
    "base_model": "demo",
    "hold_out": 0,
    "rank": 2,
    "alpha": 2,
    "learning_rate": 4e-3,
    "text_encoder_lr": 4e-3,
    "repeats": 1,
    "epochs": 6,
    "save_every_epochs": 1,
    "state_every_s": 1,
    "cpu_threads": 1,
    "generate_previews": True,
    "preview_prompts": ("a thing",),
    "preview_weights": (1.0,),
    "preview_steps": 2,
    "preview_sampler": "DDIM",
}
"""24 steps of the small demo model, 64 px; state, LoRA and previews after every four of them."""


class Scene:
    """A workspace with a straight run, and trains of the same settings whose workers are killed."""

    def __init__(self, root: Path, forker: Forker) -> None:
        self.root = root
        self.forker = forker
        self.app = App(Workspace(root / "workspace"))
        self.lora_dir = root / "models" / "Lora"
        self._pictures = make_pictures(root / "pictures", ["a red thing", "a blue thing", "a green thing", "a thing"])
        self.kills = 0
        self.kills_at: Counter[str] = Counter()
        """By what they left half-written."""
        self._never_lost: dict[Path, str] = {}
        self.straight = self.plan()
        self.expected_losses: dict[int, float] = {}

    def plan(self) -> JobFolder:
        planned = self.app.plan_train(name="猫", images=self._pictures, values=_SETTINGS, publish_to=self.lora_dir)
        return planned.job

    def run_straight(self) -> None:
        """With nobody killed."""
        worker = self.app.start(self.straight)
        assert worker.wait(300) == 0, self.straight.log_tail()
        self.expected_losses = _losses(self.straight)
        assert len(self.expected_losses) == 24

    # --- a life of a worker ---

    def live(self, job: JobFolder, chance: random.Random, *, is_spared: bool = False) -> bool:
        """Start the worker or let it go on, and kill it; whether it came to its end before."""
        kind = chance.choice(["change", "change", "told", "writes", "writes"])
        self.forker.dies_at = chance.randint(1, _MOST_CHANGES) if kind == "change" and not is_spared else 0
        told, before = len(job.events()), self._to_keep()
        worker = self.app.start(job)
        if not is_spared:
            {"change": lambda *_: None, "told": self._kill_when_told, "writes": self._kill_at_a_write}[kind](
                job, told, chance, worker
            )
        if worker.wait() == 0:
            return True
        assert worker.returncode == -signal.SIGKILL, job.log_tail()
        self.kills += 1
        self.kills_at.update(_whats(temporary_files(job.path)))
        self._is_sound(job, worker.pid, before)
        return False

    def _kill_when_told(self, job: JobFolder, told: int, chance: random.Random, worker: Any) -> None:
        """Some time after some event."""
        wanted = told + chance.randint(0, 30)
        wait_until(lambda: worker.poll() is not None or len(job.events()) > wanted)
        time.sleep(chance.random() / 4)
        worker.kill()

    def _kill_at_a_write(self, job: JobFolder, _: int, chance: random.Random, worker: Any) -> None:
        """When a half-written file is seen, of the kind whose turn it is, or any."""
        folders = chance.choice([[job.state_dir], [job.path], [job.samples_dir], [job.state_dir, job.path]])
        wanted, seen = chance.randint(1, 3), set[str]()
        while len(seen) < wanted and worker.poll() is None:
            for folder in folders:
                seen.update(_half_written(folder))
        worker.kill()

    # --- what has to hold ---

    def _to_keep(self) -> dict[Path, str]:
        """Originals, captions, earlier LoRAs and everything else that this training is not about."""
        dataset = [*self.app.workspace.projects_dir.glob("*/versions/*/dataset")]
        return fingerprint([self._pictures, self.lora_dir, *dataset]) | self._never_lost

    def _is_sound(self, job: JobFolder, pid: int, before: dict[Path, str]) -> None:
        assert not psutil.pid_exists(pid)
        assert zombies() == []
        assert self._to_keep() == before
        for path, content in self._never_lost.items():
            assert fingerprint([path.parent])[path] == content, f"{path} is another one"
        for lora in job.path.glob("*.safetensors"):
            straight = self.straight.path / lora.name.replace(job.path.name, self.straight.path.name)
            assert _tensor_bytes(lora) == _tensor_bytes(straight), lora.name
            self._never_lost[lora] = fingerprint([job.path])[lora]
        for state in job.state_dir.glob("*.safetensors"):
            _tensor_bytes(state)
        for picture in job.samples_dir.glob("*.png"):
            with Image.open(picture) as opened:
                opened.load()
        status = self.app.status(job)
        assert status.state in ("failed", "waiting"), "waiting where it had not said a word yet"
        assert status.state == "waiting" or status.hint == "Resume goes on from the last saved state."
        assert not launcher.is_alive(job)
        assert self.app.queue.entries() == []

    def is_straight(self, job: JobFolder) -> None:
        """A finished training has the LoRAs, the previews and the losses of the straight one."""
        status = self.app.status(job)
        assert status.state == "finished", status.message
        assert len(status.saved) == 6
        names = {path.name.replace(job.path.name, "*") for path in _results(job)}
        assert names == {path.name.replace(self.straight.path.name, "*") for path in _results(self.straight)}
        for path in job.path.glob("*.safetensors"):
            straight = self.straight.path / path.name.replace(job.path.name, self.straight.path.name)
            assert _tensor_bytes(path) == _tensor_bytes(straight)
        assert _losses(job) == self.expected_losses
        assert temporary_files(job.path) == []


def _half_written(folder: Path) -> list[str]:
    return [path.name for path in folder.glob("*.tmp")]


def _whats(files: list[str]) -> set[str]:
    kinds = {"state/": "state", "samples/": "preview"}
    return {next((kind for start, kind in kinds.items() if file.startswith(start)), "LoRA") for file in files}


def _results(job: JobFolder) -> list[Path]:
    return [*job.path.glob("*.safetensors"), *job.samples_dir.glob("*.png")]


def _tensor_bytes(path: Path) -> bytes:
    """Everything behind the header, whose own numbers say how much that is."""
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    ends = [tensor["data_offsets"][1] for name, tensor in header.items() if name != "__metadata__"]
    assert len(content) == 8 + length + max(ends), f"{path} is cut short"
    return content[8 + length :]


def _losses(job: JobFolder) -> dict[int, float]:
    """Of every step; what was told again after a kill must be the same."""
    losses: dict[int, float] = {}
    for event in job.events():
        if isinstance(event, ev.Step):
            assert losses.setdefault(event.step, event.loss) == event.loss, f"step {event.step}"
    return losses


def test_killed_again_and_again_equals_straight(
    tmp_path: Path,
    training_forker: Forker,
    monkeypatch: pytest.MonkeyPatch,
    share: Callable[[int], int],
    count: Callable[[str, int], None],
) -> None:
    fork_workers(training_forker, tmp_path, monkeypatch)
    scene, seeds, trains = Scene(tmp_path, training_forker), share(4), 0
    scene.run_straight()
    training_forker.before_start = lambda: _nothing_is_left(tmp_path)
    for seed in range(_SEED, _SEED + seeds):
        chance, wanted = random.Random(seed), scene.kills + share(200) // seeds
        while scene.kills < wanted:
            job = scene.plan()
            while not scene.live(job, chance, is_spared=scene.kills == wanted):
                pass
            scene.is_straight(job)
            trains += 1
    assert scene.app.publish_result(job) is not None
    count("kills of a training", scene.kills)
    for what, number in scene.kills_at.items():
        count(f"kills that left a half-written {what}", number)
    count("trains that ended as the straight run", trains)


def _nothing_is_left(root: Path) -> None:
    assert temporary_files(root) == [], "before the next start"
