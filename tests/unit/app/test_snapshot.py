"""All that the page shows, read in one go: quick, true, and never in the way."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest

import lora_train
from lora_train.app.snapshot import Selection
from lora_train.core import events as ev
from lora_train.launch.queue import JobQueue

if TYPE_CHECKING:
    from tests.unit.app.conftest import Desk

MOST_S = 0.05
"""For 20 trains of 10 LoRAs each with three previews: about 12 ms on one slow core."""


def test_everything_of_a_version(desk: Desk) -> None:
    project, version = desk.version("猫: 1", "v 1")
    desk.finished("a", project="猫: 1")
    snapshot = desk.app.snapshot(project, version)
    assert (snapshot.selection, snapshot.project_name, snapshot.version_name) == (
        *(Selection("猫_ 1", "v 1"), "猫: 1", "v 1"),
    )
    assert (snapshot.trains, snapshot.shown, snapshot.curve, snapshot.log_tail, snapshot.foreign) == (
        [],
        None,
        [],
        "",
        "",
    )
    snapshot = desk.app.snapshot(project, "v1")
    assert snapshot.shown == snapshot.trains[0]
    assert msgspec.json.decode(msgspec.json.encode(snapshot))


@pytest.mark.parametrize(
    ("project", "version"),
    [
        ("", ""),
        ("cat", ""),
        ("cat", "v9"),
        ("dog", "v1"),
        ("..", ".."),
        ("cat", "../v1"),
        ("/", "\x00"),
        ("cat", "v1/"),
    ],
)
def test_unknown_ids_are_empty(desk: Desk, project: str, version: str) -> None:
    desk.finished()
    desk.app.training.draw_previews("projects/cat/versions/v1/trains/cat-v1")
    for train in ("", "projects/cat/versions/v1/trains/cat-v1", "x"):
        snapshot = desk.app.snapshot(project, version, train)
        assert (snapshot.trains, snapshot.shown, snapshot.dataset.pictures) == ([], None, [])
        assert len(snapshot.queue) == 1, "the queue is everybody's"


def test_queue_and_who_has_the_card(desk: Desk) -> None:
    cat, dog = desk.train("cat-v1"), desk.train("dog-v1", project="dog: 1")
    queue = JobQueue(desk.workspace.root)
    for job in (cat, dog, "jobs/gone"):
        queue.add(job)
    assert [(entry.job, entry.title, entry.kind, entry.state) for entry in desk.app.queue.entries()] == [
        (cat, "cat v1: cat-v1", "train", "waiting"),
        (dog, "dog: 1 v1: dog-v1", "train", "waiting"),
        ("jobs/gone", "gone", "train", "waiting"),
    ]
    assert desk.app.snapshot("cat", "v1").foreign == ""
    queue.take_next()
    assert desk.app.snapshot("cat", "v1").foreign == ""
    assert desk.app.snapshot("dog_ 1", "v1").foreign == "cat v1: cat-v1 is using the card."
    desk.app.queue.move("jobs/gone", 1)
    assert [entry.state for entry in desk.app.queue.entries()] == ["running", "waiting", "waiting"]
    assert desk.app.queue.entries()[1].job == "jobs/gone"
    desk.app.queue.cancel("jobs/gone")
    assert len(desk.app.snapshot("", "").queue) == 2


def many_trains(desk: Desk, count: int) -> None:
    for train in range(count):
        name = f"cat-v1-r{train}"
        stems = [*(f"{name}-{epoch:06}" for epoch in range(1, 10)), name]
        job = desk.finished(name, loras=[f"{stem}.safetensors" for stem in stems], created=float(train))
        desk.previews(job, *(f"{stem}-{kind}.png" for stem in stems for kind in ("grid", "p1-w1", "p2-w1")))
        steps = [ev.Step(step=n, epoch=1, loss=0.1, lr=1e-4, s_per_step=0.5) for n in range(1, 1001)]
        desk.tell(desk.job(job), *steps)


def test_quick(desk: Desk) -> None:
    """Every open page asks for it each second or so."""
    desk.trained(*(f"9_cat/{number}.png" for number in range(20)))
    many_trains(desk, 20)
    snapshot = desk.app.snapshot("cat", "v1")
    assert len(snapshot.trains) == 20
    assert sum(len(lora.previews) for train in snapshot.trains for lora in train.loras) == 600
    times: list[float] = []
    for _ in range(10):
        begun = time.process_time()
        desk.app.snapshot("cat", "v1")
        times.append(time.process_time() - begun)
    assert sorted(times)[2] < MOST_S, f"{sorted(times)}"


_WHOLE_STORY = """
import sys
from pathlib import Path
from lora_train.app import App
from lora_train.core.workspace import Workspace

