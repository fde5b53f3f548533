"""Downloads of a model that we know by a real worker process, from a hub on this machine that also fails."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import pytest

from lora_train.core import captioners
from lora_train.core.captioners import CaptionerModel
from lora_train.core.events import Phase
from lora_train.core.jobs import StatusReader
from lora_train.launch import launcher

if TYPE_CHECKING:
    from tests.assets.hubs import Hub
    from tests.unit.caption.conftest import Desk

pytestmark = pytest.mark.compat

_LIMIT_S = 60


def wait_until(condition: Any) -> None:
    until = time.monotonic() + _LIMIT_S
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)


def test_a_model_comes_whole(desk: Desk, hub: Hub, small_model: CaptionerModel) -> None:
    status = desk.download(small_model)
    assert (status.state, status.message) == ("finished", "")
    folder = desk.parent / small_model.name
    assert status.result == {"folder": str(folder), "bytes": small_model.size_bytes}
    assert desk.contents(folder) == hub.contents_of(small_model)
    origin = {"repository": "somebody/small-tagger", "revision": small_model.revision}
    assert json.loads((folder / ".hub.json").read_bytes()) == origin
    assert (status.phase, status.phase_done, status.phase_total) == (
        "downloading",
        small_model.size_bytes,
        small_model.size_bytes,
    )
    assert desk.is_there(small_model)
    assert desk.visible() == [small_model.name]

    hub.asked.clear()
    assert desk.download(small_model).state == "finished"
    assert hub.asked == [], "it is there"


def test_a_broken_connection_is_taken_up_again(desk: Desk, hub: Hub, small_model: CaptionerModel) -> None:
    hub.cut_after_bytes = [300_000, 200_000]
    assert desk.download(small_model).state == "finished"
    ranges = [range_ for name, range_ in hub.asked if name == "model.onnx"]
    assert ranges == ["", "bytes=262144-", "bytes=458752-"], "what had come of 64 kB is lost"
    assert desk.is_there(small_model)


def test_a_connection_that_breaks_for_good_is_told_and_the_half_is_kept(
    desk: Desk, hub: Hub, small_model: CaptionerModel
) -> None:
    hub.cut_after_bytes = [300_000] + 40 * [0]  # the library itself may try six times for each of ours
    status = desk.download(small_model)
    assert (status.state, status.error) == ("failed", "ModelError")
    assert status.message.startswith("Small tagger can't be downloaded from http://127.0.0.1")
    assert "goes on where it ended" in status.hint
    assert desk.visible() == []
    assert not desk.is_there(small_model)

    hub.cut_after_bytes, hub.asked = [], []
    status = desk.download(small_model)
    assert status.result["bytes"] == small_model.size_bytes - 262_144
    assert hub.asked[0] == ("model.onnx", "bytes=262144-")
    assert desk.is_there(small_model)


def test_no_server(desk: Desk, small_model: CaptionerModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # the port of "discard", where nobody listens
    status = desk.download(small_model)
    assert (status.state, status.error) == ("failed", "ModelError")
    assert status.message == "Small tagger can't be downloaded from http://127.0.0.1:9: Connection refused."
    assert desk.visible() == []
    assert not desk.half(small_model).exists()


@pytest.mark.parametrize("large", [True, False])
def test_a_wrong_checksum(desk: Desk, hub: Hub, small_model: CaptionerModel, large: bool) -> None:
    """Of a file whose checksum we know, and of one for which only the hub tells it."""
    name = "model.onnx" if large else "config.json"
    if large:
        hub.offer(small_model, {name: hub.contents_of(small_model)[name][::-1]})
    else:
        hub.told[name] = "0" * 40
    status = desk.download(small_model)
    assert (status.state, status.error) == ("failed", "ModelError")
    assert f"{name} of Small tagger came from" in status.message
    assert "wrong checksum" in status.message
    assert desk.visible() == []
    assert not (desk.half(small_model) / name).exists()


@pytest.mark.parametrize(("status", "word"), [(404, "does not have it (404)"), (403, "refuses it (403)")])
def test_a_file_that_the_hub_does_not_give(
    desk: Desk, hub: Hub, small_model: CaptionerModel, status: int, word: str
) -> None:
    hub.status["model.onnx"] = status
    told = desk.download(small_model)
    assert (told.state, told.error) == ("failed", "ModelError")
    assert word in told.message
    assert "HF_ENDPOINT" in told.hint
    assert desk.visible() == []


def test_an_overloaded_server_is_asked_again(desk: Desk, hub: Hub, small_model: CaptionerModel) -> None:
    hub.status["selected_tags.csv"] = 503
    status = desk.download(small_model)
    assert "the server answers 503" in status.message


def test_what_stands_there_incomplete_is_set_aside(desk: Desk, small_model: CaptionerModel) -> None:
    folder = desk.parent / small_model.name
    folder.mkdir(parents=True)
    (folder / "mine.txt").write_text("x", encoding="utf-8")
    assert desk.download(small_model).state == "finished"
    assert desk.visible() == [small_model.name, f"{small_model.name}.old-1"]
    assert desk.is_there(small_model)


def test_two_at_once(desk: Desk, hub: Hub, small_model: CaptionerModel) -> None:
    hub.pause_s = 0.1
    first_job = desk.job(small_model)
    first = desk.start(small_model, first_job)
    wait_until(lambda: (desk.half(small_model) / "model.onnx").exists())
    status = desk.download(small_model)
    assert (status.error, status.message) == ("JobError", "Small tagger is being downloaded already.")
    first.wait(_LIMIT_S)
    assert StatusReader(first_job).read().state == "finished"


def test_no_room(desk: Desk, small_model: CaptionerModel, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil

    from lora_train.caption import downloads
    from lora_train.core.errors import JobError

    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1, 1, 1_000_000))  # type: ignore[attr-defined]
    with pytest.raises(JobError, match=r"needs 68 MB, and .* has 1 MB left"):  # 1 MB and 64 MiB that stay free
        downloads._check_disk("Small tagger", small_model.size_bytes, desk.half(small_model))


def test_a_full_disk(desk: Desk, small_model: CaptionerModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system lets no file grow beyond half a megabyte: an error of writing, not of the network."""
    pytest.importorskip("resource")
    monkeypatch.setenv("LARGEST_FILE_BYTES", "500000")
    status = desk.download(small_model)
    assert (status.state, status.error, status.hint) == ("failed", "OSError", "Choose another disk.")
    assert status.message.endswith("can't be written: its disk takes no file so large.")
    assert desk.visible() == []
    monkeypatch.delenv("LARGEST_FILE_BYTES")
    assert desk.download(small_model).state == "finished"


