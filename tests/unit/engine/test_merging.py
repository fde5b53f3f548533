"""LoRAs added up and made smaller: against products and singular values worked out by numpy."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from lora_train.core.errors import ModelError, TrainToolsError
from lora_train.core.events import EventWriter
from lora_train.core.inspection import inspect_file
from lora_train.core.jobs import JobFolder
from lora_train.core.specs import MergeSpec
from lora_train.engine.merging import Factors, balanced, merge, norm, reduce
from lora_train.engine.network import Target, text_encoder_targets, unet_targets
from lora_train.engine.network_file import checked, load_network, named_parts, save_lora
from lora_train.engine.reporting import Reporter

pytestmark = pytest.mark.compat

SHAPES: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k": ((20, 0), (0, 768)),
    "lora_unet_down_blocks_0_attentions_0_proj_in": ((20, 0, 1, 1), (0, 24, 1, 1)),
    "lora_unet_down_blocks_0_resnets_0_conv1": ((16, 0, 1, 1), (0, 12, 3, 3)),
    "lora_te_text_model_encoder_layers_0_mlp_fc1": ((40, 0), (0, 10)),
}
"""(up, down) of a module; 0 stands for the rank."""


def write(
    path: Path, *, rank: int, alpha: float, seed: int, only: int = len(SHAPES), metadata: dict[str, str] | None = None
) -> Path:
    numbers = np.random.default_rng(seed)
    tensors: dict[str, Any] = {}
    for name, shapes in list(SHAPES.items())[:only]:
        own = rank + 1 if "conv1" in name else rank
        for part, shape in zip(("up", "down"), shapes, strict=True):
            values = numbers.normal(size=[own if length == 0 else length for length in shape])
            tensors[f"{name}.lora_{part}.weight"] = (values * 0.1).astype(np.float32)
        tensors[f"{name}.alpha"] = np.array(alpha, dtype=np.float32)
    save_file(tensors, path, metadata=metadata)
    return path


def weights_of(path: Path) -> dict[str, Any]:
    """The change of every weight, (out, in ..) in float64."""
    tensors = load_file(path)
    found: dict[str, Any] = {}
    for name in {name.partition(".")[0] for name in tensors}:
        up = tensors[f"{name}.lora_up.weight"].astype(np.float64)
        down = tensors[f"{name}.lora_down.weight"].astype(np.float64)
        scale = float(tensors[f"{name}.alpha"]) / down.shape[0]
        found[name] = scale * up.reshape(len(up), -1) @ down.reshape(len(down), -1)
    return found


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Does a merge job over files and returns its result."""

    def do(
        *loras: Path, weights: tuple[float, ...] = (), out: str = "out.safetensors", **options: Any
    ) -> dict[str, Any]:
        spec = MergeSpec(
            loras=tuple(map(str, loras)),
            weights=weights or (1.0,) * len(loras),
            out=str(tmp_path / out),
            **{"precision": "fp32", **options},
        )
        job = JobFolder(tmp_path / "job")
        job.path.mkdir(exist_ok=True)
        events = EventWriter(job.events_path)
        try:
            return merge(spec, Reporter(job, events))
        finally:
            events.close()

    return do


def far(one: Any, other: Any) -> float:
    return float(np.linalg.norm(one - other) / np.linalg.norm(other))


# --- adding up ---


def test_sum_of_different_ranks_alphas_and_layers(tmp_path: Path, run: Callable[..., dict[str, Any]]) -> None:
    first = write(tmp_path / "a.safetensors", rank=4, alpha=2.0, seed=1)
    second = write(tmp_path / "b.safetensors", rank=7, alpha=7.0, seed=2, only=3)
    result = run(first, second, weights=(0.8, -0.5))
    made, one, other = weights_of(tmp_path / "out.safetensors"), weights_of(first), weights_of(second)
    assert made.keys() == one.keys()
    for name, weight in made.items():
        expected = 0.8 * one[name] + (-0.5 * other[name] if name in other else 0)
        assert far(weight, expected) < 1e-6, name  # float32 rounds to 6e-8
    assert result["ranks"] == [4, 11, 13]
    assert 0 < result["largest_error"] < 1e-6
    stored = load_file(tmp_path / "out.safetensors")
    for name, (up, down) in SHAPES.items():
        assert stored[f"{name}.lora_up.weight"].ndim == len(up)
        assert stored[f"{name}.lora_down.weight"].shape[1:] == down[1:]
        assert float(stored[f"{name}.alpha"]) == stored[f"{name}.lora_down.weight"].shape[0], "hosts scale by 1"


