"""Optimizers of optional packages: told as absent at once, tried out in the background, never while somebody waits."""

from __future__ import annotations

import importlib.util
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import pytest

from lora_train.app import optimizers
from lora_train.app.optimizers import Optimizers
from lora_train.core.config import Optimizer
from lora_train.core.errors import ConfigError

if TYPE_CHECKING:
    from tests.unit.app.conftest import Desk

_WAIT_S = 10.0


class Trials:
    """Stands for the child process: its answer comes when it is let go."""

    def __init__(self, **errors: str) -> None:
        self.errors = errors
        self.asked: list[tuple[Sequence[Optimizer], str]] = []
        self.may_answer = threading.Event()

    def __call__(self, names: Sequence[Optimizer], device: str) -> dict[Optimizer, str]:
        self.asked.append((names, device))
        assert self.may_answer.wait(_WAIT_S)
        return {name: self.errors.get(name, "") for name in names}


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Says which of the optional packages are there."""

    def set_to(*packages: str) -> None:
        real = importlib.util.find_spec

        def find_spec(name: str, package: str | None = None) -> Any:
            if name in ("bitsandbytes", "dadaptation", "prodigyopt", "schedulefree"):
                return object() if name in packages else None
            return real(name, package)

        monkeypatch.setattr(importlib.util, "find_spec", find_spec)

    return set_to


def state_of(found: Optimizers, name: Optimizer, chosen: Optimizer | None = None) -> str:
    return next(entry.state for entry in found.entries("auto", chosen) if entry.name == name)


def wait_for(found: Optimizers, name: Optimizer, state: str) -> None:
    until = time.monotonic() + _WAIT_S
    while state_of(found, name) != state:
        assert time.monotonic() < until, state_of(found, name)
        time.sleep(0.01)


def test_absent_ones_have_their_command(installed: Callable[..., None]) -> None:
    installed("prodigyopt")
    entries = {entry.name: entry for entry in Optimizers().entries("auto")}
    assert [name for name, entry in entries.items() if entry.state == "absent"] == [
        *("AdamW8bit", "AdamWScheduleFree", "SGDNesterov8bit", "DAdaptation"),
    ]
    assert entries["DAdaptation"].command.endswith("-m pip install dadaptation")
    assert entries["DAdaptation"].command in entries["DAdaptation"].problem
    assert entries["Prodigy"].state == "checking"
    assert entries["Prodigy"].problem == entries["Prodigy"].command == ""


def test_they_are_tried_when_one_is_chosen(installed: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Once for all of them, in the background, those that may crash the process last."""
    installed("prodigyopt", "bitsandbytes", "schedulefree")
    trials = Trials(AdamW8bit="RuntimeError: no kernel image")
    monkeypatch.setattr(optimizers, "try_optimizers", trials)
    found = Optimizers()
    assert found.problems("AdamW", "auto") == []
    assert trials.asked == [], "nobody wants one"
    began = time.monotonic()
    assert found.problems("Prodigy", "auto") == []
    assert state_of(found, "Prodigy", "Prodigy") == "checking"
    assert time.monotonic() - began < _WAIT_S / 2, "the answer is not waited for, which comes after that"
    trials.may_answer.set()
    wait_for(found, "Prodigy", "works")
    assert state_of(found, "AdamW8bit", "AdamW8bit") == "broken"
    (problem,) = found.problems("AdamW8bit", "auto")
    assert "AdamW8bit does not work here (RuntimeError: no kernel image)" in problem
    assert [(list(names), device) for names, device in trials.asked] == [
        (["AdamWScheduleFree", "Prodigy", "AdamW8bit", "SGDNesterov8bit"], "auto")
    ]
    found.problems("Prodigy", "cuda")
    assert trials.asked[1][1] == "cuda", "another device is another question"


