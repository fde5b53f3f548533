"""Two WebUIs on one workspace, two browsers at one version, and uploads that are cut off: over HTTP, at once."""

from __future__ import annotations

import base64
import json
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

pytest.importorskip("fastapi")

from lora_train.core.jobs import JobFolder
from lora_train.core.records import read_json
from lora_train.core.specs import TrainSpec
from lora_train.core.workspace import VersionInfo
from tests.faults import deeds
from tests.faults.conftest import fingerprint, temporary_files
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
        self.one, self.other = Site(root), Site(root)
        self._pool = ThreadPoolExecutor(8)

    def both(self, first: tuple[str, Any], second: tuple[str, Any] | None = None) -> tuple[Answer, Answer]:
        """Ask each, the second the same where nothing else is told."""
        begun = [self._pool.submit(self.one.call, *first), self._pool.submit(self.other.call, *(second or first))]
        one, other = (future.result() for future in begun)
        return one, other

    def queue(self) -> list[str]:
        return [entry["job"] for entry in self.one.ask("queue")]

    def workers(self) -> list[psutil.Process]:
        found: list[psutil.Process] = []
        for process in psutil.process_iter(["cmdline"]):
            words = process.info["cmdline"] or []
            if "lora_train.worker" in words and str(self.root) in words[-1]:
                found.append(process)
        return found

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
