"""Every finding of the health check, on both sides of its limit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from PIL import Image, ImageFilter, ImageOps

from lora_train.core.config import TrainSettings
from lora_train.core.health import Counted, Finding, Group, HealthReport, Shown
from lora_train.data.dataset import Dataset, Picture, scan_dataset
from lora_train.data.epochs import EpochPlanner, Source
from lora_train.data.facts import PictureFacts, has_imagehash, read_facts, training_files, update_facts
from lora_train.data.health import FEWEST_PICTURES, Known, check, regularisation_used
from lora_train.data.manifest import Made, Manifest
from lora_train.data.picture_findings import BLURRED_BELOW, SHARP_ABOVE, blur_limit
from lora_train.data.plan import place_in_buckets

FAR = ("00000000000000ff", "ff00ff00ff00ff00", "0f0f0f0f0f0f0f0f", "ffffffff00000000", "3333cccc3333cccc")
"""Hashes that differ in many bits from each other, and from 00..00, their mirrored ones."""


def picture(number: int, caption: str = "sks cat, grass", **changes: Any) -> Picture:
    found = Picture(
        path=f"4_cat/{number}.png",
        folder="4_cat",
        concept="cat",
        repeats=4,
        is_regularisation=False,
        caption=caption,
        width_px=512,
        height_px=512,
        digest=f"{number:032x}",
        content=f"content {number}",
    )
    return msgspec.structs.replace(found, **changes)


def facts(sharpness: float = 400.0, phash: str = "", is_grey: bool = False) -> PictureFacts:
    return PictureFacts(sharpness, (120, 110, 100), is_grey, phash, "aaaaaaaaaaaaaaaa" if phash else "")


def report_on(
    pictures: Sequence[Picture],
    *,
    measured: Sequence[PictureFacts] = (),
    made: dict[str, Made] | None = None,
    tokens: dict[str, int] | None = None,
    problems: Sequence[str] = (),
    has_imagehash: bool = False,
    **settings: Any,
) -> HealthReport:
    dataset = Dataset(Path(), tuple(pictures), tuple(problems))
    chosen = TrainSettings(**settings)
    return check(
        Known(
            dataset=dataset,
            buckets=place_in_buckets(dataset, chosen, resolution_px=512, step_px=64),
            manifest=Manifest(made or {}),
            facts={one.content: known for one, known in zip(pictures, measured)},  # noqa: B905  (the rest is unknown)
            token_counts=tokens or {},
            settings=chosen,
            concept="my cat",
            has_imagehash=has_imagehash,
        )
    )


def finding(report: HealthReport, kind: str) -> Finding | None:
    found = [one for one in report.findings if one.kind == kind]
    assert len(found) <= 1
    return found[0] if found else None


def found(report: HealthReport, kind: str) -> Finding:
    one = finding(report, kind)
    assert one is not None, [other.kind for other in report.findings]
    return one


def kinds(report: HealthReport) -> list[str]:
    return [one.kind for one in report.findings]


def files(one: Finding) -> list[str]:
    return [shown.file for shown in one.pictures]


PLENTY = [picture(number, f"sks cat, view {number}") for number in range(6)]


# --- the set ---


def test_a_good_set_has_nothing_to_be_done() -> None:
    report = report_on(PLENTY, measured=[facts()] * 6, has_imagehash=False)
    assert {one.level for one in report.findings} == {"info"}
    assert kinds(report) == ["sizes", "common_tag", "buckets", "no_regularisation", "no_imagehash"]
    assert report.missing_facts == 0
    assert found(report, "sizes").counts == (Counted("512 × 512", 6),)


def test_no_picture() -> None:
    report = report_on([], problems=["a.png can't be used: the file is empty."])
    assert [(one.kind, one.level) for one in report.findings[:2]] == [("no_pictures", "error"), ("left_out", "warning")]
    assert found(report, "left_out").sentences == ("a.png can't be used: the file is empty.",)
    assert (report.pictures, report.buckets) == ([], [])
    assert finding(report, "sizes") is None


def test_few_pictures() -> None:
    few = found(report_on(PLENTY[: FEWEST_PICTURES - 1]), "few_pictures")
    assert (few.level, few.number, few.limit) == ("warning", FEWEST_PICTURES - 1, FEWEST_PICTURES)
    assert finding(report_on(PLENTY[:FEWEST_PICTURES]), "few_pictures") is None


def test_regularisation_pictures_do_not_count_as_pictures() -> None:
    ordinary = [picture(number, is_regularisation=True) for number in range(10, 20)]
    report = report_on([*PLENTY[:2], *ordinary])
    assert found(report, "few_pictures").number == 2
    assert report.missing_facts == 2  # only training pictures are looked at
    assert "no_pictures" in kinds(report_on(ordinary))


def test_sizes_and_buckets() -> None:
    wide = picture(9, width_px=768, height_px=320)
    report = report_on([*PLENTY, wide], batch_size=2)
    assert found(report, "sizes").counts == (Counted("512 × 512", 6), Counted("768 × 320", 1))
    assert [(use.width_px, use.height_px, use.pictures) for use in report.buckets] == [(512, 512, 6), (768, 320, 1)]
    scarce = found(report, "scarce_buckets")
    assert (scarce.level, scarce.limit, scarce.counts) == ("warning", 2, (Counted("768 × 320", 1),))
    assert finding(report_on([*PLENTY, wide], batch_size=1), "scarce_buckets") is None
    assert finding(report_on(PLENTY, batch_size=6), "scarce_buckets") is None
    assert finding(report_on(PLENTY, batch_size=7), "scarce_buckets") is not None


def test_what_each_picture_keeps() -> None:
    """Cut out of 1024 x 768, trained whole."""
    made = {PLENTY[0].path: Made("a.jpg", "", origin_px=(1024, 768), box_px=(128, 0, 896, 768))}
    told = report_on(PLENTY, made=made).pictures[0]
    assert (told.file, told.bucket_px, told.outline_px) == ("4_cat/0.png", (512, 512), (1024, 768))
    assert told.kept_px == (128, 0, 896, 768)
    assert (told.lost_by_update, told.lost_by_bucket, told.lost_share) == (0.25, 0, 0.25)
    assert told.enlargement == 0.667


# --- single pictures ---


@pytest.mark.parametrize(("box_px", "is_told"), [(342, False), (341, True)])
def test_too_small(box_px: int, is_told: bool) -> None:
    """512 px out of 342 are 1.497 times as long, out of 341 1.501; the limit is 1.5."""
    made = {PLENTY[0].path: Made("a.jpg", "", origin_px=(900, 900), box_px=(0, 0, box_px, box_px))}
    small = finding(report_on(PLENTY, made=made), "too_small")
    assert (small is not None) == is_told
    if small is not None:
        assert small.pictures == (Shown("4_cat/0.png", 1.5),)
        assert (small.limit, small.unit, small.level) == (1.5, "×", "warning")


@pytest.mark.parametrize(("side_px", "is_told"), [(342, False), (341, True)])
def test_too_small_as_it_is(side_px: int, is_told: bool) -> None:
    small = picture(9, width_px=side_px, height_px=side_px)
    assert (finding(report_on([*PLENTY, small]), "too_small") is not None) == is_told


def test_blurred() -> None:
    measured = [facts(BLURRED_BELOW), facts(BLURRED_BELOW - 0.01), *[facts(200.0)] * 4]
    blurred = found(report_on(PLENTY, measured=measured), "blurred")
    assert blurred.pictures == (Shown("4_cat/1.png", 29.99),)
    assert (blurred.limit, blurred.unit, blurred.level) == (BLURRED_BELOW, "sharpness", "warning")


def test_blurred_beside_the_others() -> None:
    """A tenth of the median 800 is 80; alone, 79 would pass."""
    measured = [facts(79.0), facts(80.0), *[facts(800.0)] * 4]
    blurred = found(report_on(PLENTY, measured=measured), "blurred")
    assert (files(blurred), blurred.limit) == (["4_cat/0.png"], 80.0)
    assert finding(report_on(PLENTY, measured=measured[:2]), "blurred") is None


def test_the_limit_of_blur() -> None:
    assert blur_limit([]) == blur_limit([9000.0, 9000.0]) == BLURRED_BELOW  # two have no median worth its name
    assert blur_limit([9000.0] * 3) == SHARP_ABOVE
    assert blur_limit([500.0] * 3) == 50.0
    assert blur_limit([1.0] * 3) == BLURRED_BELOW


@pytest.mark.parametrize(("origin_px", "is_told"), [((1000, 500), False), ((1001, 500), True), ((500, 1001), True)])
def test_extreme_ratios(origin_px: tuple[int, int], is_told: bool) -> None:
    made = {PLENTY[0].path: Made("a.jpg", "", origin_px=origin_px, box_px=(0, 0, 500, 500))}
    extreme = finding(report_on(PLENTY, made=made), "extreme_ratios")
    assert (extreme is not None) == is_told
    if extreme is not None:
        # 500 x 500 of 1001 x 500 are kept.
        assert extreme.pictures == (Shown("4_cat/0.png", 2.0, round(1 - 500 / 1001, 3)),)
        assert (extreme.limit, extreme.unit) == (2, ":1")


def test_grey_among_coloured_ones() -> None:
    some = found(report_on(PLENTY, measured=[facts(is_grey=True), *[facts()] * 5]), "grey")
    assert (files(some), some.level) == (["4_cat/0.png"], "info")
    assert finding(report_on(PLENTY, measured=[facts(is_grey=True)] * 6), "grey") is None


# --- copies ---


def test_the_same_file_twice() -> None:
    twice = [*PLENTY, msgspec.structs.replace(PLENTY[0], path="2_dog/b.png")]
    measured = [facts(phash=phash) for phash in (*FAR, "1248124812481248", FAR[0])]
    report = report_on(twice, measured=measured, has_imagehash=True)
    same = found(report, "same_files")
    assert (same.level, same.groups) == ("warning", (Group(("4_cat/0.png", "2_dog/b.png")),))
    assert finding(report, "near_duplicates") is None  # told once


def test_near_duplicates() -> None:
    hashes = ("00000000000000fe", *FAR)
    near = found(report_on(PLENTY, measured=[facts(phash=phash) for phash in hashes]), "near_duplicates")
    assert near.groups == (Group(("4_cat/0.png", "4_cat/1.png"), 1),)
    assert (near.limit, near.unit, near.level) == (8, "bits", "warning")


def test_mirrored_duplicates_are_told_as_such() -> None:
    mirrored = PictureFacts(400.0, (120, 110, 100), False, FAR[0], FAR[1])
    original = PictureFacts(400.0, (120, 110, 100), False, FAR[1], FAR[0])
    report = report_on(PLENTY, measured=[original, mirrored])
    assert found(report, "mirrored_duplicates").groups == (Group(("4_cat/0.png", "4_cat/1.png"), 0),)
    assert finding(report, "near_duplicates") is None


def test_what_update_dataset_made_of_one_original_is_no_duplicate() -> None:
    """A flipped copy, and a part that overlaps; a flipped copy of another picture's copy is not told twice either."""
    made = {
        PLENTY[0].path: Made("a.jpg", ""),
        PLENTY[1].path: Made("a.jpg", "", is_flipped=True),
        PLENTY[2].path: Made("a.jpg", ""),
        PLENTY[3].path: Made("b.jpg", ""),
        PLENTY[4].path: Made("b.jpg", "", is_flipped=True),
    }
    near = PictureFacts(400.0, (120, 110, 100), False, FAR[0], FAR[1])
    flipped = PictureFacts(400.0, (120, 110, 100), False, FAR[1], FAR[0])
    own = report_on(PLENTY, made=made, measured=[near, flipped, near])
    assert finding(own, "near_duplicates") is finding(own, "mirrored_duplicates") is None
    both = report_on(PLENTY, made=made, measured=[near, flipped, facts(phash=FAR[2]), near, flipped])
    assert found(both, "near_duplicates").groups == (Group(("4_cat/0.png", "4_cat/3.png"), 0),)
    assert finding(both, "mirrored_duplicates") is None


