"""A worker may die at any moment, and any file may be damaged: a resume still ends with a straight run's bytes."""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_train import publish
from lora_train.core import events as ev
from lora_train.core.jobs import JobFolder

if TYPE_CHECKING:
    from tests.integration.conftest import Files, Studio

_SEED = 20
"""Of the moments of the kills."""

_DIES_AT_RENAME = """
import os, pathlib, sys

job, pattern, moment = sys.argv[1:]
rename = pathlib.Path.replace

def replace(source, target):
    is_it = pathlib.Path(target).match(pattern)
    if is_it and moment == "before":
        os._exit(9)
    renamed = rename(source, target)
    if is_it:
        os._exit(9)
    return renamed

pathlib.Path.replace = replace
from lora_train import worker
sys.exit(worker.main([job]))
"""
"""A worker that dies without a word, as by kill -9, around the rename of a file: the last act of every write."""


def _pictures(studio: Studio) -> Path:
    return studio.pictures("pictures", ["a red thing", "a blue thing", "a green thing", "a thing"])


def _killed_at_a_random_step(studio: Studio, job: JobFolder, chance: random.Random) -> None:
    before = studio.app.status(job).step
    process = studio.start(job)
    told = len(job.events())
    studio.wait_until(lambda: any(isinstance(event, ev.Step) for event in job.events()[told:]), process)
    studio.wait_for_step(job, process, before + chance.randint(1, 10))
    time.sleep(chance.random())
    process.kill()
    process.wait()


def test_killed_five_times_equals_straight(studio: Studio, files: type[Files]) -> None:
    settings: dict[str, Any] = {"epochs": 3, "repeats": 16, "save_every_epochs": 1, "state_every_s": 1}
    straight = studio.plan(_pictures(studio), **settings)
    killed = studio.plan(_pictures(studio), publish_to=studio.root / "Lora", **settings)
    straight_process = studio.start(straight)
    chance = random.Random(_SEED)

    for _ in range(2):
        _killed_at_a_random_step(studio, killed, chance)
        _is_failed_with_a_hint(studio, killed)
    deaths = [
        ("state-*.safetensors", "before"),
        ("*-00000?.safetensors", "before"),
        (files.final(killed).name, "after"),
    ]
    for pattern, moment in deaths:
        process = studio.python(_DIES_AT_RENAME, killed.path, pattern, moment)
        assert process.returncode == 9, process.stderr
        _is_failed_with_a_hint(studio, killed)
    assert files.final(killed).is_file()
    assert studio.app.publish_result(killed) is None, "it has not finished"

    done = studio.run(killed)
    assert done.state == "finished", done.message
    assert studio.end(straight, straight_process).state == "finished"
    for ending in ("-000001", "-000002", ""):
        own, expected = (job.path / f"{job.path.name}{ending}.safetensors" for job in (killed, straight))
        assert files.tensor_bytes(own) == files.tensor_bytes(expected)
    assert not list(killed.path.rglob("*.tmp"))
    assert len(done.saved) == 3
    assert done.saved[-1] == files.final(killed).name, "told of, though its worker died before it could"
    assert studio.app.publish_result(killed) == studio.root / "Lora" / files.final(killed).name


def _is_failed_with_a_hint(studio: Studio, job: JobFolder) -> None:
    status = studio.app.status(job)
    assert status.state == "failed"
    assert "ended without a word" in status.message
    assert status.hint == "Resume goes on from the last saved state."


def test_a_lost_state_falls_back_and_later_loras_go_to_the_trash(studio: Studio, files: type[Files]) -> None:
    settings: dict[str, Any] = {"epochs": 2, "repeats": 10, "save_every_epochs": 1, "state_every_s": 0}
    straight = studio.plan(_pictures(studio), **settings)
    job = studio.plan(_pictures(studio), publish_to=studio.root / "Lora", **settings)
    straight_process = studio.start(straight)
    steps_per_epoch = 40

    def stopped_in_the_second_epoch(after_step: int) -> Path:
        told = len(job.events())
        process = studio.start(job)

        def is_late_enough() -> bool:
            new = job.events()[told:]
            return any(isinstance(event, ev.Step) and event.step > after_step for event in new)

        studio.wait_until(is_late_enough, process)
        studio.app.request(job, "stop")
        status = studio.end(job, process)
        assert status.state == "stopped"
        expected = [f"{job.path.name}-{ending}.safetensors" for ending in ("000001", f"step{status.step:06}")]
        assert status.saved == expected
        states = files.states(job)
        assert [files.clock(state)["step"] for state in states] == [steps_per_epoch, status.step]
        return job.path / status.saved[-1]

    first_stopped = stopped_in_the_second_epoch(steps_per_epoch)
    published = studio.app.publish_result(job)
    assert published == studio.root / "Lora" / first_stopped.name
    newest = files.states(job)[-1]
    content = bytearray(newest.read_bytes())
    content[-100] ^= 1  # one bit of one tensor
    newest.write_bytes(content)

    second_stopped = stopped_in_the_second_epoch(int(first_stopped.stem[-6:]))  # else it might have the same name
    _is_in_the_trash(studio, job, first_stopped, goes_on_from=steps_per_epoch)
    files.states(job)[-1].unlink()

    done = studio.run(job)
    _is_in_the_trash(studio, job, second_stopped, goes_on_from=steps_per_epoch)
    assert done.state == "finished", done.message
    assert done.saved == [f"{job.path.name}-000001.safetensors", files.final(job).name]
    assert studio.end(straight, straight_process).state == "finished"
    assert files.tensor_bytes(files.final(job)) == files.tensor_bytes(files.final(straight))

    _replacement_gets_a_new_stem(studio, files, published, files.final(job))


def _is_in_the_trash(studio: Studio, job: JobFolder, lora: Path, *, goes_on_from: int) -> None:
    starts = [event for event in job.events() if isinstance(event, ev.Started) and event.total_steps]
    assert starts[-1].step == goes_on_from
    in_trash = [path.name for path in studio.app.workspace.trash_dir.iterdir()]
    assert any(name.endswith(lora.name) for name in in_trash)
    assert not lora.exists()


def _replacement_gets_a_new_stem(studio: Studio, files: type[Files], published: Path, other: Path) -> None:
    """Hosts cache a LoRA by its name, so other content may never stand under a name that was published."""
    before = published.read_bytes()
    replacement = studio.root / "again" / published.name
    replacement.parent.mkdir()
    replacement.write_bytes(other.read_bytes())
    again = Path(publish.publish(replacement, published.parent, card={}).path)
    assert again.stem == f"{published.stem}-2"
    assert files.metadata(again)["ss_output_name"] == again.stem
    assert files.tensor_bytes(again) == files.tensor_bytes(other)
    assert published.read_bytes() == before
    same = publish.publish(replacement, published.parent, card={})
    assert (Path(same.path), same.files) == (again, [])
