"""The judge of a training: what it costs, its place in the queue, what is taken from it, and what follows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from PIL import Image

from lora_train.app.background import Background
from lora_train.core import events as ev
from lora_train.core.errors import ConfigError, JobError, WorkspaceError
from lora_train.core.jobs import JobFolder
from lora_train.core.judgement import JUDGING, Judged, Judgement
from lora_train.core.private_use import PRIVATE_METADATA, PRIVATE_USE
from lora_train.core.progress import StopAskedForError, telling
from lora_train.core.specs import JudgeSpec
from lora_train.core.tensorfiles import read_tensor_file
from lora_train.launch.queue import JobQueue

if TYPE_CHECKING:
    from tests.unit.app.conftest import Desk

FIRST, LAST = "cat-v1-000001.safetensors", "cat-v1.safetensors"
REASON = "Step 10 at weight 0.8 is the best."


@pytest.fixture(autouse=True)
def _pictures(desk: Desk) -> None:
    """Those that a training of this version had."""
    desk.trained("5_cat/a.png", "5_cat/b.png")


def judged(desk: Desk, job: str, **changes: Any) -> None:
    """`judgement.json` as the worker leaves it: the first of two LoRAs is recommended."""
    sample = desk.job(job).samples_dir / "judge" / "a.png"
    sample.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (64, 64), (9, 8, 7)).save(sample)
    best = Judged(lora=FIRST, weight=0.8, likeness=0.7, score=0.6, samples=("samples/judge/a.png",), nearest=("x.png",))
    rows = (best, Judged(lora=LAST, weight=1.0, likeness=0.2, score=0.1))
    judgement = Judgement(rows=rows, lora=FIRST, weight=0.8, reason=REASON)
    judgement = msgspec.structs.replace(judgement, **changes)
    (desk.job(job).path / "judgement.json").write_bytes(msgspec.json.encode(judgement))


def card(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def background(desk: Desk) -> Background:
    app = desk.app
    jobs = JobQueue(desk.workspace.root)
    return Background(desk.workspace, desk.host, jobs, app.loras, app.sweeps, app.judging, app.proofs)


def test_the_encoder_of_the_settings(desk: Desk, tmp_path: Path) -> None:
    """What the version's settings name now counts, not what they named when the training began."""
    job = desk.finished(loras=[FIRST, LAST])
    encoder = tmp_path / "眼" / "clip.onnx"
    assert desk.app.settings.save("cat", "v1", train={"judge_encoder": str(encoder)}) == []
    with pytest.raises(ConfigError, match="does not exist"):
        desk.app.judging.begin(job)
    encoder.parent.mkdir()
    encoder.write_bytes(b"")
    desk.host.is_local = False
    with pytest.raises(ConfigError, match="takes no paths"):
        desk.app.judging.begin(job)
    assert desk.app.queue.entries() == []
    desk.host.is_local = True
    spec = desk.job(desk.app.judging.begin(job)).read_spec()
    assert isinstance(spec, JudgeSpec)
    assert spec.encoder == str(encoder)


def test_cost_and_queue(desk: Desk) -> None:
    """(1 base model + 2 LoRAs x 3 weights) x 2 kinds of prompts x 8 pictures."""
    job = desk.finished(loras=[FIRST, LAST])
    assert (desk.app.judging.forecast(job).pictures, desk.app.judging.forecast(job).seconds) == (112, None)
    judge = desk.app.judging.begin(job)
    spec = desk.job(judge).read_spec()
    assert isinstance(spec, JudgeSpec)
    assert (desk.job(judge).path / spec.train).resolve() == desk.job(job).path
    (entry,) = desk.app.queue.entries()
    assert (entry.kind, entry.title) == ("judge", "cat v1: cat-v1")
    shown = desk.app.judging.snapshot(job)
    assert (shown.job, shown.is_running) == (judge, True)
    with pytest.raises(JobError, match="being judged"):
        desk.app.judging.begin(job)
    for call in (lambda: desk.app.training.delete(job), lambda: desk.app.projects.rename("cat", "dog")):
        with pytest.raises(JobError):
            call()
    desk.app.training.draw_previews(job)
    desk.app.training.stop(judge)
    assert not desk.app.judging.snapshot(job).is_running


def test_nothing_to_judge(desk: Desk) -> None:
    job = desk.train()
    assert "no LoRA yet" in desk.app.judging.forecast(job).problem
    with pytest.raises(JobError, match="no LoRA yet"):
        desk.app.judging.begin(job)
    with pytest.raises(WorkspaceError):
        desk.app.judging.snapshot("projects/no/such/job")


