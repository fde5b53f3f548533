"""Notes what a training is made from, when it is planned."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from lora_train.core.assets import resolve_base_model
from lora_train.core.history import FileFacts, MadeFrom, PictureFacts, write_record
from lora_train.core.jobs import JobFolder
from lora_train.core.specs import TrainSpec

if TYPE_CHECKING:
    from lora_train.data.dataset import Dataset


def note_origin(job: JobFolder, dataset: Dataset) -> None:
    """Write `made_from.json` beside the `job.json` that is there. `dataset` has the repeats that are trained.

    The pictures' hashes are those of the scan; only masks are read again. Raises OSError where it can't be written.
    """
    spec = job.read_spec()
    assert isinstance(spec, TrainSpec)
    settings = spec.settings
    write_record(
        job.path,
        MadeFrom(
            fingerprint=spec.dataset_fingerprint,
            pictures=picture_facts(dataset, spec.held_out),
            base_model=file_facts(resolve_base_model(settings.base_model)),
            vae=file_facts(Path(settings.vae)) if settings.vae else None,
            continue_from=file_facts(Path(settings.continue_from)) if settings.continue_from else None,
        ),
    )


def picture_facts(dataset: Dataset, held_out: tuple[str, ...]) -> tuple[PictureFacts, ...]:
    """The pictures of a set as history keeps them."""
    return tuple(
        PictureFacts(
            path=picture.path,
            content=picture.content,
            caption=picture.caption,
            mask=_digest(dataset.root / picture.mask) if picture.mask else "",
            repeats=picture.repeats,
            is_held_out=picture.path in held_out,
            is_regularisation=picture.is_regularisation,
            width_px=picture.width_px,
            height_px=picture.height_px,
        )
        for picture in dataset.pictures
    )


def file_facts(path: Path) -> FileFacts:
    """Name, size and time of a file. Raises OSError where there is none."""
    if path.is_dir():
        return FileFacts(name=path.name)
    told = path.stat()
    return FileFacts(name=path.name, size_bytes=told.st_size, mtime_ns=told.st_mtime_ns)


def _digest(path: Path) -> str:
    return hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()