def test_pictures_that_were_not_looked_at_yet() -> None:
    report = report_on(PLENTY, measured=[facts(), facts(phash=FAR[0])], has_imagehash=True)
    assert report.missing_facts == 5  # one lacks its hash
    assert finding(report, "no_imagehash") is None
    report = report_on(PLENTY, measured=[facts(), facts(phash=FAR[0])], has_imagehash=False)
    assert report.missing_facts == 4
    assert "pip install imagehash" in found(report, "no_imagehash").remedy


# --- captions ---


def test_no_caption() -> None:
    without = found(report_on([picture(9, ""), *PLENTY]), "no_caption")
    assert (files(without), without.level) == (["4_cat/9.png"], "warning")


def test_long_captions() -> None:
    tokens = {PLENTY[0].path: 150, PLENTY[1].path: 151}
    long = found(report_on(PLENTY, tokens=tokens), "long_captions")
    assert (long.pictures, long.limit, long.unit) == ((Shown("4_cat/1.png", 151),), 150, "tokens")
    assert finding(report_on(PLENTY, tokens=tokens, max_tokens=225), "long_captions") is None


def test_captions_that_are_all_the_same() -> None:
    alike = found(report_on([picture(number, "sks") for number in range(6)]), "same_captions")
    assert (alike.counts, alike.level) == ((Counted("sks", 6),), "warning")
    assert finding(report_on([picture(1), picture(2, "other")]), "same_captions") is None
    assert finding(report_on([picture(1)]), "same_captions") is None
    assert finding(report_on([picture(1, ""), picture(2, "")]), "same_captions") is None  # told as none


