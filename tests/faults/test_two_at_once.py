"""Two WebUIs on one workspace, two browsers at one version, and uploads that are cut off: over HTTP, at once."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from PIL import Image

pytest.importorskip("fastapi")

from lora_train.core.jobs import JobFolder
from lora_train.core.records import read_json
from lora_train.core.specs import TrainSpec
from lora_train.core.workspace import VersionInfo
from tests.faults import deeds
from tests.faults.conftest import fingerprint, temporary_files, workers_below
from tests.faults.sites import HEADERS, VERSION, Site

_VERSION_DIR = "workspace/projects/cat/versions/v1"
_LONG: dict[str, Any] = {
    "base_model": "demo",
    "epochs": 5000,
    "save_every_epochs": 0,
    "rank": 2,
    "generate_previews": False,
    "cpu_threads": 1,
}

Answer = tuple[int, Any]


class Pair:
    """Two WebUIs, and what both are asked at the same time."""

    def __init__(self, root: Path) -> None:
        self.root = root
        deeds.set_up(root)
        deeds.open_app(root).settings.save(*deeds.IDS, train=_LONG)
        self.sites = self.one, self.other = Site(root), Site(root)
        self._pool = ThreadPoolExecutor(8)

    def both(self, first: tuple[str, Any], second: tuple[str, Any] | None = None) -> tuple[Answer, Answer]:
        """Ask each, the second the same where nothing else is told."""
        begun = [self._pool.submit(self.one.call, *first), self._pool.submit(self.other.call, *(second or first))]
        one, other = (future.result() for future in begun)
        return one, other

    def captions(self) -> dict[str, str]:
        """By picture; both show the same."""
        one, other = (site.ask("captions?project=cat&version=v1")["rows"] for site in self.sites)
        assert one == other
        return {row["file"]: row["caption"] for row in one}

    def queue(self) -> list[str]:
        return [entry["job"] for entry in self.one.ask("queue")]

    def workers(self) -> list[psutil.Process]:
        return workers_below(self.root)

    def clear_queue(self) -> None:
        """Waiting ones are cancelled, a running one is ended."""
        while jobs := self.queue():
            self.one.call("jobs/kill", {"job": jobs[-1]})
            self.one.wait_until(lambda last=jobs[-1]: last not in self.queue())

    def close(self) -> None:
        self.one.kill()
        self.other.kill()
        for process in self.workers():
            process.kill()


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    opened = Pair(tmp_path_factory.mktemp("pair") / "place")
    yield opened
    opened.close()


def test_both_begin_to_train(pair: Pair, share: Callable[[int], int], count: Callable[[str, int], None]) -> None:
    rounds, begun = share(20), list[str]()
    for _ in range(rounds):
        answers = pair.both(("trains", VERSION))
        assert [code for code, _ in answers] == [200, 200], answers
        begun += [answer["job"] for _, answer in answers]
    assert len(set(begun)) == 2 * rounds, "each its own"
    assert sorted(pair.queue()) == sorted(begun)
    specs = [JobFolder(pair.root / "workspace" / job).read_spec() for job in begun]
    assert {spec.name for spec in specs if isinstance(spec, TrainSpec)} == {Path(job).name for job in begun}
    pair.one.wait_until(pair.workers)
    assert len(pair.workers()) == 1, "one card, one worker"
    pair.clear_queue()
    count("rounds in which two WebUIs began a training", rounds)


def test_both_update_the_dataset(pair: Pair, share: Callable[[int], int], count: Callable[[str, int], None]) -> None:
    rounds, originals = share(20), fingerprint([pair.root / _VERSION_DIR / "dataset" / "origin"])

    def update() -> Any:
        return pair.one.ask("dataset?project=cat&version=v1")["update"]

    for number in range(rounds):
        pair.one.ask("settings", {**VERSION, "dataset": {"width_px": 64 + 64 * (number % 2)}})
        answers = pair.both(("dataset/update", VERSION))
        assert sorted(code for code, _ in answers) == [200, 400], answers
        refused = next(answer for code, answer in answers if code == 400)
        assert refused["message"] == "The dataset is being updated already."
        job = next(answer["job"] for code, answer in answers if code == 200)
        pair.one.wait_until(lambda: update()["state"] not in ("running", "waiting"))
        assert update()["state"] == "finished", update()["message"]
        assert update()["job_dir"].endswith(job), "the one that was begun is the one that is told of"
        pictures = pair.other.ask("dataset?project=cat&version=v1")["pictures"]
        assert [picture["width_px"] for picture in pictures] == [64 + 64 * (number % 2)] * 5
    assert fingerprint([pair.root / _VERSION_DIR / "dataset" / "origin"]) == originals
    assert temporary_files(pair.root) == []
    count("rounds in which two WebUIs updated a dataset", rounds)


def test_one_deletes_what_the_other_trains(
    pair: Pair, share: Callable[[int], int], count: Callable[[str, int], None]
) -> None:
    rounds, before = share(20), set(fingerprint([pair.root / _VERSION_DIR / "dataset"]).values())
    for _ in range(rounds):
        (began, _), (deleted, answer) = pair.both(("trains", VERSION), ("versions/delete", VERSION))
        assert sorted((began, deleted)) == [200, 400], "one of them is told that it can't be"
        if deleted == 200:
            assert pair.queue() == []
            pair.one.ask("trash/restore", {"entry": answer["entry"]})
        else:
            assert answer["message"] == "A training of cat v1 waits or runs."
            pair.clear_queue()
        assert set(fingerprint([pair.root / _VERSION_DIR / "dataset"]).values()) == before
    count("rounds in which one deleted what the other trained", rounds)


def test_both_edit_the_same_captions(
    pair: Pair, share: Callable[[int], int], count: Callable[[str, int], None]
) -> None:
    """Of one caption that both write the last one stands, and the other can be had back; of edits of all captions no
    one's is lost. Nothing of this is told as done that was not.
    """
    rounds, folder = share(20), pair.root / _VERSION_DIR / "dataset" / "processed"
    before = pair.captions()
    file = next(iter(before))
    for number in range(rounds):
        texts = [f"{who} {number}, {'猫 ' * 500}".strip() for who in ("one", "two")]
        bodies = [{**VERSION, "file": file, "caption": text} for text in texts]
        answers = pair.both(("dataset/caption", bodies[0]), ("dataset/caption", bodies[1]))
        assert [code for code, _ in answers] == [200, 200], answers
        last = pair.captions()[file]
        assert last in texts
        assert (folder / file).with_suffix(".txt").read_text(encoding="utf-8").rstrip("\n") == last
        assert pair.other.ask("captions/undo", VERSION)["problems"] == []
        assert pair.captions() == {**before, file: next(text for text in texts if text != last)}
        assert pair.one.ask("captions/redo", VERSION)["problems"] == []

        tags = [f"{who}-{number}" for who in ("left", "right")]
        edits = [{**VERSION, "operation": {"kind": "add", "tags": tag}} for tag in tags]
        answers = pair.both(("captions/edit", edits[0]), ("captions/edit", edits[1]))
        assert [(code, answer["changed"]) for code, answer in answers] == [(200, len(before))] * 2, answers
        for caption in pair.captions().values():
            assert sorted(caption.split(", ")[-2:]) == tags
        for _ in range(2):  # the two edits, then the two captions
            answers = pair.both(("captions/undo", VERSION))
            assert [(code, answer["problems"]) for code, answer in answers] == [(200, [])] * 2, answers
        assert pair.captions() == before
    assert temporary_files(pair.root) == []
    count("rounds in which two WebUIs edited the same captions", rounds)


def test_one_uploads_what_the_other_removes(
    pair: Pair, share: Callable[[int], int], count: Callable[[str, int], None]
) -> None:
    """Pictures of one name: each of them is among the originals or in the trash, and those who removed it were told
    what they removed.
    """
    rounds, dataset = share(20), pair.root / _VERSION_DIR / "dataset"
    kept, removed = fingerprint([dataset]), 0

    def upload(number: int) -> tuple[str, Any]:
        picture = np.random.default_rng(number).integers(0, 256, (80, 72, 3), dtype=np.uint8)
        stream = io.BytesIO()
        Image.fromarray(picture).save(stream, "PNG")
        sent.append(hashlib.sha256(stream.getvalue()).hexdigest())
        files = [("same.png", stream.getvalue()), ("same.txt", f"caption {number}".encode())]
        told = [{"name": name, "content": base64.b64encode(content).decode()} for name, content in files]
        return "dataset/upload", {**VERSION, "files": told}

    sent: list[str] = []
    assert pair.one.ask(*upload(1000)) == {"problems": []}
    for number in range(rounds):
        answers = pair.both(upload(number), ("dataset/remove", {**VERSION, "file": "same.png"}))
        assert answers[0] == (200, {"problems": []})
        assert answers[1][0] == 200 or answers[1][1]["message"] == "There is no picture 'same.png' in this dataset."
        removed += answers[1][0] == 200
        there = fingerprint([dataset / "origin", pair.root / "workspace" / "trash"])
        assert set(sent) <= set(there.values())
        names = {path.name for path in dataset.joinpath("origin").glob("same*.png")}
        shown = [
            {entry["file"] for entry in site.ask("dataset?project=cat&version=v1")["pictures"]} for site in pair.sites
        ]
        assert names <= shown[0] == shown[1]
        assert len(names) == len(sent) - removed
    assert kept.items() <= fingerprint([dataset]).items()
    assert temporary_files(pair.root) == []
    assert "Traceback" not in pair.one.log() + pair.other.log()
    count("rounds in which one uploaded what the other removed", rounds)


def test_two_browsers_change_the_same_version(
    pair: Pair, share: Callable[[int], int], count: Callable[[str, int], None]
) -> None:
    """What only one of them changes stays; of what both change the last one stands; no change breaks the file."""
    rounds = share(100)
    for number in range(1, rounds + 1):
        one = {**VERSION, "train": {"epochs": number, "rank": 8}}
        other = {**VERSION, "dataset": {"width_px": 64 * (1 + number % 8)}, "train": {"rank": 16}}
        answers = pair.both(("settings", one), ("settings", other))
        assert [(code, answer["problems"]) for code, answer in answers] == [(200, []), (200, [])]
        info = read_json(pair.root / _VERSION_DIR / "version.json", VersionInfo, VersionInfo("damaged", 0.0))
        assert info.name == "v1"
        assert info.train["epochs"] == number
        assert info.dataset["width_px"] == 64 * (1 + number % 8)
        assert info.train["rank"] in (8, 16)
    assert not list(pair.root.rglob("*.damaged"))
    count("rounds in which two browsers saved settings", rounds)


@pytest.mark.parametrize("part", [0.0, 0.01, 0.5, 0.99])
def test_an_upload_is_cut_off(pair: Pair, part: float, count: Callable[[str, int], None]) -> None:
    before = fingerprint([pair.root / "workspace"], without=lambda path: path.suffix == ".lock")
    content = base64.b64encode((pair.root / "to come" / "40.png").read_bytes()).decode()
    body = json.dumps({**VERSION, "files": [{"name": "cut.png", "content": content}]}).encode()
    head = [
        "POST /train-tools/v1/dataset/upload HTTP/1.1",
        f"Host: 127.0.0.1:{pair.one.port}",
        f"Content-Length: {len(body)}",
        *(f"{name}: {value}" for name, value in HEADERS.items()),
    ]
    with socket.create_connection(("127.0.0.1", pair.one.port)) as line:
        line.sendall("\r\n".join(head).encode() + b"\r\n\r\n" + body[: int(part * len(body))])
    names = [picture["file"] for picture in pair.one.ask("dataset?project=cat&version=v1")["pictures"]]
    assert "cut.png" not in names
    assert fingerprint([pair.root / "workspace"], without=lambda path: path.suffix == ".lock") == before
    assert "Traceback" not in pair.one.log()
    count("uploads cut off", 1)
