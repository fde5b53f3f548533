"""The judge of a training: what it would cost, begun, what it found, and what its person chooses instead."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import suppress

import msgspec

from lora_train.app.datasets import Datasets
from lora_train.app.in_use import InUse
from lora_train.app.judge_planning import judge_spec, what_is_judged
from lora_train.app.paces import expected_judging_s
from lora_train.app.watching import Watch
from lora_train.core.errors import ConfigError, JobError, TrainToolsError, WorkspaceError
from lora_train.core.host import Host
from lora_train.core.jobs import JobFolder, JobStatus
from lora_train.core.judgement import CHOICE_NAME, PICTURES, WEIGHTS, Choice, Judgement, pictures_to_draw
from lora_train.core.recommendation import Best, best_of, read_choice, read_judgement
from lora_train.core.records import read_json, write_json
from lora_train.core.specs import JudgeSpec, TrainSpec
from lora_train.core.workspace import Workspace
from lora_train.launch.queue import JobQueue

_LAST_NAME = "judge.json"


class _Last(msgspec.Struct):
    """`judge.json` in a training's folder: the job that judged it last."""

    job: str = ""
    publishes: bool = False
    """Whether the training's result waits for it."""


class JudgeForecast(msgspec.Struct, frozen=True):
    """What a judgement would cost."""

    pictures: int = 0
    """To be drawn, also by the base model alone."""
    seconds: float | None = None
    """None before anything like it was measured on this machine."""
    problem: str = ""
    """Why nothing can be judged; empty where it can."""


class JudgeSnapshot(msgspec.Struct):
    """All that is known of the judge of a training."""

    judgement: Judgement | None = None
    """Rows of LoRAs that are still there; None before anything was judged."""
    choice: Choice | None = None
    """What was taken instead of the recommendation."""
    job: str = ""
    """The last one, for `jobs/stop` and the others; empty where there was none."""
    status: JobStatus | None = None
    is_running: bool = False
    """Whether the job waits or runs."""
    forecast: JudgeForecast = JudgeForecast()


class Judging:
    def __init__(
        self, workspace: Workspace, host: Host, jobs: JobQueue, datasets: Datasets, in_use: InUse, watch: Watch
    ) -> None:
        self._workspace = workspace
        self._host = host
        self._jobs = jobs
        self._datasets = datasets
        self._in_use = in_use
        self._watch = watch
        self._beginning = threading.Lock()

    def forecast(self, job: str) -> JudgeForecast:
        """What `begin` would cost; no picture is looked at. Raises WorkspaceError where there is no such job."""
        folder = self._folder(job)
        try:
            spec, loras = what_is_judged(folder, self._watch.status(folder).saved)
        except JobError as error:
            return JudgeForecast(problem=f"{error.message}\n{error.hint}".strip())
        count = pictures_to_draw(len(loras), len(WEIGHTS), PICTURES)
        return JudgeForecast(count, expected_judging_s(self._workspace.root, spec.settings, count))

    def begin(
        self,
        job: str,
        *,
        weights: Sequence[float] = WEIGHTS,
        pictures: int = PICTURES,
        encoder: str | None = None,
        publishes: bool = False,
        only: str = "",
    ) -> str:
        """Queue a job that judges the LoRAs of a training, or a single one; its id. With `publishes` its end publishes
        the best one.

        Raises as `judge_spec`; JobError while it is judged already.
        """
        folder = self._folder(job)
        with self._beginning:
            if self._in_use.is_judged(folder.path):
                raise JobError("The LoRAs of this training are being judged, or wait for the card.")
            judge = self.plan(folder, weights=weights, pictures=pictures, encoder=encoder, only=only)
            judge_id = self._workspace.id_of(judge.path)
            write_json(folder.path / _LAST_NAME, _Last(judge_id, publishes))
            self._jobs.add(judge_id)
        return judge_id

    def plan(
        self,
        train: JobFolder,
        *,
        weights: Sequence[float] = WEIGHTS,
        pictures: int = PICTURES,
        encoder: str | None = None,
        only: str = "",
    ) -> JobFolder:
        """A job that judges the LoRAs of a training, or a single one; nothing runs yet. Raises as `judge_spec`."""
        spec = judge_spec(
            self._workspace, self._datasets, train, weights=weights, pictures=pictures, encoder=encoder, only=only
        )
        if spec.encoder and not self._host.takes_paths():
            problem = "Judge's image encoder: leave it empty; this page is open to others, so it takes no paths."
            raise ConfigError([problem])
        judge = JobFolder(self._workspace.new_job_dir("judge"))
        judge.create(spec)
        return judge

    def snapshot(self, job: str) -> JudgeSnapshot:
        """All of it. Raises WorkspaceError where there is no such job."""
        folder = self._folder(job)
        saved = self._watch.status(folder).saved
        snapshot = JudgeSnapshot(read_judgement(folder, saved), read_choice(folder, saved))
        if (last := self._last(folder).job) and last != job:
            with suppress(TrainToolsError, OSError):  # the job's folder is gone
                snapshot.status = self._watch.status(JobFolder(self._workspace.find_job(last)))
                snapshot.job = last
                place = self._jobs.place_of(last)
                snapshot.is_running = place is not None or snapshot.status.state == "running"
                if place is not None and (place > 0 or self._jobs.is_starting(last)):
                    snapshot.status = msgspec.structs.replace(snapshot.status, state="waiting", message="", hint="")
        snapshot.forecast = self.forecast(job)
        return snapshot

    def judgement(self, job: str) -> Judgement | None:
        """The table and the recommendation; None before there is one. Raises WorkspaceError for an unknown job."""
        folder = self._folder(job)
        return read_judgement(folder, self._watch.status(folder).saved)

    def best(self, job: str) -> Best:
        """What is taken where nobody names a file. Raises WorkspaceError where there is no such job."""
        folder = self._folder(job)
        return best_of(folder, self._watch.status(folder).saved)

    def choose(self, job: str, lora: str, weight: float) -> None:
        """Take another LoRA and weight than the recommended one. Raises WorkspaceError for one that is not there."""
        folder = self._folder(job)
        if lora not in self._watch.status(folder).saved or not (folder.path / lora).is_file():
            raise WorkspaceError(f"There is no LoRA {lora!r} in {folder.path}.", "Refresh the page.")
        write_json(folder.path / CHOICE_NAME, Choice(lora=lora, weight=weight))

    def follow_recommendation(self, job: str) -> None:
        """Take what the judge recommends. Raises WorkspaceError where there is no such job."""
        (self._folder(job).path / CHOICE_NAME).unlink(missing_ok=True)

    def awaited_by(self, judge: JobFolder, spec: JudgeSpec) -> JobFolder | None:
        """The training whose result waits for this ended job, once; else None."""
        train = JobFolder(judge.path / spec.train)
        last = self._last(train)
        if not last.publishes or last.job != self._workspace.id_of(judge.path):
            return None
        write_json(train.path / _LAST_NAME, _Last(last.job))
        return train if isinstance(train.read_spec(), TrainSpec) else None

    def _folder(self, job: str) -> JobFolder:
        return JobFolder(self._workspace.find_job(job))

    def _last(self, train: JobFolder) -> _Last:
        return read_json(train.path / _LAST_NAME, _Last, _Last())
