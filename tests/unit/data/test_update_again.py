"""*Update Dataset* again and again with other settings: what a person did is not lost on the way."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

from lora_train.core.trash import Trash

if TYPE_CHECKING:
    from pathlib import Path

    from tests.unit.data.conftest import Version

RED, BLUE = (255, 0, 0), (0, 0, 255)


def remove(version: Version, *files: Path) -> str:
    """As the page does; the trash's entry."""
    return Trash(version.trash, version.root).put("a picture", files)


def long_picture(version: Version) -> None:
    version.upload("long.png", content=version.halves(RED, BLUE, (200, 64)))


# --- captions by hand ---


def test_a_new_flipped_copy_has_the_caption_that_was_written_for_its_picture(version: Version) -> None:
    version.upload("a.png")
    version.update()
    version.edit("4_cat/a.png", "by hand")
    version.update(flip=True)
    assert version.captions() == {"4_cat/a.png": "by hand", "4_cat/a-flip.png": "by hand"}


def test_the_caption_of_a_flipped_copy_comes_back_with_it(version: Version) -> None:
    version.upload("a.png")
    version.update(flip=True)
    version.edit("4_cat/a-flip.png", "looking left")
    version.update()
    version.update(as_is=True)
    version.update(flip=True)
    assert version.captions() == {"4_cat/a.png": "cat", "4_cat/a-flip.png": "looking left"}
    version.edit("4_cat/a-flip.png", "looking right")
    version.update(flip=True)
    assert version.captions()["4_cat/a-flip.png"] == "looking right", "the newest"


def test_captions_of_pieces_come_back_with_them(version: Version) -> None:
    long_picture(version)
    version.update(split=True)
    version.edit("4_cat/long-3.png", "the tail")
    version.update()
    assert version.captions() == {"4_cat/long.png": "cat"}
    version.update(split=True)
    assert version.captions() == {f"4_cat/long-{n}.png": "the tail" if n == 3 else "cat" for n in (1, 2, 3, 4)}


def test_pieces_of_a_picture_have_the_caption_that_was_written_for_the_whole(version: Version) -> None:
    long_picture(version)
    version.update()
    version.edit("4_cat/long.png", "a long cat")
    version.update(split=True, flip=True)
    assert set(version.captions().values()) == {"a long cat"}
    assert len(version.captions()) == 8
    version.update()
    assert version.captions() == {"4_cat/long.png": "a long cat"}


def test_another_picture_of_the_same_name_gets_no_caption_that_was_set_aside(version: Version) -> None:
    path = version.upload("a.png")
    version.upload("b.png")
    version.update(flip=True)
    version.edit("4_cat/a-flip.png", "looking left")
    version.update()
    remove(version, path, version.processed / "4_cat" / "a.png", version.processed / "4_cat" / "a.txt")
    version.update()
    version.upload("a.png", content=version.halves(BLUE, BLUE))
    version.update(flip=True)
    assert version.captions()["4_cat/a-flip.png"] == "cat"


# --- pictures that come back ---


@pytest.mark.parametrize("updates", [0, 1, 2])
def test_a_removed_picture_that_comes_back_is_still_the_same(version: Version, updates: int) -> None:
    """Its trained picture has another suffix than the original, or is a piece of it: no name tells."""
    version.upload("a.jpg")
    version.upload("b.png")
    version.update(flip=True)
    version.edit("4_cat/a.png", "by hand")
    before = version.captions()
    names = [f"4_cat/a{flip}{suffix}" for flip in ("", "-flip") for suffix in (".png", ".txt")]
    entry = remove(version, version.origin / "a.jpg", *(version.processed / name for name in names))
    for _ in range(updates):
        version.update(flip=True)
        assert set(version.captions()) == {"4_cat/b.png", "4_cat/b-flip.png"}
    Trash(version.trash, version.root).restore(entry)
    for _ in range(2):
        assert version.captions() == before
        version.update(flip=True)
    version.update(concept="sks", project="cat")
    assert version.captions() == {"4_cat/a.png": "by hand", "4_cat/b.png": "sks"}, "only what was edited is edited"


def test_another_file_in_the_place_of_a_removed_one_is_none_of_ours(version: Version) -> None:
    version.upload("a.jpg")
    version.upload("b.png")
    version.update()
    remove(version, version.processed / "4_cat" / "a.png", version.processed / "4_cat" / "a.txt")
    version.update()
    (version.processed / "4_cat" / "a.png").unlink()
    (version.origin / "a.jpg").unlink()
    version.update()
    version.put("4_cat/a.png", "my own")
    version.update()
    assert version.captions() == {"4_cat/a.png": "my own", "4_cat/b.png": "cat"}


# --- links ---


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_pictures_in_a_folder_that_is_a_link_stay(version: Version) -> None:
    version.upload("a.png")
    version.update()
    elsewhere = version.root / "elsewhere"
    elsewhere.mkdir()
    version.halves(BLUE, RED).save(elsewhere / "d.png")
    (elsewhere / "d.txt").write_text("a dog", encoding="utf-8")
    (version.processed / "5_dog").symlink_to(elsewhere)
    (elsewhere / "again").symlink_to(version.processed)
    before = version.captions()
    assert before == {"4_cat/a.png": "cat", "5_dog/d.png": "a dog"}
    version.update()
    assert version.captions() == before
    assert sorted(path.name for path in elsewhere.iterdir()) == ["again", "d.png", "d.txt"]
