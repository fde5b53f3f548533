"""What leaves the machine tells nothing of it: no folders, no user, no secrets of the environment.

A real training of the small model, in a home folder whose every name is searched for in all that can be downloaded
or is given away: LoRAs, cards, pictures, events, curves, reports.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

pytest.importorskip("torch")

from PIL import Image

from lora_train.app import App
from lora_train.core.assets import DEMO_MODEL
from lora_train.core.diagnosis import Diagnosis
from lora_train.core.host import NoHost
from lora_train.core.tensorfiles import read_tensor_file
from lora_train.core.workspace import Workspace

_WAIT_S = 240
_SECRETS = {
    "HF_TOKEN": "hf_qqqsecretqqqtokenqqq",
    "AWS_SECRET_ACCESS_KEY": "qqqawsqqqkeyqqq",
    "COMMANDLINE_ARGS": "--gradio-auth qqquserqqq:qqqpasswordqqq",
    "USER": "qqqannaqqq",
    "LOGNAME": "qqqannaqqq",
    "USERNAME": "qqqannaqqq",
}
_SETTINGS: dict[str, Any] = {
    "hold_out": 0,
    "epochs": 2,
    "repeats": 1,
    "rank": 2,
    "save_every_epochs": 1,
    "generate_previews": True,
    "preview_prompts": ("a cat",),
    "preview_steps": 2,
    "cpu_threads": 1,
    "validate_every_steps": 0,
}


class Trained(NamedTuple):
    app: App
    home: Path
    job: Any
    loras: Path


class _House(NoHost):
    name = "tested host"

    def __init__(self, loras: Path) -> None:
        self._loras = loras

    def lora_dir(self) -> Path:
        return self._loras

    def lora_root(self) -> Path:
        return self._loras

    def auto_publish(self) -> bool:
        return True


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trained]:
    home = tmp_path_factory.mktemp("x") / "qqqannaqqq" / "qqqprivateqqq folder"
    models, pictures, loras = home / "models", home / "holiday", home / "Lora"
    for folder in (models, pictures, loras):
        folder.mkdir(parents=True)
    shutil.copyfile(DEMO_MODEL, models / "small.safetensors")
    for number in range(2):
        Image.new("RGB", (64, 64), (90 * number, 80, 70)).save(pictures / f"{number}.png")
        (pictures / f"{number}.txt").write_text("a cat", encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in _SECRETS.items():
            patch.setenv(name, value)
        patch.setenv("HOME", str(home))
        app = App(Workspace(home / "workspace"), _House(loras))
        values = {**_SETTINGS, "base_model": str(models / "small.safetensors")}
        job = app.plan_train(name="cat", images=pictures, values=values, publish_to=loras).job
        worker = app.start(job)
        until = time.monotonic() + _WAIT_S
        while app.status(job, worker).state in ("waiting", "running"):
            assert time.monotonic() < until
            time.sleep(0.2)
        status = app.status(job, worker)
        assert status.state == "finished", (status.message, job.log_tail(20))
        assert app.publish_result(job) is not None
        yield Trained(app, home, job, loras)


def found_in(content: bytes, home: Path) -> list[str]:
    """What of a person's own is in a file: it is all marked, but for paths of other folders."""
    text = content.decode("utf-8", errors="replace")
    words = ["qqq", str(home.parents[2]), str(Path(__file__).parents[2]), str(Path.home())]
    return [word for word in words if word != "/" and word in text and not (word == "/root" and "/root" not in text)]


def test_no_lora_tells_where_it_was_made(trained: Trained) -> None:
    files = [*trained.job.path.rglob("*.safetensors"), *trained.loras.rglob("*.safetensors")]
    loras = [path for path in files if "state" not in path.parts]
    assert len(loras) >= 3
    for path in loras:
        metadata = read_tensor_file(path).metadata
        assert metadata["ss_sd_model_name"] == "small.safetensors"
        assert found_in(json.dumps(metadata, ensure_ascii=False).encode(), trained.home) == [], path.name
        assert found_in(path.read_bytes(), trained.home) == [], path.name


def test_no_card_and_no_picture_does(trained: Trained) -> None:
    cards = [path for path in trained.loras.rglob("*") if path.is_file() and path.suffix != ".safetensors"]
    assert {path.suffix for path in cards} >= {".json", ".png"}
    samples = [*trained.job.samples_dir.rglob("*.png")]
    assert samples
    for path in [*cards, *samples]:
        assert found_in(path.read_bytes(), trained.home) == [], path.name
        if path.suffix == ".png":
            with Image.open(path) as picture:
                assert found_in(json.dumps(picture.info, default=str).encode(), trained.home) == []


def test_no_event_curve_or_report_does(trained: Trained) -> None:
    assert found_in(trained.job.events_path.read_bytes(), trained.home) == []
    job = trained.app.workspace.id_of(trained.job.path)
    for text in (
        trained.app.reports.html(job),
        trained.app.reports.curve_csv(job),
        trained.app.reports.curve_json(job),
    ):
        assert text
        assert found_in(text.encode(), trained.home) == []


def test_the_doctor_s_report_does_not(trained: Trained) -> None:
    diagnosis: Diagnosis = trained.app.doctor.examine()
    assert found_in(diagnosis.text().encode(), trained.home) == []
    for word in _SECRETS.values():
        assert word not in diagnosis.text()
