"""EMA of the weights: what is saved are the averages, and the training itself does not notice."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file

from lora_train.core import events as ev
from lora_train.core.jobs import JobFolder
from lora_train.core.specs import TrainSpec
from lora_train.engine import train as engine
from lora_train.engine.reporting import Reporter

if TYPE_CHECKING:
    from tests.integration.conftest import Files, Studio


def _train(studio: Studio, **settings: Any) -> JobFolder:
    images = studio.pictures("pictures", ["red", "blue"])
    shared = {"epochs": 2, "save_every_epochs": 1, "repeats": 3, "train_text_encoder": False, "save_precision": "fp32"}
    job = studio.plan(images, **{**shared, **settings})
    spec = job.read_spec()
    assert isinstance(spec, TrainSpec)
    events = ev.EventWriter(job.events_path)
    with Reporter(job, events) as report:
        assert engine.train(spec, job, report) == ("finished", 12)
    events.close()
    return job


def _of(tensors: dict[str, torch.Tensor], start: str, end: str) -> list[torch.Tensor]:
    """In the order of the names, which is the same in states and in LoRA files."""
    names = sorted(tensors, key=lambda name: name.replace(".", "_"))
    return [tensors[name] for name in names if name.startswith(start) and name.endswith(end)]


def _largest_difference(first: list[torch.Tensor], second: list[torch.Tensor]) -> float:
    return max(float((one - other).abs().max()) for one, other in zip(first, second, strict=True))


def test_averages_are_saved_and_the_weights_go_on(studio: Studio, files: type[Files]) -> None:
    plain, averaged = _train(studio, name="plain"), _train(studio, name="averaged", ema_decay=0.9)
    plain_states, states = ([load_file(path) for path in files.states(job)] for job in (plain, averaged))
    assert len(states) == len(plain_states) == 2
    for state, plain_state in zip(states, plain_states, strict=True):
        raw = {name: tensor for name, tensor in state.items() if not name.startswith("average.")}
        assert raw.keys() == plain_state.keys()
        assert all(torch.equal(tensor, plain_state[name]) for name, tensor in raw.items())

    for stem, state, plain_state in zip(("-000001", ""), states, plain_states, strict=True):
        saved = load_file(averaged.path / f"{averaged.path.name}{stem}.safetensors")
        ups = _of(saved, "lora_unet", "lora_up.weight")
        assert _largest_difference(ups, _of(state, "average.unet", "up")) == 0
        assert _largest_difference(ups, _of(state, "lora.unet", "up")) > 1e-4
        plain_saved = load_file(plain.path / f"{plain.path.name}{stem}.safetensors")
        assert (
            _largest_difference(_of(plain_saved, "lora_unet", "lora_up.weight"), _of(plain_state, "lora.", "up")) == 0
        )

    metadata = files.metadata(files.final(averaged))
    assert metadata["ss_ema_decay"] == "0.9"