def test_the_pace_is_remembered(desk: Desk) -> None:
    """Four pictures in eight seconds."""
    job = desk.finished(loras=[LAST])
    judge = desk.job(desk.app.judging.begin(job))
    desk.tell(judge, ev.Started(pid=0, t=1.0), ev.Phase(JUDGING, 0, 8, t=10.0), ev.Phase(JUDGING, 4, 8, t=18.0))
    background(desk)._after(judge)
    told = desk.app.judging.forecast(job)
    assert told.seconds == pytest.approx(2.0 * told.pictures)


def test_recommended_file_is_published_with_weight_reason_and_sample(desk: Desk) -> None:
    job = desk.finished(loras=[FIRST, LAST])
    judged(desk, job)
    entries = {lora.file: lora for lora in desk.app.training.list("cat", "v1")[0].loras}
    assert [entries[file].is_recommended for file in (FIRST, LAST)] == [True, False]
    assert entries[FIRST].prompt == "<lora:cat-v1-000001:0.8> cat"
    assert desk.app.loras.publish_recommended(job) == "cat-v1-000001"
    made = card(desk.host.root / "cat-v1-000001.json")
    assert made["preferred weight"] == 0.8
    assert made["notes"].endswith(REASON)
    with Image.open(desk.host.root / "cat-v1-000001.png") as thumbnail:
        assert thumbnail.getpixel((0, 0)) == (9, 8, 7)
    desk.app.loras.publish(job, LAST)
    other = card(desk.host.root / "cat-v1.json")
    assert (other["preferred weight"], REASON in other["notes"]) == (1.0, False)
    assert (desk.host.root / "cat-v1-000001.safetensors").is_file()


def test_overruled_and_back(desk: Desk) -> None:
    job = desk.finished(loras=[FIRST, LAST])
    judged(desk, job)
    desk.app.judging.choose(job, LAST, 0.6)
    assert desk.app.judging.best(job)[:3] == (LAST, 0.6, "")
    assert desk.app.loras.publish_recommended(job) == "cat-v1"
    assert card(desk.host.root / "cat-v1.json")["preferred weight"] == 0.6
    desk.app.judging.follow_recommendation(job)
    assert desk.app.judging.best(job)[:3] == (FIRST, 0.8, REASON)
    with pytest.raises(WorkspaceError, match="no LoRA"):
        desk.app.judging.choose(job, "other.safetensors", 1.0)


def test_loras_that_are_gone(desk: Desk) -> None:
    job = desk.finished(loras=[FIRST, LAST])
    judged(desk, job)
    desk.app.judging.choose(job, FIRST, 1.0)
    desk.app.loras.delete(job, FIRST)
    judgement = desk.app.judging.judgement(job)
    assert judgement is not None
    assert ([row.lora for row in judgement.rows], judgement.lora) == ([LAST], "")
    assert desk.app.judging.best(job).file == ""
    assert desk.app.loras.publish_recommended(job) == "cat-v1", "the last one"


@pytest.mark.parametrize("content", [b"{", b"[]", b"null", b"\xff", b'{"rows": 3}'])
@pytest.mark.parametrize("name", ["judgement.json", "choice.json", "judge.json"])
def test_damaged_files_hide_nothing(desk: Desk, name: str, content: bytes) -> None:
    job = desk.finished(loras=[FIRST, LAST])
    judged(desk, job)
    (desk.job(job).path / name).write_bytes(content)
    assert len(desk.app.training.list("cat", "v1")[0].loras) == 2
    desk.app.judging.snapshot(job)
    assert desk.app.loras.publish_recommended(job) in ("cat-v1", "cat-v1-000001")


def test_judged_first_published_then(desk: Desk) -> None:
    job = desk.finished(loras=[FIRST, LAST], judge_when_finished=True)
    folder = desk.job(job)
    desk.publishes_to(job, desk.host.root)
    desk.app = desk.again()
    work = background(desk)
    work._after(folder)
    assert not desk.host.root.exists()
    (entry,) = desk.app.queue.entries()
    judged(desk, job)
    for _ in range(2):
        work._after(JobFolder(desk.workspace.root / entry.job))
    assert {path.name for path in desk.host.root.glob("*.safetensors")} == {FIRST}
    desk.app.loras.unpublish(job, FIRST)
    work._after(JobFolder(desk.workspace.root / entry.job))
    assert not list(desk.host.root.glob("*.safetensors")), "once"


