"""A start from the cache of an earlier one needs neither VAE nor text encoder, and trains the same bytes."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from lora_train.core import events as ev
from lora_train.core.specs import TrainSpec
from lora_train.core.tensorfiles import file_sha256
from lora_train.engine import checkpoint_hashes, setup
from lora_train.engine.loading import BaseModel
from lora_train.engine.reporting import Reporter

if TYPE_CHECKING:
    from tests.integration.conftest import Files, Studio

CAPTIONS = ["red, big", "blue, small", "green, " + "very, " * 60]
"""The last one has more than one chunk of tokens."""


@pytest.fixture
def prepare(studio: Studio) -> Callable[..., setup.Run]:
    """Prepares a run in this process, as a worker would; its pictures are of two shapes."""
    images = studio.pictures("pictures", CAPTIONS, sizes_px=((64, 64), (64, 96)))

    def prepare(**settings: Any) -> setup.Run:
        values = {"flip": True, "max_tokens": 150, "train_text_encoder": False, "preview_prompts": ["(red:1.3)"]}
        job = studio.plan(images, **{**values, **settings})
        spec = job.read_spec()
        assert isinstance(spec, TrainSpec)
        events = ev.EventWriter(job.events_path)
        try:
            return setup.prepare_run(spec, job.path, Reporter(job, events))
        finally:
            events.close()

    return prepare


@pytest.fixture
def refuse(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """From now on these parts of a base model can't be loaded."""

    def refuse(*parts: str) -> None:
        def loaded(_: BaseModel) -> Any:
            raise AssertionError(f"it needed {parts}")

        for part in parts:
            monkeypatch.setattr(BaseModel, part, property(loaded))

    return refuse


def fed(run: setup.Run) -> list[torch.Tensor]:
    """All that a run's first epoch is fed with, and its previews."""
    found = [tensor for tensor in run.inpaint.values() if tensor is not None]
    batches = run.planner.batches(0)
    run.texts.prepare(batches)
    for batch in batches:
        noise = torch.full((len(batch.views), *run.latents.latent_shape(batch.bucket)), 0.7)
        found.append(run.latents.latents(batch, noise))
        found += [part for part in run.texts.embeddings(batch) if part is not None]
    assert run.preview_texts is not None
    positive, negative = run.preview_texts.encode()
    return found + [part for text in (*positive, negative) for part in text if part is not None]


@pytest.mark.parametrize("family", ["sd1", "sd2-inpaint", "sdxl"])
def test_a_second_start_needs_neither_vae_nor_text_encoder(
    prepare: Callable[..., setup.Run],
    refuse: Callable[..., None],
    checkpoint_of: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    family: str,
) -> None:
    checkpoint = str(checkpoint_of(family))
    first = fed(prepare(base_model=checkpoint))
    monkeypatch.setattr(setup, "HashCache", _NoHashes)  # tests are quick: what was written just now is read again
    refuse("vae", "text_encoders")
    second = fed(prepare(base_model=checkpoint))
    assert len(first) == len(second)
    for own, kept in zip(first, second, strict=True):
        assert own.dtype == kept.dtype
        assert torch.equal(own, kept)
    with pytest.raises(AssertionError, match="it needed"):
        prepare(base_model=checkpoint, clip_skip=2) if family == "sd1" else prepare(base_model=checkpoint, flip=False)


class _NoHashes(setup.HashCache):
    """Works everything out, whatever was known."""

    def __init__(self, _: Path | None) -> None:
        super().__init__(None)


def test_other_weights_are_another_model(
    prepare: Callable[..., setup.Run], refuse: Callable[..., None], checkpoint_of: Callable[[str], Path], tmp_path: Path
) -> None:
    """The same VAE in another file is the same VAE."""
    from safetensors.torch import load_file, save_file

    path = checkpoint_of("sd1")
    prepare(base_model=str(path))
    tensors = load_file(path)
    for prefix in ("model.diffusion_model.", "first_stage_model.decoder."):
        name = next(name for name in tensors if name.startswith(prefix))
        tensors[name] += 1
    save_file(tensors, tmp_path / "decodes otherwise.safetensors")
    name = next(name for name in tensors if name.startswith("first_stage_model.encoder."))
    tensors[name] += 1
    save_file(tensors, tmp_path / "encodes otherwise.safetensors")
    refuse("vae")
    prepare(base_model=str(tmp_path / "decodes otherwise.safetensors"))
    with pytest.raises(AssertionError, match="it needed"):
        prepare(base_model=str(tmp_path / "encodes otherwise.safetensors"))


@pytest.mark.parametrize(
    "settings",
    [{"shuffle_captions": True}, {"caption_dropout": 0.1}, {"train_text_encoder": True}],
    ids=lambda settings: next(iter(settings)),
)
def test_captions_that_do_not_come_again_are_not_kept(
    studio: Studio, prepare: Callable[..., setup.Run], settings: dict[str, Any]
) -> None:
    prepare(**settings)
    cache = studio.app.workspace.cache_dir
    assert [*(cache / "latents").iterdir()]
    assert not (cache / "texts").exists()


def test_trained_from_the_cache_or_not_the_bytes_are_the_same(studio: Studio, files: type[Files]) -> None:
    images = studio.pictures("pictures", CAPTIONS, sizes_px=((64, 64), (64, 96)))
    settings = {"repeats": 2, "batch_size": 2, "flip": True, "train_text_encoder": False, "max_tokens": 150}
    cache = studio.app.workspace.cache_dir
    trained: list[bytes] = []
    kept: list[set[Path]] = []
    for start in ("first", "second", "emptied", "spoiled"):
        if start == "emptied":
            shutil.rmtree(cache)
        if start == "spoiled":
            for path in [*cache.rglob("*.safetensors")]:
                path.write_bytes(path.read_bytes()[:-1])
        job = studio.plan(images, **settings)
        done = studio.run(job)
        assert done.state == "finished", done.message
        trained.append(files.tensor_bytes(files.final(job)))
        kept.append({*cache.rglob("*.safetensors")})
    assert len(set(trained)) == 1
    assert all(names == kept[0] for names in kept)
    assert {path.parent.name for path in kept[0]} == {"latents", "texts"}


def test_a_cache_that_cannot_be_written_is_a_note(studio: Studio) -> None:
    studio.app.workspace.root.mkdir(parents=True, exist_ok=True)
    studio.app.workspace.cache_dir.write_bytes(b"")
    job = studio.plan(studio.pictures("pictures", CAPTIONS), train_text_encoder=False)
    done = studio.run(job)
    assert done.state == "finished", done.message
    told = [event.message for event in job.events() if isinstance(event, ev.Note)]
    assert sum("can't be kept for the next start" in message for message in told) == 2, "once for each kind"


def test_the_base_model_is_hashed_once(
    studio: Studio, checkpoint_of: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import os

    path = tmp_path / "model.safetensors"
    shutil.copyfile(checkpoint_of("sd1"), path)
    os.utime(path, (1e9, 1e9))
    counted: list[Path] = []

    def hashed(file: Path) -> str:
        counted.append(file)
        return file_sha256(file)

    monkeypatch.setattr(checkpoint_hashes, "file_sha256", hashed)
    known: list[tuple[str, str]] = []
    place = studio.root / "cache" / "hashes.json"
    for _ in range(2):
        hashes = checkpoint_hashes.CheckpointHashes(
            path, None, setup.HashCache(place), lambda *found: known.append(found)
        )
        hashes.start()
        hashes._thread.join()
    assert known == [(file_sha256(path), "")] * 2
    assert counted == [path]
