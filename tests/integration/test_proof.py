"""Published LoRAs that work, and ones that don't: each is read back by a real worker and drawn with."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from lora_train.core.assets import DEMO_PICTURES
from lora_train.core.config import TrainSettings
from lora_train.core.jobs import JobFolder
from lora_train.core.proofs import read_proofs
from lora_train.core.specs import ProofSpec
from lora_train.core.tensorfiles import tensor_part_sha256

Tensors = dict[str, torch.Tensor]

STEPS = {"preview_prompts": ("sks, white background",), "preview_steps": 4, "generate_previews": False}


@pytest.fixture(scope="module")
def published(shared_studio: Any) -> tuple[Any, JobFolder, Path]:
    """A short training of the small model, 8 steps, and its LoRA in a folder like models/Lora."""
    studio = shared_studio
    folder = studio.root / "Lora"
    job = studio.plan(DEMO_PICTURES, name="證明", publish_to=folder, epochs=1, batch_size=4, **STEPS)
    assert studio.run(job).state == "finished"
    return studio, job, studio.app.publish_result(job)


def prove(studio: Any, train: JobFolder, path: Path, **changes: Any) -> tuple[dict[str, Any], Any]:
    """What the job tells, and what stands in `proofs.json` after it."""
    spec = ProofSpec(
        **{
            "train": str(train.path),
            "lora": f"{path.stem}.safetensors",
            "published": str(path),
            "tensors_sha256": tensor_part_sha256(path),
            "prompt": "sks, white background",
            "settings": train.read_spec().settings,
            **changes,
        }
    )
    job = JobFolder(studio.app.workspace.new_job_dir("proof"))
    job.create(spec)
    status = studio.run(job)
    assert status.state == "finished", (status.message, job.log_tail())
    return status.result, read_proofs(train)[spec.lora]


def test_one_that_works(published: tuple[Any, JobFolder, Path]) -> None:
    studio, train, path = published
    done = studio.cli("prove", train.path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("Proven.\n")
    proof = read_proofs(train)[path.name]
    assert (proof.reason, proof.published) == ("", str(path))
    facts = {fact.name: fact.value for fact in proof.facts}
    assert facts["Base models"] == "Stable Diffusion 1.x"
    assert facts["Rank"] == "2"
    assert "Without weight it changes nothing" in facts
    assert "With full weight it changes the picture" in facts
    at_zero, at_one = (Image.open(train.path / name) for name in proof.pictures)
    assert at_zero.info["parameters"].startswith("<lora:證明-v1:0> sks, white background\n")
    assert not np.array_equal(np.asarray(at_zero), np.asarray(at_one))


def _without_effect(tensors: Tensors) -> Tensors:
    return {name: torch.zeros_like(tensor) if "lora_up" in name else tensor for name, tensor in tensors.items()}


def _not_finite(tensors: Tensors) -> Tensors:
    name = next(name for name in tensors if "lora_up" in name)
    return {**tensors, name: torch.full_like(tensors[name], float("nan"))}


def _incomplete(tensors: Tensors) -> Tensors:
    name = next(name for name in tensors if "lora_up" in name)
    return {other: tensor for other, tensor in tensors.items() if other != name}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (_without_effect, "At weight 1 it draws what the base model draws"),
        (_not_finite, "is not finite"),
        (_incomplete, "has other layers than the training's own file"),
    ],
)
def test_ones_that_do_not(
    published: tuple[Any, JobFolder, Path], change: Callable[[Tensors], Tensors], told: str
) -> None:
    studio, train, path = published
    broken = path.with_name(f"{change.__name__}.safetensors")
    metadata = _header(path)["__metadata__"] | {"ss_output_name": broken.stem}
    save_file(change(load_file(path)), broken, metadata)
    result, proof = prove(studio, train, broken, lora=path.name)
    assert told in proof.reason
    assert proof.hint
    assert (result["is_proven"], result["reason"]) == (False, proof.reason)


def test_other_weights_than_were_written(published: tuple[Any, JobFolder, Path]) -> None:
    studio, train, path = published
    other = path.with_name("other.safetensors")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    other.write_bytes(content)
    _, proof = prove(studio, train, other, lora=path.name, tensors_sha256=tensor_part_sha256(path))
    assert "are not those that were written" in proof.reason


def test_the_base_model_is_gone(published: tuple[Any, JobFolder, Path]) -> None:
    studio, train, path = published
    _, proof = prove(studio, train, path, settings=TrainSettings(base_model=str(path.with_name("gone.ckpt"))))
    assert proof.reason == ""
    assert "Not drawn: the base model is not there any more" in {fact.name for fact in proof.facts}
    assert not proof.pictures


def _header(path: Path) -> dict[str, Any]:
    with path.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        return json.loads(stream.read(length))