def test_private_use_is_marked_and_taken_off(desk: Desk) -> None:
    job = desk.finished(trigger_word="sks")
    before = (desk.job(job).path / LAST).read_bytes()
    desk.app.loras.publish(job, LAST)
    desk.app.loras.set_private(job, is_private=True)
    assert desk.app.training.list("cat", "v1")[0].is_private
    copy = desk.host.root / LAST
    assert read_tensor_file(copy).metadata.items() >= PRIVATE_METADATA.items()
    assert "modelspec.trigger_phrase" not in read_tensor_file(copy).metadata
    made = card(desk.host.root / "cat-v1.json")
    assert made["activation text"] == "sks"
    assert made["description"].startswith(PRIVATE_USE)
    assert made["notes"].startswith(PRIVATE_USE)
    assert (desk.job(job).path / LAST).read_bytes() == before
    desk.app.loras.set_private(job, is_private=False)
    assert "modelspec.usage_hint" not in read_tensor_file(copy).metadata
    assert not card(desk.host.root / "cat-v1.json")["description"].startswith(PRIVATE_USE)


def test_marking_that_is_stopped_counts_as_not_begun(desk: Desk) -> None:
    job = desk.finished(loras=[FIRST, LAST])
    for file in (FIRST, LAST):
        desk.app.loras.publish(job, file)

    def stop(done: int, total: int) -> None:
        raise StopAskedForError

    with telling(stop), pytest.raises(JobError, match="Stopped: 1 of 2 copies are changed"):
        desk.app.loras.set_private(job, is_private=True)
    assert not desk.app.training.list("cat", "v1")[0].is_private
    desk.app.loras.set_private(job, is_private=True)
    for file in (FIRST, LAST):
        assert read_tensor_file(desk.host.root / file).metadata.items() >= PRIVATE_METADATA.items()


def test_private_use_of_the_settings(desk: Desk) -> None:
    job = desk.finished(private_use=True)
    desk.app.loras.publish(job, LAST)
    assert read_tensor_file(desk.host.root / LAST).metadata["modelspec.usage_hint"] == PRIVATE_USE


def test_published_again_a_persons_card_and_thumbnail_stay(desk: Desk) -> None:
    job = desk.finished(loras=[FIRST, LAST])
    desk.previews(job, "cat-v1-000001-p1-w1.png")
    desk.app.loras.publish(job, FIRST)
    path, thumbnail = desk.host.root / "cat-v1-000001.json", desk.host.root / "cat-v1-000001.png"
    path.write_text(json.dumps({**card(path), "description": "mine", "vae": "x"}), encoding="utf-8")
    ours = thumbnail.read_bytes()
    judged(desk, job)
    desk.app.loras.publish(job, FIRST)
    made = card(path)
    assert (made["description"], made["vae"], made["preferred weight"]) == ("mine", "x", 0.8)
    assert thumbnail.read_bytes() != ours, "ours is brought up to date"
    thumbnail.write_bytes(b"of the person")
    desk.app.loras.publish(job, FIRST)
    assert thumbnail.read_bytes() == b"of the person"


def test_a_damaged_card_is_left_alone_and_told(desk: Desk) -> None:
    job = desk.finished()
    desk.host.root.mkdir(parents=True)
    (desk.host.root / "cat-v1.json").write_bytes(b"[1]")
    (desk.host.root / "cat-v1.preview.jpg").write_bytes(b"theirs")
    desk.previews(job, "cat-v1-p1-w1.png")
    desk.app.loras.publish(job, LAST)
    assert (desk.host.root / "cat-v1.json").read_bytes() == b"[1]"
    assert not (desk.host.root / "cat-v1.png").exists(), "a host takes any of several pictures"
    (entry,) = desk.app.training.list("cat", "v1")[0].loras
    assert "left as it is" in entry.problem


def test_published_anywhere_by_hand(desk: Desk, tmp_path: Path) -> None:
    job = desk.finished(loras=[FIRST, LAST])
    judged(desk, job)
    made = desk.app.loras.publish_to(desk.job(job), tmp_path / "猫", is_private=True)
    assert Path(made.path) == tmp_path / "猫" / FIRST
    assert read_tensor_file(Path(made.path)).metadata["modelspec.usage_hint"] == PRIVATE_USE
    with pytest.raises(WorkspaceError, match="no LoRA"):
        desk.app.loras.publish_to(desk.job(job), tmp_path, file="other.safetensors")


def test_samples_of_the_judge_are_served(desk: Desk) -> None:
    job = desk.finished(loras=[FIRST, LAST])
    judged(desk, job)
    assert desk.app.training.file_path(job, "samples/judge/a.png").is_file()
