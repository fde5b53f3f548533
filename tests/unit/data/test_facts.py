"""What pictures are like, measured on real photographs, and how it is kept."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
from PIL import Image, ImageFilter, ImageOps

from lora_train.core.events import EventWriter, Phase
from lora_train.core.jobs import JobFolder, RequestedEnd
from lora_train.core.specs import CheckSpec
from lora_train.data import facts as facts_module
from lora_train.data.dataset import scan_dataset
from lora_train.data.facts import (
    PictureFacts,
    check_pictures,
    facts_phase,
    has_imagehash,
    is_known,
    laplacian_variance,
    picture_facts,
    read_facts,
    update_facts,
)
from lora_train.data.picture_findings import BLURRED_BELOW

PHOTOGRAPHS = ("astronaut", "camera", "chelsea", "coffee", "coins", "rocket", "retina", "moon", "grass", "gravel")
needs_imagehash = pytest.mark.skipif(not has_imagehash(), reason="imagehash is not installed")


@pytest.fixture(scope="module")
def photographs() -> dict[str, Image.Image]:
    """Real ones that come with scikit-image, no download."""
    data = pytest.importorskip("skimage.data")
    return {name: Image.fromarray(getattr(data, name)()).convert("RGB") for name in PHOTOGRAPHS}


def never() -> bool:
    return False


def write(path: Path, seed: int, size: tuple[int, int] = (32, 32)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    return path


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The sizes of the pictures that were really looked at."""
    sizes: list[tuple[int, int]] = []
    real = facts_module.picture_facts

    def measure(picture: Image.Image) -> PictureFacts:
        sizes.append(picture.size)
        return real(picture)

    monkeypatch.setattr(facts_module, "picture_facts", measure)
    return sizes


# --- what is measured ---


def test_the_laplacian_by_hand() -> None:
    """One bright point of 3 in a 5 x 5 picture: -12 there, 3 at its four neighbours, 0 at the other four inner ones.

    Their mean is 0, so the variance is (144 + 4 * 9) / 9 = 20.
    """
    grey = np.zeros((5, 5), dtype=np.float32)
    grey[2, 2] = 3
    assert laplacian_variance(grey) == pytest.approx(20)
    assert laplacian_variance(np.zeros((2, 9), dtype=np.float32)) == 0.0


def test_photographs_in_focus_and_blurred(photographs: dict[str, Image.Image]) -> None:
    """In focus 65 (moon) to 5295 (grass); with a sigma of 2 px 1.9 (moon) to 18 (gravel); measured with Pillow 12."""
    for name, picture in photographs.items():
        fitted = ImageOps.fit(picture, (512, 512), Image.Resampling.LANCZOS)
        assert picture_facts(fitted).sharpness > 2 * BLURRED_BELOW, name
        assert picture_facts(fitted.filter(ImageFilter.GaussianBlur(2))).sharpness < BLURRED_BELOW, name
        enlarged = fitted.resize((128, 128)).resize((512, 512), Image.Resampling.LANCZOS)
        assert picture_facts(enlarged).sharpness < 0.25 * picture_facts(fitted).sharpness, name


@pytest.mark.parametrize("name", ["retina", "hubble_deep_field"])
def test_sharpness_does_not_depend_on_how_many_pixels_are_stored(name: str) -> None:
    """Whole (1411 x 1411, 1000 x 872) and at 60 % of that: measured 90.6 and 92.5, 1007 and 935."""
    data = pytest.importorskip("skimage.data")
    picture = Image.fromarray(getattr(data, name)()).convert("RGB")
    size = (round(picture.width * 0.6), round(picture.height * 0.6))
    smaller = picture.resize(size, Image.Resampling.LANCZOS)
    assert picture_facts(smaller).sharpness == pytest.approx(picture_facts(picture).sharpness, rel=0.1)


def test_colours() -> None:
    found = picture_facts(Image.new("RGB", (40, 30), (200, 10, 60)))
    assert (found.mean_rgb, found.is_grey, found.sharpness) == ((200, 10, 60), False, 0.0)
    assert picture_facts(Image.new("RGB", (40, 30), (90, 90, 90))).is_grey
    # Mean chroma 2 and 3, by hand: the limit is 3.
    assert picture_facts(Image.new("RGB", (8, 8), (90, 92, 91))).is_grey
    assert not picture_facts(Image.new("RGB", (8, 8), (90, 93, 91))).is_grey


@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (3000, 2), (2, 2)])
def test_the_thinnest_pictures(size: tuple[int, int]) -> None:
    assert picture_facts(Image.new("RGB", size, (1, 2, 3))).sharpness == 0.0


@needs_imagehash
def test_hashes_are_those_of_imagehash(photographs: dict[str, Image.Image]) -> None:
    import imagehash

    picture = ImageOps.fit(photographs["chelsea"], (512, 512))
    found = picture_facts(picture)
    assert found.phash == str(imagehash.phash(picture))
    assert found.mirrored_phash == str(imagehash.phash(ImageOps.mirror(picture)))
    assert picture_facts(ImageOps.mirror(picture)).phash == found.mirrored_phash


# --- how it is kept ---


