"""Snapshots of a project as the page is told them, each with something in every field."""

from __future__ import annotations

import math

import msgspec

from lora_train.app.snapshot import (
    CurvePoint,
    DatasetSnapshot,
    Forecast,
    LoraEntry,
    PictureEntry,
    Selection,
    Snapshot,
    TrainSnapshot,
)
from lora_train.core.jobs import JobStatus, State

JOB = "projects/Cat/versions/v1/trains/Cat-v1"


def make_status(state: State, **changes: object) -> JobStatus:
    status = JobStatus(
        state=state,
        phase="training",
        step=120,
        total_steps=1620,
        epoch=1,
        epochs=10,
        loss=0.1234,
        lr=1e-4,
        s_per_step=0.42,
        eta_s=630.0,
        device="cuda",
        peak_memory_mb=5222,
        sampled=["samples/a-000002.png"],
        step_of_file={"samples/a-000002.png": 324},
    )
    return msgspec.structs.replace(status, **changes)


def make_lora(stem: str, step: int, **changes: object) -> LoraEntry:
    lora = LoraEntry(
        file=f"{stem}.safetensors",
        stem=stem,
        size_bytes=18_400_000,
        step=step,
        epoch=step // 162,
        made=1_700_000_000.0 + step,
        prompt=f"<lora:{stem}:1> sks cat",
    )
    return msgspec.structs.replace(lora, **changes)


def make_train(state: State, place: int | None = None, **changes: object) -> TrainSnapshot:
    published = make_lora("Cat-v1", 1620, published="Cat-v1", previews=["samples/Cat-v1-grid.png"])
    return TrainSnapshot(
        job=JOB,
        name="Cat-v1",
        status=make_status(state, **changes),
        place=place,
        base_model="v1-5-pruned-emaonly",
        summary="Lion 0.0001 · rank 16 · batch 1 · epochs 10",
        created=1_700_000_000.0,
        loras=[published, make_lora("Cat-v1-000002", 324)],
    )


def make_curve(points: int) -> list[CurvePoint]:
    """Falls from 0.2 to 0.1 with a wave on it."""
    return [
        CurvePoint(
            step=4 * number,
            loss=0.1 + 0.1 * math.exp(-number / 80) + 0.02 * math.sin(number * 1.7),
            lr=1e-4 * (1 + math.cos(math.pi * number / max(points, 2))) / 2,
        )
        for number in range(1, points + 1)
    ]


def make_pictures(count: int) -> list[PictureEntry]:
    captions = (
        "sks cat sitting on a red chair",
        "",
        "a photo of sks cat, looking at the viewer, grass, daylight, close up",
    )
    return [
        PictureEntry(
            file=f"9_Cat/{number:05d}-0-cat.png", width_px=512, height_px=512, caption=captions[number % 3], repeats=9
        )
        for number in range(count)
    ]


def make_snapshot(train: TrainSnapshot | None = None, **changes: object) -> Snapshot:
    snapshot = Snapshot(
        selection=Selection("Cat", "v1"),
        dataset=DatasetSnapshot(pictures=make_pictures(5)),
        trains=[train] if train else [],
        shown=train,
        curve=make_curve(200),
    )
    return msgspec.structs.replace(snapshot, **changes)


def make_forecast(**changes: object) -> Forecast:
    forecast = Forecast(pictures=18, repeats=9, views_per_epoch=162, epochs=10, total_steps=1620, seconds=240.0)
    return msgspec.structs.replace(forecast, **changes)
