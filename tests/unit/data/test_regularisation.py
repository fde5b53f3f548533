"""Class folders, and the numbers that their pictures are called by."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from PIL import Image

from lora_train.core.errors import WorkspaceError
from lora_train.data.dataset import scan_dataset
from lora_train.data.intake import take_in
from lora_train.data.regularisation import class_dir, file_stem, free_numbers, remember_number


@pytest.fixture
def processed(tmp_path: Path) -> Path:
    return tmp_path / "v1" / "dataset" / "processed"


@pytest.mark.parametrize(
    ("typed", "folder"),
    [("person", "1_person"), ("人物", "1_人物"), (" a/b:c ", "1_a_b_c"), ("3_cats", "1_3_cats"), ("CON", "1_CON_")],
)
def test_a_new_class(processed: Path, typed: str, folder: str) -> None:
    assert class_dir(processed, typed) == processed.with_name("reg") / folder


@pytest.mark.parametrize("there", ["5_person", "person", "1_Person"])
def test_a_class_that_is_there_keeps_its_folder(processed: Path, there: str) -> None:
    processed.with_name("reg").joinpath(there).mkdir(parents=True)
    assert class_dir(processed, "person") == processed.with_name("reg") / there


def test_a_class_within_the_trained_set_gets_a_folder_beside_it(processed: Path) -> None:
    """The set itself is made anew by every update."""
    processed.joinpath("reg", "5_person").mkdir(parents=True)
    assert class_dir(processed, "person") == processed.with_name("reg") / "1_person"


@pytest.mark.parametrize("typed", ["", "  ", "...", "::"])
def test_names_that_can_be_no_folder(processed: Path, typed: str) -> None:
    with pytest.raises(WorkspaceError):
        class_dir(processed, typed)


def test_numbers_are_given_once(tmp_path: Path) -> None:
    folder = tmp_path / "1_person"
    assert free_numbers(folder, 3) == [1, 2, 3]
    folder.mkdir()
    for number in (1, 2, 3):
        folder.joinpath(f"{file_stem(number)}.png").touch()
    remember_number(folder, 3)
    folder.joinpath("0003.png").unlink()
    assert free_numbers(folder, 2) == [4, 5], "the removed one may come back"
    copy = shutil.copytree(folder, tmp_path / "copy")
    assert free_numbers(copy, 1) == [4]


def test_names_of_others_are_gone_around(tmp_path: Path) -> None:
    for name in ("0002.jpg", "0003.txt", "holiday.png", "20240101.png"):
        tmp_path.joinpath(name).touch()
    assert free_numbers(tmp_path, 3) == [1, 4, 5]


@pytest.mark.parametrize("content", [b"", b"seven", b"\xff\xfe", "٣".encode()])
def test_a_damaged_memory_is_no_memory(tmp_path: Path, content: bytes) -> None:
    tmp_path.joinpath(".last-number").write_bytes(content)
    tmp_path.joinpath("0001.png").touch()
    assert free_numbers(tmp_path, 1) == [2]


def test_the_same_pictures_taken_in_again_leave_all_as_it_is(processed: Path, tmp_path: Path) -> None:
    """Also where class pictures of the page lie beside the set: they are none of those that are taken in."""
    for path in (tmp_path / "given" / "a.png", processed.with_name("reg") / "1_person" / "0001.png"):
        path.parent.mkdir(parents=True)
        Image.new("RGB", (16, 16)).save(path)
    for _ in range(2):
        take_in(
            scan_dataset(tmp_path / "given"),
            origin_dir=processed.with_name("origin"),
            processed_dir=processed,
            trash_dir=tmp_path / "trash",
            concept="cat",
        )
    assert not (tmp_path / "trash").exists()
    assert [picture.path for picture in scan_dataset(processed).pictures] == [
        "16_cat/a.png",
        "../reg/1_person/0001.png",
    ]
