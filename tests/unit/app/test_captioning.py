"""Which captioner is taken, what is told where none can be, and the downloads; no worker is started."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import pytest

from lora_train.app import captioning
from lora_train.core import events as ev
from lora_train.core.captioners import MODELS, CaptionerModel
from lora_train.core.errors import JobError, ModelError, WorkspaceError
from lora_train.core.jobs import JobFolder
from lora_train.core.specs import CaptionPlan, CaptionSpec, DatasetSpec, DownloadSpec
from lora_train.launch import launcher

if TYPE_CHECKING:
    from tests.unit.app.conftest import Desk

VIT, SWIN, BLIP = MODELS


class StandInWorker(launcher.Worker):
    """Runs until the test says that it has ended."""

    started: ClassVar[list[JobFolder]] = []

    def __init__(self, job: JobFolder) -> None:
        self.ended = False
        self.started.append(job)
        writer = ev.EventWriter(job.events_path)
        writer.write(ev.Started(pid=0))
        writer.close()

    def __del__(self) -> None:
        pass

    def poll(self) -> int | None:
        return 0 if self.ended else None


@pytest.fixture(autouse=True)
def started(monkeypatch: pytest.MonkeyPatch) -> list[JobFolder]:
    """The jobs whose workers would have been started. All packages are there."""
    StandInWorker.started = []
    monkeypatch.setattr(launcher, "start_worker", StandInWorker)
    monkeypatch.setattr(captioning, "missing_packages", lambda kind: ())
    return StandInWorker.started


@pytest.fixture
def version(desk: Desk) -> Any:
    return desk.workspace.find_version(*desk.version())


def end(desk: Desk, job: JobFolder, event: ev.Event) -> None:
    desk.tell(job, event)
    captions = desk.app.captioning
    for workers in (captions._workers, captions._jobs._workers, desk.app.datasets._updates):
        if job.path in workers:
            workers[job.path].ended = True  # type: ignore[union-attr]


def put(desk: Desk, model: CaptionerModel) -> str:
    """A model in the workspace, its files of the right sizes; they take no room."""
    folder = desk.workspace.captioners_dir / model.name
    folder.mkdir(parents=True)
    for file in model.files:
        with (folder / file.name).open("wb") as stream:
            stream.truncate(file.size_bytes)
    return str(folder)


def own_tagger(desk: Desk) -> str:
    folder = desk.root / "mine"
    folder.mkdir()
    for name in ("model.onnx", "selected_tags.csv"):
        (folder / name).touch()
    return str(folder)


def have(desk: Desk, *kinds: str, absent: tuple[str, ...] = ()) -> None:
    """Captioners of the host's own."""
    desk.host.captioners = lambda: kinds  # type: ignore[method-assign, assignment, return-value]
    desk.host.absent_captioners = lambda: absent  # type: ignore[method-assign, assignment, return-value]


def tick(desk: Desk, **settings: object) -> None:
    assert desk.app.settings.save("cat", "v1", caption=settings) == []


def used(desk: Desk) -> tuple[str, str, tuple[str, ...]]:
    plan = desk.app.captioning.plan(desk.workspace.find_version("cat", "v1"))
    return plan.blip, plan.wd14, plan.host


# --- the rule ---


def test_nothing_there_asks_once(desk: Desk, version: Any) -> None:
    choices = desk.app.captioning.choices("cat", "v1")
    assert choices.must_ask
    assert (choices.answer, choices.uses, choices.problems) == ("", [], [])
    assert used(desk) == ("", "", ())
    assert [(entry.name, entry.choice, entry.is_present, entry.download_mb) for entry in choices.captioners] == [
        ("wd-vit-tagger-v3", "wd14", False, 379),
        ("wd-swinv2-tagger-v3", "wd14", False, 468),
        ("blip-image-captioning-base", "blip", False, 991),
    ]
    assert not any(entry.is_wanted for entry in choices.captioners)
    assert desk.app.captioning.answer("none") == ""
    again = desk.again().captioning.choices("cat", "v1")
    assert (again.answer, again.must_ask) == ("none", False)


