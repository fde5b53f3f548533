"""`lora-train publish`, as a person types it."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from lora_train.__main__ import main
from lora_train.core import events as ev
from lora_train.core.config import TrainSettings
from lora_train.core.jobs import JobFolder
from lora_train.core.private_use import PRIVATE_USE
from lora_train.core.specs import TrainSpec
from lora_train.core.tensorfiles import read_tensor_file


@pytest.fixture
def train(tmp_path: Path) -> Path:
    """The folder of a finished training with two LoRAs of one tensor each."""
    job = JobFolder(tmp_path / "workspace" / "projects" / "猫" / "versions" / "v1" / "trains" / "猫-v1")
    settings = TrainSettings(base_model="demo", trigger_word="sks")
    job.create(
        TrainSpec(
            name="猫-v1", dataset="../../dataset/processed", dataset_fingerprint="", trash="..", settings=settings,
            concept="猫", version="v1",
        )
    )  # fmt: skip
    events = ev.EventWriter(job.events_path)
    for number, file in enumerate(("猫-v1-000001.safetensors", "猫-v1.safetensors")):
        header = {
            "__metadata__": {"ss_output_name": Path(file).stem, "modelspec.trigger_phrase": "sks"},
            "alpha": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
        }
        text = json.dumps(header).encode("utf-8")
        (job.path / file).write_bytes(struct.pack("<Q", len(text)) + text + struct.pack("<f", float(number)))
        events.write(ev.Saved(file, step=10 * (number + 1), epoch=number + 1))
    events.write(ev.Finished(step=20))
    events.close()
    return job.path


def run(capsys: pytest.CaptureFixture[str], *arguments: object, code: int = 0) -> tuple[str, str]:
    assert main(["publish", *map(str, arguments)]) == code
    told = capsys.readouterr()
    return told.out, told.err


def test_the_last_one_is_published_and_its_files_are_told(
    train: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, _ = run(capsys, train, "--to", tmp_path / "Lora")
    assert out.splitlines() == [str(tmp_path / "Lora" / f"猫-v1{suffix}") for suffix in (".safetensors", ".json")]
    card: dict[str, Any] = json.loads((tmp_path / "Lora" / "猫-v1.json").read_text(encoding="utf-8"))
    assert card["description"].startswith("猫 v1, 20 steps")


def test_one_by_name_for_private_use(train: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = "猫-v1-000001.safetensors"
    out, _ = run(capsys, train, "--lora", file, "--to", tmp_path / "Lora", "--private", "--json")
    told = json.loads(out.splitlines()[-1])
    assert told["published"] == str(tmp_path / "Lora" / file)
    assert read_tensor_file(tmp_path / "Lora" / file).metadata["modelspec.usage_hint"] == PRIVATE_USE


def test_what_can_not_be(train: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_bytes(b"")
    assert "is not a folder" in "".join(run(capsys, train, "--to", tmp_path / "file", code=2))
    assert "There is no LoRA" in "".join(run(capsys, train, "--lora", "x", "--to", tmp_path / "Lora", code=1))
    assert "is not a job" in "".join(run(capsys, tmp_path, "--to", tmp_path / "Lora", code=1))
