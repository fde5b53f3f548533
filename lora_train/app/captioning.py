"""Which captioner is used, how it gets here, and captions on demand.

Ticked boxes decide. Without any it is what the person has once answered, else the best that is there: WD14, then BLIP,
then the host's own; and where there is none, the page asks.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec

from lora_train.app.caption_jobs import CaptionJobs
from lora_train.app.caption_labels import HOST_LABELS, KINDS, labels_of
from lora_train.app.datasets import Datasets
from lora_train.app.snapshot import CaptionChoice, CaptionerEntry, CaptioningSnapshot
from lora_train.app.version_settings import caption_settings, fallback_caption
from lora_train.app.watching import Watch
from lora_train.core.caption_settings import CaptionerKind, CaptionPolicy, CaptionSettings
from lora_train.core.captioners import (
    MODELS,
    CaptionerModel,
    find_model,
    folder_of,
    has_model,
    is_hub_name,
    missing_packages,
    typed_folder,
)
from lora_train.core.errors import JobError, ModelError, WorkspaceError
from lora_train.core.host import Host, HostCaptioner
from lora_train.core.installing import install_command
from lora_train.core.jobs import JobFolder, JobStatus
from lora_train.core.records import read_json, write_json
from lora_train.core.specs import CaptionPlan, DownloadSpec
from lora_train.core.workspace import Version, Workspace
from lora_train.launch import launcher


class _Memory(msgspec.Struct):
    """`captioning.json` in the workspace."""

    answer: Literal["", "wd14", "blip", "host", "none"] = ""
    downloads: dict[str, str] = {}
    """Name of a model -> the last job that downloaded it, relative to the workspace."""


class _Found(NamedTuple):
    """The folder of a model; or else why there is none that can be used, and what to do."""

    folder: str
    problem: str = ""
    hint: str = ""


class Captioning:
    def __init__(self, workspace: Workspace, host: Host, datasets: Datasets, watch: Watch) -> None:
        self._workspace = workspace
        self._host = host
        self._datasets = datasets
        self._watch = watch
        self._jobs = CaptionJobs(workspace, host, watch)
        self._changing = threading.Lock()
        self._workers: dict[Path, launcher.Worker] = {}

    # --- what there is, and what is chosen ---

    def choices(self, project: str, version: str) -> CaptioningSnapshot:
        """What could write captions, what would, and what does. Raises WorkspaceError for an unknown version."""
        found = self._workspace.find_version(project, version)
        settings = caption_settings(found)
        memory = self._memory()
        absent = self._absent_models(settings)
        models = (*MODELS, *(model for model in absent if model not in MODELS))
        entries = [self._entry_of(model, memory, is_wanted=model in absent) for model in models]
        snapshot = CaptioningSnapshot(
            captioners=entries + self._host_entries(),
            answer=memory.answer,
            job=self._jobs.status(found),
        )
        try:
            plan = self.plan(found)
        except ModelError as error:
            snapshot.problems = [*error.message.splitlines(), error.hint]
            return snapshot
        snapshot.uses = labels_of(plan)
        snapshot.must_ask = not (snapshot.uses or memory.answer or absent or _is_any_ticked(settings))
        return snapshot

    def plan(self, version: Version) -> CaptionPlan:
        """What writes the captions of a version now; an empty plan where nothing does.

        Raises ModelError, with a line for each, when something that was ticked or answered can't be used.
        """
        settings = caption_settings(version)
        if _is_any_ticked(settings):
            return self._ticked_plan(settings)
        answer = self._memory().answer
        if answer == "none":
            return CaptionPlan(settings=settings)
        if answer == "host":
            return CaptionPlan(host=self._host_answer(), settings=settings)
        if answer:
            found = self._find(answer, settings)
            if found.problem:
                raise ModelError(found.problem, found.hint)
            return _plan_of(answer, found.folder, settings)
        return self._best_plan(settings)

    def answer(self, choice: CaptionChoice) -> str:
        """Remember what is to write captions where nothing is ticked, in all versions.

        Where that is a model that is not there, its download begins; its job's id, empty where there is none. Raises
        JobError when the download can't start.
        """
        with self._changing:
            memory = self._memory()
            memory.answer = choice
            self._write(memory)
        if choice not in ("wd14", "blip") or self._any_folder(choice) is not None:
            return ""
        return self.download(_proposed(choice).name)

    def download(self, name: str, kind: CaptionerKind | None = None) -> str:
        """Begin to download a model, or tell the job that does; empty where it is there already.

        The name is one of `core.captioners`, or, with the kind, that of any model on the hub. Raises ModelError for one
        that is neither, JobError when the worker can't start.
        """
        model = find_model(name, kind)
        folder = self._workspace.captioners_dir / model.folder_name
        with self._changing:
            if folder_of(model, self._workspace.captioners_dir) is not None:
                return ""
            memory = self._memory()
            if _is_at_work(self._download_status(memory, model)):
                return memory.downloads[model.name]
            job = JobFolder(self._workspace.new_job_dir("download"))
            job.create(DownloadSpec(model=model.name, folder=str(folder), captioner=kind))
            for ended in self._workers.values():
                ended.poll()  # lets the system forget it
            self._workers[job.path] = launcher.start_worker(job)
            memory.downloads[model.name] = job_id = self._workspace.id_of(job.path)
            self._write(memory)
        return job_id

    def absent_models(self, project: str, version: str) -> list[CaptionerModel]:
        """The models, for `download`, that are ticked, answered or typed, and not here.

        Raises WorkspaceError for an unknown version, ModelError for one that this Python could not use.
        """
        models = self._absent_models(caption_settings(self._workspace.find_version(project, version)))
        for model in models:
            if packages := missing_packages(model.kind):
                raise ModelError(_lacks(KINDS[model.kind], packages), f"Install with: {install_command(packages)}")
        return models

    # --- captions on demand ---

    def start(
        self, project: str, version: str, files: tuple[str, ...] = (), policy: CaptionPolicy | None = None
    ) -> str:
        """Caption pictures of the trained set (all, without `files`), by the policy or that of the settings.

        Gives the job's id. Raises WorkspaceError for an unknown version, JobError while the pictures are needed as they
        are or nothing is chosen to write captions, ModelError when what is chosen can't be used, DatasetError when the
        history of the captions can't be written.
        """
        found = self._workspace.find_version(project, version)
        plan = self.plan(found)
        if not labels_of(plan):
            raise JobError("Nothing is chosen to write captions.", "Tick WD14 or BLIP, and download it.")
        if policy is not None:
            plan = msgspec.structs.replace(plan, settings=msgspec.structs.replace(plan.settings, policy=policy))
        with self._datasets.changing_captions(found):
            return self._jobs.start(found, plan, files, fallback_caption(found))

    def stop(self, project: str, version: str) -> None:
        """What is written stays. Raises JobError when nothing is being captioned."""
        self._jobs.stop(self._workspace.find_version(project, version))

    # --- for *Update Dataset* (`datasets.Captions`) ---

    def plan_for_update(self, version: Version) -> CaptionPlan:
        """As `plan`. Raises JobError too, while captions are being written."""
        if self._jobs.is_busy(version):
            raise JobError("Captions are being written.", "Wait for their end, or stop that.")
        return self.plan(version)

    def update_began(self, version: Version, job: JobFolder, worker: launcher.Worker, plan: CaptionPlan) -> None:
        """The host's captioners, if they have a part in the plan, complete the captions when it has ended."""
        self._jobs.follow_update(version, job, worker, plan)

    def is_busy(self, version: Version) -> bool:
        """Whether captions are being written, or will be when the update has ended."""
        return self._jobs.is_busy(version)

    # --- details: plans ---

    def _ticked_plan(self, settings: CaptionSettings) -> CaptionPlan:
        """Raises ModelError with all that is ticked and can't be used."""
        wrong: list[_Found] = []
        folders: dict[CaptionerKind, str] = {}
        host: list[HostCaptioner] = []
        if settings.use_blip:
            blip = self._find("blip", settings)
            if not blip.problem:
                folders["blip"] = blip.folder
            elif not settings.blip_model and "blip" in self._host.captioners():
                host.append("blip")
            else:
                wrong.append(blip)
        if settings.use_wd14:
            wd14 = self._find("wd14", settings)
            wrong += [wd14] if wd14.problem else []
            folders["wd14"] = wd14.folder
        if settings.use_deepbooru:
            if "deepbooru" in self._host.captioners():
                host.append("deepbooru")
            else:
                wrong.append(_Found("", "There is no WebUI here that has DeepDanbooru.", "WD14 writes such tags too."))
        if wrong:
            raise ModelError("\n".join(f"{found.problem} {found.hint}" for found in wrong), "Or untick it.")
        return CaptionPlan(
            blip=folders.get("blip", ""), wd14=folders.get("wd14", ""), host=tuple(host), settings=settings
        )

    def _best_plan(self, settings: CaptionSettings) -> CaptionPlan:
        for kind in KINDS:
            found = self._find(kind, settings)
            if not found.problem:
                return _plan_of(kind, found.folder, settings)
        absent = self._host.absent_captioners()
        present: list[HostCaptioner] = [kind for kind in self._host.captioners() if kind not in absent]
        return CaptionPlan(host=tuple(present[:1]), settings=settings)

    def _host_answer(self) -> tuple[HostCaptioner, ...]:
        """One that is there already, else the first. Raises ModelError where this host has none."""
        absent = self._host.absent_captioners()
        kinds = sorted(self._host.captioners(), key=lambda kind: kind in absent)
        if not kinds:
            raise ModelError("This program has no captioner of its own.", "Choose another captioner, or none.")
        return (kinds[0],)

    def _find(self, kind: CaptionerKind, settings: CaptionSettings) -> _Found:
        """The model of this kind that would be taken."""
        typed = _typed(kind, settings)
        if typed and not is_hub_name(typed) and not self._host.takes_paths():
            problem = f"{KINDS[kind]} model folder: this page is open to others, so it takes no paths."
            return _Found("", problem, "Leave it empty, or type a name of the hub.")
        folder = self._folder(kind, settings)
        if folder is None:
            return self._absent(kind, settings)
        if not has_model(kind, folder):
            files = "model.onnx and selected_tags.csv" if kind == "wd14" else "config.json and weights"
            return _Found("", f"{folder} is no {KINDS[kind]}: it must hold {files}.", "Choose another folder.")
        packages = missing_packages(kind)
        if packages:
            hint = f"Choose another captioner, or install with: {install_command(packages)}"
            return _Found("", _lacks(KINDS[kind], packages), hint)
        return _Found(str(folder.absolute()))

    def _absent(self, kind: CaptionerKind, settings: CaptionSettings) -> _Found:
        memory, typed = self._memory(), _typed_model(kind, settings)
        models = [model for model in MODELS if model.kind == kind] if typed is None else [typed]
        name = KINDS[kind] if typed is None else typed.label
        if any(_is_at_work(self._download_status(memory, model)) for model in models):
            return _Found("", f"{name} is still being downloaded.", "Wait for its end.")
        size_bytes = models[0].size_bytes
        size = f" ({_megabytes(size_bytes)} MB)" if size_bytes else ""
        return _Found("", f"{name} is not here yet.", f"Download it{size}, or give its folder.")

    def _absent_models(self, settings: CaptionSettings) -> list[CaptionerModel]:
        """What is ticked or answered and not here, nor the host's own instead; without either, what is typed."""
        typed = {kind: _typed_model(kind, settings) for kind in KINDS}
        answer = self._memory().answer
        if _is_any_ticked(settings):
            has_stand_in = not typed["blip"] and "blip" in self._host.captioners()
            wanted = {"blip": settings.use_blip and not has_stand_in, "wd14": settings.use_wd14}
        else:
            wanted = {kind: answer == kind or (not answer and typed[kind] is not None) for kind in KINDS}
        kinds: list[CaptionerKind] = [kind for kind in KINDS if wanted[kind] and self._folder(kind, settings) is None]
        return [typed[kind] or _proposed(kind) for kind in kinds]

    def _folder(self, kind: CaptionerKind, settings: CaptionSettings) -> Path | None:
        """That of the model that is typed, be it there or not, else one that is there. None for a model that can be
        downloaded.
        """
        if typed := _typed(kind, settings):
            return typed_folder(typed, kind, self._workspace.captioners_dir)
        return self._any_folder(kind)

    def _any_folder(self, kind: CaptionerKind) -> Path | None:
        """Of the models of this kind that are here, the one that is proposed last: the larger one."""
        folders = [folder_of(model, self._workspace.captioners_dir) for model in MODELS if model.kind == kind]
        return next((folder for folder in reversed(folders) if folder is not None), None)

    # --- details: what is shown and remembered ---

    def _entry_of(self, model: CaptionerModel, memory: _Memory, *, is_wanted: bool) -> CaptionerEntry:
        is_present = folder_of(model, self._workspace.captioners_dir) is not None
        packages = missing_packages(model.kind)
        status = self._download_status(memory, model)
        return CaptionerEntry(
            name=model.name,
            choice=model.kind,
            label=model.label,
            good_for=model.good_for,
            is_present=is_present,
            is_wanted=is_wanted,
            download_mb=0 if is_present else _megabytes(model.size_bytes),
            problem=_lacks(model.label, packages) if packages else "",
            command=install_command(packages) if packages else "",
            download=None if is_present else status,
            download_job=memory.downloads.get(model.name, "") if status is not None and not is_present else "",
        )

    def _host_entries(self) -> list[CaptionerEntry]:
        absent = self._host.absent_captioners()
        return [
            CaptionerEntry(
                name=f"host-{kind}",
                choice="host",
                label=HOST_LABELS[kind][0],
                good_for=HOST_LABELS[kind][1],
                is_present=kind not in absent,
                problem="The WebUI downloads it at its first use, and shows no progress." if kind in absent else "",
            )
            for kind in self._host.captioners()
        ]

    def _download_status(self, memory: _Memory, model: CaptionerModel) -> JobStatus | None:
        try:
            job = JobFolder(self._workspace.find_job(memory.downloads[model.name]))
        except (KeyError, WorkspaceError):
            return None
        status = self._watch.status(job, self._workers.get(job.path))
        if status.state == "waiting" and job.path not in self._workers:
            return None  # its worker never came up, before a restart
        return status

    def _memory(self) -> _Memory:
        return read_json(self._workspace.root / "captioning.json", _Memory, _Memory())

    def _write(self, memory: _Memory) -> None:
        try:
            write_json(self._workspace.root / "captioning.json", memory)
        except OSError as error:
            raise WorkspaceError(f"{self._workspace.root} can't be written: {error.strerror or error}.") from None


