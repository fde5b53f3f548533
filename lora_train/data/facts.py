"""What pictures are like: computed once for each content, and kept in `<version>/dataset/.facts.json`."""

from __future__ import annotations

import hashlib
import importlib.util
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from lora_train.core.errors import DatasetError
from lora_train.core.events import EventWriter, Phase
from lora_train.core.files import DAMAGED_JSON, write_bytes
from lora_train.core.jobs import JobFolder, Request, RequestedEnd
from lora_train.core.sealed import sealed, unsealed
from lora_train.core.specs import CheckSpec
from lora_train.data.dataset import training_files
from lora_train.data.images import open_picture

PHASE = "looking at the pictures"

_SIDE_PX = 512
"""Pictures are reduced to the area of a square of this side before they are measured, so that the sharpness of a
photograph does not depend on how many pixels it was stored in. Smaller ones are not enlarged: that would blur them."""
_GREY_CHROMA = 3.0
"""Mean distance, of 255, between a pixel's strongest and weakest channel: JPEG's rounding makes 0-2 in grey ones."""
_MOST_AT_ONCE = 8
"""Pictures that are decoded at the same time; a large one takes half a gigabyte."""


class PictureFacts(msgspec.Struct, frozen=True):
    """What one picture is like."""

    sharpness: float
    """Variance of the Laplacian of the grey picture (0-255), reduced to at most 512 x 512 pixels of area."""
    mean_rgb: tuple[int, int, int]
    """0-255."""
    is_grey: bool
    phash: str = ""
    """Perceptual hash, 64 bits in hex (imagehash.phash); empty where imagehash was not installed."""
    mirrored_phash: str = ""
    """Of the picture with left and right changed."""


def has_imagehash() -> bool:
    """Whether perceptual hashes can be computed here; imports nothing."""
    return importlib.util.find_spec("imagehash") is not None


def picture_facts(picture: Image.Image) -> PictureFacts:
    """Measure an RGB picture. Without imagehash its hashes stay empty."""
    width_px, height_px = picture.size
    scale = min(1.0, _SIDE_PX / (width_px * height_px) ** 0.5)
    size = (max(1, round(width_px * scale)), max(1, round(height_px * scale)))
    small = picture.resize(size, Image.Resampling.LANCZOS)
    red, green, blue = (np.asarray(channel) for channel in small.split())
    strongest, weakest = np.maximum(np.maximum(red, green), blue), np.minimum(np.minimum(red, green), blue)
    return PictureFacts(
        sharpness=round(laplacian_variance(np.asarray(small.convert("L"), dtype=np.float32)), 2),
        mean_rgb=(round(float(red.mean())), round(float(green.mean())), round(float(blue.mean()))),
        is_grey=float((strongest - weakest).mean()) < _GREY_CHROMA,
        phash=_phash(small),
        mirrored_phash=_phash(ImageOps.mirror(small)),
    )


def laplacian_variance(grey: NDArray[np.float32]) -> float:
    """Variance of the four-neighbour Laplacian of a grey picture (H, W); 0 for one without inner pixels.

    Pech-Pacheco et al., Diatom autofocusing in brightfield microscopy, 2000.
    """
    inner = grey[1:-1, 1:-1]
    if inner.size == 0:
        return 0.0
    around = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:]
    return float((around - 4 * inner).var())


def read_facts(dataset_dir: Path) -> dict[str, PictureFacts]:
    """Digest of a picture file's content -> what it is like. Empty where nothing is kept, or it is damaged."""
    try:
        return msgspec.json.decode(unsealed(_path(dataset_dir).read_bytes()), type=dict[str, PictureFacts])
    except (OSError, *DAMAGED_JSON):
        return {}


def facts_stamp(dataset_dir: Path) -> tuple[int, int]:
    """Another stamp, other facts: time in ns and size of their file; zeros where there is none."""
    try:
        told = _path(dataset_dir).stat()
    except OSError:
        return 0, 0
    return told.st_mtime_ns, told.st_size


def is_known(content: str, facts: Mapping[str, PictureFacts], with_imagehash: bool) -> bool:
    """Whether nothing more can be learned of the picture with this digest: a hash may have become possible."""
    found = facts.get(content)
    return found is not None and (bool(found.phash) or not with_imagehash)


def update_facts(
    dataset_dir: Path,
    files: Sequence[Path],
    told: Callable[[int, int], None] | None,
    should_stop: Callable[[], bool],
) -> int:
    """Look at those of `files` that are not known yet, and forget what is not among them; how many are still unknown.

    `told` gets how many are done, of how many. When `should_stop` says so, what is known by then is kept. A picture
    that can't be read stays unknown. Raises OSError when the facts can't be written.
    """
    kept = read_facts(dataset_dir)
    facts: dict[str, PictureFacts] = {}
    unknown = len(files)
    with ThreadPoolExecutor(max_workers=min(_MOST_AT_ONCE, os.cpu_count() or 1)) as pool:
        for done, (content, found) in enumerate(pool.map(partial(_look, kept=kept), files)):
            if found is not None:
                facts[content] = found
                unknown -= 1
            if told is not None:
                told(done + 1, len(files))
            if should_stop():
                pool.shutdown(wait=True, cancel_futures=True)
                facts = kept | facts  # those that were not reached may be known from before
                break
    if facts != kept and dataset_dir.is_dir():  # a version that was deleted meanwhile must not come back
        write_bytes(_path(dataset_dir), sealed(msgspec.json.encode(facts)))
    return unknown


def facts_phase(dataset_dir: Path, events: EventWriter, requested: Callable[[], Request | None]) -> int:
    """`update_facts` for a version's trained set, as a phase of a job; how many pictures are still unknown.

    A request to stop ends the phase early, without an exception: what it asks of the job is for the caller to say.
    """
    return update_facts(
        dataset_dir,
        training_files(dataset_dir / "processed"),
        lambda done, total: events.write(Phase(name=PHASE, done=done, total=total)),
        lambda: requested() is not None,
    )


def check_pictures(spec: CheckSpec, job: JobFolder, events: EventWriter) -> dict[str, object]:
    """The job that looks at a version's pictures. Raises RequestedEnd when the person asked to stop."""
    unknown = facts_phase((job.path / spec.dataset).resolve(), events, job.requested)
    if (request := job.requested()) is not None:
        raise RequestedEnd(request)
    return {"unknown": unknown}


def _look(path: Path, kept: dict[str, PictureFacts]) -> tuple[str, PictureFacts | None]:
    """The digest of the file's content, and what it is like; None where it can't be read."""
    try:
        content = hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()
        return content, kept[content] if is_known(content, kept, has_imagehash()) else picture_facts(open_picture(path))
    except (DatasetError, OSError):  # the scan tells it
        return "", None


def _phash(picture: Image.Image) -> str:
    if not has_imagehash():
        return ""
    import imagehash

    return str(imagehash.phash(picture))


def _path(dataset_dir: Path) -> Path:
    return dataset_dir / ".facts.json"
