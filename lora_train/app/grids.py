"""The preview panel: grids of pictures of finished LoRAs, begun, listed, stopped, gone on with, deleted.

A version remembers its jobs by their ids (`VersionInfo.grid_jobs`), and a LoRA is known by its train and file alone:
so what was drawn is found again after a version or project got another name.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import msgspec

from lora_train.app.grid_files import (
    axes_of,
    is_picture_file,
    loras_of,
    picture_names,
    pictures_by_lora,
    place_of,
    stem_of,
)
from lora_train.app.grid_planning import plan_grid_job
from lora_train.app.grid_snapshot import (
    GridCell,
    GridForecast,
    GridJob,
    GridsPage,
    GridsSnapshot,
    GridTable,
    LoraGrid,
)
from lora_train.app.host_grids import HostGrids, host_problems
from lora_train.app.in_use import InUse
from lora_train.app.paces import expected_grid_s
from lora_train.app.planning import require_room_for_pictures
from lora_train.app.projects import title_of
from lora_train.app.snapshot import TrainSnapshot, Undo
from lora_train.app.thumbnails import Thumbnails
from lora_train.app.training import Training
from lora_train.app.triggers import trigger_of
from lora_train.app.version_settings import grid_settings, train_settings
from lora_train.app.watching import Watch
from lora_train.core import presets
from lora_train.core.config import TrainSettings
from lora_train.core.errors import ConfigError, JobError, TrainToolsError, WorkspaceError
from lora_train.core.files import relative_path
from lora_train.core.grid_settings import GridSettings
from lora_train.core.grids import ALL_GRIDS_FILE, cells, grid_file, picture_count
from lora_train.core.host import Host
from lora_train.core.jobs import JobFolder
from lora_train.core.samplers import SAMPLERS, unknown_sampler
from lora_train.core.settings import check_settings
from lora_train.core.specs import GridSpec, TrainSpec
from lora_train.core.workspace import Version, Workspace
from lora_train.launch.job_thread import has_job_thread
from lora_train.launch.queue import JobQueue

MOST_PICTURES = 20_000
"""Of one press of the button; the names of pictures have five digits."""
_JOBS_OF_A_PAGE = 10


class _Drawing(NamedTuple):
    """What one job draws: LoRAs that belong to one base model."""

    loras: list[Path]
    settings: TrainSettings
    fallback_prompt: str


class Grids:
    def __init__(
        self, workspace: Workspace, host: Host, jobs: JobQueue, training: Training, in_use: InUse, watch: Watch
    ) -> None:
        self._workspace = workspace
        self._host = host
        self._jobs = jobs
        self._training = training
        self._in_use = in_use
        self._watch = watch
        self._host_grids = HostGrids(workspace, host)
        self._thumbnails = Thumbnails()

    # --- before ---

    def samplers(self) -> list[str]:
        """Those that can be chosen: ours, and the host's where it draws for us."""
        return [*dict.fromkeys((*SAMPLERS, *self._host.samplers()))]

    def forecast(self, project: str, version: str, trains: list[TrainSnapshot] | None = None) -> GridForecast:
        """What *Generate all checkpoint preview* would do now; `trains` are those of the version, where they are known
        already. Raises WorkspaceError for an unknown version.
        """
        found = self._workspace.find_version(project, version)
        listed = self._training.list(project, version) if trains is None else trains
        return self._forecast(grid_settings(found), self._drawings(found, listed))

    def begin_all(self, project: str, version: str) -> list[str]:
        """Draw every LoRA of every train, and return the ids of the jobs: one for each base model.

        All draw the same seeds. Raises ConfigError with all that stands in the way, WorkspaceError for an unknown
        version or a disk that is too full.
        """
        found = self._workspace.find_version(project, version)
        return self._begin(found, self._training.list(project, version))

    def begin_loras(self, project: str, version: str, loras: Sequence[Path]) -> list[str]:
        """Draw these LoRAs of a version's trains side by side. Raises as `begin_all`."""
        found = self._workspace.find_version(project, version)
        trains = self._training.list(project, version)
        for train in trains:
            folder = self._workspace.root / train.job
            train.loras = [entry for entry in train.loras if folder / entry.file in loras]
        return self._begin(found, [train for train in trains if train.loras])

    def begin_train(self, job: str) -> list[str]:
        """Draw every LoRA of one train. Raises as `begin_all`, and JobError for what is no training."""
        return self._begin(*self._train(job))

    def begin(self, job: str, lora: str) -> list[str]:
        """Draw one LoRA (a file name) of a train. Raises as `begin_train`, WorkspaceError for an unknown file."""
        found, trains = self._train(job)
        for train in trains:
            train.loras = [entry for entry in train.loras if entry.file == lora]
            if not train.loras:
                raise WorkspaceError(f"There is no LoRA {lora!r} in {train.name}.", "Refresh the page.")
        return self._begin(found, trains)

    # --- while and after ---

    def snapshot(self, project: str, version: str) -> GridsSnapshot:
        """The jobs that draw and drew. Raises WorkspaceError for an unknown version."""
        found = self._workspace.find_version(project, version)
        return GridsSnapshot(self._snapshots(found, [*self._listed(found)]))

    def page(self, project: str, version: str, page: int) -> GridsPage:
        """Those of a page, from 1, or of the last one where there are fewer. Raises as `snapshot`."""
        found = self._workspace.find_version(project, version)
        listed = [own for own in self._listed(found) if _has_lora(found, own[1])]
        pages = max(1, -(-len(listed) // _JOBS_OF_A_PAGE))
        page = min(page, pages)
        end = len(listed) - (page - 1) * _JOBS_OF_A_PAGE
        return GridsPage(self._snapshots(found, listed[max(0, end - _JOBS_OF_A_PAGE) : end]), page, pages)

    def table(self, job: str) -> GridTable:
        """Every place of a job's grids, and which pictures there are. Raises JobError or WorkspaceError for others."""
        folder, spec = self._find(job)
        there = set(picture_names(folder))
        is_kept = {lora: path.is_file() for lora, path in loras_of(self._version_of(job), spec).items()}
        return GridTable(
            job=job,
            axes=axes_of(spec),
            cells=[
                GridCell(place_of(spec, cell.index), [file for file in cell.files if Path(file).name in there])
                for cell in cells(spec)
                if is_kept[cell.path]
            ],
            width_px=spec.grid.width_px,
            height_px=spec.grid.height_px,
        )

    def file_path(self, job: str, file: str) -> Path:
        """A picture or grid of a job, by its name as told. Raises WorkspaceError for any other file."""
        folder, spec = self._find(job)
        is_picture = is_picture_file(file)
        is_grid = file in (ALL_GRIDS_FILE, *(grid_file(stem_of(lora)) for lora in spec.loras))
        if not (is_picture or is_grid) or not (folder.path / file).is_file():
            raise WorkspaceError(f"There is no file {file!r} in {folder.path.name}.", "Refresh the page.")
        return folder.path / file

    def thumbnail(self, job: str, file: str) -> bytes:
        """A small JPEG of a file as in `file_path`. Raises as that does."""
        return self._thumbnails.of(self.file_path(job, file))

    def stop(self, job: str) -> None:
        """End after the picture that is being drawn; a waiting job leaves the queue. Raises JobError for others."""
        folder, _ = self._find(job)
        if has_job_thread(folder):
            folder.request("stop")
        else:
            self._training.stop(job)

    def resume(self, job: str) -> None:
        """Go on where a job has stopped. Raises JobError for one that is finished, waits or runs, or whose LoRAs are
        gone, ConfigError where the base model can't be used any more.
        """
        folder, spec = self._find(job)
        if self._watch.status(folder).state == "finished":
            raise JobError("These previews are finished.", "Generate new ones.")
        if self._in_use.is_grid_drawn(job):
            raise JobError("These previews are being drawn, or wait for the card.")
        if problems := self._training.base_models.check(spec.settings)[0]:
            raise ConfigError(problems)
        present = loras_of(self._version_of(job), spec)
        for path in present.values():
            if not path.is_file():
                raise JobError(f"{path.stem} was deleted.", "Generate the previews of the others anew.")
        paths = tuple(self._relative(path) for path in present.values())
        if paths != spec.loras:  # the version or its project got another name meanwhile
            spec = msgspec.structs.replace(spec, loras=paths)
            folder.replace_spec(spec)
        folder.clear_requests()
        self._start(job, spec)

    def delete(self, job: str) -> Undo:
        """Move what a job has drawn to the trash. Raises JobError while it waits or runs."""
        folder, spec = self._find(job)
        if self._in_use.is_grid_drawn(job):
            raise JobError("These previews are being drawn, or wait for the card.", "Stop it, or wait for its end.")
        first, *others = map(stem_of, spec.loras)
        what = f"{first} …" if others else first
        return Undo(what, self._workspace.trash.put(what, [folder.path]))

    def delete_all(self, project: str, version: str) -> Undo:
        """Move all grids of a version to the trash, but those that are drawn or wait; trains keep their own previews.

        Raises JobError where there is none, WorkspaceError for an unknown version.
        """
        found = self._workspace.find_version(project, version)
        ended = [job.path for job, _ in self._listed(found) if not self._is_drawn(job)]
        if not ended:
            raise JobError("There are no previews that could be deleted.")
        return Undo(title_of(found), self._workspace.trash.put(title_of(found), ended))

    # --- how it begins ---

    def _begin(self, version: Version, trains: Sequence[TrainSnapshot]) -> list[str]:
        grid = grid_settings(version)
        drawings = self._drawings(version, trains)
        forecast = self._forecast(grid, drawings)
        if forecast.problems:
            raise ConfigError(forecast.problems)
        specs: list[GridSpec] = []
        for drawing in drawings:
            spec = plan_grid_job(
                self._workspace, drawing.loras, grid, drawing.settings, fallback_prompt=drawing.fallback_prompt
            )
            grid = msgspec.structs.replace(grid, seeds=spec.grid.seeds)
            specs.append(spec)
        area_px = max(spec.grid.width_px * spec.grid.height_px for spec in specs)
        require_room_for_pictures(self._workspace.root, 2 * forecast.pictures, area_px)  # once more in the grids
        with self._workspace.changing():
            if grid.delete_before:
                self._clear(version, {lora for drawing in drawings for lora in drawing.loras})
            return [self._create(version, spec) for spec in specs]

    def _create(self, version: Version, spec: GridSpec) -> str:
        folder = JobFolder(self._workspace.new_job_dir("grid"))
        folder.create(spec)
        job = self._workspace.id_of(folder.path)
        with version.changing() as info:
            info.grid_jobs.append(job)
        self._start(job, spec)
        return job

    def _start(self, job: str, spec: GridSpec) -> None:
        """Let the job be drawn: by a worker that waits for its turn, or by the host."""
        if spec.grid.drawn_by == "host":
            self._host_grids.start(JobFolder(self._workspace.find_job(job)), spec)
        else:
            self._jobs.add(job)

    def _drawings(self, version: Version, trains: Sequence[TrainSnapshot]) -> list[_Drawing]:
        """The LoRAs, the oldest first, by what they are drawn with: each with the base model that it was trained on.

        Trains of the original extension share their LoRAs' names, and a grid is called by that: each is drawn alone.
        """
        found: dict[tuple[object, ...], _Drawing] = {}
        concept = version.project.info().name
        for train in reversed(trains):
            paths = [version.trains_dir / PurePosixPath(train.job).name / own.file for own in reversed(train.loras)]
            if not paths:
                continue
            settings = train_settings(version)
            with suppress(JobError):  # of the original extension
                spec = self._watch.spec(JobFolder(paths[0].parent))
                assert isinstance(spec, TrainSpec)
                settings = spec.settings
            key = (settings.base_model, settings.vae, settings.clip_skip, settings.prediction)
            words = trigger_of(paths[0]) or settings.trigger_word or concept
            drawing = found.setdefault((*key, train.job if train.is_original else ""), _Drawing([], settings, words))
            drawing.loras.extend(paths)
        return [*found.values()]

    def _forecast(self, grid: GridSettings, drawings: Sequence[_Drawing]) -> GridForecast:
        forecast = GridForecast(loras=sum(len(drawing.loras) for drawing in drawings))
        specs = [
            GridSpec(loras=tuple(map(str, drawing.loras)), grid=grid, settings=drawing.settings) for drawing in drawings
        ]
        forecast.pictures = sum(map(picture_count, specs))
        forecast.problems = [*check_settings({}, grid)[1], *self._drawer_problems(grid, drawings)]
        if not drawings:
            forecast.problems.append("There is no LoRA yet: train one first.")
        if forecast.pictures > MOST_PICTURES:
            forecast.problems.append(
                f"{forecast.pictures:,} pictures are too many: at most {MOST_PICTURES:,} are drawn at once. "
                "Shorten the lists."
            )
        seconds: list[float | None] = []
        for spec in specs:
            problems, facts = self._training.base_models.check(spec.settings)
            forecast.problems += problems
            side_px = presets.native_resolution_px(facts)
            area_px = (grid.width_px or side_px) * (grid.height_px or side_px)
            seconds.append(expected_grid_s(self._workspace.root, spec, area_px))
        forecast.problems = [*dict.fromkeys(forecast.problems)]
        known = [told for told in seconds if told is not None]
        forecast.seconds = sum(known) if known and len(known) == len(seconds) else None
        return forecast

    def _drawer_problems(self, grid: GridSettings, drawings: Sequence[_Drawing]) -> Iterator[str]:
        if grid.drawn_by == "worker":
            yield from filter(None, map(unknown_sampler, grid.samplers))
            return
        for base_model in dict.fromkeys(drawing.settings.base_model for drawing in drawings) or ("",):
            yield from host_problems(self._host, grid, base_model)

    # --- what belongs to what ---

    def _train(self, job: str) -> tuple[Version, list[TrainSnapshot]]:
        """A train, by its id, and its version."""
        path = self._workspace.find_job(job)
        found = [train for train in self._trains_beside(path) if train.job == self._workspace.id_of(path)]
        if not found:
            raise JobError(f"{path.name} is no training.")
        return self._workspace.version_of(path), found

    def _trains_beside(self, path: Path) -> list[TrainSnapshot]:
        if path.parent.name != "trains":
            return []
        return self._training.list(path.parents[3].name, path.parents[1].name)

    def _listed(self, version: Version) -> Iterator[tuple[JobFolder, GridSpec]]:
        """The version's jobs that are still there, in the order of their beginnings."""
        for job in self._workspace.jobs_there(dict.fromkeys(version.info().grid_jobs)):  # many may be deleted
            with suppress(TrainToolsError):  # deleted, or damaged
                yield self._find(job)

    def _find(self, job: str) -> tuple[JobFolder, GridSpec]:
        folder = JobFolder(self._workspace.find_job(job))
        spec = self._watch.spec(folder)
        if not isinstance(spec, GridSpec):
            raise JobError(f"{folder.path.name} draws no previews.")
        return folder, spec

    def _version_of(self, job: str) -> Version:
        for project in self._workspace.projects():
            for version in project.versions():
                if job in version.info().grid_jobs:
                    return version
        raise WorkspaceError(f"The version of {job} is gone.", "Restore it first.")

    def _relative(self, lora: Path) -> str:
        return relative_path(lora, self._workspace.jobs_dir / "job")

    def _is_drawn(self, folder: JobFolder) -> bool:
        return self._in_use.is_grid_drawn(self._workspace.id_of(folder.path))

    def _clear(self, version: Version, loras: set[Path]) -> None:
        """Move the earlier grids of these LoRAs to the trash: whole jobs, or what is theirs of others."""
        paths: list[Path] = []
        for folder, spec in self._listed(version):
            if self._is_drawn(folder):
                continue
            again = [lora for lora, path in loras_of(version, spec).items() if path in loras]
            if len(again) == len(spec.loras):
                paths.append(folder.path)
                continue
            drawn = pictures_by_lora(folder, spec)
            for lora in again:
                own = [folder.path / file for file in drawn[lora]]
                grid = folder.path / grid_file(stem_of(lora))
                paths += [*own, *([grid] if grid.is_file() else [])]
            over_all = folder.path / ALL_GRIDS_FILE
            paths += [over_all] if again and over_all.is_file() else []
        if paths:
            self._workspace.trash.put(f"earlier previews of {title_of(version)}", paths)

    def _snapshots(self, version: Version, listed: Sequence[tuple[JobFolder, GridSpec]]) -> list[GridJob]:
        """Newest first, those that have something to show."""
        snapshots = (self._snapshot(version, job, spec) for job, spec in reversed(listed))
        return [told for told in snapshots if told.loras]

    def _snapshot(self, version: Version, folder: JobFolder, spec: GridSpec) -> GridJob:
        job = self._workspace.id_of(folder.path)
        status = self._watch.status(folder)
        place = self._jobs.place_of(job)
        if place is not None and (place > 0 or self._jobs.is_starting(job)):
            phase = "waiting for the WebUI's picture" if place == 0 and self._host.is_waiting_for_picture() else ""
            status = msgspec.structs.replace(status, state="waiting", phase=phase, message="", hint="")
        is_over = status.state == "finished"
        drawn = pictures_by_lora(folder, spec)
        loras: list[LoraGrid] = []
        for lora, path in loras_of(version, spec).items():
            file = grid_file(stem_of(lora))
            file = file if (folder.path / file).is_file() else ""
            if path.is_file() and (drawn[lora] or file or not is_over):
                loras.append(LoraGrid(stem=stem_of(lora), file=file, pictures=drawn[lora]))
        return GridJob(
            job=job,
            created=folder.spec_path.stat().st_mtime,
            status=status,
            place=place,
            grid=spec.grid,
            axes=axes_of(spec),
            total=picture_count(spec),
            file=ALL_GRIDS_FILE if (folder.path / ALL_GRIDS_FILE).is_file() else "",
            drawn=sum(map(len, drawn.values())),
            loras=loras,
        )


def _has_lora(version: Version, spec: GridSpec) -> bool:
    """Whether one of a job's LoRAs still exists."""
    return any(path.is_file() for path in loras_of(version, spec).values())
