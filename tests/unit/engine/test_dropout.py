"""What sits out a step: the right share, grown rightly, drawn per view, and gone after the step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from lora_train.core.seeds import derive_seed
from lora_train.engine.dropout import DropoutRates, draw_masks
from lora_train.engine.network import LoraNetwork, Target

pytestmark = pytest.mark.compat

RANKS = {"linear": (4, 2.0), "conv": (3, 2.0)}
PLACES = 80


def draw_for(*views: int) -> Callable[[str, int], torch.Tensor]:
    """As the loop draws: each view's numbers from its own seed."""

    def draw(purpose: str, count: int) -> torch.Tensor:
        seeds = [derive_seed(23, view, purpose) for view in views]
        return torch.stack([torch.rand(count, generator=torch.Generator().manual_seed(seed)) for seed in seeds])

    return draw


def _layers() -> dict[str, nn.Linear | nn.Conv2d]:
    torch.manual_seed(0)
    return {
        "down_blocks.0.linear": nn.Linear(6, 5),
        "mid_block.pixel": nn.Conv2d(6, 5, 1),
        "up_blocks.0.conv": nn.Conv2d(6, 5, 3, padding=1),
    }


def _network(layers: dict[str, Any], dropout: DropoutRates, **options: Any) -> LoraNetwork:
    targets = [Target("unet", name, layer) for name, layer in layers.items()]
    network = LoraNetwork.new(targets, RANKS, 1, dropout=dropout, **options)
    generator = torch.Generator().manual_seed(2)
    for _, lora in network.pairs():
        lora.up.data.normal_(generator=generator)
    return network.requires_grad_(False)


def _inputs(layer: nn.Module) -> torch.Tensor:
    shape = (4, 7, 6) if isinstance(layer, nn.Linear) else (4, 6, 9, 8)
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def _changes(layers: dict[str, Any], network: LoraNetwork, rows: slice = slice(0, 2)) -> dict[str, torch.Tensor]:
    """What the network adds to each layer's output, for these rows of its inputs."""
    inputs = {name: _inputs(layer)[rows] for name, layer in layers.items()}
    network.attach()
    attached = {name: layer(inputs[name]) for name, layer in layers.items()}
    network.detach()
    return {name: attached[name] - layer(inputs[name]) for name, layer in layers.items()}


