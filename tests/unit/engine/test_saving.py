"""What is written beside the loop: in order, from copies, and no failure gets lost."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest
import torch

from lora_train.engine import saving
from lora_train.engine.saving import Snapshots, Writer, _OnTheWay


@pytest.fixture
def writer() -> Iterator[Writer]:
    opened = Writer()
    yield opened
    opened.close()


def failing(error: Exception) -> Callable[[], None]:
    def work() -> None:
        raise error

    return work


def test_work_is_done_in_order_while_the_loop_goes_on(writer: Writer) -> None:
    may_go_on, done = threading.Event(), list[int]()
    writer.write(may_go_on.wait)
    writer.write(lambda: done.append(1))
    writer.check()
    assert done == [], "nobody waited"
    may_go_on.set()
    writer.write(lambda: done.append(2))
    writer.wait()
    assert done == [1, 2]


def test_whoever_saves_faster_than_the_disk_waits(writer: Writer) -> None:
    """Else copies of the tensors would fill the memory."""
    may_go_on, done = threading.Event(), list[int]()
    writer.write(may_go_on.wait)
    writer.write(lambda: done.append(2))
    third = threading.Thread(target=lambda: writer.write(lambda: done.append(3)))
    third.start()
    third.join(0.2)
    assert third.is_alive()
    may_go_on.set()
    third.join(10)
    writer.wait()
    assert done == [2, 3]


def test_what_went_wrong_is_raised_by_whatever_comes_next(writer: Writer) -> None:
    for ask in (writer.wait, lambda: writer.write(lambda: None)):
        full = OSError(28, "No space left on device")
        writer.write(failing(full))
        _let_it_be_done(writer)
        with pytest.raises(OSError, match="No space left") as raised:
            ask()
        assert raised.value is full
    writer.write(failing(OSError("again")))
    _let_it_be_done(writer)
    with pytest.raises(OSError, match="again"):
        writer.check()
    writer.check()  # told once


def _let_it_be_done(writer: Writer) -> None:
    done = threading.Event()
    writer._thread.submit(done.set)
    assert done.wait(10)


def test_closing_finishes_what_was_begun_and_raises_nothing() -> None:
    writer, done = Writer(), list[int]()
    may_go_on = threading.Event()

    def fails() -> None:
        may_go_on.wait()
        raise OSError("full")

    writer.write(fails)
    writer.write(lambda: done.append(2))
    may_go_on.set()
    writer.close()
    assert done == [2]


def test_a_snapshot_is_of_its_moment() -> None:
    whole = torch.arange(12.0)
    own = {
        "view": whole[:6].view(2, 3),
        "other": whole[6:].view(3, 2).t(),
        "same": whole[:6],
        "half": torch.ones(3, dtype=torch.bfloat16, requires_grad=True),
        "number": torch.tensor(7),
        "none": torch.empty(0, 3),
    }
    wanted = {name: tensor.detach().clone() for name, tensor in own.items()}
    snapshots = Snapshots(torch.device("cpu"))
    snapshot = snapshots.take(own)
    snapshots.let_change()
    with torch.no_grad():
        for tensor in own.values():
            tensor.zero_()
    for _ in range(2):
        found = snapshot.tensors()
        assert found.keys() == wanted.keys()
        for name, tensor in found.items():
            assert torch.equal(tensor, wanted[name])
            assert tensor.dtype == wanted[name].dtype
            assert tensor.is_contiguous()
            assert not tensor.requires_grad
        assert len({tensor.untyped_storage().data_ptr() for tensor in found.values() if tensor.numel()}) == 5


@pytest.mark.parametrize("piece_bytes", [4, 7, 16, 2**26])
def test_what_comes_in_pieces_is_whole_again(piece_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The way of a GPU's tensors, which is but slower without one."""
    monkeypatch.setattr(saving, "_PIECE_BYTES", piece_bytes)
    own = {
        "odd": torch.tensor([1, -2, 3], dtype=torch.int8),
        "none": torch.empty(0, 3),
        "turned": torch.arange(10.0).view(2, 5).t(),
        "half": torch.arange(3, dtype=torch.bfloat16),
        "number": torch.tensor(7),
    }
    wanted = {name: tensor.clone() for name, tensor in own.items()}
    coming = _OnTheWay(own, None)
    for tensor in own.values():
        tensor.zero_()
    found = coming.tensors()
    assert found.keys() == wanted.keys()
    for name, tensor in found.items():
        assert torch.equal(tensor, wanted[name])
        assert tensor.dtype == wanted[name].dtype
        assert tensor.is_contiguous()
    assert len({tensor.untyped_storage().data_ptr() for tensor in found.values() if tensor.numel()}) == 4
