"""*Update Dataset*: what becomes of the captions that came along, were edited, or are not there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from lora_train.data.update import caption_of

if TYPE_CHECKING:
    from tests.unit.data.conftest import Version


@pytest.mark.parametrize(
    ("action", "with_own", "without"),
    [
        ("ignore", "cat", "cat"),
        ("copy", "sitting, red", "cat"),
        ("prepend", "sitting, red, cat", "cat"),
        ("append", "cat, sitting, red", "cat"),
    ],
)
def test_caption_actions(version: Version, action: Any, with_own: str, without: str) -> None:
    assert caption_of("sitting, red", "cat", action) == with_own
    version.upload("a.png", "sitting, red\n")
    version.upload("b.png")
    version.update(caption_action=action)
    assert version.captions() == {"4_cat/a.png": with_own, "4_cat/b.png": without}
    version.update(caption_action="copy")
    assert version.captions() == {"4_cat/a.png": "sitting, red", "4_cat/b.png": "cat"}, "a written one is replaced"


def test_captions_in_old_encodings(version: Version) -> None:
    version.upload("a.png")
    (version.origin / "a.CAPTION").write_bytes("猫が座る".encode("cp932"))
    version.update()
    assert (version.processed / "4_cat" / "a.txt").read_text(encoding="utf-8") == "猫が座る"


@pytest.mark.parametrize("edited", ["by hand", "", "two  blanks"])
def test_captions_that_were_edited_stay(version: Version, edited: str) -> None:
    version.upload("a.png", "a cat")
    version.upload("b.png", "b cat")
    version.update(flip=True)
    version.edit("4_cat/a.png", edited)
    version.edit("4_cat/b-flip.png", "from the other side")
    for _ in range(2):  # and again: what is edited stays edited
        version.update(flip=True, caption_action="ignore", width_px=128, repeats=9)
        assert version.captions() == {
            "9_cat/a-flip.png": "cat",
            "9_cat/a.png": edited,
            "9_cat/b-flip.png": "from the other side",
            "9_cat/b.png": "cat",
        }


def test_the_copy_of_a_picture_called_flip(version: Version) -> None:
    version.upload("a-flip.png", "a cat")
    version.update(flip=True)
    version.edit("4_cat/a-flip.png", "by hand")
    version.update(flip=True)
    assert version.captions() == {"4_cat/a-flip-flip.png": "a cat", "4_cat/a-flip.png": "by hand"}


def test_a_caption_that_is_deleted_by_hand_is_written_again(version: Version) -> None:
    version.upload("a.png", "a cat")
    version.update()
    (version.processed / "4_cat" / "a.txt").unlink()
    version.update()
    assert version.captions() == {"4_cat/a.png": "a cat"}


def test_a_name_of_several_words_is_not_taken_for_an_edited_caption(version: Version) -> None:
    version.upload("a.png")
    version.update(concept="my  cat\tTom")
    version.upload("a.png", "a cat")
    version.update(concept="my  cat\tTom")
    assert list(version.captions().values()) == ["a cat"]
