"""Averages of weights against sums worked out by hand; swapping them leaves every tensor in its place."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lora_train.engine.averages import Averages, decay_at
from lora_train.engine.flat import FlatPart


def test_decay_grows_to_its_limit() -> None:
    # (1 + n) / (10 + n): 2/11, 11/20, 91/100; from n = 8990 on more than 0.999.
    assert decay_at(1, 0.999) == pytest.approx(2 / 11)
    assert decay_at(10, 0.999) == pytest.approx(11 / 20)
    assert decay_at(90, 0.999) == pytest.approx(91 / 100)
    assert decay_at(90, 0.5) == 0.5
    assert decay_at(100_000, 0.999) == 0.999


def test_average_by_hand() -> None:
    weight = nn.Parameter(torch.tensor([1.0, 2.0]))
    averages = Averages([FlatPart({"a": weight})], 0.5)
    with torch.no_grad():
        weight.copy_(torch.tensor([12.0, 2.0]))
    averages.update(1)  # 2/11 of 1, 9/11 of 12
    torch.testing.assert_close(averages.tensors()["a"], torch.tensor([110 / 11, 2.0]))
    with torch.no_grad():
        weight.copy_(torch.tensor([20.0, 4.0]))
    averages.update(10)  # half of each
    torch.testing.assert_close(averages.tensors()["a"], torch.tensor([15.0, 3.0]))
    assert weight.tolist() == [20.0, 4.0], "the training goes on with its own"


def test_shown_changes_numbers_and_no_addresses() -> None:
    weight = nn.Parameter(torch.tensor([1.0]))
    averages = Averages([FlatPart({"a": weight})], 0.9)
    with torch.no_grad():
        weight.fill_(5.0)
    places = weight.data_ptr(), averages.tensors()["a"].data_ptr()
    with averages.shown():
        assert weight.tolist() == [1.0]
        assert averages.tensors()["a"].tolist() == [5.0]
        assert (weight.data_ptr(), averages.tensors()["a"].data_ptr()) == places
    assert weight.tolist() == [5.0]
    assert (weight.data_ptr(), averages.tensors()["a"].data_ptr()) == places


def test_weights_are_back_also_when_saving_fails() -> None:
    weight = nn.Parameter(torch.tensor([1.0]))
    averages = Averages([FlatPart({"a": weight})], 0.9)
    with torch.no_grad():
        weight.fill_(5.0)

    def fail() -> None:
        with averages.shown():
            raise OSError("no room")

    with pytest.raises(OSError, match="no room"):
        fail()
    assert weight.tolist() == [5.0]


def test_an_optimizer_goes_on_after_the_averages_were_shown() -> None:
    weights = [nn.Parameter(torch.ones(3)) for _ in range(2)]
    averages = Averages([FlatPart({"a": weights[0]})], 0.9)
    for weight in weights:
        optimizer = torch.optim.AdamW([weight], lr=0.1)
        for step in range(1, 5):
            (weight.square().sum() * step).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=False)
            if weight is weights[0]:
                averages.update(step)
                with averages.shown():
                    assert not torch.equal(weight, weights[1])
    # The second was never averaged.
    assert torch.equal(weights[0], weights[1])


def test_load_takes_over_what_was_saved() -> None:
    weight = nn.Parameter(torch.zeros(2))
    averages = Averages([FlatPart({"a": weight})], 0.9)
    with torch.no_grad():
        weight.fill_(3.0)
    averages.update(3)
    saved = {name: tensor.clone() for name, tensor in averages.tensors().items()}
    averages.update(4)
    averages.load(saved)
    assert torch.equal(averages.tensors()["a"], saved["a"])
