"""Which pictures of a new set the host captions: never one whose caption a person wrote or brought along."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from lora_train.data.host_captions import HostPass, joining_policy, passes_after_update
from lora_train.data.manifest import Made, Manifest

FALLBACK = "my  cat"  # blanks are one in a caption


def made_set(root: Path, pictures: dict[str, tuple[Made, str]]) -> Path:
    """A version's `dataset` folder: of each picture what the worker wrote, and what the caption is now."""
    processed = root / "dataset" / "processed"
    for file, (_, caption) in pictures.items():
        path = processed / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        path.with_suffix(".txt").write_text(caption, encoding="utf-8")
    manifest = Manifest({file: made for file, (made, _) in pictures.items()}, "cat")
    (processed / ".made.json").write_bytes(msgspec.json.encode(manifest))
    return root / "dataset"


@pytest.fixture
def dataset_dir(tmp_path: Path) -> Path:
    return made_set(
        tmp_path,
        {
            "4_cat/bare.png": (Made("a.png", "my cat"), "my cat"),
            "4_cat/brought.png": (Made("b.png", "a tomcat", generated="1cat"), "a tomcat"),
            "4_cat/edited.png": (Made("c.png", "my cat"), "my cat on a mat"),
            "4_cat/tagged 猫.png": (Made("d.png", "1cat, sitting", generated="1cat, sitting"), "1cat, sitting"),
            "5_dog/bare.png": (Made("e.png", "my cat"), "my cat"),
        },
    )


def passes(dataset_dir: Path, **options: Any) -> list[HostPass]:
    given = {"fallback": FALLBACK, "action": "copy", "has_models": False, "kinds": ("blip",), **options}
    return passes_after_update(dataset_dir, **given)


BARE = HostPass(("4_cat/bare.png", "5_dog/bare.png"), "only where empty")


def test_the_fallback_is_replaced_and_nothing_else(dataset_dir: Path) -> None:
    assert passes(dataset_dir) == passes(dataset_dir, action="ignore") == [BARE]


@pytest.mark.parametrize("action", ["prepend", "append"])
def test_what_came_along_is_completed_where_that_is_wanted(dataset_dir: Path, action: Any) -> None:
    assert passes(dataset_dir, action=action) == [BARE, HostPass(("4_cat/brought.png", "4_cat/tagged 猫.png"), action)]


@pytest.mark.parametrize(("kinds", "policy"), [(("blip",), "append"), (("deepbooru",), "prepend")])
def test_a_workers_tags_are_joined(dataset_dir: Path, kinds: tuple[str, ...], policy: Any) -> None:
    """ "append" puts what is there after the new: a sentence of the host stands first, its tags last."""
    assert passes(dataset_dir, has_models=True, kinds=kinds) == [BARE, HostPass(("4_cat/tagged 猫.png",), policy)]
    assert joining_policy(("deepbooru", "blip")) == "append"


def test_a_set_without_a_manifest_is_a_persons(tmp_path: Path) -> None:
    folder = made_set(tmp_path, {"4_cat/a.png": (Made("a.png", "x"), "my cat")})
    (folder / "processed" / ".made.json").unlink()
    assert passes(folder) == []