@torch.no_grad()
def test_by_hand_on_a_linear_layer() -> None:
    """Two views of two chunks each; masks written out, and the sum worked without the layer's own code."""
    layers: dict[str, Any] = {"down_blocks.0.linear": nn.Linear(6, 5)}
    network = _network(layers, DropoutRates(0.25, 0.5, 0.3))
    network.before_batch(draw_for(4, 9), PLACES)
    ((_, lora),) = network.pairs()
    masks = lora.masks
    assert masks is not None
    assert masks.inner is not None
    assert masks.ranks is not None
    assert masks.scale == pytest.approx(1 / 0.75 / 0.5)
    x = _inputs(layers["down_blocks.0.linear"])
    inner = x @ lora.down.T
    for row in range(4):
        view, chunk = divmod(row, 2)
        values = masks.inner[view, : 2 * 7 * 4].reshape(2, 7, 4)[chunk]
        inner[row] *= values * masks.ranks[view]
    expected = inner @ lora.up.T * (2.0 / 4) / (0.75 * 0.5)
    torch.testing.assert_close(
        _changes(layers, network, slice(0, 4))["down_blocks.0.linear"], expected, rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("rates", [DropoutRates(inner=0.3), DropoutRates(rank=0.3), DropoutRates(0.2, 0.2)])
def test_the_mean_is_the_whole(rates: DropoutRates) -> None:
    """Over many draws the LoRA does on average what it does without dropout: what is kept grows by 1 / (1 - p)."""
    layers = _layers()
    network = _network(layers, rates)
    whole = _changes(layers, network)
    sums = {name: torch.zeros_like(change) for name, change in whole.items()}
    draws = 400
    for number in range(draws):
        network.before_batch(draw_for(2 * number, 2 * number + 1), PLACES)
        for name, change in _changes(layers, network).items():
            sums[name] += change / draws
    for name, change in whole.items():
        error = (sums[name] - change).pow(2).mean().sqrt() / change.pow(2).mean().sqrt()
        # One draw is off by about sqrt(p / (1 - p)) <= 0.75 of the whole, the mean of 400 by a twentieth of that.
        assert error < 0.06, name


def test_shares_and_whole_modules() -> None:
    ranks = [3, 5] * 50
    draws = draw_for(*range(64))
    masks = draw_masks(DropoutRates(0.1, 0.4, 0.0), ranks, [0] * 100, draws, PLACES, torch.device("cpu"))
    inner = [mask.inner for mask in masks]
    kept = torch.cat([mask.ranks for mask in masks if mask.ranks is not None], dim=1)
    assert inner[0] is not None
    # 64 x 240 and 64 x 400 coins: three standard errors are below 0.01 and 0.01.
    assert inner[0].float().mean().item() == pytest.approx(0.9, abs=0.01)
    assert kept.float().mean().item() == pytest.approx(0.6, abs=0.01)
    assert [mask.ranks.shape[1] for mask in masks if mask.ranks is not None] == ranks

    masks = draw_masks(DropoutRates(module=0.4), ranks, [0] * 100, draws, PLACES, torch.device("cpu"))
    shares = torch.stack([mask.ranks.float().mean(dim=1) for mask in masks if mask.ranks is not None])
    assert set(shares.flatten().tolist()) == {0.0, 1.0}, "a layer is in or out as a whole"
    assert shares.mean().item() == pytest.approx(0.6, abs=0.03)  # 6400 coins
    assert (masks[0].scale, masks[0].inner) == (1.0, None), "whole modules grow by nothing"


def test_views_are_drawn_alike_in_any_batch() -> None:
    """What a view loses is the same alone, with others, and after others."""
    layers = _layers()
    network = _network(layers, DropoutRates(0.3, 0.3, 0.3))
    network.before_batch(draw_for(5, 6, 7), PLACES)
    together = _changes(layers, network, slice(0, 3))
    network.before_batch(draw_for(6), PLACES)
    alone = _changes(layers, network, slice(1, 2))
    for name, change in alone.items():
        torch.testing.assert_close(change, together[name][1:2], rtol=1e-4, atol=1e-5)


def test_layers_and_views_differ() -> None:
    layers = {f"down_blocks.0.{number}": nn.Linear(6, 5) for number in range(6)}
    network = _network(layers, DropoutRates(0.5, 0.5, 0.0))
    network.before_batch(draw_for(1, 2), PLACES)
    found = [lora.masks for _, lora in network.pairs()]
    rows = [row for masks in found if masks is not None and masks.inner is not None for row in masks.inner.tolist()]
    assert len({tuple(row) for row in rows}) == 12, "no two layers and no two views have the same values"
    ranks = torch.cat([masks.ranks for masks in found if masks is not None and masks.ranks is not None], dim=1)
    assert not torch.equal(ranks[0], ranks[1])


def test_nothing_is_left_out_after_the_step_or_without_rates() -> None:
    layers = _layers()
    network = _network(layers, DropoutRates(0.5, 0.5, 0.5))
    whole = _changes(layers, network)
    network.before_batch(draw_for(1, 2), PLACES)
    assert not torch.equal(_changes(layers, network)["mid_block.pixel"], whole["mid_block.pixel"])
    network.after_step()
    for name, change in _changes(layers, network).items():
        assert torch.equal(change, whole[name])

    def refuse(purpose: str, count: int) -> torch.Tensor:
        raise AssertionError(f"{purpose} was drawn without need")

    _network(layers, DropoutRates()).before_batch(refuse, PLACES)


@pytest.mark.parametrize("largest", [0.05, 1.0, 1e3])
def test_norms_are_bounded_as_the_weights_own(largest: float) -> None:
    """Against torch's norm of the whole product; what is below the bound stays as it is, bit for bit."""
    layers = _layers()
    network = _network(layers, DropoutRates(), largest_norm=largest)
    before = {target.name: (lora.delta_weight().norm().item(), lora.down.clone()) for target, lora in network.pairs()}
    network.requires_grad_(True)
    network.after_step()
    for target, lora in network.pairs():
        norm, down = before[target.name]
        assert lora.delta_weight().norm().item() == pytest.approx(min(norm, largest), rel=1e-5)
        assert torch.equal(lora.down, down) == (norm <= largest)
        ratio = (min(norm, largest) / norm) ** 0.5
        torch.testing.assert_close(lora.down, down * ratio, rtol=1e-5, atol=1e-7)
    assert any(norm > 0.05 for norm, _ in before.values())


def test_norm_of_an_untrained_layer_and_of_one_that_is_not_trained() -> None:
    layers = _layers()
    network = _network(layers, DropoutRates(), largest_norm=0.01)
    frozen = {name: tensor.clone() for name, tensor in network.tensors().items()}
    network.after_step()
    assert all(torch.equal(tensor, frozen[name]) for name, tensor in network.tensors().items())
    network.requires_grad_(True)
    for _, lora in network.pairs():
        lora.up.data.zero_()
    network.after_step()
    assert all(bool(tensor.isfinite().all()) for tensor in network.tensors().values())