def test_the_best_that_is_there(desk: Desk, version: Any) -> None:
    have(desk, "blip", "deepbooru", absent=("blip",))
    assert used(desk) == ("", "", ("deepbooru",)), "the other one would come by itself, without progress"
    blip = put(desk, BLIP)
    assert used(desk) == (blip, "", ())
    vit = put(desk, VIT)
    assert used(desk) == ("", vit, ())
    swin = put(desk, SWIN)
    assert used(desk) == ("", swin, ())
    assert desk.app.captioning.choices("cat", "v1").uses == ["WD14 tagger"]
    tick(desk, wd14_model=own_tagger(desk))
    assert used(desk) == ("", str(desk.root / "mine"), ())


def test_what_was_answered_is_taken(desk: Desk, version: Any) -> None:
    put(desk, VIT)
    blip = put(desk, BLIP)
    desk.app.captioning.answer("blip")
    assert used(desk) == (blip, "", ())
    desk.app.captioning.answer("none")
    assert used(desk) == ("", "", ())
    desk.app.captioning.answer("host")
    with pytest.raises(ModelError, match="no captioner of its own"):
        used(desk)
    have(desk, "blip", "deepbooru", absent=("blip", "deepbooru"))
    assert used(desk) == ("", "", ("blip",)), "the person was told that it comes at the first use"
    have(desk, "blip", "deepbooru", absent=("blip",))
    assert used(desk) == ("", "", ("deepbooru",))


def test_ticks_win_over_answers(desk: Desk, version: Any) -> None:
    vit = put(desk, VIT)
    desk.app.captioning.answer("none")
    tick(desk, use_wd14=True, max_tags=9)
    assert used(desk) == ("", vit, ())
    assert desk.app.captioning.plan(version).settings.max_tags == 9
    have(desk, "blip", "deepbooru")
    tick(desk, use_blip=True, use_deepbooru=True)
    assert used(desk) == ("", vit, ("blip", "deepbooru"))
    assert desk.app.captioning.choices("cat", "v1").uses == [
        "The WebUI's BLIP",
        "WD14 tagger",
        "The WebUI's DeepDanbooru",
    ]
    blip = put(desk, BLIP)
    assert used(desk) == (blip, vit, ("deepbooru",)), "our own before the host's"


# --- what can't be used ---


def test_all_that_is_ticked_in_vain_is_told(desk: Desk, version: Any) -> None:
    tick(desk, use_wd14=True, use_blip=True, use_deepbooru=True)
    choices = desk.app.captioning.choices("cat", "v1")
    assert not choices.must_ask
    assert choices.uses == []
    assert choices.problems == [
        "BLIP is not here yet. Download it (991 MB), or give its folder.",
        "WD14 tagger is not here yet. Download it (379 MB), or give its folder.",
        "There is no WebUI here that has DeepDanbooru. WD14 writes such tags too.",
        "Or untick it.",
    ]
    with pytest.raises(ModelError, match="BLIP is not here yet"):
        desk.app.datasets.start_update("cat", "v1")


def test_a_folder_that_is_none(desk: Desk, version: Any) -> None:
    put(desk, VIT)
    have(desk, "blip")
    tick(desk, use_wd14=True, wd14_model=str(desk.root))
    with pytest.raises(ModelError, match=r"is no WD14 tagger: it must hold model\.onnx and selected_tags\.csv"):
        used(desk)
    tick(desk, use_wd14=False, use_blip=True, blip_model=str(desk.root / "none"))
    with pytest.raises(ModelError, match=r"is no BLIP: it must hold config\.json and weights"):
        used(desk)