def test_half_precision_and_a_weak_alpha(tmp_path: Path, run: Callable[..., dict[str, Any]]) -> None:
    """alpha 1 of rank 128 would push `up` below what fp16 can hold; up and down share it instead."""
    lora = write(tmp_path / "a.safetensors", rank=128, alpha=1.0, seed=1)
    tensors = load_file(lora)
    save_file({name: own * 0.01 if "up" in name else own for name, own in tensors.items()}, lora)
    result = run(lora, lora, weights=(0.5, 0.25), precision="fp16")
    expected = weights_of(lora)
    for name, weight in weights_of(tmp_path / "out.safetensors").items():
        error = far(weight, 0.75 * expected[name])
        assert error < 1e-3, name  # fp16 rounds by 5e-4 at most
        assert error <= result["largest_error"] * 1.0001
    assert result["largest_error"] > 1e-5


def test_one_pixel_convolutions_written_as_matrices(tmp_path: Path, run: Callable[..., dict[str, Any]]) -> None:
    first = write(tmp_path / "a.safetensors", rank=2, alpha=2.0, seed=1)
    flat = {
        name: own.reshape(own.shape[:2]) if own.shape[2:] == (1, 1) and "proj_in" in name else own
        for name, own in load_file(first).items()
    }
    save_file(flat, tmp_path / "flat.safetensors")
    run(first, tmp_path / "flat.safetensors")
    name = "lora_unet_down_blocks_0_attentions_0_proj_in"
    assert far(weights_of(tmp_path / "out.safetensors")[name], 2 * weights_of(first)[name]) < 1e-6
    assert load_file(tmp_path / "out.safetensors")[f"{name}.lora_up.weight"].shape == (20, 4, 1, 1)


# --- smaller ---


@pytest.mark.parametrize("rank", [1, 3, 8, 64])
def test_rank_against_singular_values(tmp_path: Path, run: Callable[..., dict[str, Any]], rank: int) -> None:
    """The error is the root of the left-out squared singular values, which nothing of this rank can beat."""
    lora = write(tmp_path / "a.safetensors", rank=8, alpha=4.0, seed=1)
    result = run(lora, rank=rank)
    made = weights_of(tmp_path / "out.safetensors")
    errors: dict[str, float] = {}
    for name, weight in weights_of(lora).items():
        values = np.linalg.svd(weight, compute_uv=False)
        best = float(np.sqrt((values[rank:] ** 2).sum() / (values**2).sum()))
        errors[name] = far(made[name], weight)
        assert errors[name] == pytest.approx(best, abs=2e-6), name
    # The told ones are worked out by r x r products in float64, whose roundings leave 1e-8.
    assert result["largest_error"] == pytest.approx(max(errors.values()), abs=1e-7)
    assert result["mean_error"] == pytest.approx(sum(errors.values()) / len(errors), abs=1e-7)
    assert errors[result["largest_error_at"]] == pytest.approx(max(errors.values()), abs=1e-7)
    assert max(result["ranks"]) == min(rank, 9)


@pytest.mark.parametrize("keep", [0.5, 0.9, 0.999])
def test_kept_energy_by_the_smallest_rank_that_does(
    tmp_path: Path, run: Callable[..., dict[str, Any]], keep: float
) -> None:
    lora = write(tmp_path / "a.safetensors", rank=8, alpha=4.0, seed=1)
    result = run(lora, keep=keep)
    stored = load_file(tmp_path / "out.safetensors")
    for name, weight in weights_of(lora).items():
        shares = np.cumsum(np.linalg.svd(weight, compute_uv=False) ** 2)
        needed = int((shares < keep * shares[-1]).sum()) + 1
        assert len(stored[f"{name}.lora_down.weight"]) == needed
    assert result["largest_error"] <= (1 - keep) ** 0.5 + 1e-6
    assert result["whole_error"] <= result["largest_error"]


