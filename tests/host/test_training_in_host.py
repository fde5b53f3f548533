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


def test_a_training_and_two_reloads(start_host: Callable[..., Any], tmp_path: Path) -> None:
    checkpoints = tmp_path / "models" / "Stable-diffusion"
    checkpoints.mkdir(parents=True)
    (checkpoints / "one.safetensors").write_bytes(b"")
    host = start_host("--device", "cuda", "--api")
    headers = host.token()

    def ours(path: str, body: object = None) -> Any:
        status, answer = host.call(f"train-tools/v1/{path}", body, headers)
        assert status == 200, (path, answer)
        return answer

    def draw() -> tuple[int, Any]:
        return host.call("sdapi/v1/txt2img", {"prompt": "a cat", "steps": 1})

    before = draw()
    assert before[0] == 200
    ours("projects", {"name": "Cat"})
    ours("versions", {"project": "Cat", "name": "v1"})
    pictures = [str(path) for path in sorted(DEMO_PICTURES.rglob("*.png"))[:4]]
    assert ours("dataset/server-files", {**VERSION, "paths": pictures}) == {"problems": []}
    assert ours("settings", {**VERSION, "train": SETTINGS, "dataset": {"as_is": True}}) == {"problems": []}
    ours("dataset/update", VERSION)
    host.wait_until(lambda: ours("dataset?project=Cat&version=v1")["update"]["state"] == "finished")

    job = ours("trains", VERSION)["job"]
    status = f"jobs/status?job={job}"
    host.wait_until(lambda: ours(status)["step"] > 0)
    worker = ours(status)["pid"]
    assert host.state()["model_device"] == "cpu"
    assert not host.state()["lock_is_held"]
    for _ in range(2):
        code, answer = draw()
        assert code == 503
        assert answer["detail"].startswith("Train Tools is training on this card: Cat")
        host.reload_ui()
        assert (ours(status)["state"], ours(status)["pid"]) == ("running", worker)
        assert host.state()["model_device"] == "cpu"
    assert host.state()["threads"].count("train-tools-queue") == 1
    assert draw()[0] == 503

    ours("jobs/stop", {"job": job})
    host.wait_until(lambda: host.state()["model_device"] == "cuda")
    assert ours(status)["state"] == "stopped"
    assert draw() == before
    assert not {"torch", "diffusers", "transformers"} & set(host.state()["imported"])

    host.wait_until(lambda: host.call("sdapi/v1/loras")[1])  # published by itself, and the host's list renewed
    name = host.call("sdapi/v1/loras")[1][0]["name"]
    assert name.startswith("Cat-v1")
    status, with_lora = host.call("sdapi/v1/txt2img", {"prompt": f"a cat <lora:{name}:1>", "steps": 1})
    assert status == 200
    assert with_lora["images"] != before[1]["images"]
