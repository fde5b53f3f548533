"""A training that is repeated makes the same bytes, with real workers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from lora_train.core.errors import DatasetError
from lora_train.core.history import read_made_from, read_versions
from lora_train.core.tensorfiles import tensor_part_sha256

if TYPE_CHECKING:
    from tests.integration.app.conftest import House


def test_repeated_exactly(house: House) -> None:
    house.set_up(2, flip=True, shuffle_captions=True)
    first = house.app.training.begin("cat", "v1")
    house.app.start_background()
    house.wait_for(first, "finished")
    again = house.app.history.repeat(first)
    house.wait_for(again, "finished")
    folders = [house.folder(job).path for job in (first, again)]
    loras = [folder / f"{folder.name}.safetensors" for folder in folders]
    assert folders[0] != folders[1]
    assert tensor_part_sha256(loras[0]) == tensor_part_sha256(loras[1])
    assert read_made_from(folders[0]) == read_made_from(folders[1])
    versions = [read_versions(folder) for folder in folders]
    assert versions[0] == versions[1]
    assert versions[0] is not None
    assert versions[0].cpu_threads == 1
    assert "torch" in versions[0].packages
    comparison = house.app.history.compare(first, again)
    assert comparison.is_same
    assert comparison.unknown == []

    set_dir = house.app.workspace.find_version("cat", "v1").dataset_dir
    caption = next(set_dir.rglob("*.txt"))
    caption.write_text("another", encoding="utf-8")
    with pytest.raises(DatasetError, match=r"another caption .*'another'"):
        house.app.history.repeat(first)
