"""What trainings were made from, and how two of them differ."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from lora_train.core.config import TrainSettings
from lora_train.core.history import (
    MADE_FROM,
    FileFacts,
    MadeFrom,
    PictureFacts,
    Versions,
    package_versions,
    read_made_from,
    read_versions,
    write_record,
)
from lora_train.core.history_differences import (
    SettingDifference,
    base_differences,
    file_name,
    picture_differences,
    setting_differences,
    told,
    version_differences,
)

if TYPE_CHECKING:
    from pathlib import Path

CAT = PictureFacts(path="10_cat/a.png", content="aa", caption="cat, red", repeats=10)


def test_records_are_kept(tmp_path: Path) -> None:
    made = MadeFrom(fingerprint="ff", pictures=(CAT,), base_model=FileFacts(name="m.safetensors", size_bytes=5))
    versions = Versions(packages={"torch": "2.9"}, cpu_threads=2)
    assert (read_made_from(tmp_path), read_versions(tmp_path)) == (None, None)
    write_record(tmp_path, made)
    write_record(tmp_path, versions)
    assert (read_made_from(tmp_path), read_versions(tmp_path)) == (made, versions)
    (tmp_path / MADE_FROM).write_bytes(b'{"finger')
    assert read_made_from(tmp_path) is None


def test_what_differs_about_pictures() -> None:
    gone = msgspec.structs.replace(CAT, path="10_cat/b.png")
    new = msgspec.structs.replace(CAT, path="10_cat/c.png")
    changed = msgspec.structs.replace(CAT, content="bb", caption="cat, blue", repeats=5, is_held_out=True, mask="mm")
    assert picture_differences([CAT, gone], [CAT, gone]) == []
    assert [told(row) for row in picture_differences([CAT, gone], [changed, new])] == [
        "10_cat/a.png was changed",
        "10_cat/a.png has another mask",
        "10_cat/a.png has another caption ('cat, red' → 'cat, blue')",
        "10_cat/a.png has other repeats (10 → 5)",
        "10_cat/a.png is held out: no → yes",
        "10_cat/b.png is gone",
        "10_cat/c.png is new",
    ]


def test_what_differs_about_settings() -> None:
    one = TrainSettings(base_model="/home/somebody/models/one.safetensors", epochs=3)
    other = TrainSettings(base_model="C:\\Users\\somebody\\two.safetensors", epochs=4)
    rows = setting_differences(one, other)
    assert [(row.name, row.before, row.after) for row in rows] == [
        ("base_model", "one.safetensors", "two.safetensors"),
        ("epochs", "3", "4"),
    ]
    assert file_name("demo") == "demo"


def test_what_is_unknown_is_no_difference() -> None:
    before = Versions(packages={"torch": "2.9", "diffusers": "0.31"}, device="CPU", cpu_threads=2, processor="A")
    now = Versions(packages={"torch": "2.10", "diffusers": "0.31"}, processor="B")
    assert version_differences(before, now) == [
        SettingDifference("torch", "torch", "2.9", "2.10"),
        SettingDifference("processor", "processor", "A", "B"),
    ]
    one, other = Versions(base_model_sha256="a" * 64), Versions(base_model_sha256="b" * 64)
    assert base_differences(one, other) == [SettingDifference("base_model_sha256", "Base model", "a" * 10, "b" * 10)]
    assert base_differences(one, Versions()) == []


def test_versions_are_told_without_an_import() -> None:
    assert {"Python", "Train Tools"} <= package_versions().keys()
