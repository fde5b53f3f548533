"""Grids that the host draws, and its part of a proof: with a host that paints its answers."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lora_train.app.grid_snapshot import GridJob
from lora_train.app.host_grids import draw_when_free
from lora_train.app.host_proof import ask_host
from lora_train.core.assets import DEMO_MODEL
from lora_train.core.config import TrainSettings
from lora_train.core.errors import ConfigError, JobError, ModelError
from lora_train.core.grids import ALL_GRIDS_FILE, grid_file
from lora_train.core.host import BaseModelChoice, HostPicture
from lora_train.core.jobs import JobFolder, RequestedEnd
from lora_train.core.proofs import FILE_NAME, Fact, Proof, Proofs, read_proofs
from lora_train.core.records import write_json
from lora_train.core.specs import ProofSpec
from tests.unit.app.conftest import Desk, TwoFolders

LORAS = ("cat-v1-000001.safetensors", "cat-v1.safetensors")
IDS = ("cat", "v1")


class Painter(TwoFolders):
    """A WebUI whose pictures have the colour of prompt and seed; a LoRA at weight 0 changes nothing."""

    name = "painting WebUI"

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.checkpoints = [BaseModelChoice("demo", str(DEMO_MODEL))]
        self.loaded: Path | None = DEMO_MODEL
        self.asked: list[HostPicture] = []
        self.paint: Callable[[str], tuple[int, int, int]] = lambda prompt: (250 * (":1> " in prompt), 90, 30)
        self.before: Callable[[HostPicture], None] = lambda picture: None
        self.gate = threading.Event()
        self.gate.set()

    def samplers(self) -> tuple[str, ...]:
        return ("Restart", "Euler a")

    def loaded_base_model(self) -> Path | None:
        return self.loaded

    def draw(self, picture: HostPicture) -> list[Any]:
        self.gate.wait(30)
        self.before(picture)
        self.asked.append(picture)
        return [self._paint(picture, picture.seed + number) for number in range(picture.count)]

    def _paint(self, picture: HostPicture, seed: int) -> Image.Image:
        left = Image.new("RGB", (picture.width_px // 2, picture.height_px), (seed % 256, 200, 0))
        drawn = Image.new("RGB", (picture.width_px, picture.height_px), self.paint(picture.prompt))
        drawn.paste(left)
        drawn.info["parameters"] = f"{picture.prompt}\nSampler: {picture.sampler}, Seed: {seed}"
        return drawn


@pytest.fixture
def host(desk: Desk) -> Painter:
    host = Painter(desk.root)
    desk.host = host
    desk.app = desk.again()
    return host


def begin(desk: Desk, **preview: Any) -> str:
    values = {"drawn_by": "host", "samplers": ["Restart"], "seeds": [5], "weights": [0, 1], "steps": [3], **preview}
    desk.version()
    assert desk.app.settings.save(*IDS, preview=values) == []
    (job,) = desk.app.grids.begin_all(*IDS)
    return job


def only(desk: Desk) -> GridJob:
    (job,) = desk.app.grids.snapshot(*IDS).jobs
    return job


def end(desk: Desk, job: str) -> GridJob:
    wait_until(lambda: not desk.app.grids._in_use.is_grid_drawn(job))
    return only(desk)


def wait_until(condition: Callable[[], object]) -> None:
    until = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


def drawn_parameters(desk: Desk, job: str, file: str) -> str:
    with Image.open(desk.app.grids.file_path(job, file)) as picture:
        return str(picture.info["parameters"])


class TestGrids:
    def test_the_same_files_as_a_worker_s(self, desk: Desk, host: Painter) -> None:
        desk.finished(loras=LORAS, clip_skip=2)
        job = begin(desk, batch_size=2, negative_prompt="dog")
        done = end(desk, job)
        assert (done.status.state, done.drawn, done.total, done.file) == ("finished", 8, 8, ALL_GRIDS_FILE)
        assert [lora.file for lora in done.loras] == [grid_file("cat-v1-000001"), grid_file("cat-v1")]
        assert desk.app.queue.entries() == []
        first = host.asked[0]
        assert first == HostPicture(
            prompt="<lora:cat-v1-000001:0> cat",
            negative_prompt="dog",
            width_px=64,
            height_px=64,
            sampler="Restart",
            steps=3,
            cfg_scale=7.0,
            seed=5,
            base_model=str(DEMO_MODEL),
            clip_skip=2,
            loras=(str(desk.job("projects/cat/versions/v1/trains/cat-v1").path / LORAS[0]),),
            count=2,
        )
        text = drawn_parameters(desk, job, "pictures/00001-1.png")
        assert text == "<lora:cat-v1-000001:1> cat\nSampler: Restart, Seed: 6"
        assert drawn_parameters(desk, job, done.file) == drawn_parameters(desk, job, "pictures/00000-0.png")
        assert done.status.result["pictures"] == 8
        assert done.status.result["failed"] == 0

    def test_the_pace_is_told_the_next_time(self, desk: Desk, host: Painter) -> None:
        desk.finished(loras=LORAS)
        assert end(desk, begin(desk)).status.state == "finished"
        seconds = desk.app.grids.forecast(*IDS).seconds
        assert seconds is not None
        assert 0 < seconds < 30

    def test_stopped_and_gone_on_with(self, desk: Desk, host: Painter) -> None:
        desk.finished(loras=LORAS)
        host.before = lambda picture: host.gate.clear() if len(host.asked) == 1 else None
        job = begin(desk)
        wait_until(lambda: len(host.asked) == 2)
        with pytest.raises(JobError, match="are being drawn"):
            desk.app.grids.resume(job)
        with pytest.raises(JobError, match="are being drawn"):
            desk.app.grids.delete(job)
        desk.app.grids.stop(job)
        host.gate.set()
        stopped = end(desk, job)
        assert stopped.status.state == "stopped"
        assert 2 <= stopped.drawn <= 3
        host.before = lambda picture: None
        desk.app.grids.resume(job)
        done = end(desk, job)
        assert (done.status.state, done.drawn) == ("finished", 4)
        assert [(picture.prompt, picture.seed) for picture in host.asked] == [
            (f"<lora:{stem}:{weight}> cat", 5) for stem in ("cat-v1-000001", "cat-v1") for weight in (0, 1)
        ]
        with pytest.raises(JobError):
            desk.app.grids.stop(job)

    def test_missing_ones_in_a_row_only(self, desk: Desk, host: Painter) -> None:
        desk.finished()
        job = begin(desk, weights=[1], batch_size=4)
        end(desk, job)
        host.asked.clear()
        folder = desk.job(job)
        for number in (0, 2, 3):
            (folder.path / f"pictures/00000-{number}.png").unlink()
        _, spec = desk.app.grids._find(job)
        desk.app.grids._host_grids.start(folder, spec).join(30)
        assert [(picture.seed, picture.count) for picture in host.asked] == [(5, 1), (7, 2)]
        assert only(desk).drawn == 4

    def test_one_after_the_other(self, desk: Desk, host: Painter) -> None:
        desk.finished()
        at_work: list[int] = []
        most: list[int] = []

        def watched(picture: HostPicture) -> None:
            at_work.append(1)
            most.append(len(at_work))
            time.sleep(0.05)
            at_work.pop()

        host.before = watched
        jobs = [begin(desk, delete_before=False), begin(desk, delete_before=False)]
        for job in jobs:
            wait_until(lambda job=job: not desk.app.grids._in_use.is_grid_drawn(job))
        assert [told.status.state for told in desk.app.grids.snapshot(*IDS).jobs] == ["finished"] * 2
        assert set(most) == {1}

    def test_a_second_one_can_be_stopped_while_it_waits(self, desk: Desk, host: Painter) -> None:
        desk.finished()
        host.gate.clear()
        first, second = begin(desk, delete_before=False), begin(desk, delete_before=False)
        desk.app.grids.stop(second)
        wait_until(lambda: not desk.app.grids._in_use.is_grid_drawn(second))
        host.gate.set()
        wait_until(lambda: not desk.app.grids._in_use.is_grid_drawn(first))
        states = {told.job: told.status.state for told in desk.app.grids.snapshot(*IDS).jobs}
        assert states[first] == "finished"
        assert desk.app.grids._watch.status(desk.job(second)).state == "stopped"

    def test_what_can_not_be_drawn_is_noted(self, desk: Desk, host: Painter) -> None:
        desk.finished(loras=LORAS)

        def fail(picture: HostPicture) -> None:
            if "000001" in picture.prompt:
                raise ModelError("The WebUI could not load it.")

        host.before = fail
        done = end(desk, begin(desk))
        assert (done.status.state, done.drawn, done.status.result["failed"]) == ("finished", 2, 2)

        def fail_always(picture: HostPicture) -> None:
            raise ModelError("The WebUI could not draw: CUDA out of memory.")

        host.before = fail_always
        begin(desk, delete_before=False)
        wait_until(lambda: "failed" in [told.status.state for told in desk.app.grids.snapshot(*IDS).jobs])

    def test_a_checkpoint_that_the_host_has_not(self, desk: Desk, host: Painter) -> None:
        desk.finished()
        host.checkpoints = []
        with pytest.raises(ConfigError) as told:
            begin(desk)
        assert "does not list demo among its checkpoints" in told.value.problems[0]


def test_a_training_is_waited_for(desk: Desk, host: Painter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lora_train.app.host_grids._RETRY_S", 0.01)
    refusals = [JobError("A training has the card."), JobError("A training has the card.")]

    def refuse(picture: HostPicture) -> None:
        if refusals:
            raise refusals.pop()

    host.before = refuse
    picture = HostPicture(
        prompt="", negative_prompt="", width_px=8, height_px=8, sampler="", steps=1, cfg_scale=1, seed=1, base_model=""
    )
    assert len(draw_when_free(host, picture, lambda: None)) == 1
    assert refusals == []

    def end_if_asked() -> None:
        raise RequestedEnd("stop")

    with pytest.raises(RequestedEnd):
        draw_when_free(host, picture, end_if_asked)


class TestProof:
    @pytest.fixture
    def train(self, desk: Desk) -> JobFolder:
        train = desk.job(desk.finished())
        published = desk.host.root / "cat-v1.safetensors"
        desk.write_lora(published)
        proof = Proof(published=str(published), tensors_sha256="ab", facts=(Fact("Layers", "1"),))
        write_json(train.path / FILE_NAME, Proofs({"cat-v1.safetensors": proof}))
        return train

    def ask(self, host: Painter, train: JobFolder, **spec: Any) -> Proof:
        """The proof when the host's part has ended."""
        values: dict[str, Any] = {"published": str(host.root / "cat-v1.safetensors"), "tensors_sha256": "ab", **spec}
        settings = TrainSettings(base_model="demo", resolution=64, preview_steps=50, preview_seed=3)
        thread = ask_host(
            host, train, ProofSpec(train="", lora="cat-v1.safetensors", prompt="cat", settings=settings, **values)
        )
        if thread is not None:
            thread.join(30)
        return read_proofs(train)["cat-v1.safetensors"]

    def test_the_host_s_pictures_are_a_fact(self, host: Painter, train: JobFolder) -> None:
        proof = self.ask(host, train)
        assert proof.facts == (Fact("Layers", "1"), Fact("Drawn by", "painting WebUI"))
        assert proof.reason == ""
        assert [picture.prompt for picture in host.asked] == ["cat", "<lora:cat-v1:0> cat", "<lora:cat-v1:1> cat"]
        assert {(p.seed, p.steps, p.width_px, p.sampler, p.loras) for p in host.asked} == {(3, 12, 64, "Euler a", ())}

    def test_asked_when_the_worker_has_ended(self, desk: Desk, host: Painter, train: JobFolder) -> None:
        job = JobFolder(desk.workspace.new_job_dir("proof"))
        job.create(
            ProofSpec(
                train=f"../../{desk.workspace.id_of(train.path)}",
                lora="cat-v1.safetensors",
                published=str(host.root / "cat-v1.safetensors"),
                tensors_sha256="ab",
                prompt="cat",
                settings=TrainSettings(base_model="demo", resolution=64),
            )
        )
        desk.app._background._after(job)
        wait_until(lambda: Fact("Drawn by", "painting WebUI") in read_proofs(train)["cat-v1.safetensors"].facts)

    @pytest.mark.parametrize(
        ("paint", "reason"),
        [
            (lambda prompt: (250, 9, 9), "At weight 1 the WebUI draws what it draws without the LoRA."),
            (lambda prompt: (250 * ("<" in prompt), 9, 9), "At weight 0 the WebUI does not draw what it draws without"),
        ],
    )
    def test_why_it_does_not_work_there(
        self, host: Painter, train: JobFolder, paint: Callable[[str], tuple[int, int, int]], reason: str
    ) -> None:
        host.paint = paint
        proof = self.ask(host, train)
        assert proof.reason.startswith(reason)
        assert proof.hint

    def test_no_other_checkpoint_is_loaded_for_it(self, desk: Desk, host: Painter, train: JobFolder) -> None:
        host.loaded = desk.root / "other.safetensors"
        assert self.ask(host, train).facts[-1] == Fact("Not asked: the WebUI has another checkpoint loaded")
        assert host.asked == []

    def test_what_the_host_can_not_draw_refutes_nothing(self, host: Painter, train: JobFolder) -> None:
        def fail(picture: HostPicture) -> None:
            raise ModelError("The WebUI could not draw: CUDA out of memory.")

        host.before = fail
        proof = self.ask(host, train)
        assert proof.facts[-1] == Fact("Not drawn by the WebUI", "The WebUI could not draw: CUDA out of memory.")
        assert proof.reason == ""

    def test_nothing_to_ask(self, desk: Desk, host: Painter, train: JobFolder) -> None:
        before = read_proofs(train)["cat-v1.safetensors"]
        assert self.ask(host, train, tensors_sha256="cd") == before  # another copy meanwhile
        assert self.ask(host, train, published=str(desk.root / "gone.safetensors")) == before
        assert host.asked == []
