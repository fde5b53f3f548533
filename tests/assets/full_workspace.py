"""A workspace as years of use fill it: many pictures, versions and LoRAs, and a training of very many steps.

Made by the product itself (uploads, *Update Dataset* in a worker, planned trainings, publishing) but for two things:
the events of the trainings, which `EventWriter` writes as a worker does, and the LoRA files, which are small.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
from PIL import Image

from lora_train.app import App
from lora_train.core import events as ev
from lora_train.core.config import TrainSettings
from lora_train.core.host import NoHost
from lora_train.core.jobs import JobFolder, StatusReader
from lora_train.core.specs import TrainSpec
from lora_train.core.workspace import Version, Workspace

SIDE_PX = 256
WORDS = ("red", "blue", "smile", "hat", "tree", "night", "sea", "close-up", "from above", "standing")
VERSIONS_PER_PROJECT = 10
LORAS_OF_LONG_TRAIN = 5
"""One in so many LoRAs is of the long training."""
_STEPS_AT_ONCE = 1000


class Sizes(NamedTuple):
    pictures: int
    versions: int
    loras: int
    events: int


class Full(NamedTuple):
    """What was made, as the API names it."""

    root: Path
    lora_dir: Path
    project: str
    version: str
    """With all the pictures, and the long training."""
    train: str
    picture: str
    """One of them."""
    other_project: str
    other_version: str
    """With a few pictures, and a short training."""
    other_train: str


def make_workspace(folder: Path, sizes: Sizes) -> Full:
    """Make the workspace below `folder`; nothing of it runs any more."""
    app = App(Workspace(folder / "workspace"), NoHost())
    lora_dir = folder / "lora"
    long_loras = max(1, sizes.loras // LORAS_OF_LONG_TRAIN)
    short_loras = sizes.loras - long_loras
    other = _fill_small_versions(app, sizes.versions - 1, short_loras, lora_dir)
    shown = app.projects.create("full")
    shown = app.projects.create_version(shown.project, "v1")
    version = app.workspace.find_version(shown.project, shown.version)
    _fill_dataset(app, version, sizes.pictures)
    train = _train(app, version, steps=sizes.events, loras=long_loras, lora_dir=lora_dir, with_previews=True)
    picture = app.datasets.pictures(version)[0].path
    app.projects.select(shown.project, shown.version)
    return Full(app.workspace.root, lora_dir, shown.project, shown.version, train, picture, *other)


def _fill_dataset(app: App, version: Version, count: int) -> None:
    """Upload so many photographs with captions, and let the worker make the trained set."""
    photos = version.path.parents[4] / "photos"
    files = [file for number in range(count) for file in _write_photo(photos, number)]
    ids = version.project.path.name, version.path.name
    assert app.datasets.add(*ids, [(path.name, path) for path in files]) == []
    app.settings.save(
        *ids, dataset={"width_px": SIDE_PX, "height_px": SIDE_PX}, train={"base_model": "demo", "repeats": 1}
    )
    job = JobFolder(app.workspace.root / app.datasets.start_update(*ids))
    while app.datasets.is_updating(version):
        time.sleep(0.2)
    status = app.status(job)
    assert status.state == "finished", status


def _write_photo(folder: Path, number: int) -> tuple[Path, Path]:
    """A JPEG unlike all others, and its caption."""
    folder.mkdir(exist_ok=True)
    random = np.random.default_rng(number)
    coarse = Image.fromarray(random.integers(0, 256, (6, 6, 3), dtype=np.uint8))
    photo = folder / f"photo {number:04d}.jpg"
    coarse.resize((SIDE_PX, SIDE_PX), Image.Resampling.BICUBIC).save(photo, quality=80)
    tags = [WORDS[index] for index in random.permutation(len(WORDS))[:5]]
    caption = photo.with_suffix(".txt")
    caption.write_text(", ".join(["cat girl", *tags, f"scene {number}"]), encoding="utf-8")
    return photo, caption


def _fill_small_versions(app: App, count: int, loras: int, lora_dir: Path) -> tuple[str, str, str]:
    """Versions with three pictures and a short training each; the ids of the last one."""
    last = ("", "", "")
    for number in range(count):
        name = f"project {number // VERSIONS_PER_PROJECT:02d}"
        version = app.workspace.project(name).version(f"v{number % VERSIONS_PER_PROJECT}")
        concept = version.dataset_dir / f"1_{name}"
        concept.mkdir(parents=True)
        for picture in range(3):
            path = concept / f"{picture}.png"
            Image.new("RGB", (64, 64), (number % 256, 80 * picture, 7)).save(path)
            path.with_suffix(".txt").write_text(f"cat girl, {WORDS[picture]}", encoding="utf-8")
        ids = version.project.path.name, version.path.name
        app.settings.save(*ids, train={"base_model": "demo", "repeats": 10}, dataset={"width_px": 64, "height_px": 64})
        own = (number + 1) * loras // count - number * loras // count
        last = (*ids, _train(app, version, steps=200, loras=own, lora_dir=lora_dir, with_previews=False))
    return last


def _train(app: App, version: Version, *, steps: int, loras: int, lora_dir: Path, with_previews: bool) -> str:
    """A training that came to its end, planned as *Begin Train* does, its LoRAs published as cards; its id."""
    settings = msgspec.convert(version.info().train, TrainSettings)
    job = app.training.plan(version, settings).job
    spec = job.read_spec()
    assert isinstance(spec, TrainSpec)
    files = [f"{spec.name}-{number:06d}.safetensors" for number in range(1, loras)] + [f"{spec.name}.safetensors"]
    saved_at = {(number + 1) * steps // loras: file for number, file in enumerate(files[:loras])}
    _write_events(job, steps, saved_at, loras)
    StatusReader(job).read()  # as the worker's reporter does, again and again
    for step, file in saved_at.items():
        write_lora(job.path / file, step, spec.concept)
        if with_previews:
            job.samples_dir.mkdir(exist_ok=True)
            Image.new("RGB", (64, 64), (step % 256, 9, 9)).save(job.samples_dir / f"{Path(file).stem}-p1-w1.png")
        app.loras.publish_to(job, lora_dir, file=file)
    return app.workspace.id_of(job.path)


def _write_events(job: JobFolder, steps: int, saved_at: dict[int, str], epochs: int) -> None:
    """As the worker of a training writes them: a line for each step, and what goes on beside."""
    random = np.random.default_rng(steps)
    began = time.time() - 0.01 * steps
    writer = ev.EventWriter(job.events_path)
    writer.write(ev.Started(pid=0, t=began))
    writer.write(*(ev.Phase("encoding pictures", done, 10, t=began) for done in range(11)))
    writer.write(ev.Started(pid=0, total_steps=steps, epochs=epochs, device="CPU", step=0, t=began))
    losses = 0.1 + 0.05 * np.exp(-np.arange(steps) / max(1, steps / 5)) + random.normal(0, 0.02, steps)
    batch: list[ev.Event] = []
    for step in range(1, steps + 1):
        epoch = 1 + (step - 1) * epochs // steps
        t = began + 0.01 * step
        batch.append(ev.Step(step, epoch, float(losses[step - 1]), 1e-4, 0.01, peak_memory_mb=900, t=t))
        if step in saved_at:
            batch.append(ev.Saved(saved_at[step], step, epoch, t=t))
        if len(batch) >= _STEPS_AT_ONCE or step == steps:
            writer.write(*batch)
            batch.clear()
    writer.write(ev.Finished(step=steps))
    writer.close()
    job.log_path.write_text("".join(f"step {step}\n" for step in range(min(steps, 100_000))), encoding="utf-8")


def write_lora(path: Path, step: int, concept: str) -> None:
    """A LoRA of rank 4 on a few layers, with the metadata that the product writes."""
    from safetensors.numpy import save_file

    random = np.random.default_rng(step)
    tensors: dict[str, np.ndarray] = {}
    for layer in range(4):
        name = f"lora_unet_down_blocks_{layer % 3}_attentions_0_transformer_blocks_0_attn{1 + layer % 2}_to_q"
        tensors[f"{name}.lora_down.weight"] = random.standard_normal((4, 320)).astype(np.float32)
        tensors[f"{name}.lora_up.weight"] = random.standard_normal((320, 4)).astype(np.float32)
        tensors[f"{name}.alpha"] = np.array(4, dtype=np.float32)
    metadata = {
        "ss_output_name": path.stem,
        "ss_network_module": "networks.lora",
        "ss_network_dim": "4",
        "ss_network_alpha": "4",
        "ss_sd_model_name": "tiny_sd.safetensors",
        "ss_base_model_version": "sd_v1",
        "ss_steps": str(step),
        "modelspec.architecture": "stable-diffusion-v1/lora",
        "modelspec.title": path.stem,
        "modelspec.trigger_phrase": concept,
    }
    save_file(tensors, path, metadata)