def test_the_trigger_word() -> None:
    some = [picture(1, "a photo of SKS cat"), picture(2, "sks, grass"), picture(3, "skso"), picture(4, "a cat")]
    word = found(report_on(some, trigger_word="sks"), "trigger_word")
    assert (word.level, word.counts, files(word)) == ("info", (Counted("sks", 2),), ["4_cat/3.png", "4_cat/4.png"])
    assert found(report_on(some[:2], trigger_word=" sks "), "trigger_word").pictures == ()


def test_without_a_trigger_word_a_common_tag_calls() -> None:
    assert found(report_on(PLENTY), "common_tag").counts == (Counted("sks cat", 6),)
    none = found(report_on([picture(1, "a, b"), picture(2, "c, d")]), "no_trigger")
    assert none.level == "warning"
    # Without a caption the folder's name is trained.
    assert found(report_on([picture(1, ""), picture(2, "cat, grass")]), "common_tag").counts[0].name == "cat"


def test_tags_of_nearly_all_captions() -> None:
    """In 9 of 10 "red" is, in 8 of 10 "chair": more than 80 % is told."""
    captions = [
        ", ".join(
            ["sks", f"view {number}", "Sits" if number % 2 else "stands"]
            + ["red"] * (number < 9)
            + ["chair"] * (number < 8)
        )
        for number in range(10)
    ]
    report = report_on([picture(number, caption) for number, caption in enumerate(captions)])
    common = found(report, "common_tags")
    assert (common.counts, common.limit, common.unit) == ((Counted("red", 9),), 80, "%")  # what calls it is meant so
    rare = found(report, "rare_tags")
    assert {count.name for count in rare.counts} == {f"view {number}" for number in range(10)}
    assert found(
        report_on([picture(n, c) for n, c in enumerate(captions)], trigger_word="red"), "common_tags"
    ).counts == (Counted("sks", 10),)


