"""*Update Dataset* with cropping options and captioners: files, names, manifest, captions, and what goes wrong."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from lora_train.core.errors import DatasetError, ModelError
from lora_train.core.events import Phase
from lora_train.core.jobs import RequestedEnd
from lora_train.data.manifest import read_manifest
from lora_train.data.pieces import Room, free_targets

if TYPE_CHECKING:
    from tests.unit.data.conftest import Version

RED, BLUE = (255, 0, 0), (0, 0, 255)
SPLIT: dict[str, Any] = {"split": True, "split_overlap": 0.0}


class Reads:
    """A captioner that tells the size and the upper left pixel of a picture; it stumbles where it is told to."""

    def __init__(self, fingerprint: str = "reads 1", fails_at: dict[str, Exception] | None = None) -> None:
        self.fingerprint = fingerprint
        self.fails_at = fails_at or {}
        self.read: list[str] = []

    def captions(self, pictures: Iterable[Path]) -> Iterator[str]:
        for path in pictures:
            self.read.append(path.stem)
            if path.stem in self.fails_at:
                raise self.fails_at[path.stem]
            yield self.of(path)

    @staticmethod
    def of(path: Path) -> str:
        with Image.open(path) as picture:
            return f"{picture.width}x{picture.height} {picture.convert('RGB').getpixel((0, 0))}"


RED_64, BLUE_64 = "64x64 (255, 0, 0)", "64x64 (0, 0, 255)"


def long_picture(version: Version) -> Image.Image:
    """Becomes two tiles, a red one and a blue one."""
    return version.halves(RED, BLUE, (128, 64))


# --- pieces ---


def test_tiles_and_their_flipped_copies(version: Version) -> None:
    version.upload("a.png", "a cat", content=long_picture(version))
    version.upload("b.png")
    assert version.update(flip=True, repeats=-1, **SPLIT) == []
    assert version.captions() == {
        "16_cat/a-1-flip.png": "a cat",
        "16_cat/a-1.png": "a cat",
        "16_cat/a-2-flip.png": "a cat",
        "16_cat/a-2.png": "a cat",
        "16_cat/b-flip.png": "cat",
        "16_cat/b.png": "cat",
    }
    assert (version.trained("16_cat/a-1.png") == RED).all()
    assert (version.trained("16_cat/a-2-flip.png") == BLUE).all()
    made = read_manifest(version.dataset).files["16_cat/a-2-flip.png"]
    assert (made.origin, made.piece, made.is_flipped) == ("a.png", 2, True)
    assert (made.origin_px, made.box_px) == ((128, 64), (64, 0, 128, 64))


def test_repeats_count_the_pieces(version: Version) -> None:
    """About 160 views an epoch: of 20 pictures each 8 times, of 40 tiles each 4 times."""
    for number in range(20):
        version.upload(f"{number}.png", content=long_picture(version))
    version.update(repeats=-1)
    assert {Path(file).parent.name for file in version.captions()} == {"8_cat"}
    version.update(repeats=-1, **SPLIT)
    assert {Path(file).parent.name for file in version.captions()} == {"4_cat"}


def test_names_of_tiles_that_meet_others(version: Version) -> None:
    version.upload("a.png", content=long_picture(version))
    version.upload("A-2.png")
    version.upload("a.jpg", content=long_picture(version))
    version.update(**SPLIT)
    names = {its.origin: set() for its in read_manifest(version.dataset).files.values()}
    for file, its in read_manifest(version.dataset).files.items():
        names[its.origin].add(Path(file).stem)
    assert names == {"A-2.png": {"A-2"}, "a.jpg": {"a-2-1", "a-2-2"}, "a.png": {"a-3-1", "a-3-2"}}
    assert len({stem.casefold() for stems in names.values() for stem in stems}) == 5


def test_box_of_a_photo_of_a_phone(version: Version) -> None:
    """Measured in the upright picture."""
    exif = Image.Exif()
    exif[0x0112] = 6
    version.upload("a.jpg", content=version.halves(RED, BLUE, (1600, 800)), exif=exif)
    version.update()
    (made,) = read_manifest(version.dataset).files.values()
    assert (made.origin_px, made.box_px) == ((800, 1600), (0, 400, 800, 1200))
    pixels = version.trained("4_cat/a.png").astype(int)
    assert np.abs(pixels[:28] - RED).max() < 60
    assert np.abs(pixels[36:] - BLUE).max() < 60


def test_focal_crop_and_its_debug_picture(version: Version) -> None:
    picture = Image.new("RGB", (300, 100), (120, 120, 120))
    picture.paste(Image.effect_noise((60, 60), 90), (230, 20))
    version.upload("a.png", content=picture)
    version.upload("square.png")
    version.update(focal_crop=True, focal_debug=True)
    made = read_manifest(version.dataset).files["4_cat/a.png"]
    assert made.box_px == (200, 0, 300, 100), "at the right end, where the thing is"
    (debug,) = (version.dataset / "debug").iterdir()
    assert debug.name == "a.png"
    with Image.open(debug) as drawn:
        assert drawn.getpixel((201, 50)) == (0, 255, 0)
    assert set(version.captions()) == {"4_cat/a.png", "4_cat/square.png"}
    version.update(focal_crop=True, focal_debug=True)
    assert [path.name for path in (version.dataset / "debug").iterdir()] == ["a.png"]


def test_several_options_for_one_picture(version: Version) -> None:
    version.upload("a.png", content=long_picture(version))
    bounds = {"multicrop_min_side_px": 64, "multicrop_max_side_px": 128}
    assert version.update(focal_crop=True, multicrop=True, **bounds, **SPLIT) == []
    sizes = [version.trained(f"4_cat/a-{number}.png").shape[:2] for number in range(1, 5)]
    assert sizes == [(64, 64), (64, 64), (64, 64), (64, 128)]


def test_no_size_of_its_own_is_told(version: Version) -> None:
    version.upload("wide.png", content=version.halves(RED, BLUE, (400, 64)))
    version.upload("a.png")
    bounds = {"multicrop_min_side_px": 64, "multicrop_max_side_px": 192}
    (note,) = version.update(multicrop=True, **bounds)
    assert note.startswith("wide.png (400x64) gets no size of its own")
    assert "192x64, is off by 0.52, and the limit is 0.10." in note
    assert version.trained("4_cat/wide.png").shape == (64, 64, 3)
    assert version.trained("4_cat/a.png").shape == (192, 192, 3)
    with pytest.raises(DatasetError, match="sides from 200 to 192 pixels"):
        version.update(multicrop=True, multicrop_min_side_px=200, multicrop_max_side_px=192)
    assert version.trained("4_cat/a.png").shape == (192, 192, 3)


def test_as_they_are_wins_over_all_others(version: Version) -> None:
    path = version.upload("a.jpg", content=long_picture(version))
    assert version.update(as_is=True, focal_crop=True, multicrop=True, focal_debug=True, **SPLIT) == []
    assert (version.processed / "4_cat" / "a.jpg").read_bytes() == path.read_bytes()
    assert not (version.dataset / "debug").exists()


def test_edited_captions_of_tiles_stay_with_them(version: Version) -> None:
    version.upload("a.png", "a cat", content=long_picture(version))
    version.update(flip=True, **SPLIT)
    version.edit("4_cat/a-2.png", "its tail")
    version.edit("4_cat/a-1-flip.png", "its head, from the other side")
    for _ in range(2):
        version.update(flip=True, caption_action="ignore", width_px=64, repeats=7, **SPLIT)
        assert version.captions() == {
            "7_cat/a-1-flip.png": "its head, from the other side",
            "7_cat/a-1.png": "cat",
            "7_cat/a-2-flip.png": "cat",
            "7_cat/a-2.png": "its tail",
        }


def test_folders_by_the_project_captions_by_the_trigger_word(version: Version) -> None:
    version.upload("a.png")
    version.update(concept="sks", project="My Cat")
    assert version.captions() == {"4_My Cat/a.png": "sks"}
    version.update(concept="ohwx", project="My Cat")
    assert version.captions() == {"4_My Cat/a.png": "ohwx"}


def test_bad_pictures_are_told_and_left_out(version: Version) -> None:
    """A text, a bomb by its header, half a JPEG; one pixel is a picture."""
    version.upload("one.png", content=Image.new("RGB", (1, 1), RED))
    version.upload("noise.jpg", content=Image.effect_noise((900, 900), 60))
    (version.origin / "cut.jpg").write_bytes((version.origin / "noise.jpg").read_bytes()[:-9000])
    (version.origin / "text.png").write_text("a text", encoding="utf-8")
    header = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR" + (30_000).to_bytes(4, "big") * 2 + b"\x08\x02\x00\x00\x00"
    (version.origin / "bomb.png").write_bytes(header + b"\x00\x00\x00\x00")
    notes = version.update(split=True, focal_crop=True, width_px=128)
    assert [Path(note.split(" can't be used")[0]).name for note in notes] == ["bomb.png", "cut.jpg", "text.png"]
    assert all(note.endswith(".") for note in notes)
    assert set(version.captions()) == {
        f"4_cat/{name}-{number}.png" for name in ("noise", "one") for number in (1, 2, 3, 4)
    }, "three tiles and the focal crop"


def test_a_nul_in_a_caption_is_left_out(version: Version) -> None:
    version.upload("a.png")
    (version.origin / "a.txt").write_bytes(b"a cat\x00 that sits on a wall in the sun")
    version.update()
    assert (version.processed / "4_cat" / "a.txt").read_bytes() == b"a cat that sits on a wall in the sun"


# --- captions by a captioner ---


def test_a_captioner_writes_what_is_missing(version: Version) -> None:
    version.upload("a.png")
    version.upload("b.png", "own")
    captioner = Reads()
    version.update(captioner, flip=True)
    assert captioner.read == ["a"]
    assert version.captions() == {
        "4_cat/a-flip.png": RED_64,
        "4_cat/a.png": RED_64,
        "4_cat/b-flip.png": "own",
        "4_cat/b.png": "own",
    }
    phases = [event for event in version.job.events() if isinstance(event, Phase)]
    assert [(its.name, its.done, its.total) for its in phases[2:4]] == [
        ("writing captions", 0, 1),
        ("writing captions", 1, 1),
    ]
    made = read_manifest(version.dataset).files["4_cat/a.png"]
    assert (made.generated, made.generated_by) == (RED_64, "reads 1")


def test_generated_and_existing_captions_are_joined(version: Version) -> None:
    version.upload("a.png", "own")
    version.update(Reads(), caption_action="append")
    assert version.captions() == {"4_cat/a.png": f"{RED_64}, own"}
    version.update(Reads(), caption_action="ignore")
    assert version.captions() == {"4_cat/a.png": RED_64}


def test_only_another_picture_or_captioner_writes_again(version: Version) -> None:
    version.upload("a.png")
    version.upload("b.png", content=version.halves(BLUE, RED))
    version.update(Reads())
    again = Reads()
    version.update(again, repeats=9)
    assert again.read == []
    assert version.captions() == {"9_cat/a.png": RED_64, "9_cat/b.png": BLUE_64}
    version.update()
    assert set(version.captions().values()) == {"cat"}
    version.update(again)
    assert again.read == [], "what was written is remembered while it is not used"
    assert version.captions() == {"4_cat/a.png": RED_64, "4_cat/b.png": BLUE_64}
    version.upload("a.png", content=version.halves(BLUE, BLUE))
    version.update(again)
    assert again.read == ["a"]
    other = Reads("reads 2")
    version.update(other)
    assert other.read == ["a", "b"]


def test_captions_by_hand_are_not_written_over(version: Version) -> None:
    version.upload("a.png", content=long_picture(version))
    version.update(Reads(), flip=True, **SPLIT)
    version.edit("4_cat/a-1.png", "by hand")
    version.edit("4_cat/a-1-flip.png", "by hand")
    version.edit("4_cat/a-2.png", "by hand")
    captioner = Reads("reads 2")
    version.update(captioner, flip=True, **SPLIT)
    assert captioner.read == ["a-2"], "its flipped copy needs it"
    assert version.captions() == {
        "4_cat/a-1-flip.png": "by hand",
        "4_cat/a-1.png": "by hand",
        "4_cat/a-2-flip.png": BLUE_64,
        "4_cat/a-2.png": "by hand",
    }


@pytest.mark.parametrize("error", [DatasetError("It is too dark."), ValueError("too dark"), MemoryError()])
def test_one_picture_that_has_no_caption_costs_no_other_one_its(version: Version, error: Exception) -> None:
    for name in ("a", "b", "c"):
        version.upload(f"{name}.png")
    captioner = Reads(fails_at={"b": error})
    (note,) = version.update(captioner)
    assert note.startswith("b.png has no caption written for it.")
    assert note.endswith(".")
    assert version.captions() == {"4_cat/a.png": RED_64, "4_cat/b.png": "cat", "4_cat/c.png": RED_64}
    assert captioner.read == ["a", "b", "c"]
    version.update(Reads())
    assert set(version.captions().values()) == {RED_64}, "it is tried again"


def test_a_captioner_that_can_not_be_used_is_told_once(version: Version) -> None:
    for name in ("a", "b", "c"):
        version.upload(f"{name}.png")
    captioner = Reads(fails_at={"b": ModelError("model.onnx is damaged.")})
    (note,) = version.update(captioner)
    assert note == "model.onnx is damaged. So 2 pictures have no caption written for them."
    assert version.captions() == {"4_cat/a.png": RED_64, "4_cat/b.png": "cat", "4_cat/c.png": "cat"}
    assert captioner.read == ["a", "b"]


def test_a_captioner_that_ends_early_or_says_nothing(version: Version) -> None:
    class Silent(Reads):
        def captions(self, pictures: Iterable[Path]) -> Iterator[str]:
            yield from (" \n\x00", "two\n lines")

    for name in ("a", "b", "c"):
        version.upload(f"{name}.png")
    (note,) = version.update(Silent())
    assert "ended before the last picture. So 1 pictures" in note
    assert version.captions() == {"4_cat/a.png": "cat", "4_cat/b.png": "two lines", "4_cat/c.png": "cat"}


def test_stop_between_two_captions(version: Version) -> None:
    version.upload("a.png")
    version.upload("b.png")
    version.update(repeats=2)
    before = version.content()

    class Stops(Reads):
        def captions(self, pictures: Iterable[Path]) -> Iterator[str]:
            for text in super().captions(pictures):
                version.job.request("stop")
                yield text

    captioner = Stops()
    with pytest.raises(RequestedEnd):
        version.update(captioner)
    assert captioner.read == ["a"]
    assert version.content() == before


# --- the parts ---


def test_free_targets_are_free_for_every_file_system() -> None:
    taken: set[str] = set()
    folder = Path("set")
    names = [
        [path.name for path in free_targets(folder, stem, count, taken)]
        for stem, count in (("é", 1), ("E\u0301", 1), ("a", 2), ("A-1", 1), ("a", 1), ("a", 3))
    ]
    assert names == [["é"], ["E\u0301-2"], ["a-1", "a-2"], ["A-1-2"], ["a"], ["a-2-1", "a-2-2", "a-2-3"]]


def test_room_is_never_overfilled_and_takes_large_ones_alone() -> None:
    room, lock = Room(100), threading.Lock()
    inside: list[float] = []
    most: list[list[float]] = []

    def work(megapixels: float) -> None:
        with room.taken(megapixels):
            with lock:
                inside.append(megapixels)
                most.append(list(inside))
            time.sleep(0.005)
            with lock:
                inside.remove(megapixels)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, [40, 40, 40, 150, 30, 30, 30, 120, 10, 60, 60, 20]))
    assert all(sum(sizes) <= 100 or len(sizes) == 1 for sizes in most)
    assert max(len(sizes) for sizes in most) > 1
    assert len(most) == 12
