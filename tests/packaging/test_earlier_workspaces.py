"""Workspaces that earlier releases wrote, with their own code (see tests/fixtures/workspaces): all is there, works, and
nothing changes because somebody looks. Then what a newer release would write: told, and kept.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from lora_train.app import App
from lora_train.core.errors import JobError
from lora_train.core.jobs import JobFolder
from lora_train.core.specs import TrainSpec
from lora_train.core.workspace import Workspace
from lora_train.launch import launcher

ARCHIVE = Path(__file__).parents[1] / "fixtures" / "workspaces" / "workspaces.tar.xz"
RELEASES = (
    "2026-11-23-1407",  # the command line alone
    "2026-11-23-1721",  # the page: versions, the queue, the trash
    "2026-11-28-0233",  # captions with a history, Update Dataset by crops and pieces
    "2026-11-28-0557",  # presets, all families and optimizers
    "2026-11-28-1130",  # grids, sweeps, judgements, proofs
    "2026-11-28-1249",  # memory plans, processes that train together
)
WITH_PAGE, WITH_CAPTIONS, WITH_PRESETS, WITH_RESULTS = RELEASES[1:], RELEASES[2:], RELEASES[3:], RELEASES[4:]
PROJECT = "自作 LoRA"
TRAIN = f"projects/{PROJECT}/versions/v1/trains/{PROJECT}-v1"
PAUSED = f"{TRAIN}-r2"


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("releases")
    with tarfile.open(ARCHIVE) as packed:
        packed.extractall(folder)
    return folder


@pytest.fixture
def opened(unpacked: Path, tmp_path: Path) -> Callable[[str], App]:
    """The workspace of a release, in a place of its own."""

    def open_(release: str) -> App:
        return App(Workspace(shutil.copytree(unpacked / release, tmp_path / "workspace")))

    return open_


def hashes(root: Path) -> dict[str, str]:
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_every_release_is_here(unpacked: Path) -> None:
    assert tuple(sorted(path.name for path in unpacked.iterdir())) == RELEASES


@pytest.mark.parametrize("release", RELEASES)
def test_all_is_shown_and_looking_changes_nothing(release: str, opened: Callable[[str], App]) -> None:
    app = opened(release)
    root = app.workspace.root
    before = hashes(root)
    (project,) = app.projects.list()
    assert project.name == PROJECT
    wanted = ["v1"] + ["v2: second"] * (release in WITH_PAGE) + ["v3"] * (release in WITH_CAPTIONS)
    assert sorted(version.name for version in project.versions) == wanted
    paused, finished = app.training.list(project.id, "v1")
    assert (finished.status.state, finished.status.saved) == (
        "finished",
        [f"{PROJECT}-v1-000001.safetensors", f"{PROJECT}-v1.safetensors"],
    )
    assert paused.status.state == "paused"
    assert paused.status.step > 0
    settings = app.settings.train(project.id, "v1")
    assert (settings["base_model"], settings["optimizer"], settings["rank"]) == ("demo", "SGDNesterov", 1)
    for version in project.versions:
        snapshot = app.snapshot(project.id, version.id)
        pictures = snapshot.dataset.pictures
        assert len(pictures) == (1 if version.name == "v3" else 3)
        assert snapshot.dataset.problems == []
        assert all(picture.caption for picture in pictures)
    assert app.training.curve(TRAIN)
    assert all(app.inspect(root / TRAIN / name).lora is not None for name in finished.status.saved)
    after = hashes(root)
    assert {name: after.get(name) for name in before} == before
    assert after.keys() - before.keys() <= {"page.json"}


@pytest.mark.parametrize("release", WITH_PAGE)
def test_captions_and_the_trash(release: str, opened: Callable[[str], App]) -> None:
    app = opened(release)
    captions = [picture.caption for picture in app.datasets.snapshot(PROJECT, "v1").pictures]
    assert "sks, written by hand, 手書き" in captions
    (entry,) = [path.name for path in app.workspace.trash_dir.iterdir() if path.is_dir()]
    app.projects.restore(entry)
    assert "deleted" in [version.name for version in app.projects.list()[0].versions]
    if release in WITH_CAPTIONS:
        assert app.datasets.snapshot(PROJECT, "v3").pictures[0].caption == "sks, 星, star"
        app.captions.undo(PROJECT, "v3")
        assert app.datasets.snapshot(PROJECT, "v3").pictures[0].caption == "sks"


@pytest.mark.parametrize("release", WITH_PRESETS)
def test_presets(release: str, opened: Callable[[str], App]) -> None:
    app = opened(release)
    assert "mine" in [preset.name for preset in app.presets.list() if preset.is_own]
    app.presets.apply(PROJECT, "v1", "mine")


@pytest.mark.parametrize("release", WITH_RESULTS)
def test_grids_sweeps_and_judgements(release: str, opened: Callable[[str], App]) -> None:
    app = opened(release)
    judgement = app.judging.judgement(TRAIN)
    assert judgement is not None
    assert [row.lora for row in judgement.rows] == [f"{PROJECT}-v1-000001.safetensors", f"{PROJECT}-v1.safetensors"]
    assert judgement.reason.startswith("Nothing is recommended")
    grid = next(path for path in app.workspace.jobs_dir.iterdir() if path.name.endswith("-grid"))
    assert app.status(JobFolder(grid)).state == "finished"
    (sweep,) = app.sweeps.list(PROJECT, "v3")
    assert [row.status.state for row in sweep.rows] == ["finished", "finished"]
    assert "自作" in app.reports.html_of(JobFolder(app.workspace.root / TRAIN))


def test_paused_trainings_go_on(
    opened: Callable[[str], App], share: Callable[[int], int], count: Callable[[str, int], None]
) -> None:
    """By today's worker, from the state that the release left; the oldest is the furthest from today's."""
    for release in RELEASES[: share(len(RELEASES))]:
        app = opened(release)
        job = JobFolder(app.workspace.root / PAUSED)
        spec = job.read_spec()
        assert isinstance(spec, TrainSpec)
        at = launcher.read_status(job).step
        soon = msgspec.structs.replace(spec.settings, epochs=at + 2)
        job.replace_spec(msgspec.structs.replace(spec, settings=soon))
        # A caption was written while it was paused: it goes on with those alone that it began with.
        caption = next((job.path / spec.dataset).resolve().rglob("sks_00.txt"))
        if release in WITH_PAGE:
            assert app.start(job).wait() == 1
            assert "are not the ones this training began with" in app.status(job).message
            assert "written by hand" in caption.read_text(encoding="utf-8")
            caption.write_text("sks, white background", encoding="utf-8")
        worker = app.start(job)
        worker.wait()
        status = app.status(job)
        assert (status.state, status.step) == ("finished", at + 2), f"{status.message}\n{job.log_tail()}"
        assert status.saved == [f"{PROJECT}-v1-r2.safetensors"]
        count("paused trainings resumed", 1)
        shutil.rmtree(app.workspace.root)


# --- what a newer release would write ---


def add_to(path: Path, *where: str, **fields: Any) -> dict[str, Any]:
    """Put more fields into a JSON file; returns all that is in it."""
    content = json.loads(path.read_text(encoding="utf-8"))
    inner = content
    for name in where:
        inner = inner[name]
    inner.update(fields)
    path.write_text(json.dumps(content), encoding="utf-8")
    return content


def test_what_a_newer_release_added_stays(opened: Callable[[str], App]) -> None:
    """This one changes its own settings beside it."""
    app = opened(RELEASES[-1])
    version = app.workspace.find_version(PROJECT, "v1")
    path, project = version.path / "version.json", version.project.path / "project.json"
    add_to(path, mood={"of": ["tomorrow"]})
    add_to(path, "train", sharpness=0.5)
    add_to(project, colour="blue")
    assert app.settings.save(PROJECT, "v1", train={"rank": 2}) == []
    version.rename("v1 renamed")
    app.projects.rename(PROJECT, "renamed")
    (renamed,) = app.workspace.projects()
    kept = json.loads(next(renamed.path.glob("versions/v1*/version.json")).read_text(encoding="utf-8"))
    assert (kept["mood"], kept["train"]["sharpness"], kept["train"]["rank"]) == ({"of": ["tomorrow"]}, 0.5, 2)
    assert json.loads((renamed.path / "project.json").read_text(encoding="utf-8"))["colour"] == "blue"


def test_a_training_of_a_newer_release_is_told_and_left_alone(opened: Callable[[str], App]) -> None:
    app = opened(RELEASES[-1])
    job = JobFolder(app.workspace.root / PAUSED)
    add_to(job.spec_path, "settings", sharpness=0.5)
    with job.events_path.open("ab") as events:
        events.write(json.dumps({"kind": "sharpened", "t": time.time()}).encode() + b"\n")
    before = hashes(app.workspace.root)
    with pytest.raises(JobError, match="sharpness") as told:
        job.read_spec()
    assert "a newer release" in told.value.hint
    with pytest.raises(JobError, match="can't be used"):
        app.start(job)
    with pytest.raises(JobError, match="can't be used"):
        app.training.resume(PAUSED)
    assert [train.status.state for train in app.training.list(PROJECT, "v1")].count("finished") == 1
    app.snapshot(PROJECT, "v1")
    after = hashes(app.workspace.root)
    assert {name: after.get(name) for name in before} == before


@pytest.mark.parametrize("name", ["grid", "judge", "dataset"])
def test_other_jobs_of_a_newer_release_hide_nothing(name: str, opened: Callable[[str], App]) -> None:
    app = opened(RELEASES[-1])
    for path in app.workspace.jobs_dir.glob(f"*-{name}/job.json"):
        add_to(path, kind=f"{name} of tomorrow")
    for version in ("v1", "v3"):
        app.snapshot(PROJECT, version)
        app.grids.snapshot(PROJECT, version)
        app.sweeps.list(PROJECT, version)
    assert len(app.training.list(PROJECT, "v1")) == 2