app = App(Workspace(Path(sys.argv[1])))
app.projects.create("cat")
app.projects.create_version("cat", "v1")
app.datasets.add("cat", "v1", [("a.png", Path(sys.argv[2])), ("b.png", Path(sys.argv[2]))])
app.settings.save("cat", "v1", train={"base_model": "demo"}, dataset={"width_px": 64, "height_px": 64})
job = app.datasets.start_update("cat", "v1")
while app.snapshot("cat", "v1").dataset.update.state in ("waiting", "running"):
    pass
snapshot = app.snapshot("cat", "v1")
assert [picture.is_waiting for picture in snapshot.dataset.pictures] == [False] * 2, snapshot
app.datasets.thumbnail("cat", "v1", snapshot.dataset.pictures[0].file, False)
assert not app.training.forecast("cat", "v1").problems
assert not app.base_models.look("demo").problem
job = app.training.begin("cat", "v1")
app.snapshot("cat", "v1", job)
app.training.log(job)
app.queue.cancel(job)
app.projects.restore(app.training.delete(job).entry)
print(*sorted({name.split(".")[0] for name in sys.modules}))
"""


def test_the_process_of_the_page_needs_no_torch(desk: Desk) -> None:
    package_root = Path(lora_train.__file__).parents[1]
    command = [sys.executable, "-c", _WHOLE_STORY, str(desk.workspace.root), str(desk.picture())]
    done = subprocess.run(command, cwd=package_root, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    heavy = {"torch", "diffusers", "transformers", "accelerate", "safetensors", "gradio", "fastapi"}
    assert not heavy & set(done.stdout.split())


_UPDATE_WITHOUT = """
import sys
for name in ("torch", "diffusers", "transformers"):
    sys.modules[name] = None  # an import of it raises
from lora_train import worker
sys.exit(worker.main([sys.argv[1]]))
"""


@pytest.mark.parametrize("breaks", [False, True])
def test_the_worker_of_an_update_needs_no_torch(desk: Desk, monkeypatch: pytest.MonkeyPatch, breaks: bool) -> None:
    """Also when it fails, which must be told in any case."""
    from lora_train.core.jobs import JobFolder
    from lora_train.launch import launcher

    package_root = Path(lora_train.__file__).parents[1]
    jobs: list[JobFolder] = []

    def start(job: JobFolder) -> launcher.Worker:
        if breaks:
            (job.path / "../../projects/cat/versions/v1/dataset/.update-lock").mkdir()
        jobs.append(job)
        return launcher.Worker([sys.executable, "-c", _UPDATE_WITHOUT, str(job.path)], cwd=package_root)

    monkeypatch.setattr(launcher, "start_worker", start)
    desk.version()
    desk.app.datasets.add("cat", "v1", [("a.png", desk.picture())])
    desk.app.datasets.start_update("cat", "v1")
    while (status := desk.app.snapshot("cat", "v1").dataset.update) and status.state in ("waiting", "running"):
        time.sleep(0.01)
    assert status is not None
    assert (status.state, "directory" in status.message) == ("failed" if breaks else "finished", breaks)
