"""Subjects of photographs that come with scikit-image. The boxes were read off the pictures by eye."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lora_train.data import subjects
from lora_train.data.subjects import (
    Attraction,
    Box,
    attractions,
    edges_point,
    entropy_point,
    faces,
    focus_of,
    subject_box,
)


def photograph(name: str) -> Image.Image:
    skimage = pytest.importorskip("skimage", reason="scikit-image brings the photographs")
    with Image.open(Path(skimage.__file__).parent / "data" / name) as picture:
        return picture.convert("RGB")


def overlap(one: Box, other: Box) -> float:
    """Intersection over union, 0 to 1."""
    shared = max(0, min(one[2], other[2]) - max(one[0], other[0])) * max(
        0, min(one[3], other[3]) - max(one[1], other[1])
    )
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return shared / (sum(areas) - shared)


@pytest.fixture
def fresh_cascade(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """As in a process that has not looked for OpenCV yet."""
    monkeypatch.setattr(subjects, "_of_thread", types.SimpleNamespace())
    return monkeypatch


@pytest.mark.parametrize(
    ("name", "box", "least"),
    [
        ("astronaut.png", (24, 12, 505, 512), 0.5),  # she, and the helmet on her knees
        ("chelsea.png", (30, 0, 380, 300), 0.5),  # the cat's head
        ("coffee.png", (78, 18, 480, 383), 0.5),  # cup and saucer
        ("camera.png", (0, 63, 330, 512), 0.5),  # the man, black on grey
        ("motorcycle_left.png", (96, 76, 680, 453), 0.5),  # in a crowded garage
    ],
)
def test_what_stands_out(name: str, box: Box, least: float) -> None:
    assert overlap(subject_box(photograph(name)), box) >= least


def test_a_thin_thing_is_within_what_stands_out() -> None:
    """The rocket is 45 of 640 pixels wide, with lights left and right of it."""
    left, top, right, bottom = subject_box(photograph("rocket.jpg"))
    assert left < 300
    assert right > 345
    assert top < 268 < bottom
    assert (right - left) * (bottom - top) < 0.5 * 640 * 427


@pytest.mark.parametrize("place", [(10, 10), (150, 40), (240, 130)])
def test_the_only_thing_there_is(place: tuple[int, int]) -> None:
    picture = Image.new("RGB", (300, 200), (90, 120, 90))
    picture.paste((200, 40, 30), (*place, place[0] + 50, place[1] + 60))
    box = subject_box(picture)
    centre = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
    assert abs(centre[0] - place[0] - 25) < 25
    assert abs(centre[1] - place[1] - 30) < 30
    for x, y in (entropy_point(picture), edges_point(picture)):
        assert abs(x - place[0] - 25) < 25
        assert abs(y - place[1] - 30) < 30


@pytest.mark.parametrize("size_px", [(1, 1), (1, 500), (500, 1), (7, 3), (300, 200)])
def test_where_nothing_is(size_px: tuple[int, int]) -> None:
    """An even picture: its middle, whatever its size."""
    picture = Image.new("RGB", size_px, (77, 77, 77))
    left, top, right, bottom = subject_box(picture)
    assert 0 <= left < right <= size_px[0]
    assert 0 <= top < bottom <= size_px[1]
    assert entropy_point(picture) == edges_point(picture) == (size_px[0] / 2, size_px[1] / 2)
    middle = focus_of(attractions(picture, 0.9, 0.15, 0.5), size_px)
    assert abs(middle[0] - size_px[0] / 2) <= 1 + size_px[0] * 0.05
    assert abs(middle[1] - size_px[1] / 2) <= 1 + size_px[1] * 0.05


def test_noise_at_one_end_attracts() -> None:
    pixels = np.full((200, 600), 128, dtype=np.uint8)
    pixels[:, 400:] = np.random.default_rng(0).integers(0, 256, (200, 200))
    picture = Image.fromarray(pixels).convert("RGB")
    for x, y in (entropy_point(picture), edges_point(picture)):
        assert 450 < x < 550
        assert 80 < y < 120


def test_the_focus_is_the_weighted_mean() -> None:
    found = [Attraction("face", (10.0, 20.0), 0.75, []), Attraction("edges", (30.0, 40.0), 0.25, [])]
    assert focus_of(found, (100, 100)) == (15, 25)
    assert focus_of([], (100, 60)) == (50, 30)
    assert attractions(Image.new("RGB", (9, 9)), 0, 0, 0) == []


# --- faces ---


def needs_opencv() -> None:
    cv2 = pytest.importorskip("cv2", reason="OpenCV is not installed")
    if not hasattr(cv2, "CascadeClassifier"):
        pytest.skip(f"OpenCV {cv2.__version__} has no cascades; 4 has")


def test_a_face() -> None:
    needs_opencv()
    picture = photograph("astronaut.png")
    (face,) = faces(picture)
    assert overlap(face, (180, 70, 272, 190)) >= 0.5
    ((kind, point, weight, boxes), *_) = attractions(picture, 0.9, 0.15, 0.5)
    assert (kind, weight, boxes) == ("face", 0.9, [face])
    assert 180 < point[0] < 272
    assert 70 < point[1] < 190


def test_faces_of_a_large_and_of_a_wide_picture() -> None:
    """Found in a small copy, told in pixels of the picture; the larger one first."""
    needs_opencv()
    one = photograph("astronaut.png")
    picture = Image.new("RGB", (2400, 1100), (128, 128, 128))
    picture.paste(one, (0, 300))
    picture.paste(one.resize((1024, 1024)), (1200, 0))
    large, small = faces(picture)
    assert overlap(large, (1200 + 360, 140, 1200 + 544, 380)) >= 0.5
    assert overlap(small, (180, 370, 272, 490)) >= 0.5


@pytest.mark.parametrize("name", ["chelsea.png", "coffee.png", "rocket.jpg", "motorcycle_left.png"])
def test_no_face_where_none_is(name: str) -> None:
    """What stands out then takes the place of the faces."""
    needs_opencv()
    picture = photograph(name)
    assert faces(picture) == []
    first = attractions(picture, 0.9, 0.15, 0.5)[0]
    assert (first.kind, first.boxes) == ("subject", [subject_box(picture)])


class Broken(types.ModuleType):
    """An OpenCV that was built for another numpy, say."""

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"module 'cv2' has no attribute {name!r}")


@pytest.mark.parametrize("module", [None, Broken("cv2")], ids=["missing", "broken"])
def test_without_opencv_the_subject_takes_the_place_of_faces(fresh_cascade: pytest.MonkeyPatch, module: Any) -> None:
    fresh_cascade.setitem(sys.modules, "cv2", module)
    picture = Image.new("RGB", (300, 200), (90, 120, 90))
    picture.paste((200, 40, 30), (240, 60, 290, 120))
    assert faces(picture) == []
    first = attractions(picture, 0.9, 0.15, 0.5)[0]
    assert (first.kind, first.boxes) == ("subject", [subject_box(picture)])
    assert 230 < first.point[0] < 300


def test_a_cascade_that_fails_finds_no_faces(fresh_cascade: pytest.MonkeyPatch) -> None:
    class Fails:
        def detectMultiScale(self, *arguments: Any, **options: Any) -> None:  # noqa: N802
            raise RuntimeError("cv2.error: (-215) assertion failed")

    fresh_cascade.setattr(subjects, "_load_cascade", Fails)
    assert faces(Image.new("RGB", (100, 100))) == []