def test_a_server_that_can_not_go_on_in_a_file(desk: Desk, hub: Hub, small_model: CaptionerModel) -> None:
    hub.has_ranges = False
    hub.cut_after_bytes = [300_000]
    assert desk.download(small_model).state == "finished"
    assert desk.contents(desk.parent / small_model.name) == hub.contents_of(small_model)


def test_what_is_no_hub(desk: Desk, hub: Hub, small_model: CaptionerModel) -> None:
    hub.page = "<html>Please log in to this hotel's network.</html>"
    status = desk.download(small_model)
    assert (status.error, status.message) == ("ModelError", f"{hub.url} does not answer as a hub does.")
    assert not desk.half(small_model).exists()


def test_a_machine_that_is_to_stay_offline(
    desk: Desk, hub: Hub, small_model: CaptionerModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    status = desk.download(small_model)
    assert (status.error, status.message) == ("ModelError", "HF_HUB_OFFLINE is set: nothing is downloaded.")
    assert hub.tokens == []


def test_without_the_library(desk: Desk, small_model: CaptionerModel, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = desk.root / "broken" / "huggingface_hub"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("raise ImportError", encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(folder.parent))
    status = desk.download(small_model)
    assert status.message == "Downloads need huggingface_hub, which this Python has not."
    assert status.hint.endswith("-m pip install huggingface_hub")


TAGGER: dict[str, bytes] = {"model.onnx": bytes(range(256)) * 4096, "selected_tags.csv": b"tag_id,name\n1,cat\n"}


def test_the_models_that_are_proposed_are_fetched_by_nobody(
    desk: Desk, hub: Hub, small_model: CaptionerModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert desk.download(small_model).state == "finished"
    assert {token for path, token in hub.tokens if "agent" not in path} == {""}


def test_progress_and_cancel(desk: Desk, hub: Hub) -> None:
    """With the registry and the worker as they are: a real model, in its real size, that comes slowly."""
    model = captioners.MODELS[0]
    for file in model.files:
        hub.offer_zeros(model, file.name, file.size_bytes)
    hub.large = {"model.onnx"}
    hub.pause_s = 0.02
    job = desk.job(model)
    worker = launcher.start_worker(job)
    wait_until(lambda: StatusReader(job).read().phase_done > 0)
    wait_until(lambda: len([event for event in job.events() if isinstance(event, Phase)]) >= 3)
    status = StatusReader(job).read()
    assert (status.phase, status.phase_total) == ("downloading", 378_844_778)
    job.request("stop")
    asked_at = time.monotonic()
    worker.wait(_LIMIT_S)
    assert time.monotonic() - asked_at < 2
    assert StatusReader(job).read().state == "stopped"
    assert desk.visible() == []
    kept = (desk.half(model) / "model.onnx").stat().st_size
    assert 0 < kept < model.size_bytes


def test_a_server_that_hangs_does_not_keep_the_person_waiting(desk: Desk, hub: Hub) -> None:
    model = captioners.MODELS[0]
    for file in model.files:
        hub.offer_zeros(model, file.name, file.size_bytes)
    hub.large, hub.pause_s = {"model.onnx"}, 60
    job = desk.job(model)
    worker = launcher.start_worker(job)
    wait_until(lambda: StatusReader(job).read().phase_done > 0)
    job.request("stop")
    asked_at = time.monotonic()
    worker.wait(_LIMIT_S)
    assert time.monotonic() - asked_at < 2
    assert StatusReader(job).read().state == "stopped"