def test_another_version_is_tried_anew(installed: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    installed("prodigyopt")
    trials = Trials(Prodigy="ImportError: no")
    trials.may_answer.set()
    monkeypatch.setattr(optimizers, "try_optimizers", trials)
    found = Optimizers()
    found.problems("Prodigy", "auto")
    wait_for(found, "Prodigy", "broken")
    trials.errors = {}
    trials.may_answer.clear()
    found.problems("Prodigy", "auto")
    assert len(trials.asked) == 1
    monkeypatch.setattr(optimizers, "_versions", lambda: (("prodigyopt", "99"),))
    assert state_of(found, "Prodigy", "Prodigy") == "checking"
    trials.may_answer.set()
    wait_for(found, "Prodigy", "works")


def test_a_try_that_fails_itself_is_asked_again_later(
    installed: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    installed("prodigyopt")

    def fail(*_: object) -> dict[Optimizer, str]:
        raise MemoryError

    monkeypatch.setattr(optimizers, "try_optimizers", fail)
    found = Optimizers()
    assert found.problems("Prodigy", "auto") == []
    assert state_of(found, "Prodigy") == "checking", "the worker will tell"


# --- before a training ---


def test_a_training_with_an_absent_one_does_not_begin(desk: Desk, installed: Callable[..., None]) -> None:
    installed()
    desk.trained("9_cat/1.png")
    assert desk.app.settings.save("cat", "v1", train={"base_model": "demo", "optimizer": "Prodigy"}) == []
    told = "optimizer (Optimizer type): Prodigy needs the Python package prodigyopt, which is not installed"
    assert desk.app.training.forecast("cat", "v1").problems[0].startswith(told)
    with pytest.raises(ConfigError, match="pip install prodigyopt"):
        desk.app.training.begin("cat", "v1")
    with pytest.raises(ConfigError, match="pip install prodigyopt"):
        desk.app.plan_version_train(name="cat", version="v1", values={})


def test_a_rate_that_is_hardly_meant_is_told_with_the_sum(desk: Desk, installed: Callable[..., None]) -> None:
    installed()
    desk.trained("9_cat/1.png")
    desk.app.settings.save("cat", "v1", train={"base_model": "demo", "learning_rate": 1.0})
    forecast = desk.app.training.forecast("cat", "v1")
    assert forecast.problems == []
    (warning,) = forecast.warnings
    assert warning.startswith("Learning rate: 1 is very high for AdamW")


# --- options of sd-scripts ---


def test_options_of_sd_scripts_are_what_is_trained(desk: Desk) -> None:
    """The sum, the job and the health report go by them; the page keeps what was typed."""
    desk.trained(*(f"9_cat/{number}.png" for number in range(18)))
    text = "--max_train_epochs=2 --train_batch_size 3 --seed=7"
    desk.app.settings.save("cat", "v1", train={"base_model": "demo", "hold_out": 0, "sd_script_args": text})
    forecast = desk.app.training.forecast("cat", "v1")
    assert (forecast.epochs, forecast.batch_size, forecast.total_steps) == (2, 3, 18 * 9 * 2 // 3)
    assert forecast.overridden == [
        "Batch size: 3 instead of 1, by the sd_script args.",
        "Number of epochs: 2 instead of 10, by the sd_script args.",
        "Seed: 7 instead of 23, by the sd_script args.",
    ]
    job = desk.app.training.begin("cat", "v1")
    spec = desk.job(job).read_spec()
    assert (spec.settings.epochs, spec.settings.batch_size, spec.settings.seed) == (2, 3, 7)  # type: ignore[union-attr]
    assert spec.settings.sd_script_args == ""  # type: ignore[union-attr]
    written = desk.app.settings.train("cat", "v1")
    assert (written["epochs"], written["sd_script_args"]) == (10, text)


def test_unknown_options_keep_a_training_from_beginning(desk: Desk) -> None:
    desk.trained("9_cat/1.png")
    desk.app.settings.save("cat", "v1", train={"base_model": "demo", "sd_script_args": "--xformers --a=1"})
    assert desk.app.training.forecast("cat", "v1").problems == [
        "sd_script_args: --xformers is not known here",
        "sd_script_args: --a is not known here",
    ]
    with pytest.raises(ConfigError):
        desk.app.training.begin("cat", "v1")


def test_the_command_line_keeps_what_was_typed_too(desk: Desk) -> None:
    desk.trained("9_cat/1.png")
    values = {"base_model": "demo", "sd_script_args": "--seed=7", "learning_rate": "0.5"}
    plan = desk.app.plan_version_train(name="cat", version="v1", values=values)
    assert plan.job.read_spec().settings.seed == 7  # type: ignore[union-attr]
    assert plan.warnings[0] == "Seed: 7 instead of 23, by the sd_script args."
    assert plan.warnings[1].startswith("Learning rate: 0.5 is very high")
    written = desk.app.settings.train("cat", "v1")
    assert (written["seed"], written["sd_script_args"]) == (23, "--seed=7")
    with pytest.raises(ConfigError, match="--nothing is not known here"):
        desk.app.plan_version_train(name="cat", version="v1", values={"sd_script_args": "--nothing"})
