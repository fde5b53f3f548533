"""Networks through a whole training: ranks by block group, LoRAs that are taught more, and one of another kind."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
import torch.nn.functional as functional
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from lora_train.core import events as ev
from lora_train.core.errors import JobError, ModelError
from lora_train.core.inspection import inspect_file
from lora_train.core.jobs import JobFolder
from lora_train.core.specs import PreviewSpec, TrainSpec
from lora_train.data.levels import largest_difference
from lora_train.engine import building, setup
from lora_train.engine.flat import FlatPart
from lora_train.engine.network import Target, text_encoder_targets, unet_targets
from lora_train.engine.network_protocol import Draw, Network
from lora_train.engine.preview_job import preview
from lora_train.engine.reporting import Reporter
from lora_train.engine.train import train

if TYPE_CHECKING:
    from tests.integration.conftest import Files, Studio

GROUPED: dict[str, Any] = {
    "epochs": 1,
    "repeats": 2,
    "rank": 2,
    "alpha": 1,
    "conv_rank": 3,
    "conv_alpha": 2.0,
    "input_rank": 4,
    "middle_rank": 5,
    "middle_alpha": 5,
    "text_encoder_rank": 1,
    "save_precision": "fp32",
}
RANKS = {"input": (4, 2.0), "middle": (5, 5.0), "output": (2, 1.0), "text": (1, 0.5), "conv": (3, 2.0)}
"""(rank, alpha) of each group, by hand: an alpha that is not given keeps the ratio 1 / 2."""


def _pictures(studio: Studio) -> Path:
    return studio.pictures("pictures", ["a red thing", "a blue thing"])


def _group(module: str, down: torch.Tensor) -> str:
    if down.shape[2:] == (3, 3):
        return "conv"
    groups = {"lora_te_": "text", "lora_unet_down": "input", "lora_unet_mid": "middle", "lora_unet_up": "output"}
    return next(group for start, group in groups.items() if module.startswith(start))


def test_ranks_by_group_in_the_file_and_taught_more(studio: Studio, files: type[Files]) -> None:
    """Every layer of the file has its group's rank and alpha, and a training that goes on from it has the same.

    The second training has no text encoder: the file's own stays in force, and bit for bit in the new file.
    """
    images = _pictures(studio)
    first = studio.plan(images, **GROUPED)
    _train(first)
    tensors = load_file(files.final(first))
    for name, down in tensors.items():
        module, _, part = name.partition(".")
        if part == "lora_down.weight":
            alpha = tensors[f"{module}.alpha"].item()
            assert (down.shape[0], alpha) == RANKS[_group(module, down)], module
    facts = inspect_file(files.final(first), verify_hash=True).lora
    assert facts is not None
    assert (facts.family, facts.ranks, facts.incomplete) == ("sd1", [1, 2, 3, 4, 5], [])
    metadata = files.metadata(files.final(first))
    assert (metadata["ss_network_dim"], metadata["ss_network_alpha"]) == ("2", "1.0")
    assert ('"block_dims":"' + "4," * 12 + "5," + ",".join("2" * 12)) in metadata["ss_network_args"]

    out = studio.root / "grid.png"
    lora = files.final(first)
    drawing = studio.app.plan_preview(
        lora=lora, prompts=("a red thing",), weights=(0, 1), out=out, values={"base_model": "demo", "preview_steps": 1}
    ).read_spec()
    assert isinstance(drawing, PreviewSpec)
    events = ev.EventWriter(first.events_path)
    preview(drawing, Reporter(first, events))
    events.close()
    assert Image.open(out).size[0] > 128

    previews = {"preview_prompts": "a red thing", "preview_weights": "0,1", "preview_steps": 2}
    more = studio.plan(
        images,
        continue_from=str(files.final(first)),
        rank=64,
        epochs=1,
        train_text_encoder=False,
        learning_rate=1e-3,
        save_precision="fp32",
        **previews,
    )
    _train(more)
    assert any("Goes on from" in note for note in _notes(more))
    taught = load_file(files.final(more))
    assert taught.keys() == tensors.keys()
    changed = {name for name, tensor in taught.items() if not torch.equal(tensor, tensors[name])}
    assert {name.partition(".")[2] for name in changed} == {"lora_down.weight", "lora_up.weight"}
    assert {name.split("_")[1] for name in changed} == {"unet"}
    assert len(changed) > 0.9 * 2 * facts.unet_modules
    metadata = files.metadata(files.final(more))
    assert metadata["ss_continued_from"] == files.final(first).stem
    assert (metadata["ss_network_dim"], metadata["ss_text_encoder_lr"]) == ("Dynamic", "None")
    assert str(studio.root) not in str(metadata)

    # At weight 0 the previews are the base model's, of the kept text encoder layers too.
    grid = {weight: more.samples_dir / f"{more.path.name}-p1-w{weight}.png" for weight in (0, 1)}
    base = studio.plan(images, rank=1, epochs=1, learning_rate=0, train_text_encoder=False, **previews)
    _train(base)
    untouched = Image.open(base.samples_dir / f"{base.path.name}-p1-w0.png")
    # Layers with a LoRA are not computed together with others, which rounds differently.
    assert largest_difference(Image.open(grid[0]), untouched) <= 1
    assert Image.open(grid[1]).tobytes() != untouched.tobytes()


def test_kept_text_encoder_is_in_force(studio: Studio) -> None:
    """A run that goes on from a LoRA is fed captions as the LoRA's own text encoder layers make them."""
    images = _pictures(studio)
    first = studio.plan(images, **GROUPED, text_encoder_lr=0.05)
    _train(first)
    lora = first.path / f"{first.path.name}.safetensors"
    fed = [
        _embeddings(studio.plan(images, train_text_encoder=False, **more))
        for more in ({}, {"continue_from": str(lora)})
    ]
    assert (fed[0] - fed[1]).abs().max() > 1e-3