def test_a_tag_that_is_in_one_caption_twice_is_in_one() -> None:
    captions = ["sks, a, b", "sks, a, b", "sks, a, b", "sks, a, b", "sks, x, X"]
    rare = found(report_on([picture(n, c) for n, c in enumerate(captions)]), "rare_tags")
    assert rare.counts == (Counted("x", 1),)


def test_sentences_have_no_tags() -> None:
    captions = [f"a cat sits on chair {number}, at night" for number in range(8)]
    report = report_on([picture(n, c) for n, c in enumerate(captions)])
    assert finding(report, "rare_tags") is finding(report, "common_tags") is None
    few = [picture(n, f"sks, red, view {n}") for n in range(4)]
    assert finding(report_on(few), "rare_tags") is None


# --- regularisation ---


def test_regularisation() -> None:
    """6 pictures x 4 repeats x 1 epoch are 24 views."""
    ordinary = [picture(number, "cat", is_regularisation=True, repeats=1) for number in range(100, 130)]
    some = found(report_on([*PLENTY, *ordinary], epochs=1), "regularisation")
    assert (some.level, some.number, some.limit) == ("info", 24, 30)
    every = found(report_on([*PLENTY, *ordinary], epochs=2), "regularisation")
    assert (every.number, every.limit) == (30, 30)
    assert every.title != some.title
    assert finding(report_on(PLENTY), "no_regularisation") is not None


