"""A real worker under a host: the model gives way to it, and a "Reload UI" changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("gradio")
pytest.importorskip("diffusers")

from lora_train.core.assets import DEMO_PICTURES

VERSION = {"project": "Cat", "version": "v1"}
SETTINGS = {"base_model": "demo", "epochs": 500, "rank": 4, "learning_rate": 0.004, "generate_previews": False}


@pytest.fixture
def begin(start_host: Callable[..., Any], tmp_path: Path) -> Callable[[], tuple[Any, Any, str]]:
    """A host, calls to our routes, and a training that has begun to step."""

    def begin() -> tuple[Any, Any, str]:
        checkpoints = tmp_path / "models" / "Stable-diffusion"
        checkpoints.mkdir(parents=True)
        (checkpoints / "one.safetensors").write_bytes(b"")
        host = start_host("--device", "cuda", "--api")
        ours = caller(host)
        ours("projects", {"name": "Cat"})
        ours("versions", {"project": "Cat", "name": "v1"})
        pictures = [str(path) for path in sorted(DEMO_PICTURES.rglob("*.png"))[:4]]
        assert ours("dataset/server-files", {**VERSION, "paths": pictures}) == {"problems": []}
        assert ours("settings", {**VERSION, "train": SETTINGS, "dataset": {"as_is": True}}) == {"problems": []}
        ours("dataset/update", VERSION)
        host.wait_until(lambda: ours("dataset?project=Cat&version=v1")["update"]["state"] == "finished")
        before = draw(host)
        assert before[0] == 200
        job = ours("trains", VERSION)["job"]
        host.wait_until(lambda: ours(f"jobs/status?job={job}")["step"] > 0)
        return host, before, job

    return begin


def caller(host: Any) -> Callable[..., Any]:
    """Calls our routes as the page's script."""
    headers = host.token()

    def ours(path: str, body: object = None) -> Any:
        status, answer = host.call(f"train-tools/v1/{path}", body, headers)
        assert status == 200, (path, answer)
        return answer

    return ours


def draw(host: Any) -> tuple[int, Any]:
    return host.call("sdapi/v1/txt2img", {"prompt": "a cat", "steps": 1})


def test_a_training_and_two_reloads(begin: Callable[[], tuple[Any, Any, str]]) -> None:
    host, before, job = begin()
    ours = caller(host)
    status = f"jobs/status?job={job}"
    worker = ours(status)["pid"]
    assert host.state()["model_device"] == "cpu"
    assert not host.state()["lock_is_held"]
    for _ in range(2):
        code, answer = draw(host)
        assert code == 503
        assert answer["detail"].startswith("Train Tools is training on this card: Cat")
        host.reload_ui()
        assert (ours(status)["state"], ours(status)["pid"]) == ("running", worker)
        assert host.state()["model_device"] == "cpu"
    assert host.state()["threads"].count("train-tools-queue") == 1
    assert draw(host)[0] == 503

    ours("jobs/stop", {"job": job})
    host.wait_until(lambda: host.state()["model_device"] == "cuda")
    assert ours(status)["state"] == "stopped"
    assert draw(host) == before
    assert not {"torch", "diffusers", "transformers"} & set(host.state()["imported"])

    host.wait_until(lambda: host.call("sdapi/v1/loras")[1])  # published by itself, and the host's list renewed
    name = host.call("sdapi/v1/loras")[1][0]["name"]
    assert name.startswith("Cat-v1")
    status, with_lora = host.call("sdapi/v1/txt2img", {"prompt": f"a cat <lora:{name}:1>", "steps": 1})
    assert status == 200
    assert with_lora["images"] != before[1]["images"]


def test_a_host_that_starts_while_a_training_has_the_card(
    begin: Callable[[], tuple[Any, Any, str]], start_host: Callable[..., Any]
) -> None:
    """Its own model would take the memory that the training needs; it is loaded for the first picture afterwards."""
    first, before, job = begin()
    status = f"jobs/status?job={job}"
    worker = caller(first)(status)["pid"]
    first.process.kill()
    first.process.wait(10)

    host = start_host("--device", "cuda", "--api")
    ours = caller(host)
    assert (ours(status)["state"], ours(status)["pid"]) == ("running", worker)
    assert host.state()["model_device"] is None, "it was loaded beside the training"
    code, answer = draw(host)
    assert (code, answer["detail"][:37]) == (503, "Train Tools is training on this card:")
    ours("jobs/stop", {"job": job})
    host.wait_until(lambda: not ours("queue"))
    assert draw(host) == before
    assert host.state()["model_device"] == "cuda"