def _embeddings(job: JobFolder) -> torch.Tensor:
    spec = job.read_spec()
    assert isinstance(spec, TrainSpec)
    events = ev.EventWriter(job.events_path)
    run = setup.prepare_run(spec, job.path, Reporter(job, events))
    events.close()
    return run.texts.embeddings(run.planner.batches(0)[0]).hidden.detach()


def test_file_without_text_encoder_and_resume(studio: Studio, files: type[Files]) -> None:
    """No text encoder is trained then, which a note tells; stopped and resumed it comes to the same bytes."""
    images = _pictures(studio)
    first = studio.plan(images, **GROUPED, train_text_encoder=False)
    _train(first)
    settings = {"continue_from": str(files.final(first)), "epochs": 1, "repeats": 4, "rank_dropout": 0.3}
    straight, broken = _train(studio.plan(images, **settings)), studio.plan(images, **settings)
    _train(broken, pause_after=3)
    assert any("no text encoder" in note for note in _notes(broken))
    _train(broken)
    assert files.tensor_bytes(files.final(straight)) == files.tensor_bytes(files.final(broken))
    assert not any(name.startswith("lora_te") for name in load_file(files.final(straight)))


def test_another_lora_in_its_place_is_noticed(studio: Studio, files: type[Files]) -> None:
    images = _pictures(studio)
    first = _train(studio.plan(images, **{**GROUPED, "train_text_encoder": False, "repeats": 1}))
    begun = studio.root / "begun.safetensors"
    begun.write_bytes(files.final(first).read_bytes())
    job = studio.plan(images, continue_from=str(begun), epochs=1, repeats=4)
    _train(job, pause_after=1)
    save_file({name: tensor * 1.5 for name, tensor in load_file(begun).items()}, begun)
    with pytest.raises(JobError, match="is not the LoRA any more that this training began with"):
        _train(job)


def test_lora_in_a_torch_file_is_taught_more(studio: Studio, files: type[Files]) -> None:
    """Such files have no header to leave out; one that is gone when a training is resumed is named."""
    images = _pictures(studio)
    first = _train(studio.plan(images, **{**GROUPED, "train_text_encoder": False, "repeats": 1}))
    begun = studio.root / "begun.pt"
    torch.save(load_file(files.final(first)), begun)
    job = studio.plan(images, continue_from=str(begun), epochs=1, repeats=4)
    _train(job, pause_after=1)
    away = begun.rename(studio.root / "away.pt")
    with pytest.raises(ModelError, match=r"begun\.pt does not exist"):
        _train(job)
    away.rename(begun)
    _train(job)
    assert load_file(files.final(job)).keys() == load_file(files.final(first)).keys()


def test_accumulation_leaves_out_the_same(studio: Studio, files: type[Files]) -> None:
    """One step over four views, together or two by two: the same views lose the same values, ranks and modules.

    SGD's step is the gradient itself, so the files are alike to rounding; without dropout they are others.
    """
    colors = ("red", "blue", "green", "grey")  # two chunks of text each, so that none is filled up because of another
    images = studio.pictures("four", [", ".join([f"a {color} thing"] * 25) for color in colors])
    rates = {"network_dropout": 0.3, "rank_dropout": 0.3, "module_dropout": 0.3}
    sgd: dict[str, Any] = {"optimizer": "SGDNesterov", "learning_rate": 1.0, "text_encoder_lr": 1.0, "epochs": 1}
    sgd |= {"save_precision": "fp32", "max_grad_norm": 0}
    halves = {"batch_size": 2, "gradient_accumulation_steps": 2}
    made = [
        load_file(files.final(_train(studio.plan(images, **sgd, **more))))
        for more in ({"batch_size": 4, **rates}, {**halves, **rates}, {"batch_size": 4})
    ]
    ups = [torch.cat([own[name].flatten() for name in sorted(own) if "lora_up" in name]) for own in made]
    assert (ups[0] - ups[1]).norm() < 1e-3 * ups[0].norm()
    assert (ups[0] - ups[2]).norm() > 0.1 * ups[0].norm()


