"""The report of a training: complete, by itself, and without what must not be told."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
from PIL import Image

from lora_train.core import events as ev
from lora_train.core.config import TrainSettings
from lora_train.core.errors import JobError
from lora_train.core.history import FileFacts, MadeFrom, PictureFacts, Versions, write_record
from lora_train.core.jobs import JobFolder
from lora_train.core.judgement import Choice, Judged, Judgement
from lora_train.core.memory import MemoryFacts, MemoryPlan, write_memory
from lora_train.core.specs import MergeSpec, TrainSpec
from lora_train.report.facts import read_facts, without_folders
from lora_train.report.page import MOST_PICTURES, ReportPicture, report_html

NASTY = "<script>alert('猫')</script> & \"q\""


def trained(root: Path, *, judged: bool = True, **settings: Any) -> JobFolder:
    """A finished training, written by hand."""
    job = JobFolder(root / "somebody" / "trains" / "cat-v1")
    given = {"base_model": "/home/somebody/models/base.safetensors", "epochs": 3, "trigger_word": NASTY, **settings}
    job.create(
        TrainSpec(
            name="cat-v1",
            dataset="../../dataset/processed",
            dataset_fingerprint="f" * 32,
            trash="../trash",
            settings=TrainSettings(**given),
            concept=NASTY,
            created=1.0,
            version="v1",
        )
    )
    events = ev.EventWriter(job.events_path)
    events.write(ev.Started(pid=0, total_steps=40, epochs=2, device="CPU", step=0), ev.Validated(0, 0.5, 0.5))
    for step in range(1, 41):
        events.write(ev.Step(step, 1 + step // 21, 0.5 / step, 1e-4, 0.25))
    events.write(ev.Validated(20, 0.25, 0.5), ev.Validated(40, 0.375, 0.5))
    for number, file in enumerate(("cat-v1-000001.safetensors", "cat-v1.safetensors"), 1):
        (job.path / file).write_bytes(b"x" * 1000)
        events.write(ev.Saved(file, step=20 * number, epoch=number))
    events.write(ev.Finished(step=40))
    events.close()
    pictures = tuple(
        PictureFacts(
            path=f"10_cat/secret-{n}.png",
            content="c",
            caption=f"{NASTY}, sofa",
            repeats=10,
            width_px=512,
            height_px=768,
        )
        for n in range(3)
    )
    pictures += (PictureFacts(path="10_cat/h.png", content="d", is_held_out=True, width_px=64, height_px=64),)
    write_record(
        job.path, MadeFrom(fingerprint="f" * 32, pictures=pictures, base_model=FileFacts(name="base.safetensors"))
    )
    write_record(job.path, Versions(packages={"torch": "2.9"}, cpu_threads=2, base_model_sha256="ab" * 32))
    if judged:
        row = Judged(lora="cat-v1-000001.safetensors", weight=0.8, likeness=0.6, retention=0.9, score=0.5)
        judgement = Judgement(rows=(row,), lora=row.lora, weight=0.8, reason="It is <like> the pictures.")
        (job.path / "judgement.json").write_bytes(msgspec.json.encode(judgement))
    return job


def page_of(job: JobFolder, *pictures: ReportPicture) -> str:
    return report_html(read_facts(job.path), pictures)


def test_all_is_in_it(tmp_path: Path) -> None:
    picture = tmp_path / "grid.png"
    Image.new("RGB", (3000, 20), (200, 0, 0)).save(picture)
    page = page_of(trained(tmp_path), ReportPicture(picture, "grid <1>"))
    assert "Recommended:</strong> cat-v1-000001.safetensors at weight 0.8" in page
    assert "It is &lt;like&gt; the pictures." in page
    assert "&lt;lora:cat-v1-000001:0.8&gt; &lt;script&gt;" in page
    assert "Lowest loss on held-out pictures: 0.25, after step 20. Base model: 0.5." in page
    assert page.count("<polyline") == 4
    assert page.count('<circle class="dot"') == 3
    assert "512×768 px (3), 64×64 px (1)" in page
    assert "<dt>Pictures trained</dt><dd>3</dd><dt>Pictures held out</dt><dd>1</dd>" in page
    assert "<td>Number of epochs</td><td>3</td><td>10</td>" in page
    assert "ab" * 32 in page
    assert "torch 2.9" in page
    assert 'width="1600" height="11"' in page
    assert "data:image/jpeg;base64," in page
    assert "sofa <small>3</small>" in page


def test_where_it_turned_is_marked(tmp_path: Path) -> None:
    job = trained(tmp_path)
    assert 'class="turn"' not in page_of(job)
    events = ev.EventWriter(job.events_path)
    events.write(ev.Validated(41, 0.3, 0.5))
    events.close()
    page = page_of(job)
    assert page.count('class="turn"') == 1
    assert "after step 20. Base model: 0.5. Since then it is over-trained." in page


def test_it_opens_by_itself(tmp_path: Path) -> None:
    """Nothing is fetched, nothing runs, and every text that a person typed is text."""
    page = page_of(trained(tmp_path))
    assert "<script" not in page
    assert not re.search(r"(?:src|href)=\"(?!data:)", page)
    assert "url(" not in page
    assert "http" not in page


def test_no_folder_and_no_user(tmp_path: Path) -> None:
    page = page_of(trained(tmp_path, sd_script_args="--x=/home/somebody/a b/c.toml"))
    assert "somebody" not in page
    assert str(tmp_path) not in page
    assert "base.safetensors" in page
    assert "c.toml" in page
    assert "secret-" not in page


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("/home/me/x.pt", "x.pt"),
        ("C:\\Users\\my self\\x.pt", "x.pt"),
        ("1girl, and/or, 1/2", "1girl, and/or, 1/2"),
        ("a=/x/y b=/z/w", "a=y b=w"),
        ("", ""),
    ],
)
def test_folders_are_cut(text: str, left: str) -> None:
    assert without_folders(text) == left


def test_private_tells_no_words(tmp_path: Path) -> None:
    page = page_of(
        trained(tmp_path, private_metadata=True, preview_prompts=("on a sofa",), preview_negative_prompt="sofa")
    )
    assert "sofa" not in page
    assert "This report is private" in page
    assert "<code>&lt;lora:cat-v1-000001:0.8&gt;</code>" in page


def test_chosen_by_hand(tmp_path: Path) -> None:
    job = trained(tmp_path)
    choice = Choice(lora="cat-v1.safetensors", weight=1.0)
    (job.path / "choice.json").write_bytes(msgspec.json.encode(choice))
    page = page_of(job)
    assert "Chosen by hand:</strong> cat-v1.safetensors at weight 1" in page
    assert "Recommended was cat-v1-000001.safetensors at weight 0.8." in page


def test_an_earlier_release_noted_less(tmp_path: Path) -> None:
    job = trained(tmp_path, judged=False)
    (job.path / "made_from.json").unlink()
    (job.path / "versions.json").write_bytes(b"{")
    page = page_of(job)
    assert page.count("an earlier release trained it") == 2
    assert "The last one saved:</strong> cat-v1.safetensors" in page
    assert "<h2>Judgement" not in page


def test_before_anything_happened(tmp_path: Path) -> None:
    job = trained(tmp_path, judged=False)
    job.events_path.unlink()
    page = page_of(job)
    assert "No LoRA has been saved." in page
    assert "No step has been done." in page


def test_too_many_pictures_are_counted(tmp_path: Path) -> None:
    picture = tmp_path / "p.png"
    Image.new("RGB", (8, 8)).save(picture)
    pictures = [ReportPicture(picture, "p"), ReportPicture(tmp_path / "gone.png", "q")] * MOST_PICTURES
    page = page_of(trained(tmp_path), *pictures)
    assert page.count("<img") == MOST_PICTURES // 2
    assert f"{MOST_PICTURES} more are not in this report." in page


def test_only_of_trainings(tmp_path: Path) -> None:
    job = JobFolder(tmp_path / "merge")
    job.create(MergeSpec(loras=("a",), weights=(1.0,), out="b"))
    with pytest.raises(JobError, match="no training"):
        read_facts(job.path)


def test_how_memory_was_saved(tmp_path: Path) -> None:
    job = trained(tmp_path)
    assert "Saved memory by" not in page_of(job)
    write_memory(job.path, MemoryFacts(plan=MemoryPlan(checkpointing="all", base_weights="int8")))
    told = "gradient checkpointing of all blocks, the base model stored as int8"
    assert f"<dt>Saved memory by</dt><dd>{told}</dd>" in page_of(job)