def test_rank_of_a_sum_is_found_again(tmp_path: Path, run: Callable[..., dict[str, Any]]) -> None:
    """The same LoRA twice has 8 ranks side by side, but 4 of them are needed."""
    lora = write(tmp_path / "a.safetensors", rank=4, alpha=4.0, seed=1)
    result = run(lora, lora, keep=0.999999999)
    assert result["ranks"] == [4, 5]
    assert result["largest_error"] < 1e-6


def test_rank_above_the_weights_own_sizes_and_empty_modules() -> None:
    generator = torch.Generator().manual_seed(1)
    wide = Factors(
        torch.randn(3, 9, generator=generator, dtype=torch.float64),
        torch.randn(9, 5, generator=generator, dtype=torch.float64),
    )
    reduced = reduce(wide, rank=9)
    assert reduced.rank == 3
    torch.testing.assert_close(reduced.up @ reduced.down, wide.up @ wide.down)
    empty = balanced(reduce(Factors(torch.zeros(3, 2).double(), torch.ones(2, 5).double()), keep=0.9))
    assert (empty.rank, norm(empty)) == (1, 0.0)
    assert bool(empty.down.isfinite().all())


# --- the file ---


METADATA = {
    "ss_base_model_version": "sd_v1",
    "ss_v2": "False",
    "ss_network_module": "networks.lora",
    "ss_network_dim": "4",
    "ss_network_alpha": "2.0",
    "ss_network_args": '{"conv_dim": "5"}',
    "ss_output_name": "a",
    "ss_seed": "1",
    "ss_training_comment": "None",
    "sshs_model_hash": "00",
}


def _metadata(path: Path) -> dict[str, str]:
    with safe_open(str(path), framework="np") as stored:
        return stored.metadata()


def test_metadata_keeps_what_is_true(tmp_path: Path, run: Callable[..., dict[str, Any]]) -> None:
    first = write(tmp_path / "a.safetensors", rank=4, alpha=2.0, seed=1, metadata=METADATA)
    second = write(
        tmp_path / "b.safetensors",
        rank=4,
        alpha=2.0,
        seed=2,
        metadata={**METADATA, "ss_seed": "2", "ss_output_name": "b"},
    )
    run(first, second, weights=(1.0, 0.5), out="sum.safetensors")
    made = _metadata(tmp_path / "sum.safetensors")
    assert made["ss_base_model_version"] == "sd_v1"
    assert made["ss_output_name"] == made["modelspec.title"] == "sum"
    assert made["ss_training_comment"] == "merged from a x 1, b x 0.5"
    assert made["modelspec.merged_from"] == "a, b"
    assert (made["ss_network_dim"], made["ss_network_alpha"]) == ("Dynamic", "Dynamic")
    assert "ss_seed" not in made, "they had different ones"
    assert "ss_network_args" not in made
    assert not any(str(tmp_path) in value for value in made.values()), "no folder of the person's is told"
    inspection = inspect_file(tmp_path / "sum.safetensors", verify_hash=True)
    assert inspection.lora is not None
    assert (inspection.lora.family, inspection.lora.ranks, inspection.lora.hash_is_right) == ("sd1", [8, 10], True)
    assert inspection.lora.incomplete == []

    run(tmp_path / "sum.safetensors", rank=3, out="small.safetensors")
    made = _metadata(tmp_path / "small.safetensors")
    assert made["ss_training_comment"] == "resized to rank 3; merged from a x 1, b x 0.5"
    assert (made["ss_network_dim"], made["ss_network_alpha"]) == ("3", "3.0")
    assert json.dumps(made)


