"""Events survive half lines, later versions, several threads and any text."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import pytest

from lora_train.core.events import (
    Event,
    EventWriter,
    Failed,
    Finished,
    Note,
    Paused,
    Phase,
    Sampled,
    Saved,
    Started,
    Step,
    Stopped,
    read_events,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "events.jsonl"


def write(path: Path, *events: Event) -> None:
    writer = EventWriter(path)
    writer.write(*events)
    writer.close()


def test_every_kind_comes_back(path: Path) -> None:
    events: list[Event] = [
        Started(pid=7, total_steps=10, epochs=2, device="CPU", step=3, t=1.5),
        Phase(name="training", done=1, total=2, t=2.0),
        Step(step=1, epoch=1, loss=0.25, lr=1e-4, s_per_step=0.5, t=3.0),
        Saved(path="a.safetensors", step=1, epoch=1, t=4.0),
        Sampled(path="samples/a.png", step=1, prompt="猫, 🐈", weight=0.6, t=5.0),
        Note("warning", 'two\nlines\r\u2028and \x00 "quotes"', t=6.0),
        Finished(step=10, result={"likeness_after": 0.5, "grid": "グリッド.png"}, t=7.0),
        Stopped(step=4, t=8.0),
        Paused(step=5, t=9.0),
        Failed(error="ModelError", message="m", hint="h", traceback="t", t=10.0),
    ]
    write(path, *events)
    found, offset = read_events(path)
    assert found == events
    assert offset == path.stat().st_size
    lines = path.read_bytes().splitlines()
    kinds = [json.loads(line)["kind"] for line in lines]
    assert kinds == [
        *("started", "phase", "step", "saved", "sampled", "note", "finished", "stopped", "paused", "failed"),
    ]


def test_present_time_is_added(path: Path) -> None:
    write(path, Stopped(step=1))
    (event,), _ = read_events(path)
    assert abs(event.t - path.stat().st_mtime) < 60


def test_no_file_has_no_events(path: Path) -> None:
    assert read_events(path) == ([], 0)


def test_half_line_waits_for_the_next_read(path: Path) -> None:
    write(path, Stopped(step=1, t=1.0))
    whole = path.stat().st_size
    with path.open("ab") as stream:
        stream.write(b'{"kind":"paused","step":')
    events, offset = read_events(path)
    assert (events, offset) == ([Stopped(step=1, t=1.0)], whole)
    assert read_events(path, offset) == ([], whole)
    with path.open("ab") as stream:
        stream.write(b'2,"t":2.0}\n')
    assert read_events(path, offset) == ([Paused(step=2, t=2.0)], path.stat().st_size)


def test_worker_that_goes_on_ends_the_half_line_of_a_killed_one(path: Path) -> None:
    """Otherwise its own first event would be lost with it."""
    write(path, Stopped(step=1, t=1.0))
    with path.open("ab") as stream:
        stream.write(b'{"kind":"step","st')
    _, offset = read_events(path)
    write(path, Started(pid=9, t=2.0))
    write(path, Paused(step=3, t=3.0))
    assert read_events(path)[0] == [Stopped(step=1, t=1.0), Started(pid=9, t=2.0), Paused(step=3, t=3.0)]
    assert read_events(path, offset)[0] == [Started(pid=9, t=2.0), Paused(step=3, t=3.0)]


@pytest.mark.parametrize(
    "line",
    [
        b'{"kind":"telepathy","t":1.0}',
        b'{"step":1}',
        b'{"kind":"stopped"}',
        b'{"kind":"stopped","step":"one"}',
        b"[]",
        b"",
        b"\xff\xfe",
        b"null",
        b'{"kind":"note","level":"info","message":"\xff"}',
    ],
)
def test_what_can_not_be_understood_is_skipped(path: Path, line: bytes) -> None:
    path.write_bytes(b'{"kind":"stopped","step":1,"t":1.0}\n' + line + b'\n{"kind":"paused","step":2,"t":2.0}\n')
    assert read_events(path)[0] == [Stopped(step=1, t=1.0), Paused(step=2, t=2.0)]


def test_fields_of_a_later_version_are_skipped(path: Path) -> None:
    path.write_bytes(b'{"kind":"stopped","step":1,"t":1.0,"mood":"good"}\n')
    assert read_events(path)[0] == [Stopped(step=1, t=1.0)]


def test_events_of_several_threads_don_t_mix(path: Path) -> None:
    writer = EventWriter(path)

    def work(number: int) -> None:
        for index in range(50):
            writer.write(Note("info", f"{number} {index} " + "x" * 200), Stopped(step=number))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    writer.close()
    events, _ = read_events(path)
    assert len(events) == 400
    pairs = zip(events[::2], events[1::2], strict=True)
    assert all(isinstance(one, Note) and one.message[0] == str(other.step) for one, other in pairs)  # type: ignore[union-attr]


def test_heartbeat_touches_the_file_alone(path: Path) -> None:
    writer = EventWriter(path)
    writer.write(Stopped(step=1))
    before = path.read_bytes()
    os.utime(path, (1, 1))
    writer.beat()
    assert path.stat().st_mtime > 1e9
    assert path.read_bytes() == before
    writer.close()