def test_a_package_that_is_missing(desk: Desk, version: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    put(desk, VIT)
    blip = put(desk, BLIP)
    monkeypatch.setattr(captioning, "missing_packages", lambda kind: ("onnxruntime",) if kind == "wd14" else ())
    assert used(desk) == (blip, "", ()), "the best that works"
    entry = desk.app.captioning.choices("cat", "v1").captioners[0]
    assert (entry.is_present, entry.problem) == (
        True,
        "WD14 tagger (ViT) needs onnxruntime, which this Python has not.",
    )
    assert entry.command.endswith("-m pip install onnxruntime")
    desk.app.captioning.answer("wd14")
    assert desk.app.captioning.choices("cat", "v1").problems[0] == (
        "WD14 tagger needs onnxruntime, which this Python has not."
    )


# --- downloads ---


def test_an_answer_downloads_what_is_missing(desk: Desk, version: Any, started: list[JobFolder]) -> None:
    job_id = desk.app.captioning.answer("wd14")
    [job] = started
    assert desk.workspace.id_of(job.path) == job_id
    assert job.read_spec() == DownloadSpec(model=VIT.name, folder=str(desk.workspace.captioners_dir / VIT.name))
    assert desk.app.captioning.answer("wd14") == desk.app.captioning.download(VIT.name) == job_id, "it runs"
    desk.tell(job, ev.Phase(name="downloading", done=5, total=10))
    entry = desk.app.captioning.choices("cat", "v1").captioners[0]
    assert entry.download is not None
    assert (entry.download.state, entry.download.phase_done, entry.download_job) == ("running", 5, job_id)
    with pytest.raises(ModelError, match="WD14 tagger is still being downloaded"):
        used(desk)

    end(desk, job, ev.Failed(error="ModelError", message="The server hangs."))
    choices = desk.app.captioning.choices("cat", "v1")
    assert choices.captioners[0].download is not None
    assert choices.captioners[0].download.message == "The server hangs."
    assert choices.problems[0] == "WD14 tagger is not here yet."
    again = desk.app.captioning.download(VIT.name)
    assert again != job_id

    put(desk, VIT)
    end(desk, started[-1], ev.Finished())
    choices = desk.app.captioning.choices("cat", "v1")
    assert (choices.captioners[0].is_present, choices.captioners[0].download, choices.uses) == (
        True,
        None,
        ["WD14 tagger"],
    )
    assert desk.app.captioning.download(VIT.name) == ""
    assert len(started) == 2


def test_another_tagger_is_downloaded_by_name(desk: Desk, version: Any, started: list[JobFolder]) -> None:
    assert desk.app.captioning.download(SWIN.name)
    with pytest.raises(ModelError, match="no captioner 'wd-v9'"):
        desk.app.captioning.download("wd-v9")
    assert len(started) == 1


def wanted(desk: Desk) -> list[tuple[str, int]]:
    """What the page offers to download, and its size in megabytes."""
    choices = desk.app.captioning.choices("cat", "v1")
    return [(entry.name, entry.download_mb) for entry in choices.captioners if entry.is_wanted]


def test_what_is_ticked_or_answered_and_not_there_is_offered(desk: Desk, version: Any) -> None:
    desk.app.captioning.answer("none")
    assert wanted(desk) == []
    desk.app.captioning._write(captioning._Memory(answer="wd14"))
    assert wanted(desk) == [(VIT.name, 379)]
    tick(desk, use_blip=True)
    assert wanted(desk) == [(BLIP.name, 991)]
    have(desk, "blip")
    assert wanted(desk) == [], "the host's own does it"
    tick(desk, use_wd14=True)
    assert wanted(desk) == [(VIT.name, 379)]
    put(desk, VIT)
    assert wanted(desk) == []


def test_a_model_of_the_hub_is_offered_and_fetched_when_asked_for(
    desk: Desk, version: Any, started: list[JobFolder]
) -> None:
    tick(desk, use_blip=True, blip_model=" microsoft/git-base ")
    choices = desk.app.captioning.choices("cat", "v1")
    assert choices.problems[0] == "microsoft/git-base is not here yet. Download it, or give its folder."
    assert wanted(desk) == [("microsoft/git-base", 0)]
    assert choices.captioners[-1].choice == "blip"
    assert started == []

    job_id = desk.app.captioning.download("microsoft/git-base", "blip")
    [job] = started
    folder = desk.workspace.captioners_dir / "microsoft--git-base"
    assert job.read_spec() == DownloadSpec(model="microsoft/git-base", folder=str(folder), captioner="blip")
    assert desk.app.captioning.download(" microsoft/git-base", "blip") == job_id, "it runs"
    desk.tell(job, ev.Phase(name="downloading", done=5, total=10))
    entry = desk.app.captioning.choices("cat", "v1").captioners[len(MODELS)]
    assert entry.download is not None
    assert (entry.download.phase_done, entry.download_job) == (5, job_id)
    with pytest.raises(ModelError, match="microsoft/git-base is still being downloaded"):
        used(desk)

    folder.mkdir(parents=True)
    for name in ("config.json", "model.safetensors"):
        (folder / name).touch()
    end(desk, job, ev.Finished())
    assert used(desk) == (str(folder), "", ())
    assert wanted(desk) == []
    assert desk.app.captioning.download("microsoft/git-base", "blip") == ""


def test_a_typed_model_is_offered_without_a_tick(desk: Desk, version: Any, started: list[JobFolder]) -> None:
    tick(desk, wd14_model="deepghs/pixai-tagger")
    choices = desk.app.captioning.choices("cat", "v1")
    assert (wanted(desk), choices.must_ask) == ([("deepghs/pixai-tagger", 0)], False)
    tick(desk, wd14_model=VIT.repository)
    assert wanted(desk) == [(VIT.name, 379)], "one that we know, with its checksums"
    vit = put(desk, VIT)
    assert (wanted(desk), used(desk)) == ([], ("", vit, ()))


def test_a_hub_name_without_its_kind(desk: Desk, version: Any, started: list[JobFolder]) -> None:
    for name, kind in (("microsoft/git-base", None), ("../git-base", "blip")):
        with pytest.raises(ModelError, match="There is no captioner"):
            desk.app.captioning.download(name, kind)  # type: ignore[arg-type]
    assert started == []


# --- captions on demand, and the update ---


def test_captions_on_demand(desk: Desk, version: Any, started: list[JobFolder]) -> None:
    desk.trained("4_cat/a.png")
    with pytest.raises(JobError, match="Nothing is chosen to write captions"):
        desk.app.captioning.start("cat", "v1")
    vit = put(desk, VIT)
    desk.app.settings.save("cat", "v1", train={"trigger_word": "sks"})
    job_id = desk.app.captioning.start("cat", "v1", ("4_cat/a.png",), "overwrite")
    [job] = started
    spec = job.read_spec()
    assert isinstance(spec, CaptionSpec)
    assert (job.path / spec.dataset).resolve() == version.path / "dataset"
    assert (job.path / spec.trash).resolve() == desk.workspace.trash_dir
    assert (spec.files, spec.concept, spec.plan.wd14, spec.plan.settings.policy) == (
        ("4_cat/a.png",),
        "sks",
        vit,
        "overwrite",
    )
    assert version.info().caption_job == job_id
    status = desk.app.captioning.choices("cat", "v1").job
    assert status is not None
    assert status.state == "running"
    with pytest.raises(JobError, match="captioned already"):
        desk.app.datasets.remove("cat", "v1", "4_cat/a.png")
    for refused in (desk.app.captioning.start, desk.app.datasets.start_update):
        with pytest.raises(JobError, match=r"captioned already|Captions are being written"):
            refused("cat", "v1")
    with pytest.raises(JobError, match="is being updated"):
        desk.app.projects.delete("cat")
    with pytest.raises(JobError, match="No update is running"):
        desk.app.datasets.stop_update("cat", "v1")
    desk.app.captioning.stop("cat", "v1")
    assert job.requested() == "stop"
    end(desk, job, ev.Stopped(step=0))
    with pytest.raises(JobError, match="No captions are being written"):
        desk.app.captioning.stop("cat", "v1")
    with pytest.raises(WorkspaceError):
        desk.app.captioning.start("dog", "v1")


def test_a_training_that_reads_the_pictures_is_not_disturbed(desk: Desk, version: Any) -> None:
    put(desk, VIT)
    desk.trained("4_cat/a.png")
    desk.app.training._jobs.add(desk.train())
    with pytest.raises(JobError, match="needs the pictures as they are"):
        desk.app.captioning.start("cat", "v1")


def test_an_update_is_told_what_captions(desk: Desk, version: Any, started: list[JobFolder]) -> None:
    desk.app.datasets.start_update("cat", "v1")
    spec = started[0].read_spec()
    assert isinstance(spec, DatasetSpec)
    assert spec.captions == CaptionPlan()
    put(desk, VIT)
    for refused in (
        lambda: desk.app.captioning.start("cat", "v1"),
        lambda: desk.app.datasets.remove("cat", "v1", "4_cat/a.png"),
    ):
        with pytest.raises(JobError, match="updated or captioned already"):
            refused()
    end(desk, started[0], ev.Finished())
    desk.app.datasets.start_update("cat", "v1")
    spec = started[1].read_spec()
    assert isinstance(spec, DatasetSpec)
    assert spec.captions.wd14.endswith(VIT.name)
