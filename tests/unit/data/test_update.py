"""*Update Dataset*: the right pictures and captions, nothing lost that was done by hand, the old set until the end."""

from __future__ import annotations

import errno
import io
import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from lora_train.core import files
from lora_train.core.errors import DatasetError, JobError
from lora_train.core.events import Phase
from lora_train.core.jobs import RequestedEnd
from lora_train.data import swapping
from lora_train.data.dataset import scan_dataset
from lora_train.data.intake import take_in
from lora_train.data.manifest import read_manifest
from lora_train.data.trained_set import origin_names

if TYPE_CHECKING:
    from tests.unit.data.conftest import Version

RED, BLUE, WHITE = (255, 0, 0), (0, 0, 255), (255, 255, 255)
_WHOLE = [".facts.json", ".update-lock", "origin", "processed"]
"""What there is after an update, and nothing half-made."""


# --- pictures ---


def test_size_name_and_place(version: Version) -> None:
    version.upload("b.png")
    version.upload("猫 A.jpg", content=version.halves(RED, BLUE, (200, 100)))
    assert version.update(width_px=128, height_px=64) == []
    assert version.captions() == {"4_cat/b.png": "cat", "4_cat/猫 A.png": "cat"}
    for picture in scan_dataset(version.processed).pictures:
        assert (picture.width_px, picture.height_px, picture.repeats) == (128, 64, 4)
    assert sorted(path.name for path in version.dataset.iterdir()) == _WHOLE


def test_the_middle_is_kept(version: Version) -> None:
    """A wide picture of three colours loses its sides alike; a small one is enlarged."""
    wide = Image.new("RGB", (300, 100), WHITE)
    wide.paste(RED, (100, 0, 150, 100))
    wide.paste(BLUE, (150, 0, 200, 100))
    version.upload("wide.png", content=wide)
    version.upload("small.png", content=version.halves(RED, BLUE, (8, 8)))
    version.update()
    for file in ("4_cat/wide.png", "4_cat/small.png"):
        pixels = version.trained(file)
        assert pixels.shape == (64, 64, 3)
        assert np.abs(pixels[:, 4:24].astype(int) - RED).max() < 40
        assert np.abs(pixels[:, 40:60].astype(int) - BLUE).max() < 40


def test_as_they_are(version: Version) -> None:
    path = version.upload("a.jpg", content=version.halves(RED, BLUE, (90, 40)))
    version.update(as_is=True)
    assert (version.processed / "4_cat" / "a.jpg").read_bytes() == path.read_bytes()
    assert list(version.captions()) == ["4_cat/a.jpg"]


def test_flipped_copies(version: Version) -> None:
    version.upload("a.png", "a cat")
    version.upload("b.jpg", content=version.halves(RED, BLUE, (90, 40)))
    for as_is in (False, True):
        version.update(flip=True, as_is=as_is)
        suffix = ".jpg" if as_is else ".png"
        assert version.captions() == {
            "4_cat/a-flip.png": "a cat",
            "4_cat/a.png": "a cat",
            "4_cat/b-flip.png": "cat",
            f"4_cat/b{suffix}": "cat",
        }
        assert (version.trained("4_cat/a-flip.png") == version.trained("4_cat/a.png")[:, ::-1]).all()
    assert version.trained("4_cat/b-flip.png").shape == (40, 90, 3)
    version.update()
    assert set(version.captions()) == {"4_cat/a.png", "4_cat/b.png"}


def test_photos_of_phones_stand_upright(version: Version) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned to the right: what is stored at the left ends at the top
    version.upload("a.jpg", content=version.halves(RED, BLUE, (120, 60)), exif=exif, quality=95)
    version.update(width_px=64, height_px=128)
    pixels = version.trained("4_cat/a.png").astype(int)
    assert pixels.shape == (128, 64, 3)
    assert np.abs(pixels[:40] - RED).max() < 60
    assert np.abs(pixels[90:] - BLUE).max() < 60


def test_transparency_becomes_white(version: Version) -> None:
    version.upload("a.png", content=Image.new("RGBA", (32, 32), (255, 0, 0, 0)))
    version.update()
    assert (version.trained("4_cat/a.png") == 255).all()


def test_names_that_meet(version: Version) -> None:
    """A flipped copy may be called like another picture, and `a.jpg` becomes `a.png`."""
    version.upload("a.png", "one")
    version.upload("a.jpg", "one", content=version.halves(BLUE, RED))
    version.upload("a-flip.png", "another", content=version.halves(WHITE, RED))
    version.update(flip=True)
    assert len(version.captions()) == 6
    assert sorted(version.captions().values()) == ["another"] * 2 + ["one"] * 4
    made = read_manifest(version.dataset).files
    assert {(its.origin, its.is_flipped) for its in made.values()} == {
        (name, flipped) for name in ("a.png", "a.jpg", "a-flip.png") for flipped in (False, True)
    }


