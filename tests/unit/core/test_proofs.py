"""What hosts read of a LoRA's metadata, by their own rules (HOSTS: A1111 1.10.1 and Forge)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lora_train.core.jobs import JobFolder
from lora_train.core.proofs import (
    FILE_NAME,
    header_starts_as_hosts_ask,
    host_version,
    metadata_problem,
    read_proofs,
)

GOOD = {
    "ss_base_model_version": "sd_v1",
    "ss_v2": "False",
    "modelspec.architecture": "stable-diffusion-v1/lora",
    "ss_output_name": "猫-v1",
    "ss_tag_frequency": json.dumps({"9_cat": {"cat": 3}}),
    "ss_dataset_dirs": json.dumps({"9_cat": {"n_repeats": 9, "img_count": 3}}),
}


@pytest.mark.parametrize(
    ("metadata", "version"),
    [
        (GOOD, "SD1"),
        ({"ss_v2": "True"}, "SD2"),
        ({"ss_base_model_version": "sdxl_base_v1-0", "ss_v2": "False"}, "SDXL"),
        ({"any": "thing"}, "SD1"),
        ({}, "Unknown"),
    ],
)
def test_what_hosts_take_it_for(metadata: dict[str, str], version: str) -> None:
    assert host_version(metadata) == version


def test_nothing_wrong() -> None:
    assert metadata_problem(GOOD, "猫-v1", "SD1") == ""
    assert metadata_problem({**GOOD, "ss_tag_frequency": "null"}, "猫-v1", "SD1") == ""
    assert metadata_problem({**GOOD, "ss_tag_frequency": "{}"}, "猫-v1", "SD1") == ""


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"ss_v2": "True"}, "hosts take it for SD2, but its layers are for SD1"),
        ({"modelspec.architecture": "stable-diffusion-v1"}, "modelspec.architecture"),
        ({"ss_output_name": "dog"}, "ss_output_name is 'dog', but the file is called '猫-v1'"),
        ({"ss_tag_frequency": json.dumps({"cat": 3})}, "ss_tag_frequency"),
        ({"ss_tag_frequency": "[1]"}, "ss_tag_frequency"),
        ({"ss_dataset_dirs": "[]"}, "ss_dataset_dirs"),
        ({"ss_bucket_info": "{broken"}, "ss_bucket_info"),
    ],
)
def test_what_is_wrong(changes: dict[str, str], told: str) -> None:
    assert metadata_problem({**GOOD, **changes}, "猫-v1", "SD1").startswith(told)


@pytest.mark.parametrize(("text", "is_good"), [(b'{"a":', True), (b'{ "a":', False), (b" {", False), (b"", False)])
def test_how_a_header_begins(tmp_path: Path, text: bytes, is_good: bool) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(bytes(8) + text)
    assert header_starts_as_hosts_ask(path) is is_good


def test_a_damaged_file_of_proofs(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_text("{", encoding="utf-8")
    assert read_proofs(JobFolder(tmp_path)) == {}
