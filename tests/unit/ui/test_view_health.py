"""The health of a dataset on the page: findings with their pictures, what crops keep, the job that looks."""

from __future__ import annotations

import re
from collections.abc import Callable
from html import unescape

import msgspec
import pytest

from lora_train.app.snapshot import Selection
from lora_train.core.health import BucketUse, Counted, Finding, Group, HealthReport, PictureHealth, Shown
from lora_train.core.jobs import JobStatus
from lora_train.ui import view

EVIL = "\"'><script>alert(1)</script>&"


def picture(file: str, **changes: object) -> PictureHealth:
    """800 x 400 of a 1600 x 800 original, trained as a square."""
    found = PictureHealth(
        file=file,
        width_px=800,
        height_px=400,
        caption="a cat",
        is_regularisation=False,
        stamp="1",
        bucket_px=(512, 512),
        outline_px=(1600, 800),
        kept_px=(400.0, 0.0, 1200.0, 800.0),
        lost_by_update=0.0,
        lost_by_bucket=0.5,
        lost_share=0.5,
        enlargement=0.64,
    )
    return msgspec.structs.replace(found, **changes)


def text_of(html: str) -> str:
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", html)).split())


def test_nothing_foreign_becomes_html(page_words: Callable[[str], set[str]]) -> None:
    one = Finding(
        kind=EVIL,
        level="error",
        title=EVIL,
        remedy=EVIL,
        pictures=(Shown(EVIL, 1.0),),
        groups=(Group((EVIL,)),),
        counts=(Counted(EVIL, 1),),
        sentences=(EVIL,),
    )
    failed = JobStatus(state="failed", message=EVIL, hint=EVIL)
    report = HealthReport([picture(EVIL, caption=EVIL)], [BucketUse(512, 512, 1)], [one], 1, failed)
    html = view.health_html(report, Selection(EVIL, EVIL), EVIL)
    assert "<script" not in html
    assert not any("alert" in text for text in page_words(html))


def test_a_finding_is_told_with_its_number_limit_and_picture() -> None:
    few = Finding(kind="few", level="warning", title="There are few.", remedy="Add some.", number=3, limit=5)
    small = Finding(
        kind="small", level="warning", title="Small.", limit=1.5, unit="×", pictures=(Shown("a.png", 1.832),)
    )
    html = view.health_html(HealthReport([picture("a.png")], [], [few, small]), Selection("Cat", "v1"), "T")
    assert text_of(html).startswith(
        "worth a look There are few. 3 · limit 5 Add some. worth a look Small. limit 1.5 × 1.83 ×"
    )
    (button,) = re.findall(r'<button[^>]*data-open="a.png"[^>]*>', html)
    assert 'data-caption="a cat"' in button
    assert 'data-waiting="0"' in button
    assert "size=thumb" in html
    for told in ("There are few.", "Add some."):
        assert f'<span class="train-tools-sentence">{told}</span>' in html


def test_duplicates_stand_side_by_side() -> None:
    files = ("a.png", "b.png", "c.png")
    near = Finding(kind="near", level="warning", title="Alike.", limit=8, unit="bits", groups=(Group(files[:2], 4),))
    report = HealthReport([picture(file) for file in files], [], [near])
    (row,) = re.findall(r"<li>.*?</li>", view.health_html(report, Selection("Cat", "v1"), "T"))
    assert re.findall(r'data-open="([^"]*)"', row) == ["a.png", "b.png"]
    assert text_of(row) == "4 bits apart"


def test_what_is_kept_is_drawn() -> None:
    """Pictures of one shape are drawn once; the share is the loss."""
    other = picture("c.png", outline_px=(512, 512), kept_px=(0.0, 0.0, 512.0, 512.0), lost_share=0.0)
    report = HealthReport([picture("a.png"), picture("b.png"), other], [BucketUse(512, 512, 3)], [])
    html = view.health_html(report, Selection("Cat", "v1"), "T")
    first, second = re.findall(r"<svg.*?</svg>", html)
    assert 'viewBox="0 0 1600 800"' in first
    assert '<rect class="train-tools-whole" width="1600" height="800"/>' in first
    assert '<rect class="train-tools-kept" x="400.0" y="0.0" width="800.0" height="800.0"/>' in first
    assert 'viewBox="0 0 512 512"' in second
    assert "512 × 512 3 2 × −50 % 0 % " in text_of(html)


def test_long_lists_are_cut_and_counted(rendered_states: dict[str, str]) -> None:
    """50 pictures with too many tokens, 70 tags, 21 shapes."""
    html = rendered_states["health"]
    assert len(re.findall(r'data-key="health long ', html)) == 24
    assert "and others: 26" in text_of(html)
    assert len(re.findall(r'<li class="train-tools-chip">', html)) == 60
    assert "and others: 10" in text_of(html)
    assert len(re.findall("<svg", html)) == 12


@pytest.mark.parametrize(
    ("state", "button", "told"),
    [
        ("health unknown", True, "50 pictures were not looked at yet"),
        ("health of one unknown", True, "1 picture was not looked at yet"),
        ("health check", False, "Looking at the pictures 3 / 50"),
        ("health check begins", False, "Looking at the pictures"),
        ("health check failed", True, "The disk is full. Make room."),
        ("health known", False, "must be mended"),
        ("healthy", False, "good Nothing is wrong with the pictures and captions."),
    ],
)
def test_the_look_at_the_pictures(state: str, button: bool, told: str, rendered_states: dict[str, str]) -> None:
    html = rendered_states[state]
    assert ('data-post="dataset/check"' in html) == button
    assert told in text_of(html)