def test_what_can_not_be_used_is_told_and_left_out(version: Version) -> None:
    version.upload("good.png")
    stream = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(stream, "JPEG")
    (version.origin / "cut.jpg").write_bytes(stream.getvalue()[:-500])
    (version.origin / "text.png").write_bytes(b"a text")
    (version.origin / "notes.md").write_bytes(b"no picture")
    (version.origin / ".hidden.png").write_bytes(b"of macOS")
    problems = version.update()
    assert [Path(problem.split(" can't be used")[0]).name for problem in problems] == ["cut.jpg", "text.png"]
    assert "cut short" in problems[0]
    assert list(version.captions()) == ["4_cat/good.png"]


def test_no_pictures(version: Version) -> None:
    with pytest.raises(DatasetError, match="no uploaded pictures yet") as error:
        version.update()
    assert "Upload Dataset" in error.value.hint
    version.origin.mkdir()
    (version.origin / "a.png").write_bytes(b"a text")
    with pytest.raises(DatasetError, match="None of the uploaded pictures can be used"):
        version.update()
    assert not version.processed.exists()


@pytest.mark.parametrize(
    ("count", "flip", "repeats", "folder"),
    [(2, False, -1, "16_cat"), (20, False, -1, "8_cat"), (20, True, -1, "4_cat"), (2, True, 7, "7_cat")],
)
def test_repeats(version: Version, count: int, flip: bool, repeats: int, folder: str) -> None:
    """About 160 views an epoch, 16 of a picture at most; flipped copies are pictures too."""
    for number in range(count):
        version.upload(f"{number}.png")
    version.update(flip=flip, repeats=repeats)
    assert {Path(file).parent.name for file in version.captions()} == {folder}


def test_progress_is_told(version: Version) -> None:
    for number in range(3):
        version.upload(f"{number}.png")
    version.update()
    told = [(event.name, event.done, event.total) for event in version.job.events() if isinstance(event, Phase)]
    names = ("cropping pictures", "looking at the pictures")
    assert told == [(name, done, 3) for name in names for done in (1, 2, 3)]


# --- what was there before ---


def test_the_same_again_is_the_same(version: Version) -> None:
    version.upload("a.png", "a cat")
    version.upload("b.jpg")
    version.update(flip=True)
    first = version.content()
    version.update(flip=True)
    assert version.content() == first


def test_the_old_set_goes_to_the_trash(version: Version) -> None:
    version.upload("a.png")
    version.update()
    first = version.content()
    version.update(width_px=128)
    (entry,) = version.trash.iterdir()
    kept = {path.name: path.read_bytes() for path in entry.rglob("*") if path.is_file()}
    assert {Path(file).name for file in first} <= set(kept)
    assert kept["a.png"] == first["4_cat/a.png"]
    assert (entry / "from.json").is_file()


def test_what_was_put_there_by_hand_stays(version: Version) -> None:
    """Regularisation pictures, another concept's folder, a picture beside ours; not a stray file."""
    version.upload("a.png", "a cat")
    version.update()
    version.put("Reg/1_person/r.png", "a person")
    version.put("reg/a.png")
    version.put("5_dog/d.png", "a dog")
    version.put("5_dog/a.png", "a dog called as the cat")
    version.put("4_cat/mine.png", "mine")
    (version.processed / "4_cat" / "notes.md").write_bytes(b"")
    for _ in range(2):
        version.update(repeats=7)
        assert version.captions() == {
            "4_cat/mine.png": "mine",
            "5_dog/a.png": "a dog called as the cat",
            "5_dog/d.png": "a dog",
            "7_cat/a.png": "a cat",
            "Reg/1_person/r.png": "a person",
            "reg/a.png": "",
        }
    assert origin_names(version.dataset, read_manifest(version.dataset)) == {"7_cat/a.png": "a.png"}


def test_pictures_by_hand_alone(version: Version) -> None:
    version.put("5_dog/d.png", "a dog")
    version.update()
    assert version.captions() == {"5_dog/d.png": "a dog"}
    version.put("reg/r.png")
    (version.processed / "5_dog" / "d.png").unlink()
    with pytest.raises(DatasetError, match="no uploaded pictures"):
        version.update()


def test_originals_of_other_concepts_keep_their_folder(version: Version) -> None:
    """As `lora-train train` takes in kohya's layout: uploads are its originals."""
    source = type(version)(version.root / "elsewhere")
    source.put("5_dog/d.png", "a dog")
    source.put("3_cat/c.png")
    source.put("reg/1_person/r.png")
    source.put("plain.png", "a caption")
    take_in(
        scan_dataset(source.processed),
        origin_dir=version.origin,
        processed_dir=version.processed,
        trash_dir=version.trash,
        concept="cat",
    )
    version.edit("3_cat/c.png", "by hand")
    version.upload("new.png", "new")
    version.update(repeats=8, caption_action="ignore")
    assert version.captions() == {
        "5_dog/d.png": "a dog",
        "8_cat/c.png": "by hand",
        "8_cat/new.png": "cat",
        "8_cat/plain.png": "a caption",
        "reg/1_person/r.png": "person",
    }, "nothing tells which captions were edited, so all are kept"


