"""The health of a dataset as HTML: what was found, with the pictures it is about, and what the crops keep of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from lora_train.app.snapshot import PictureEntry, Selection
from lora_train.core.health import BucketUse, Counted, Finding, Group, HealthReport, Level, PictureHealth, Unit
from lora_train.core.jobs import JobStatus
from lora_train.ui.html import (
    attributes_text,
    badge,
    counted,
    error_panel,
    paragraph,
    post_button,
    progress_bar,
    sentence,
    sentences,
    value,
    words,
)
from lora_train.ui.view_dataset import picture_button

_MOST_PICTURES = 24
"""Thumbnails of one finding; the others are counted."""
_MOST_CHIPS = 60
_MOST_OUTLINES = 12
"""Drawings of one training size."""
_OUTLINE_PX = 44
"""The longer side of a drawing on the page."""


def health_html(report: HealthReport, selection: Selection, token: str) -> str:
    """What is to be done first, then what is good to know, then what each training size keeps of its pictures."""
    if not selection.version:
        return paragraph(words("Create a project and a version first."), "train-tools-quiet")
    entries = {picture.file: _entry(picture) for picture in report.pictures}
    drawn = [_finding(finding, entries, selection, token) for finding in report.findings if finding.level != "info"]
    known = [_finding(finding, entries, selection, token) for finding in report.findings if finding.level == "info"]
    if not drawn:
        drawn = [paragraph(f"{badge('good', 'good')} {words('Nothing is wrong with the pictures and captions.')}")]
    return (
        f"{_check(report, selection)}"
        f'<div class="train-tools-findings">{"".join(drawn)}</div>'
        f"{_details('Good to know', 'health-known', ''.join(known))}"
        f"{_details('Training sizes and what they keep', 'health-buckets', _buckets(report))}"
    )


def _check(report: HealthReport, selection: Selection) -> str:
    """The job that looks at pictures, and the button that starts it while some are not known."""
    check = report.check
    if check is not None and check.state in ("waiting", "running"):
        return _progress(check)
    failure = ""
    if check is not None and check.state == "failed" and report.missing_facts:
        failure = error_panel("The pictures could not be looked at.", check.message, check.hint)
    if not report.missing_facts:
        return ""
    ids = {"project": selection.project, "version": selection.version}
    button = post_button("Look at the pictures", "dataset/check", ids)
    unknown = counted(report.missing_facts, "picture was not looked at yet", "pictures were not looked at yet")
    why = paragraph(words("Blurred pictures and near-duplicates are found by looking."), "train-tools-quiet")
    return (
        f'{failure}<div class="train-tools-box">{paragraph(unknown)}{why}'
        f'<div class="train-tools-actions">{button}</div></div>'
    )


def _progress(check: JobStatus) -> str:
    done = value(f"{check.phase_done} / {check.phase_total}") if check.phase_total else ""
    headline = paragraph(f"{words('Looking at the pictures')} {done}")
    return f'<div class="train-tools-box">{headline}{progress_bar(check.phase_done, check.phase_total)}</div>'


def _finding(finding: Finding, entries: dict[str, PictureEntry], selection: Selection, token: str) -> str:
    numbers = _numbers(finding)
    remedy = paragraph(sentence(finding.remedy), "train-tools-quiet") if finding.remedy else ""
    chips = _chips(finding.counts)
    headline = f"{_level(finding.level)} {sentence(finding.title)} {numbers}"
    return (
        f'<section class="train-tools-finding">{paragraph(headline)}'
        f"{sentences(finding.sentences)}{chips}"
        f"{_pictures(finding, entries, selection, token)}"
        f"{_groups(finding, entries, selection, token)}{remedy}</section>"
    )


def _level(level: Level) -> str:
    """Nothing for what is good to know: it stands under that heading."""
    if level == "error":
        return badge("must be mended", "error")
    return badge("worth a look", "notice") if level == "warning" else ""


def _numbers(finding: Finding) -> str:
    """`3 of 5`-like: what was measured of the whole set, and the limit."""
    number = _measure(finding.number, finding.unit) if finding.number is not None else ""
    limit = f"{words('limit')} {_measure(finding.limit, finding.unit)}" if finding.limit is not None else ""
    inner = f" {value('·')} ".join(filter(None, (number, limit)))
    return f'<span class="train-tools-measure">{inner}</span>' if inner else ""


def _measure(number: float, unit: Unit) -> str:
    """`1.83 ×`, `78 tokens`: signs belong to the number, words are translated."""
    text = f"{number:.2f}".rstrip("0").rstrip(".")
    if unit == "tokens":
        return f"{value(text)} {words('tokens')}"
    if unit == "bits":
        return f"{value(text)} {words('bits apart')}"
    if unit == "sharpness":
        return f"{words('sharpness')} {value(text)}"
    return value(f"{text}{unit}" if unit == ":1" else f"{text} {unit}".rstrip())


def _pictures(finding: Finding, entries: dict[str, PictureEntry], selection: Selection, token: str) -> str:
    """Small thumbnails, each with what was measured of it."""
    figures: list[str] = []
    for shown in finding.pictures[:_MOST_PICTURES]:
        told = _measure(shown.number, finding.unit) if shown.number is not None else ""
        if shown.lost_share is not None:
            told += f" {words('loses')} {_percent(shown.lost_share)}"
        thumbnail = _thumbnail(shown.file, f"{finding.kind} {shown.file}", entries, selection, token)
        caption = f"<figcaption>{told}</figcaption>" if told else ""
        figures.append(f'<figure class="train-tools-picture">{thumbnail}{caption}</figure>')
    if not figures:
        return ""
    return f'<div class="train-tools-small">{"".join(figures)}{_more(len(finding.pictures) - len(figures))}</div>'


def _groups(finding: Finding, entries: dict[str, PictureEntry], selection: Selection, token: str) -> str:
    """Pictures that belong together side by side."""
    rows: list[str] = []
    for number, group in enumerate(finding.groups[:_MOST_PICTURES]):
        buttons = [
            _thumbnail(file, f"{finding.kind} {number} {file}", entries, selection, token)
            for file in group.files[:_MOST_PICTURES]
        ]
        more = _more(len(group.files) - len(buttons))
        rows.append(f"<li>{''.join(buttons)}{more}{_apart(group, finding.unit)}</li>")
    if not rows:
        return ""
    more = _more(len(finding.groups) - len(rows))
    return f'<ul class="train-tools-groups">{"".join(rows)}</ul>{more}'


def _apart(group: Group, unit: Unit) -> str:
    return f'<span class="train-tools-measure">{_measure(group.number, unit)}</span>' if unit else ""


def _thumbnail(file: str, key: str, entries: dict[str, PictureEntry], selection: Selection, token: str) -> str:
    return picture_button(entries[file], selection, token, f"health {key}")


def _chips(counts: Sequence[Counted]) -> str:
    """Tags or sizes with how many pictures have each."""
    if not counts:
        return ""
    chips = [
        f'<li class="train-tools-chip">{value(count.name)} {value(count.count, "train-tools-quiet")}</li>'
        for count in counts[:_MOST_CHIPS]
    ]
    return f'<ul class="train-tools-chips">{"".join(chips)}</ul>{_more(len(counts) - len(chips))}'


def _more(count: int) -> str:
    return f'<span class="train-tools-quiet">{words("and others:")} {value(count)}</span>' if count > 0 else ""


def _buckets(report: HealthReport) -> str:
    """A row for each training size: how many pictures, and what is kept of their originals."""
    if not report.buckets:
        return ""
    heads = "".join(f"<th>{words(head)}</th>" for head in ("Training size", "Pictures", "Kept of the originals"))
    rows = "".join(_bucket(bucket, report.pictures) for bucket in report.buckets)
    legend = words("The filled part is trained; the percentage is what the original loses.")
    return (
        f'<table class="train-tools-buckets"><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>'
        f"{paragraph(legend, 'train-tools-quiet')}"
    )


def _bucket(bucket: BucketUse, pictures: Iterable[PictureHealth]) -> str:
    size = (bucket.width_px, bucket.height_px)
    shapes: dict[tuple[tuple[int, int], tuple[float, float, float, float]], list[PictureHealth]] = {}
    for picture in pictures:
        if picture.bucket_px == size:
            shapes.setdefault((picture.outline_px, picture.kept_px), []).append(picture)
    alike = sorted(shapes.values(), key=lambda group: -group[0].lost_share)
    drawn = "".join(_outline(group) for group in alike[:_MOST_OUTLINES])
    more = _more(sum(map(len, alike[_MOST_OUTLINES:])))
    return (
        f"<tr><td>{value(f'{bucket.width_px} × {bucket.height_px}')}</td><td>{value(bucket.pictures)}</td>"
        f'<td><div class="train-tools-outlines">{drawn}{more}</div></td></tr>'
    )


def _outline(alike: Sequence[PictureHealth]) -> str:
    """The outline of the original with the part that is trained, once for all pictures of the same shape."""
    picture = alike[0]
    width_px, height_px = picture.outline_px
    left, top, right, bottom = picture.kept_px
    scale = _OUTLINE_PX / max(width_px, height_px)
    frame = attributes_text(
        {
            "width": f"{max(4.0, width_px * scale):.1f}",
            "height": f"{max(4.0, height_px * scale):.1f}",
            "viewBox": f"0 0 {width_px} {height_px}",
            "preserveAspectRatio": "none",
            "aria-hidden": "true",
        }
    )
    whole = attributes_text({"width": width_px, "height": height_px})
    kept = attributes_text({"x": left, "y": top, "width": round(right - left, 1), "height": round(bottom - top, 1)})
    count = f"{value(f'{len(alike)} ×')} " if len(alike) > 1 else ""
    title = attributes_text({"title": picture.file})
    return (
        f'<span class="train-tools-outline train-tools-value"{title}><svg{frame}>'
        f'<rect class="train-tools-whole"{whole}/><rect class="train-tools-kept"{kept}/></svg>'
        f"<span>{count}{_percent(-picture.lost_share)}</span></span>"
    )


def _percent(share: float) -> str:
    """`−25 %`; the sign is a minus, not a hyphen."""
    return value(f"{100 * share:.0f} %".replace("-0 %", "0 %").replace("-", "−"))


def _details(title: str, key: str, inner: str) -> str:
    if not inner:
        return ""
    return (
        f'<details class="train-tools-details"{attributes_text({"data-key": key})}><summary>{words(title)}</summary>'
        f"{inner}</details>"
    )


def _entry(picture: PictureHealth) -> PictureEntry:
    return PictureEntry(
        file=picture.file,
        width_px=picture.width_px,
        height_px=picture.height_px,
        caption=picture.caption,
        is_regularisation=picture.is_regularisation,
        stamp=picture.stamp,
    )
