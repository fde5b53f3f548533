"""The health check: from what is known of a trained set to a report. Pure; nothing is read here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from lora_train.core.config import TrainSettings
from lora_train.core.health import BucketUse, Counted, Finding, HealthReport, Level, PictureHealth
from lora_train.data.buckets import Size
from lora_train.data.caption_findings import caption_findings
from lora_train.data.dataset import Dataset, Picture
from lora_train.data.facts import PictureFacts, is_known
from lora_train.data.kept import Kept, kept_of
from lora_train.data.manifest import Manifest
from lora_train.data.picture_findings import Looked, picture_findings

FEWEST_PICTURES = 5
"""From fewer, a LoRA learns the pictures rather than what they have in common."""

_ORDER: tuple[Level, ...] = ("error", "warning", "info")


class Known(NamedTuple):
    """What the check looks at."""

    dataset: Dataset
    buckets: Sequence[Size]
    """Of each picture, in the dataset's order."""
    manifest: Manifest
    facts: Mapping[str, PictureFacts]
    """By `Picture.content`."""
    token_counts: Mapping[str, int]
    """By `Picture.path`; empty where tokens can't be counted."""
    settings: TrainSettings
    concept: str
    """The project's name, which is the caption of a picture that has none."""
    has_imagehash: bool = True


def check(known: Known) -> HealthReport:
    """Look at everything. The findings are in the order of their levels."""
    pictures = known.dataset.pictures
    kept = [
        kept_of((picture.width_px, picture.height_px), bucket, known.manifest.files.get(picture.path))
        for picture, bucket in zip(pictures, known.buckets, strict=True)
    ]
    training = [picture for picture in pictures if not picture.is_regularisation]
    looked = [
        Looked(picture, its, known.manifest.files.get(picture.path), known.facts.get(picture.content))
        for picture, its in zip(pictures, kept, strict=True)
        if not picture.is_regularisation
    ]
    settings = known.settings
    findings = [
        *_numbers(training, known.dataset.problems),
        *picture_findings(looked),
        *caption_findings(training, known.concept, settings, known.token_counts),
        *_buckets(known.buckets, settings.batch_size),
        *_regularisation(pictures, settings.epochs),
        *([] if known.has_imagehash else [_NO_IMAGEHASH]),
    ]
    return HealthReport(
        pictures=[_told(*row) for row in zip(pictures, known.buckets, kept, strict=True)],
        buckets=[BucketUse(*bucket, count) for bucket, count in sorted(Counter(known.buckets).items())],
        findings=sorted(findings, key=lambda finding: _ORDER.index(finding.level)),
        missing_facts=sum(not is_known(picture.content, known.facts, known.has_imagehash) for picture in training),
    )


def regularisation_used(pictures: Sequence[Picture], epochs: int) -> int:
    """How many regularisation pictures a run of so many epochs shows at all.

    An epoch has as many views of them as of training pictures, and goes on where the one before ended.
    """
    views = epochs * sum(picture.repeats for picture in pictures if not picture.is_regularisation)
    begin = used = 0
    for picture in pictures:
        if picture.is_regularisation:
            used += begin < views
            begin += picture.repeats
    return used


def _told(picture: Picture, bucket: Size, kept: Kept) -> PictureHealth:
    left, top, right, bottom = (round(side, 1) for side in kept.rectangle_px)
    return PictureHealth(
        file=picture.path,
        width_px=picture.width_px,
        height_px=picture.height_px,
        caption=picture.caption,
        is_regularisation=picture.is_regularisation,
        stamp=picture.digest[:12],
        bucket_px=bucket,
        outline_px=kept.outline_px,
        kept_px=(left, top, right, bottom),
        lost_by_update=round(kept.lost_by_update, 4),
        lost_by_bucket=round(kept.lost_by_bucket, 4),
        lost_share=round(kept.lost_share, 4),
        enlargement=round(kept.enlargement, 3),
    )


def _numbers(training: Sequence[Picture], problems: Sequence[str]) -> list[Finding]:
    """How many pictures there are, of which sizes, and the files that are none."""
    found: list[Finding] = []
    if not training:
        found.append(
            Finding(
                kind="no_pictures",
                level="error",
                title="There are no pictures to train on.",
                remedy="Drop 10-20 pictures on Upload Dataset, then press Update Dataset.",
            )
        )
    elif len(training) < FEWEST_PICTURES:
        found.append(
            Finding(
                kind="few_pictures",
                level="warning",
                title="There are few pictures: the LoRA may learn them by heart.",
                remedy="Add others of the same subject: other views, places, light.",
                number=len(training),
                limit=FEWEST_PICTURES,
            )
        )
    if problems:
        found.append(
            Finding(
                kind="left_out",
                level="warning",
                title="Some files are left out.",
                remedy="Save pictures that can't be read as PNG, and give captions the names of their pictures.",
                sentences=tuple(problems),
            )
        )
    if training:
        sizes = Counter((picture.width_px, picture.height_px) for picture in training)
        found.append(
            Finding(
                kind="sizes",
                level="info",
                title="The pictures have these sizes.",
                number=len(training),
                counts=_sizes(sizes),
            )
        )
    return found


def _buckets(buckets: Sequence[Size], batch_size: int) -> list[Finding]:
    """The sizes that are trained, and those that don't fill a batch."""
    counts = Counter(buckets)
    found: list[Finding] = []
    scarce = {bucket: count for bucket, count in counts.items() if count < batch_size}
    if scarce:
        found.append(
            Finding(
                kind="scarce_buckets",
                level="warning",
                title="Some training sizes have fewer pictures than a batch: it shows pictures twice, or is not full.",
                remedy="Choose a smaller batch size, or crop all pictures to one size.",
                limit=batch_size,
                counts=_sizes(scarce),
            )
        )
    if counts:
        title = "The pictures are trained in these sizes; what does not fit into them is cut off."
        found.append(Finding(kind="buckets", level="info", title=title, counts=_sizes(counts)))
    return found


def _regularisation(pictures: Sequence[Picture], epochs: int) -> list[Finding]:
    own = [picture for picture in pictures if picture.is_regularisation]
    if not own:
        title = "There are no regularisation pictures. They are not needed."
        remedy = "Ordinary pictures of the same kind keep the LoRA from changing everything of that kind."
        return [Finding(kind="no_regularisation", level="info", title=title, remedy=remedy)]
    used = regularisation_used(pictures, epochs)
    if used == len(own):
        title, remedy = "All regularisation pictures are trained along.", ""
    else:
        title = "Some regularisation pictures are never trained: there are more than the training has turns for."
        remedy = "More epochs or repeats take in the others; nothing is wrong with leaving them out."
    return [Finding(kind="regularisation", level="info", title=title, remedy=remedy, number=used, limit=len(own))]


def _sizes(counts: Mapping[Size, int]) -> tuple[Counted, ...]:
    """The most frequent size first."""
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return tuple(Counted(f"{width_px} × {height_px}", count) for (width_px, height_px), count in ordered)


_NO_IMAGEHASH = Finding(
    kind="no_imagehash",
    level="info",
    title="Near-duplicates are not looked for: the package imagehash is not installed.",
    remedy="Add it to the Python that runs this page: pip install imagehash.",
)
