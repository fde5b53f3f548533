"""How much of the card a worker will find, as the host's own torch tells."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from lora_train.hosts.webui import card_memory

GIB = 2**30
CUDA = SimpleNamespace(type="cuda", index=None)


def torch_of(*, is_initialized: bool = True) -> SimpleNamespace:
    """As torch is in a host with a card of 8 GiB, of which its model has 2 and others have 1."""
    cuda = SimpleNamespace(
        is_initialized=lambda: is_initialized,
        mem_get_info=lambda _: (5 * GIB, 8 * GIB),
        memory_reserved=lambda _: 2 * GIB,
        get_device_name=lambda _: "NVIDIA GeForce RTX 3070",
    )
    return SimpleNamespace(cuda=cuda)


def test_what_the_host_keeps_for_its_model_counts_as_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", torch_of())
    card = card_memory(CUDA)
    assert card is not None
    assert (card.name, card.total_bytes, card.free_bytes) == ("NVIDIA GeForce RTX 3070", 8 * GIB, 7 * GIB)


@pytest.mark.parametrize(
    "device", [None, SimpleNamespace(type="cpu", index=None), SimpleNamespace(type="cuda", index=1)]
)
def test_of_another_card_nothing_is_asked(monkeypatch: pytest.MonkeyPatch, device: SimpleNamespace | None) -> None:
    monkeypatch.setitem(sys.modules, "torch", torch_of())
    assert card_memory(device) is None


def test_a_host_without_torch_or_before_its_first_model_tells_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", torch_of(is_initialized=False))
    assert card_memory(CUDA) is None
    monkeypatch.delitem(sys.modules, "torch")
    assert card_memory(CUDA) is None
