"""What writes captions: the one question, downloads, and captions that are being written."""

from __future__ import annotations

import msgspec

from lora_train.app.snapshot import CaptionerEntry, CaptioningSnapshot, Selection
from lora_train.core.captioners import MODELS
from lora_train.core.jobs import JobStatus
from lora_train.ui import view

_SHOWN = Selection("Cat", "v1")


def _models(**changes: object) -> list[CaptionerEntry]:
    """Those that can be downloaded."""
    entries = [
        CaptionerEntry(
            name=model.name,
            choice=model.kind,
            label=model.label,
            good_for=model.good_for,
            is_present=False,
            download_mb=379,
        )
        for model in MODELS
    ]
    return [msgspec.structs.replace(entry, **changes) for entry in entries]


def _of_the_host(**changes: object) -> CaptionerEntry:
    entry = CaptionerEntry(
        name="host-blip",
        choice="host",
        label="The WebUI's BLIP",
        good_for="A sentence: good for photographs.",
        is_present=True,
    )
    return msgspec.structs.replace(entry, **changes)


def _question_states() -> dict[str, CaptioningSnapshot]:
    lacking = {"problem": "BLIP needs transformers, which this Python has not.", "command": "pip install transformers"}
    booru = {"name": "host-deepbooru", "label": "The WebUI's DeepDanbooru", "good_for": "Tags: good for drawings."}
    absent = {"is_present": False, "problem": "The WebUI downloads it at its first use, and shows no progress."}
    return {
        "question": CaptioningSnapshot(captioners=[*_models(), _of_the_host(**booru)], must_ask=True),
        "question where one is there": CaptioningSnapshot(
            captioners=[*_models(is_present=True, download_mb=0), _of_the_host()], must_ask=True
        ),
        "question where packages are missing": CaptioningSnapshot(captioners=_models(**lacking), must_ask=True),
        "question where the WebUI downloads": CaptioningSnapshot(captioners=[_of_the_host(**absent)], must_ask=True),
        "problems": CaptioningSnapshot(captioners=[], problems=["BLIP is not here yet.", "Or untick it."]),
        "uses": CaptioningSnapshot(
            captioners=[],
            answer="wd14",
            uses=["BLIP", "WD14 tagger", "The WebUI's BLIP", "The WebUI's DeepDanbooru"],
        ),
    }


def _downloading(status: JobStatus) -> CaptioningSnapshot:
    entries = [
        msgspec.structs.replace(entry, download=status, download_job=f"jobs/{number}")
        for number, entry in enumerate(_models())
    ]
    return CaptioningSnapshot(captioners=entries, answer="wd14")


def _offer_states() -> dict[str, CaptioningSnapshot]:
    """What is ticked or typed, and not here."""
    typed = CaptionerEntry(
        name="microsoft/git-base",
        choice="blip",
        label="microsoft/git-base",
        good_for="",
        is_present=False,
        is_wanted=True,
    )
    lacking = {"problem": "BLIP needs transformers, which this Python has not.", "command": "pip install transformers"}
    failed = JobStatus(state="failed", message="somebody/nothing is not on the hub.", hint="Choose another model.")
    return {
        "models are wanted": CaptioningSnapshot(captioners=_models(is_wanted=True)),
        "a model of the hub is wanted": CaptioningSnapshot(captioners=[*_models(), typed]),
        "a model that is wanted can't run": CaptioningSnapshot(captioners=_models(is_wanted=True, **lacking)),
        "a model of the hub could not be fetched": CaptioningSnapshot(
            captioners=[msgspec.structs.replace(typed, download=failed, download_job="jobs/1")]
        ),
    }


def _job_states() -> dict[str, CaptioningSnapshot]:
    downloads = {
        "download waits": JobStatus(state="waiting"),
        "download": JobStatus(state="running", phase="downloading", phase_done=120_000_000, phase_total=378_536_310),
        "download stopped": JobStatus(state="stopped"),
        "download failed": JobStatus(state="failed", message="The hub can't be reached.", hint="Check the connection."),
        "download finished": JobStatus(state="finished"),
    }
    jobs = {
        "captions wait": JobStatus(state="waiting"),
        "writing captions": JobStatus(state="running", phase="writing captions", phase_done=3, phase_total=18),
        "captions failed": JobStatus(state="failed", message="The disk is full.", hint="Make room."),
        "captions written": JobStatus(state="finished"),
    }
    return {
        **{name: _downloading(status) for name, status in downloads.items()},
        **{name: CaptioningSnapshot(captioners=[], answer="blip", job=status) for name, status in jobs.items()},
    }


def captioning_states() -> dict[str, str]:
    snapshots = {
        "no captioner": CaptioningSnapshot(captioners=[]),
        **_question_states(),
        **_offer_states(),
        **_job_states(),
    }
    needed = {name: view.captioning_html(snapshot, _SHOWN, is_needed=True) for name, snapshot in snapshots.items()}
    quiet = {
        f"{name}, no caption needed": view.captioning_html(snapshot, _SHOWN, is_needed=False)
        for name, snapshot in snapshots.items()
    }
    return {**needed, **quiet}
