"""Several processes share every batch of one training: the loss curve of one, and no hang where one is gone."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from lora_train.core import events as ev
from lora_train.core.jobs import JobFolder
from lora_train.core.limits import Limits, write_limits
from lora_train.core.specs import TrainSpec
from tests.integration.conftest import QUICK, WAIT_S, environment
from tests.integration.test_nan import EXPLODES_AT_FIRST

if TYPE_CHECKING:
    from tests.integration.conftest import Files, Studio

MOST = 1e-5
"""Between losses of one and of several processes: they add up in another order."""

TWENTY_STEPS: dict[str, Any] = {
    "epochs": 4,
    "repeats": -1,
    "max_tokens": 150,
    "train_text_encoder": False,
    "batch_size": 3,
    "gradient_accumulation_steps": 2,
    "hold_out": 2,
    "validate_every_steps": 5,
    "shuffle_captions": True,
    "flip": True,
    "network_dropout": 0.1,
    "rank_dropout": 0.1,
    "module_dropout": 0.1,
    "ema_decay": 0.9,
    "state_every_s": 0,
}


def _pictures(studio: Studio) -> Path:
    """Ten to train with in three shapes, so that many batches are smaller than they might be, and two held out; one
    caption is longer than a chunk of 75 tokens.
    """
    captions = [
        f"a {colour} {thing}" for colour in ("red", "blue", "green", "grey") for thing in ("cat", "dog", "bird")
    ]
    captions[3] = ", ".join(f"tag {number}" for number in range(40))
    shapes = ((64, 64), (64, 96), (96, 64))
    return studio.pictures("pictures/3_thing", captions, sizes_px=shapes).parent


def _work(job: JobFolder, processes: int) -> None:
    """Run the worker alone, to its end: `App.start` lifts limits that were reached."""
    command = [sys.executable, "-m", "lora_train.worker", "--processes", str(processes), str(job.path)]
    subprocess.run(command, check=True, env=environment(), timeout=WAIT_S)


def _start(studio: Studio, job: JobFolder, processes: int) -> Any:
    worker = studio.app.start(job, processes)
    studio._processes.append(worker)
    return worker


def _losses(job: JobFolder) -> dict[int, float]:
    return {event.step: event.loss for event in job.events() if isinstance(event, ev.Step)}


def _validated(job: JobFolder) -> dict[int, tuple[float, float]]:
    found = [event for event in job.events() if isinstance(event, ev.Validated)]
    return {event.step: (event.loss, event.base_loss) for event in found}


def _others_of(first: int) -> list[psutil.Process]:
    return psutil.Process(first).children()


@pytest.fixture(scope="module")
def alone(shared_studio: Studio) -> JobFolder:
    """The run of one process that the others are held against."""
    job = shared_studio.plan(_pictures(shared_studio), name="alone", **TWENTY_STEPS)
    _work(job, 1)
    return job


def test_two_processes_learn_what_one_does(studio: Studio, alone: JobFolder) -> None:
    shared = studio.plan(_pictures(studio), **TWENTY_STEPS)
    _work(shared, 2)
    _is_what_one_learns(studio, shared, alone)


def test_two_processes_train_text_encoders_as_one_does(studio: Studio) -> None:
    images, settings = _pictures(studio), {**TWENTY_STEPS, "train_text_encoder": True}
    jobs = [studio.plan(images, **settings) for _ in range(2)]
    for job, processes in zip(jobs, (1, 2), strict=True):
        _work(job, processes)
    _is_what_one_learns(studio, jobs[1], jobs[0])


def _is_what_one_learns(studio: Studio, shared: JobFolder, straight: JobFolder) -> None:
    expected, found = _losses(straight), _losses(shared)
    assert len(expected) >= 20
    assert found == pytest.approx(expected, abs=MOST)
    validated = _validated(straight)
    assert sorted(validated)[:3] == [0, 5, 10], "the test is worthless without"
    for step, losses in _validated(shared).items():
        assert losses == pytest.approx(validated[step], abs=MOST)
    told = [type(event).__name__ for event in shared.events()]
    assert told.count("Finished") == 1
    assert told.count("Saved") == 1
    assert "2 processes share every batch." in studio.app.status(shared).notes
    assert not _notes(shared, "have nothing to do")


def _notes(job: JobFolder, words: str) -> list[str]:
    return [event.message for event in job.events() if isinstance(event, ev.Note) and words in event.message]


def test_more_processes_than_views(studio: Studio, alone: JobFolder) -> None:
    job = studio.plan(_pictures(studio), **TWENTY_STEPS)
    _work(job, 4)
    assert _losses(job) == pytest.approx(_losses(alone), abs=MOST)
    assert _notes(job, "batch_size 3, some of the 4 processes have nothing to do")


def test_paused_and_resumed_with_another_number(studio: Studio, alone: JobFolder, files: type[Files]) -> None:
    """Two processes, then one, then two again."""
    job = studio.plan(_pictures(studio), **TWENTY_STEPS)
    worker = _start(studio, job, 2)
    studio.wait_for_step(job, worker, 3)
    studio.app.request(job, "pause")
    first = _paused(studio, job, worker, files)
    write_limits(job.path, Limits(pause_at_step=first + 4))  # a person would be too slow for so few steps
    assert 3 < first < _paused(studio, job, _start(studio, job, 1), files) == first + 4 < len(_losses(alone))
    write_limits(job.path, Limits())
    worker = _start(studio, job, 2)
    assert studio.end(job, worker).state == "finished"
    assert _losses(job) == pytest.approx(_losses(alone), abs=MOST)
    assert [event.step for event in job.events() if isinstance(event, ev.Step)] == sorted(_losses(alone))


def _paused(studio: Studio, job: JobFolder, worker: subprocess.Popen[bytes], files: type[Files]) -> int:
    """After which step it paused and left its state."""
    status = studio.end(job, worker)
    assert (worker.returncode, status.state) == (0, "paused"), status.message
    assert files.clock(files.states(job)[-1])["step"] == status.step
    return status.step


@pytest.mark.parametrize("victim", ["first", "other"])
def test_a_killed_process_ends_all_and_the_training_goes_on(studio: Studio, files: type[Files], victim: str) -> None:
    job = studio.plan(_pictures(studio), **{**TWENTY_STEPS, "epochs": 200, "state_every_s": 1})
    worker = _start(studio, job, 2)
    studio.wait_until(lambda: len(files.states(job)) > 1, worker)  # the second one because it was time
    others = _others_of(worker.pid)
    assert len(others) == 1
    psutil.Process(worker.pid if victim == "first" else others[0].pid).kill()
    status = studio.end(job, worker)
    _, alive = psutil.wait_procs(others, timeout=20)
    assert not alive
    assert status.state == "failed"
    died = "The worker process ended" if victim == "first" else "Process 2 of 2 ended"
    assert status.message.startswith(f"{died} without a word (killed, or out of memory).")
    assert "from the last saved state" in status.hint
    worker = _start(studio, job, 2)
    studio.wait_until(lambda: len(_starts(job)) == 2, worker)
    assert _starts(job)[1] == files.clock(files.states(job)[-1])["step"] > 0
    studio.wait_for_step(job, worker, _starts(job)[1] + 1)
    studio.app.request(job, "stop")
    assert studio.end(job, worker).state == "stopped"


def _starts(job: JobFolder) -> list[int]:
    """The steps that the job was begun at and went on from."""
    return [event.step for event in job.events() if isinstance(event, ev.Started) and event.step is not None]


def test_all_go_back_from_a_loss_that_is_not_finite(studio: Studio, files: type[Files]) -> None:
    """And learn then what the lower rate gives from the start."""
    images = studio.pictures("four", ["a red thing", "a blue thing", "a green thing", "a thing"])
    settings = {**EXPLODES_AT_FIRST, "batch_size": 2, "repeats": 6}  # as many steps as there
    job = studio.plan(images, **settings)
    _work(job, 2)
    count = len(_notes(job, "half the"))
    assert 1 <= count <= 2
    rate = EXPLODES_AT_FIRST["learning_rate"] / 2**count
    lower = studio.plan(images, **{**settings, "learning_rate": rate})
    _work(lower, 2)
    assert not _notes(lower, "half the")
    assert files.tensor_bytes(files.final(job)) == files.tensor_bytes(files.final(lower))


def test_all_stop_early(studio: Studio) -> None:
    """With a rate of 0 nothing gets better: the third validation ends it."""
    rates = {"learning_rate": 0, "text_encoder_lr": 0, "early_stopping_patience": 2}
    job = studio.plan(_pictures(studio), **{**TWENTY_STEPS, "validate_every_steps": 2, **rates})
    _work(job, 2)
    status = studio.app.status(job)
    assert (status.state, status.step) == ("finished", 4)
    assert _notes(job, "Stopped early at step 4")


def test_a_failure_is_told_as_one(studio: Studio) -> None:
    """What goes wrong in all of them is told in the words of one."""
    job = studio.plan(_pictures(studio), **TWENTY_STEPS)
    spec = job.read_spec()
    assert isinstance(spec, TrainSpec)
    next((job.path / spec.dataset).resolve().rglob("*.txt")).write_text("another caption", encoding="utf-8")
    worker = _start(studio, job, 2)
    status = studio.end(job, worker)
    assert (worker.returncode, status.state) == (1, "failed")
    assert "are not the ones this training began with" in status.message


def test_started_as_on_two_machines(studio: Studio, alone: JobFolder) -> None:
    """Two machines on one: each has its own `accelerate launch`, and the second one's does not know the job."""
    if int(version("accelerate").partition(".")[0]) < 1:
        pytest.skip("the second launch refuses a port that the first listens at, as they are on one machine")
    images = _pictures(studio)
    port = studio.python("import socket; s = socket.socket(); s.bind(('127.0.0.1', 0)); print(s.getsockname()[1])")
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_machines=2"]
    launch += ["--num_processes=2", "--mixed_precision=no", "--dynamo_backend=no", "--num_cpu_threads_per_process=1"]
    launch += ["--main_process_ip=127.0.0.1", f"--main_process_port={port.stdout.strip()}"]
    settings = {**QUICK, **TWENTY_STEPS}
    train = ["-m", "lora_train", "train", "--images", str(images), "--name", "person"]
    train += ["--workspace", str(studio.app.workspace.root)]
    train += [f"--set={name}={value}" for name, value in settings.items()]
    machines = [
        subprocess.Popen([*launch, f"--machine_rank={number}", *train], cwd=studio.root, env=environment())
        for number in (1, 0)
    ]
    assert [machine.wait(WAIT_S) for machine in machines] == [0, 0]
    job = JobFolder(next(studio.root.rglob("job.json")).parent)
    assert studio.app.status(job).state == "finished"
    assert _losses(job) == pytest.approx(_losses(alone), abs=MOST)
    assert len(list(studio.root.rglob("job.json"))) == 1


def test_numbers_that_make_no_sense(studio: Studio) -> None:
    told = studio.cli("train", "--images", _pictures(studio), "--name", "x", "--processes", 0)
    assert told.returncode == 2
    assert "processes: 0 is less than 1" in told.stderr
