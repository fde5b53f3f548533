"""The floor on which sweeps are worked off without workers: what they do is a few lines, and the clock is ours."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lora_train.app.paces import Pace, remember_pace
from lora_train.app.sweep_snapshot import SweepRow, SweepSnapshot
from lora_train.core import events as ev
from lora_train.core.jobs import JobFolder, JobStatus
from lora_train.core.judgement import Judged, Judgement
from lora_train.core.limits import read_limits
from lora_train.core.records import write_json
from lora_train.core.specs import JudgeSpec, ProofSpec, TrainSpec
from lora_train.launch.queue import JobQueue

if TYPE_CHECKING:
    from tests.unit.app.conftest import Desk

RATES = "0.001,0.002,0.003,0.004"
BEGUN = 1_800_000_000.0


@dataclass
class Floor:
    """Works the queue off in this process: a run takes `s_per_step` and `start_s` of a clock that is moved by hand."""

    desk: Desk
    now: float = BEGUN
    s_per_step: float = 1.0
    start_s: float = 10.0
    validates: bool = True
    fails: set[str] = field(default_factory=set)
    """Names of trainings."""
    order: list[tuple[str, int]] = field(default_factory=list)
    """Which training was trained up to which step."""
    judge_s: float = 5.0
    judged: list[tuple[str, tuple[str, ...]]] = field(default_factory=list)
    """Which training was judged, and which of its LoRAs."""

    @property
    def queue(self) -> JobQueue:
        return JobQueue(self.desk.workspace.root)

    def begin(self, finish_in_s: float = 0.0, **lists: Any) -> str:
        lists = lists or {"learning_rates": RATES}
        finish_by = "12:00" if finish_in_s else ""
        self.finish_by = BEGUN + finish_in_s
        assert self.desk.app.settings.save("cat", "v1", sweep={**lists, "finish_by": finish_by}) == []
        return self.desk.app.sweeps.begin("cat", "v1")

    def train_next(self) -> JobFolder | None:
        """One turn of the queue, as the runner takes it."""
        turn = self.queue.take_next()
        if turn is None:
            return None
        job = JobFolder(self.desk.workspace.root / turn.job)
        spec = job.read_spec()
        if isinstance(spec, ProofSpec):  # of what was published
            self.queue.finish(turn.job)
            return job
        if isinstance(spec, JudgeSpec):
            self.judge(job, spec)
        else:
            self.work(job)
        self.desk.app.sweeps.on_end(job)
        self.queue.finish(turn.job)
        return job

    def judge(self, job: JobFolder, spec: JudgeSpec) -> None:
        """What the judge's worker does: the lower the rate of a run, the better its LoRA."""
        self.now += self.judge_s
        train = JobFolder((job.path / spec.train).resolve())
        score = 1 - train.read_spec().settings.learning_rate
        rows = tuple(Judged(lora=lora, weight=1.0, likeness=score, score=score) for lora in spec.loras)
        write_json(train.path / "judgement.json", Judgement(rows=rows, lora=spec.loras[0], weight=1.0))
        self.judged.append((train.path.name, spec.loras))
        events = ev.EventWriter(job.events_path)
        events.write(ev.Started(pid=0), ev.Finished())
        events.close()

    def train_all(self) -> None:
        while self.train_next() is not None:
            pass

    def work(self, job: JobFolder) -> None:
        """What a worker does, by the same files."""
        spec = job.read_spec()
        assert isinstance(spec, TrainSpec)
        limits, before = read_limits(job.path), self.desk.app.status(job)
        total = before.total_steps or 40
        events = ev.EventWriter(job.events_path)
        events.write(ev.Started(pid=0))
        self.now += self.start_s
        if job.path.name in self.fails:
            events.write(ev.Failed("ModelError", "It is broken."))
            events.close()
            return
        events.write(ev.Started(pid=0, total_steps=total, epochs=1, step=before.step))
        step, is_late = before.step, False
        while step < total and not 0 < limits.pause_at_step <= step and not is_late:
            step += 1
            self.now += self.s_per_step
            rate = spec.settings.learning_rate
            events.write(ev.Step(step=step, epoch=1, loss=1 - rate, lr=rate, s_per_step=self.s_per_step))
            is_late = 0 < limits.stop_at <= self.now
        if self.validates:
            events.write(ev.Validated(step=step, loss=1 - spec.settings.learning_rate, base_loss=1.0))
        name = f"{spec.name}.safetensors" if step == total else f"{spec.name}-step{step:06d}.safetensors"
        self.desk.write_lora(job.path / name)
        events.write(ev.Saved(name, step=step, epoch=1))
        ending = ev.Finished(step) if step == total else ev.Stopped(step) if is_late else ev.Paused(step)
        events.write(ending)
        events.close()
        self.order.append((spec.name, step))

    def shown(self, sweep: str) -> SweepSnapshot:
        return self.desk.app.sweeps.snapshot(sweep)

    def rows(self, sweep: str) -> dict[str, SweepRow]:
        return {row.label: row for row in self.shown(sweep).rows}

    def states(self, sweep: str) -> list[str]:
        return [row.status.state for row in self.shown(sweep).rows]


def knows_pace(floor: Floor, s_per_step: float, start_s: float) -> None:
    """As after a training of these settings."""
    settings = floor.desk.app.settings.effective("cat", "v1")
    spec = TrainSpec(name="x", dataset="", dataset_fingerprint="", trash="", settings=settings)
    status = JobStatus(s_per_step=s_per_step, step=40)
    remember_pace(floor.desk.workspace.root, spec, status, Pace(s_per_step, start_s))
