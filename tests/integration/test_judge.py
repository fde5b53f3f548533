"""The judge ranks a good LoRA above bad ones of every kind, can be stopped and goes on, and is a command.

One seed here, with as few steps as show it; `tests/bench/judge_seeds.py` does it over five (see `docs/judge.md`).
"""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest
from PIL import Image

from lora_train.core import events as ev
from lora_train.core.jobs import JobFolder
from lora_train.core.judgement import FILE_NAME, JUDGING, Judged, Judgement, pictures_to_draw
from lora_train.core.specs import JudgeSpec
from tests.assets import judge_kinds
from tests.assets.small_encoders import save_clip

if TYPE_CHECKING:
    from tests.integration.conftest import Studio

EPOCHS = {"shuffled": 12, "diverged": 3, "overtrained": 16, "copying": 150}
"""96, 24, 256 and 150 steps; less than what the bench does."""


def read(train: JobFolder) -> Judgement:
    return msgspec.json.decode((train.path / FILE_NAME).read_bytes(), type=Judgement)


@pytest.fixture(scope="module")
def trains(shared_studio: Studio) -> dict[str, JobFolder]:
    """A training of every kind, two at a time: each computes on one core."""
    studio = shared_studio

    def train(kind: str) -> JobFolder:
        changes = {"epochs": EPOCHS[kind]} if kind in EPOCHS else {}
        job = judge_kinds.plan(studio.app, kind, 1, studio.root, preview_steps=12, **changes)
        status = studio.run(job)
        assert status.state == "finished", status.message
        return job

    with ThreadPoolExecutor(2) as pool:
        return dict(zip(judge_kinds.KINDS, pool.map(train, judge_kinds.KINDS), strict=True))


@pytest.fixture(scope="module")
def ranked(shared_studio: Studio, trains: dict[str, JobFolder]) -> dict[str, Judged]:
    """All kinds judged together, as if the good training had saved them."""
    studio, good = shared_studio, trains["good"]
    files = [judge_kinds.take(next(job.path.glob("*-v1.safetensors")), kind, good) for kind, job in trains.items()]
    job = studio.app.judging.plan(good, weights=(1.0,))
    spec = job.read_spec()
    assert isinstance(spec, JudgeSpec)
    job.spec_path.unlink()
    job.create(msgspec.structs.replace(spec, loras=tuple(files)))
    status = studio.run(job)
    assert status.state == "finished", status.message
    rows = {row.lora.removesuffix(".safetensors"): row for row in read(good).rows}
    for kind, row in rows.items():
        print(kind, msgspec.structs.replace(row, samples=(), nearest=(), copies=()))
    return rows


@pytest.mark.parametrize("kind", judge_kinds.BAD)
def test_a_good_lora_is_above(ranked: dict[str, Judged], kind: str) -> None:
    """Over five seeds the worst good score was 0.72, the best bad one 0.55."""
    assert ranked["good"].score > 0.3
    assert ranked["good"].score > ranked[kind].score + 0.1


def test_each_bad_one_is_bad_in_its_own_way(ranked: dict[str, Judged]) -> None:
    assert ranked["still"].likeness == 0
    assert ranked["still"].retention == ranked["still"].obedience == 1
    assert ranked["shuffled"].retention < 0.7
    assert ranked["diverged"].likeness < 0.4
    assert ranked["diverged"].retention < 0.5
    assert ranked["overtrained"].likeness > ranked["good"].likeness - 0.3
    assert ranked["overtrained"].retention < 0.7
    assert ranked["copying"].copying > ranked["good"].copying


def test_the_good_one_is_recommended_with_its_pictures(ranked: dict[str, Judged], trains: dict[str, JobFolder]) -> None:
    train = trains["good"]
    judgement = read(train)
    assert judgement.lora == "good.safetensors"
    assert judgement.reason.startswith("good at weight 1 is the best choice")
    assert judgement.rows[0] == ranked["good"]
    good = ranked["good"]
    assert len(good.samples) == len(good.nearest) == len(good.copies) == 8
    with Image.open(train.path / good.samples[0]) as picture:
        assert "<lora:good:1> sks" in picture.info["parameters"]
    spec = train.read_spec()
    processed = train.path / getattr(spec, "dataset")  # noqa: B009
    assert all((processed / name).is_file() for name in good.nearest)


def test_a_stopped_job_goes_on_with_what_it_has(shared_studio: Studio, trains: dict[str, JobFolder]) -> None:
    """Stopped in the second row; the first is kept and not drawn again."""
    studio, train = shared_studio, trains["still"]
    job = studio.app.judging.plan(train, weights=(0.5, 1.0), pictures=2)
    worker = studio.start(job)
    kept = job.path / "measured.json"
    studio.wait_until(kept.is_file, worker)
    job.request("stop")
    assert studio.end(job, worker).state == "stopped"
    assert not (train.path / FILE_NAME).exists()
    first = json.loads(kept.read_bytes())["rows"][0]["row"]
    sample = train.path / first["samples"][0]
    drawn_at = sample.stat().st_mtime_ns

    status = studio.run(job)
    assert status.state == "finished", status.message
    assert {row.weight for row in read(train).rows} == {0.5, 1.0}
    assert sample.stat().st_mtime_ns == drawn_at
    phases = [event for event in job.events() if isinstance(event, ev.Phase) and event.name == JUDGING]
    assert (phases[-1].done, phases[-1].total) == (12, pictures_to_draw(1, 2, 2))
    # A LoRA that learned nothing draws what the base model does, so nothing is better than that.
    assert read(train).lora == ""
    assert read(train).reason.startswith("Nothing is recommended")


def test_as_a_command_with_an_encoder(shared_studio: Studio, trains: dict[str, JobFolder]) -> None:
    studio, train = shared_studio, trains["diverged"]
    encoder = save_clip(studio.root / "small clip")
    done = studio.cli(
        *("judge", train.path, "--weights", "0.1", "--pictures", "2", "--json", "--encoder", encoder),
        *("--workspace", studio.app.workspace.root),
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["state"] == "finished"
    assert told["judgement"]["encoder"] == "small clip"
    (row,) = told["judgement"]["rows"]
    assert row["weight"] == 0.1
    assert row["lora"] == next(train.path.glob("*.safetensors")).name

    wrong = studio.cli("judge", train.path, "--weights", "0,9", "--pictures", "1", "--encoder", Path("nowhere"))
    assert wrong.returncode == 2
    for name in ("weights:", "pictures:", "encoder:"):
        assert name in wrong.stderr
