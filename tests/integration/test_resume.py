"""Stop or pause and resume gives the tensor bytes of a straight run, wherever the request lands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from lora_train.core import events as ev
from lora_train.core.config import Optimizer
from lora_train.core.optimizers import is_absent

if TYPE_CHECKING:
    from tests.integration.conftest import Files, Studio

EVERYTHING: dict[str, Any] = {
    "epochs": 2,
    "batch_size": 2,
    "repeats": -1,
    "save_every_epochs": 1,
    "gradient_accumulation_steps": 2,
    "trigger_word": "zzz",
    "shuffle_captions": True,
    "keep_tags": 1,
    "caption_dropout": 0.2,
    "flip": True,
    "noise_offset": 0.05,
    "prior_loss_weight": 0.5,
    "lr_warmup_steps": 4,
    "conv_rank": 2,
    "input_rank": 3,
    "network_dropout": 0.1,
    "rank_dropout": 0.1,
    "module_dropout": 0.1,
    "scale_weight_norms": 0.5,
    "ema_decay": 0.9,
    "multires_noise_iterations": 4,
    "loss": "huber",
    "timestep_sampling": "logit_normal",
}
PLAIN: dict[str, Any] = {"epochs": 1, "repeats": 12, "batch_size": 1}


def _rich_pictures(studio: Studio) -> Path:
    """Three shapes, ten repeats, regularisation pictures of two shapes."""
    tags = ["red, big, round", "blue, small, round", "green, big, flat"]
    studio.pictures("rich/10_thing", tags, sizes_px=((64, 64), (64, 96), (96, 64)), seed=1)
    studio.pictures("rich/reg/1_class", ["plain, grey", "plain, white"], sizes_px=((64, 64), (64, 96)), seed=2)
    return studio.root / "rich"


def _plain_pictures(studio: Studio) -> Path:
    return studio.pictures("plain", ["a red thing", "a blue thing", "a green thing", "a thing"])


@pytest.mark.parametrize(
    ("optimizer", "trains_text", "rich", "request_name"),
    [
        ("AdamW", True, True, "stop"),
        ("Lion", False, True, "pause"),
        ("AdamW", False, False, "pause"),
        ("Lion", True, False, "stop"),
        ("Prodigy", True, True, "stop"),
        ("AdamWScheduleFree", True, True, "pause"),
    ],
)
def test_ended_early_and_resumed_equals_straight(
    studio: Studio,
    files: type[Files],
    optimizer: Optimizer,
    trains_text: bool,
    rich: bool,
    request_name: Any,
) -> None:
    if is_absent(optimizer):
        pytest.skip(f"{optimizer} needs a package that is not installed")
    images = _rich_pictures(studio) if rich else _plain_pictures(studio)
    settings = {"optimizer": optimizer, "train_text_encoder": trains_text, **(EVERYTHING if rich else PLAIN)}
    if optimizer == "Lion":
        settings |= {"learning_rate": 1e-3, "text_encoder_lr": 1e-3}
    if optimizer == "Prodigy":
        settings |= {"learning_rate": 1.0, "text_encoder_lr": 1.0}
    straight = studio.plan(images, **settings)
    broken = studio.plan(images, **settings)
    straight_process, process = studio.start(straight), studio.start(broken)

    studio.wait_for_step(broken, process, 2)
    studio.app.request(broken, request_name)
    early = studio.end(broken, process)
    assert process.returncode == 0
    assert early.state == {"stop": "stopped", "pause": "paused"}[request_name]
    clock = files.clock(files.states(broken)[-1])
    assert clock["step"] == early.step
    assert clock["epoch"] == 0, "the request was to land in the middle of the first epoch"
    assert clock["step_in_epoch"] > 0
    left = [path.name for path in broken.path.glob("*.safetensors")]
    stopped_name = f"{broken.path.name}-step{early.step:06}.safetensors"
    assert left == ([stopped_name] if request_name == "stop" else [])

    done = studio.run(broken)
    assert done.state == "finished", done.message
    assert studio.end(straight, straight_process).state == "finished"
    assert 0 < early.step < done.step
    steps = [event.step for event in broken.events() if isinstance(event, ev.Step)]
    assert steps == list(range(1, done.step + 1)), "every step is told of once"

    endings = ["", "-000001"] if rich else [""]
    for ending in endings:
        names = [f"{job.path.name}{ending}.safetensors" for job in (straight, broken)]
        expected = files.tensor_bytes(straight.path / names[0])
        assert files.tensor_bytes(broken.path / names[1]) == expected
    if rich:
        metadata = files.metadata(files.final(straight))
        assert len(json.loads(metadata["ss_bucket_info"])["buckets"]) == 3
        assert int(metadata["ss_num_batches_per_epoch"]) % 2 == 1, "the epoch's last group is a partial one"
        assert done.total_steps == int(metadata["ss_num_batches_per_epoch"]) + 1  # two epochs of (n + 1) / 2


def test_same_spec_twice_gives_same_bytes_and_another_seed_does_not(studio: Studio, files: type[Files]) -> None:
    images = _plain_pictures(studio)
    short = {**PLAIN, "repeats": 2}
    jobs = [studio.plan(images, **short, seed=seed) for seed in (7, 7, 8)]
    processes = [studio.start(job) for job in jobs]
    for job, process in zip(jobs, processes, strict=True):
        assert studio.end(job, process).state == "finished"
    first, second, other = (files.tensor_bytes(files.final(job)) for job in jobs)
    assert first == second
    assert len(other) == len(first)
    assert other != first


def test_a_request_before_the_first_step_ends_at_once_and_can_be_resumed(studio: Studio, files: type[Files]) -> None:
    job = studio.plan(_plain_pictures(studio), epochs=1)
    process = studio.start(job)
    studio.wait_until(job.events, process)  # it reads requests from now on; loading takes seconds
    studio.app.request(job, "stop")
    status = studio.end(job, process)
    assert (process.returncode, status.state, status.step) == (0, "stopped", 0)
    assert not files.states(job)
    assert studio.run(job).state == "finished"
    assert files.final(job).is_file()