@pytest.mark.parametrize("epochs", [1, 2, 3])
@pytest.mark.parametrize("repeats", [(1, 1, 1, 1), (3, 1, 2, 5), (9, 9, 9, 9)])
@pytest.mark.parametrize("training", [(1,), (2, 3)])
def test_as_many_are_used_as_training_shows(epochs: int, repeats: tuple[int, ...], training: tuple[int, ...]) -> None:
    own = [picture(number, repeats=count) for number, count in enumerate(training)]
    ordinary = [picture(number, is_regularisation=True, repeats=count) for number, count in enumerate(repeats)]
    sources = [Source((64, 64), one.repeats, "", one.is_regularisation) for one in (*own, *ordinary)]
    planner = EpochPlanner(sources, batch_size=1, seed=0)
    shown = {source for epoch in range(epochs) for source in planner.shown(epoch)}
    assert regularisation_used([*own, *ordinary], epochs) == sum(sources[source].is_regularisation for source in shown)


# --- all together ---


def test_a_report_is_json() -> None:
    report = report_on(PLENTY, measured=[facts(1.0)] * 6)
    assert msgspec.json.decode(msgspec.json.encode(report), type=HealthReport) == report


def test_errors_come_first() -> None:
    report = report_on([picture(1, "")], problems=["x"], batch_size=4)
    levels = [one.level for one in report.findings]
    assert levels == sorted(levels, key=["error", "warning", "info"].index)


@pytest.mark.skipif(not has_imagehash(), reason="imagehash is not installed")
def test_real_files(tmp_path: Path) -> None:
    """From files to findings: one is blurred, one is there twice, one nearly, one mirrored."""
    data = pytest.importorskip("skimage.data")
    folder = tmp_path / "processed" / "4_cat"
    folder.mkdir(parents=True)
    for name in ("astronaut", "coffee", "camera", "rocket", "gravel"):
        photograph = Image.fromarray(getattr(data, name)()).convert("RGB")
        ImageOps.fit(photograph, (512, 512), Image.Resampling.LANCZOS).save(folder / f"{name}.png")
    astronaut = Image.open(folder / "astronaut.png")
    astronaut.filter(ImageFilter.GaussianBlur(2)).save(folder / "soft.png")
    astronaut.save(folder / "small.jpg", quality=40)
    ImageOps.mirror(Image.open(folder / "coffee.png")).save(folder / "turned.png")
    (folder / "z.png").write_bytes((folder / "rocket.png").read_bytes())
    (folder / "plain.png").write_bytes(b"a text")
    Image.fromarray(np.full((341, 341, 3), 9, dtype=np.uint8)).save(folder / "tiny.png")
    update_facts(tmp_path, training_files(tmp_path / "processed"), None, lambda: False)
    dataset = scan_dataset(tmp_path / "processed")
    settings = TrainSettings()
    report = check(
        Known(
            dataset=dataset,
            buckets=place_in_buckets(dataset, settings, resolution_px=512, step_px=64),
            manifest=Manifest(),
            facts=read_facts(tmp_path),
            token_counts={},
            settings=settings,
            concept="cat",
        )
    )
    assert report.missing_facts == 0
    assert files(found(report, "blurred")) == ["4_cat/soft.png", "4_cat/tiny.png"]
    assert files(found(report, "too_small")) == ["4_cat/tiny.png"]
    assert [group.files for group in found(report, "same_files").groups] == [("4_cat/rocket.png", "4_cat/z.png")]
    assert [set(group.files) for group in found(report, "near_duplicates").groups] == [
        {"4_cat/astronaut.png", "4_cat/small.jpg", "4_cat/soft.png"}
    ]
    assert [group.files for group in found(report, "mirrored_duplicates").groups] == [
        ("4_cat/coffee.png", "4_cat/turned.png")
    ]
    assert files(found(report, "grey")) == ["4_cat/camera.png", "4_cat/gravel.png", "4_cat/tiny.png"]
    assert len(found(report, "left_out").sentences) == 1