def _notes(job: JobFolder) -> list[str]:
    return [event.message for event in job.events() if isinstance(event, ev.Note)]


# --- a network of another kind ---


class FullDelta:
    """The simplest network: a whole matrix of changes for each layer, saved as `diff` as in LyCORIS' full type."""

    def __init__(self, targets: list[Target]) -> None:
        self.multiplier = 1.0
        self.targets = targets
        self.deltas = [nn.Parameter(torch.zeros_like(target.layer.weight)) for target in targets]
        self.calls: list[str] = []
        self.multipliers: set[float] = set()

    def attach(self) -> None:
        for target, delta in zip(self.targets, self.deltas, strict=True):
            target.layer.forward = self._forward(target.layer, delta)

    def detach(self) -> None:
        for target in self.targets:
            del target.layer.forward

    def flatten(self, parts: Iterable[str], dtype: torch.dtype) -> dict[str, FlatPart]:
        found: dict[str, dict[str, nn.Parameter]] = {part: {} for part in parts}
        for target, delta in zip(self.targets, self.deltas, strict=True):
            found[target.part][f"{target.part}.{target.name}"] = delta
        return {part: FlatPart(own) for part, own in found.items() if own}

    def tensors(self) -> dict[str, torch.Tensor]:
        return {f"{target.part}.{target.name}": own for target, own in zip(self.targets, self.deltas, strict=True)}

    def file_parts(self) -> Iterator[tuple[Target, Mapping[str, torch.Tensor]]]:
        for target, delta in zip(self.targets, self.deltas, strict=True):
            yield target, {"diff": delta}

    def before_batch(self, draw: Draw, places: int) -> None:
        numbers = draw("test", 3)
        assert numbers.shape[1] == 3
        assert places >= 64
        self.calls.append("batch")

    def after_step(self) -> None:
        self.calls.append("step")

    def _forward(self, layer: Any, delta: nn.Parameter) -> Any:
        base: Any = type(layer).forward

        def forward(x: torch.Tensor) -> torch.Tensor:
            self.multipliers.add(self.multiplier)
            change = delta * self.multiplier
            if isinstance(layer, nn.Linear):
                return base(layer, x) + functional.linear(x, change)
            return base(layer, x) + functional.conv2d(x, change, None, layer.stride, layer.padding)

        return forward


def test_a_network_of_another_kind_needs_nothing_of_the_loop(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trained, accumulated, drawn with, saved, paused and resumed, with no word of it in the loop."""
    made: list[FullDelta] = []

    def build(settings: Any, model: Any, continued: Any, *, trains_text: bool) -> Network:
        assert trains_text
        targets = unet_targets(model.unet, with_convolutions=False) + text_encoder_targets(model.text_encoders[0])
        made.append(FullDelta(targets))
        return made[-1]

    monkeypatch.setattr(building, "build_network", build)
    settings: dict[str, Any] = {
        "epochs": 2,
        "repeats": 4,
        "gradient_accumulation_steps": 2,
        "save_every_epochs": 1,
        "learning_rate": 1e-3,
        "preview_prompts": "a red thing",
        "preview_weights": "0,0.5",
        "preview_steps": 1,
    }
    straight = _train(studio.plan(_pictures(studio), **settings))
    network = made[-1]
    assert network.calls == ["batch", "batch", "step"] * 8
    assert network.multipliers == {0, 0.5, 1}
    tensors = load_file(straight.path / f"{straight.path.name}.safetensors")
    assert {name.partition(".")[2] for name in tensors} == {"diff"}
    assert len(tensors) == len(network.targets)
    assert all(bool(tensor.any()) for name, tensor in tensors.items() if "to_v" in name)

    broken = studio.plan(_pictures(studio), **settings)
    _train(broken, pause_after=3)
    _train(broken)
    assert made[-1].calls == ["batch", "batch", "step"] * 5
    resumed = load_file(broken.path / f"{broken.path.name}.safetensors")
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in resumed.items())


def _train(job: JobFolder, pause_after: int = 0) -> JobFolder:
    """In this process; a pause is asked for after some steps."""
    spec = job.read_spec()
    assert isinstance(spec, TrainSpec)

    class Report(Reporter):
        def step(self, *, step: int, **told: Any) -> None:
            super().step(step=step, **told)
            if step == pause_after:
                self.request = "pause"

    events = ev.EventWriter(job.events_path)
    try:
        ending, _ = train(spec, job, Report(job, events))
    finally:
        events.close()
    assert ending == ("paused" if pause_after else "finished")
    return job