def test_each_content_is_measured_once(tmp_path: Path, measured: list[tuple[int, int]]) -> None:
    files = [write(tmp_path / "processed" / f"{number}.png", number, (32, 20 + number)) for number in range(3)]
    told: list[tuple[int, int]] = []
    assert update_facts(tmp_path, files, lambda done, total: told.append((done, total)), never) == 0
    assert told == [(1, 3), (2, 3), (3, 3)]
    assert len(measured) == 3
    contents = {picture.content for picture in scan_dataset(tmp_path / "processed").pictures}
    assert read_facts(tmp_path).keys() == contents  # by the digest that the scan gives

    renamed = files[0].rename(files[0].with_name("猫.png"))
    copy = tmp_path / "processed" / "copy.png"
    copy.write_bytes(renamed.read_bytes())
    assert update_facts(tmp_path, [renamed, files[1], copy], None, never) == 0
    assert len(measured) == 3  # a name is no content
    assert len(read_facts(tmp_path)) == 2  # the third one is gone
    write(files[1], 9, (32, 99))
    update_facts(tmp_path, [renamed, files[1]], None, never)
    assert measured[3:] == [(32, 99)]


def test_nothing_is_written_where_nothing_is_new(tmp_path: Path) -> None:
    files = [write(tmp_path / "a.png", 1)]
    update_facts(tmp_path, files, None, never)
    before = (tmp_path / ".facts.json").stat().st_mtime_ns
    update_facts(tmp_path, files, None, never)
    assert (tmp_path / ".facts.json").stat().st_mtime_ns == before


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"a": 1}', b"\xff\xfe", b'{"a": {"sharpness": "x"}}'])
def test_a_damaged_file_is_an_empty_one(tmp_path: Path, content: bytes) -> None:
    (tmp_path / ".facts.json").write_bytes(content)
    assert read_facts(tmp_path) == {}
    update_facts(tmp_path, [write(tmp_path / "a.png", 1)], None, never)
    assert len(read_facts(tmp_path)) == 1


def test_what_can_not_be_read_stays_unknown(tmp_path: Path) -> None:
    damaged = tmp_path / "b.png"
    damaged.write_bytes(b"a text")
    assert update_facts(tmp_path, [write(tmp_path / "a.png", 1), damaged, tmp_path / "none.png"], None, never) == 2
    assert len(read_facts(tmp_path)) == 1


def test_a_stop_keeps_what_is_known(tmp_path: Path) -> None:
    files = [write(tmp_path / f"{number}.png", number) for number in range(40)]
    update_facts(tmp_path, files[20:], None, never)
    known = read_facts(tmp_path)
    seen: list[int] = []
    update_facts(tmp_path, files, lambda done, total: seen.append(done), lambda: len(seen) == 3)
    assert seen == [1, 2, 3]
    assert len(read_facts(tmp_path)) == 23
    assert known.items() <= read_facts(tmp_path).items()


def test_a_version_that_was_deleted_does_not_come_back(tmp_path: Path) -> None:
    file = write(tmp_path / "elsewhere" / "a.png", 1)
    update_facts(tmp_path / "gone", [file], None, never)
    assert not (tmp_path / "gone").exists()


def test_without_imagehash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, measured: list[tuple[int, int]]) -> None:
    """The rest is known; and once it is installed, the hashes are made."""
    real: Callable[[str], object] = importlib.util.find_spec
    files = [write(tmp_path / "a.png", 1)]
    with monkeypatch.context() as without:
        without.setattr(importlib.util, "find_spec", lambda name: None if name == "imagehash" else real(name))
        assert not has_imagehash()
        update_facts(tmp_path, files, None, never)
        ((content, found),) = read_facts(tmp_path).items()
        assert (found.phash, found.mirrored_phash) == ("", "")
        assert found.sharpness > 0
        update_facts(tmp_path, files, None, never)
        assert len(measured) == 1
    assert is_known(content, {content: found}, with_imagehash=False)
    assert not is_known(content, {content: found}, with_imagehash=True)
    if has_imagehash():
        update_facts(tmp_path, files, None, never)
        assert len(read_facts(tmp_path)[content].phash) == 16


# --- the job ---


def job_over(root: Path) -> tuple[CheckSpec, JobFolder, EventWriter]:
    spec, job = CheckSpec(dataset="../../dataset"), JobFolder(root / "jobs" / "check")
    job.create(spec)
    assert job.read_spec() == spec
    return spec, job, EventWriter(job.events_path)


def test_the_job_looks_at_the_training_pictures(tmp_path: Path) -> None:
    processed = tmp_path / "dataset" / "processed"
    write(processed / "3_cat" / "a.png", 1)
    write(processed / "3_cat" / "b.png", 2)
    write(processed / "3_cat" / ".hidden.png", 3)
    write(processed / "reg" / "1_cat" / "r.png", 4)
    spec, job, events = job_over(tmp_path)
    assert check_pictures(spec, job, events) == {"unknown": 0}
    phases = [event for event in job.events() if isinstance(event, Phase)]
    assert [(phase.name, phase.done, phase.total) for phase in phases] == [
        ("looking at the pictures", 1, 2),
        ("looking at the pictures", 2, 2),
    ]
    assert len(read_facts(tmp_path / "dataset")) == 2


def test_the_job_is_stopped(tmp_path: Path) -> None:
    """At the end of an update the same request only ends the phase: the new set is in place by then."""
    for number in range(3):
        write(tmp_path / "dataset" / "processed" / f"{number}.png", number)
    spec, job, events = job_over(tmp_path)
    job.request("stop")
    facts_phase(tmp_path / "dataset", events, job.requested)
    with pytest.raises(RequestedEnd):
        check_pictures(spec, job, events)


def test_facts_are_json() -> None:
    found = picture_facts(Image.new("RGB", (8, 8), (1, 2, 3)))
    assert msgspec.json.decode(msgspec.json.encode(found), type=PictureFacts) == found
