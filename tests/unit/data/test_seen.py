"""A trained set that was read before: after a restart, what has not changed is not decoded again."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from PIL import Image

from lora_train.data import dataset as module
from lora_train.data.dataset import scan_dataset, scan_trained_set

COUNT = 60
"""More than a scan keeps to itself."""


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the pictures that are decoded."""
    names: list[str] = []
    decode = module.open_picture

    def open_picture(path: Path) -> Image.Image:
        names.append(path.name)
        return decode(path)

    monkeypatch.setattr(module, "open_picture", open_picture)
    return names


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A version's trained set, written long ago."""
    root = tmp_path / "dataset" / "processed"
    root.mkdir(parents=True)
    for number in range(COUNT):
        path = root / f"{number}.png"
        Image.new("RGB", (8 + number, 9), (number, 0, 0)).save(path)
        path.with_suffix(".txt").write_text("cat", encoding="utf-8")
        for file in (path, path.with_suffix(".txt")):
            os.utime(file, (1e9, 1e9))
    return root


def restart() -> None:
    module._read_picture.cache_clear()


def test_known_and_new_ones_keep_their_order(root: Path, opened: list[str]) -> None:
    scan_trained_set(root)
    opened.clear()
    restart()
    for number in (3, 30):
        Image.new("RGB", (8, 9), "red").save(root / f"{number}.png")
    (root / "31.png").write_bytes(b"none")
    found = scan_trained_set(root)
    assert sorted(opened) == ["3.png", "30.png", "31.png"]
    assert found == scan_dataset(root)
    assert len(found.pictures) == COUNT - 1
    assert len(found.problems) == 1


def test_new_captions_decode_no_picture(root: Path, opened: list[str]) -> None:
    scan_trained_set(root)
    assert len(opened) == COUNT
    opened.clear()
    restart()
    for path in root.glob("*.txt"):
        path.write_text("a new caption", encoding="utf-8")
    found = scan_trained_set(root)
    assert opened == []
    assert {picture.caption for picture in found.pictures} == {"a new caption"}
    restart()
    assert found == scan_dataset(root)


def test_a_new_picture_is_decoded(root: Path, opened: list[str]) -> None:
    scan_trained_set(root)
    opened.clear()
    restart()
    Image.new("RGB", (30, 40)).save(root / "7.png")
    found = scan_trained_set(root)
    assert opened == ["7.png"]
    assert [(own.width_px, own.height_px) for own in found.pictures if own.path == "7.png"] == [(30, 40)]


def test_nothing_is_written_beside_a_folder_of_a_person(root: Path, tmp_path: Path) -> None:
    scan_trained_set(root)
    assert (tmp_path / "dataset" / ".seen.json").is_file()
    own = root.rename(tmp_path / "cats")
    restart()
    assert len(scan_trained_set(own).pictures) == COUNT
    assert not (tmp_path / ".seen.json").exists()
