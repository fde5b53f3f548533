"""What leaves the machine tells nothing of it: no folders, no user, no secrets of the environment.

A real training of the small model, and a grid of its LoRAs, in a home folder whose every name is searched for in all
that can be downloaded or is given away: LoRAs, cards, pictures, events, curves, reports, presets, and whatever else a
route answers with as a file.
"""

from __future__ import annotations

import io
import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

pytest.importorskip("torch")
pytest.importorskip("fastapi")
pytest.importorskip("httpx")

from PIL import Image

from lora_train.api.routes import ROUTES
from lora_train.api.shapes import FileAnswer
from lora_train.app import App
from lora_train.core.assets import DEMO_MODEL
from lora_train.core.diagnosis import Diagnosis
from lora_train.core.host import NoHost
from lora_train.core.jobs import JobFolder
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
        self.is_local = True

    def lora_dir(self) -> Path:
        return self._loras

    def lora_root(self) -> Path:
        return self._loras

    def auto_publish(self) -> bool:
        return True

    def takes_paths(self) -> bool:
        return self.is_local


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
        finish(app, job)
        assert app.publish_result(job) is not None
        yield Trained(app, home, job, loras)


def finish(app: App, job: JobFolder) -> None:
    worker, until = app.start(job), time.monotonic() + _WAIT_S
    while app.status(job, worker).state in ("waiting", "running"):
        assert time.monotonic() < until
        time.sleep(0.2)
    status = app.status(job, worker)
    assert status.state == "finished", (status.message, job.log_tail(20))


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


@pytest.fixture(scope="module")
def diagnosis(trained: Trained) -> Diagnosis:
    doctor, until = trained.app.doctor, time.monotonic() + _WAIT_S
    doctor.begin()
    while doctor.snapshot().is_running:
        assert time.monotonic() < until
        time.sleep(0.2)
    found = doctor.snapshot().diagnosis
    assert found is not None
    return found


def test_the_doctor_s_report_does_not(trained: Trained, diagnosis: Diagnosis) -> None:
    assert found_in(diagnosis.text().encode(), trained.home) == []
    for word in _SECRETS.values():
        assert word not in diagnosis.text()


def test_no_file_of_any_route_does(trained: Trained, diagnosis: Diagnosis, servers: Any) -> None:
    """What may be downloaded is asked for as the page does it. A new route has to be added here."""
    from fastapi import FastAPI

    from lora_train.api import TOKEN, PageGate, add_routes

    app, job, server = trained.app, trained.app.workspace.id_of(trained.job.path), FastAPI()
    server.tokens, server.auth = {}, None  # type: ignore[attr-defined]
    add_routes(server, app, PageGate(list, lambda: True), lambda _: {})
    ids = app.workspace.version_of(trained.job.path)
    project, version = ids.project.path.name, ids.path.name
    version_of = {"project": project, "version": version}
    app.presets.save("mine", project, version)
    drawn = {"prompt": "a cat", "weights": "1", "seeds": "1", "steps": "1", "width_px": "64", "height_px": "64"}
    assert app.settings.save(project, version, preview=drawn) == []
    (grid,) = app.grids.begin_all(project, version)
    finish(app, JobFolder(app.workspace.find_job(grid)))
    (grids,) = app.grids.snapshot(project, version).jobs
    grid_files = [lora.file for lora in grids.loras] + [
        file for cell in app.grids.table(grid).cells for file in cell.files
    ]
    (train,) = app.training.list(project, version)
    samples = [path.relative_to(trained.job.path).as_posix() for path in trained.job.samples_dir.rglob("*.png")]
    pictures = [picture.file for picture in app.datasets.snapshot(project, version).pictures]
    asked: dict[str, list[dict[str, str]]] = {
        "dataset/picture": [
            {**version_of, "file": file, "size": size} for file in pictures for size in ("thumb", "full")
        ],
        "doctor/report": [{}],
        "grids/picture": [
            {"job": grid, "file": file, "size": size} for file in grid_files for size in ("thumb", "full")
        ],
        "jobs/curves.csv": [{"job": job}],
        "jobs/curves.json": [{"job": job}],
        "jobs/report": [{"job": job}],
        "jobs/file": [
            {"job": job, "file": file, "download": "true"} for file in [*samples, *(lora.file for lora in train.loras)]
        ],
        "presets/file": [{"name": "mine"}],
    }
    assert asked.keys() == {route.path for route in ROUTES if issubclass(route.gives, FileAnswer)}
    for route, queries in asked.items():
        assert queries, route
        for query in queries:
            answer = servers.call(
                server, "GET", f"/train-tools/v1/{route}", headers={"X-Train-Tools": TOKEN}, params=query
            )
            assert (answer.status_code, len(answer.content) > 0) == (200, True), (route, query, answer.text)
            assert found_in(answer.content, trained.home) == [], (route, query)
            assert found_in(str(answer.headers).encode(), trained.home) == [], (route, query)
            if answer.headers["content-type"] == "image/png":
                with Image.open(io.BytesIO(answer.content)) as picture:
                    assert found_in(json.dumps(picture.info, default=str).encode(), trained.home) == [], (route, query)


def test_the_log_names_folders_to_who_sits_at_the_machine_alone(trained: Trained) -> None:
    """It is there to mend what failed, and Python's own reports of errors name the files of code."""
    app, job, house = trained.app, trained.app.workspace.id_of(trained.job.path), trained.app.host
    assert isinstance(house, _House)
    assert found_in(app.training.log(job).encode(), trained.home) == [], "a training without an error names none"
    before = trained.job.log_path.read_bytes()
    place = trained.home / "models" / "a file.py"
    told = f"  File \"{place}\", line 3\nOSError: [Errno 5] I/O error: '{place}'\nC:\\Users\\qqqannaqqq\\x.txt\n"
    trained.job.log_path.write_text(told, encoding="utf-8")
    try:
        assert app.training.log(job) == told.strip("\n")
        house.is_local = False
        for log in (app.training.log(job), app.snapshot(*job.split("/")[1:4:2], job).log_tail):
            assert log.splitlines() == [
                '  File "…/a file.py", line 3',
                "OSError: [Errno 5] I/O error: '…/a file.py'",
                "…/x.txt",
            ]
    finally:
        house.is_local = True
        trained.job.log_path.write_bytes(before)