def test_a_file_without_metadata_tells_its_family_after(tmp_path: Path, run: Callable[..., dict[str, Any]]) -> None:
    run(write(tmp_path / "a.safetensors", rank=4, alpha=2.0, seed=1), rank=2)
    made = _metadata(tmp_path / "out.safetensors")
    assert (made["ss_base_model_version"], made["ss_v2"]) == ("sd_v1", "False")


def test_nothing_is_overwritten_and_no_half_file_left(tmp_path: Path, run: Callable[..., dict[str, Any]]) -> None:
    lora = write(tmp_path / "a.safetensors", rank=4, alpha=2.0, seed=1)
    before = lora.read_bytes()
    with pytest.raises(TrainToolsError, match="never overwritten"):
        run(lora, rank=2, out="a.safetensors")
    assert lora.read_bytes() == before
    tensors = load_file(lora)
    name = next(name for name in tensors if "to_k.lora_up" in name)
    tensors[name] = tensors[name] * 1e12
    save_file(tensors, tmp_path / "huge.safetensors")
    with pytest.raises(TrainToolsError, match=r"attn2_to_k holds .*nothing over 60000"):
        run(tmp_path / "huge.safetensors", lora)
    assert not (tmp_path / "out.safetensors").exists()


def test_other_sizes_are_refused(tmp_path: Path, run: Callable[..., dict[str, Any]]) -> None:
    lora = write(tmp_path / "a.safetensors", rank=4, alpha=2.0, seed=1)
    name = "lora_te_text_model_encoder_layers_0_mlp_fc1"
    other = {
        f"{name}.lora_up.weight": np.ones((40, 2), dtype=np.float32),
        f"{name}.lora_down.weight": np.ones((2, 11), dtype=np.float32),
    }
    save_file(other, tmp_path / "b.safetensors")
    with pytest.raises(ModelError, match="different sizes") as error:
        run(lora, tmp_path / "b.safetensors")
    assert name in error.value.message


# --- on a model ---


@torch.no_grad()
def _outputs(model: Any) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(4)
    latents = torch.randn(2, 4, 8, 8, generator=generator, dtype=torch.float64)
    text = torch.randn(2, 77, 64, generator=generator, dtype=torch.float64)
    ids = torch.randint(0, 49000, (2, 77), generator=generator)
    noise = model.unet(latents, torch.tensor([3, 900]), text).sample
    torch.set_default_dtype(torch.float64)  # in which transformers 4.46 makes its mask
    try:
        return noise, model.text_encoders[0](ids).last_hidden_state
    finally:
        torch.set_default_dtype(torch.float32)


@torch.no_grad()
def test_merged_file_does_what_both_do_together(
    tmp_path: Path, load_small: Callable[[], Any], make_lora: Callable[..., Any], run: Callable[..., dict[str, Any]]
) -> None:
    """Attached, the file equals a model into whose weights both LoRAs were added, to 1e-5 of the change.

    All is worked out in float64; what is left is the file's float32.
    """
    model = load_small()
    model.unet.double()
    model.text_encoders[0].double()
    networks = [make_lora(model, convolutions=True, rank=rank, up=0.05 * rank) for rank in (2, 3)]
    paths = [tmp_path / f"{number}.safetensors" for number in range(2)]
    for path, network in zip(paths, networks, strict=True):
        save_lora(path, checked(named_parts(network), torch.float32), {})
    run(*paths, weights=(0.7, 0.4))
    base = _outputs(model)
    targets: list[Target] = unet_targets(model.unet, with_convolutions=True)
    merged = load_network(tmp_path / "out.safetensors", targets + text_encoder_targets(model.text_encoders[0]))
    merged.attach()
    attached = _outputs(model)
    merged.detach()
    for network, weight in zip(networks, (0.7, 0.4), strict=True):
        for target, lora in network.pairs():
            target.layer.weight += weight * lora.delta_weight()
    for one, other, without in zip(attached, _outputs(model), base, strict=True):
        assert (one - other).abs().max() < 1e-5 * (other - without).abs().max()