def test_a_renamed_project_has_one_concept(version: Version) -> None:
    version.upload("a.png")
    version.update(concept="cat")
    version.upload("b.png")
    version.update(concept="自作: LORA")
    assert version.captions() == {"4_自作_ LORA/a.png": "自作: LORA", "4_自作_ LORA/b.png": "自作: LORA"}


def test_an_original_that_was_deleted_is_left_out(version: Version) -> None:
    version.upload("a.png").unlink()
    version.upload("b.png")
    version.upload("c.png")
    version.update()
    (version.origin / "b.png").unlink()
    version.update()
    assert list(version.captions()) == ["4_cat/c.png"]


# --- ends before the end ---


def test_stop_leaves_the_old_set(version: Version) -> None:
    version.upload("a.png")
    version.update()
    before = version.content()
    version.upload("b.png")
    version.job.request("stop")
    with pytest.raises(RequestedEnd):
        version.update(width_px=128)
    assert version.content() == before
    assert sorted(path.name for path in version.dataset.iterdir()) == _WHOLE
    version.job.clear_requests()
    version.update()
    assert len(version.captions()) == 2


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EACCES])
@pytest.mark.parametrize("place", ["pieces.write_bytes", "update.write_text", "update.write_bytes", "update.lock"])
def test_a_folder_that_can_not_be_written_leaves_the_old_set(
    version: Version, monkeypatch: pytest.MonkeyPatch, place: str, code: int
) -> None:
    """A full disk, one that is read-only, a folder of somebody else: pictures, captions, manifest, lock."""
    version.upload("a.png")
    version.update()
    version.edit("4_cat/a.png", "by hand")
    before = version.content()

    def fail(path: Path, content: object = None) -> None:
        raise OSError(code, os.strerror(code), str(path))

    with monkeypatch.context() as patched:
        patched.setattr(f"lora_train.data.{place}", fail)
        with pytest.raises(DatasetError, match=os.strerror(code)) as error:
            version.update(width_px=128)
    assert str(version.dataset) in error.value.message
    assert "stays as it was" in error.value.message
    assert version.content() == before
    assert sorted(path.name for path in version.dataset.iterdir()) == _WHOLE
    version.update(width_px=128)
    assert version.captions() == {"4_cat/a.png": "by hand"}


def test_a_swap_that_fails_halfway_is_taken_back(version: Version, monkeypatch: pytest.MonkeyPatch) -> None:
    version.upload("a.png")
    version.update()
    before = version.content()

    def fail(source: Path, target: Path) -> None:
        if source.name == "processed.new":
            raise PermissionError(errno.EACCES, "in use", str(source))
        files.replace(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(swapping, "replace", fail)
        with pytest.raises(DatasetError, match="in use"):
            version.update(width_px=128)
    assert version.content() == before
    assert sorted(path.name for path in version.dataset.iterdir()) == _WHOLE


@pytest.mark.parametrize("rename", [1, 2, 3])
def test_death_within_the_swap(version: Version, monkeypatch: pytest.MonkeyPatch, rename: int) -> None:
    """Wherever a worker dies, the next update finds what was edited."""
    version.upload("a.png")
    version.update()
    version.edit("4_cat/a.png", "by hand")
    renames: list[Path] = []
    original = files.replace

    def die(source: Path, target: Path) -> None:
        if target.name in ("processed", "processed.old") or source.name == "processed.old":
            renames.append(target)
            if len(renames) == rename:
                raise KeyboardInterrupt  # nothing catches it, as nothing catches a kill
        original(source, target)

    monkeypatch.setattr(swapping, "replace", die)
    monkeypatch.setattr("lora_train.core.trash.replace", die)
    with pytest.raises(KeyboardInterrupt):
        version.update(width_px=128)
    monkeypatch.undo()
    version.update(caption_action="ignore")
    assert version.captions() == {"4_cat/a.png": "by hand"}
    assert sorted(path.name for path in version.dataset.iterdir()) == _WHOLE
    assert len(list(version.trash.glob("*/processed.old"))) == (1 if rename < 3 else 2)


def test_one_update_at_a_time(version: Version) -> None:
    version.upload("a.png")
    version.update()
    held = files.lock(version.dataset / ".update-lock")
    assert held is not None
    with held, pytest.raises(JobError, match="being updated already"):
        version.update()
    version.update()


def test_a_trash_that_cannot_be_written_leaves_the_old_set_beside(version: Version) -> None:
    version.upload("a.png")
    version.update()
    version.trash.write_bytes(b"a file")
    version.update(width_px=128)
    assert version.trained("4_cat/a.png").shape == (64, 128, 3)
    version.trash.unlink()
    version.update()
    assert len(list(version.trash.iterdir())) == 2


def test_damaged_manifest(version: Version) -> None:
    """Every caption then counts as edited."""
    version.upload("a.png", "a cat")
    version.update()
    (version.processed / ".made.json").write_bytes(b'{"files": {"\xff')
    version.update(caption_action="ignore")
    assert version.captions() == {"4_cat/a.png": "a cat"}
    version.update(caption_action="ignore")
    assert version.captions() == {"4_cat/a.png": "a cat"}