def _is_any_ticked(settings: CaptionSettings) -> bool:
    return settings.use_blip or settings.use_deepbooru or settings.use_wd14


def _typed(kind: CaptionerKind, settings: CaptionSettings) -> str:
    return settings.wd14_model if kind == "wd14" else settings.blip_model


def _typed_model(kind: CaptionerKind, settings: CaptionSettings) -> CaptionerModel | None:
    """None where a folder is typed, or nothing."""
    typed = _typed(kind, settings)
    return find_model(typed, kind) if is_hub_name(typed) else None


def _plan_of(kind: CaptionerKind, folder: str, settings: CaptionSettings) -> CaptionPlan:
    """With one model alone."""
    if kind == "blip":
        return CaptionPlan(blip=folder, settings=settings)
    return CaptionPlan(wd14=folder, settings=settings)


def _proposed(kind: CaptionerKind) -> CaptionerModel:
    """The model of this kind that is downloaded unless a person chooses another."""
    return next(model for model in MODELS if model.kind == kind)


def _is_at_work(status: JobStatus | None) -> bool:
    return status is not None and status.state in ("waiting", "running")


def _lacks(what: str, packages: tuple[str, ...]) -> str:
    return f"{what} needs {' and '.join(packages)}, which this Python has not."


def _megabytes(size_bytes: int) -> int:
    return round(size_bytes / 1e6)
