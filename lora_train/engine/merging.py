"""The merge job: several LoRAs into one, exactly, and then or alone to a smaller rank by singular values.

A module's change of a weight is up · down with up (out, r) and down (r, in, ..). Changes add up by putting their
ranks side by side: [w1 up1, w2 up2] · [down1; down2] is w1 up1 down1 + w2 up2 down2. The best approximation of
smaller rank is what the largest singular values keep (Eckart and Young 1936).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from lora_train.core.errors import ModelError
from lora_train.core.inspection import inspect_file
from lora_train.core.lora_files import ALPHA, DOWN, UP, plain_lora_modules
from lora_train.core.specs import MergeSpec
from lora_train.core.tensor_infos import TensorFile
from lora_train.core.tensorfiles import read_tensor_file
from lora_train.engine.devices import DTYPES
from lora_train.engine.merged_metadata import merged_metadata
from lora_train.engine.network_file import checked, save_lora
from lora_train.engine.reporting import Reporter
from lora_train.engine.weights import read_tensor

_SMALLEST_SINGULAR = 1e-12
"""Smaller ones, as a share of the largest, are what rounding left of nothing."""


class Factors(NamedTuple):
    """The change of one weight, up (out, r) · down (r, in, ..), in float64; its scale is in it."""

    up: torch.Tensor
    down: torch.Tensor

    @property
    def rank(self) -> int:
        return self.up.shape[1]


def merge(spec: MergeSpec, report: Reporter) -> dict[str, object]:
    """Write the merged LoRA to `spec.out`; the result tells its ranks and how far it is from the exact sum.

    Raises ModelError for LoRAs that can't be added up, TrainToolsError where `spec.out` exists.
    """
    files = [read_tensor_file(Path(path)) for path in spec.loras]
    modules = [plain_lora_modules(file) for file in files]
    names = sorted(set().union(*modules))
    dtype = DTYPES[spec.precision]
    tensors: dict[str, torch.Tensor] = {}
    errors = _Errors()
    for done, name in enumerate(names):
        report.phase("merging", done, len(names))
        weighted = [
            (weight, _read_factors(file, name))
            for file, weight, own in zip(files, spec.weights, modules, strict=True)
            if name in own
        ]
        exact = add_up(name, weighted)
        reduced = reduce(exact, rank=spec.rank, keep=spec.keep) if spec.rank or spec.keep else exact
        stored = checked(_file_parts(name, balanced(reduced)), dtype)
        tensors |= stored
        errors.add(name, exact, _factors(stored[f"{name}.{UP}"], stored[f"{name}.{DOWN}"], 1.0))
    ranks = sorted({tensor.shape[0] for name, tensor in tensors.items() if name.endswith(DOWN)})
    out = Path(spec.out)
    metadata = merged_metadata(spec, [file.metadata for file in files], ranks, _family_of(files))
    save_lora(out, tensors, metadata)
    return {"lora": str(out), "modules": len(names), "ranks": ranks, "bytes": out.stat().st_size, **errors.told()}


def _family_of(files: Sequence[TensorFile]) -> str:
    """The first that a file's header tells; all have the same."""
    found = [lora.family for file in files if (lora := inspect_file(file.path).lora) is not None]
    return next((family for family in found if family != "unknown"), "unknown")


def add_up(name: str, weighted: Sequence[tuple[float, Factors]]) -> Factors:
    """The exact weighted sum of changes of the module `name`. Raises ModelError when their shapes differ."""
    dimensions = max(factors.down.ndim for _, factors in weighted)
    ups = [factors.up * weight for weight, factors in weighted]
    downs = [
        factors.down.reshape(*factors.down.shape, *[1] * (dimensions - factors.down.ndim)) for _, factors in weighted
    ]
    if len({(up.shape[0], down.shape[1:]) for up, down in zip(ups, downs, strict=True)}) > 1:
        shapes = " and ".join(f"{up.shape[0]} x {tuple(down.shape[1:])}" for up, down in zip(ups, downs, strict=True))
        raise ModelError(
            f"{name} is for weights of different sizes: {shapes}.", "Merge LoRAs of the same family of base models."
        )
    return Factors(torch.cat(ups, dim=1), torch.cat(downs, dim=0))


def reduce(factors: Factors, *, rank: int = 0, keep: float = 0.0) -> Factors:
    """The nearest change of a smaller rank: of at most `rank` (0: any), keeping at least `keep` of the squared norm.

    `rank` wins where both are given. The factors' QR decompositions leave an r x r matrix to decompose.
    """
    q_up, r_up = torch.linalg.qr(factors.up)
    q_down, r_down = torch.linalg.qr(factors.down.flatten(1).T)
    left, values, right = torch.linalg.svd(r_up @ r_down.T, full_matrices=False)
    count = max(1, int((values > _SMALLEST_SINGULAR * values[0]).sum()))
    if keep:
        energy = values.square().cumsum(0)
        count = min(count, 1 + int((energy < keep * energy[-1]).sum()))
    if rank:
        count = min(count, rank)
    up = q_up @ left[:, :count] * values[:count]
    down = (q_down @ right[:count].T).T
    return Factors(up, down.reshape(count, *factors.down.shape[1:]))


def balanced(factors: Factors) -> Factors:
    """The same change, up and down of each rank equally large on average, so that half precision holds both well."""
    up_size = factors.up.square().mean(dim=0).sqrt()
    down_size = factors.down.flatten(1).square().mean(dim=1).sqrt()
    is_empty = (up_size == 0) | (down_size == 0)
    ratio = torch.where(is_empty, 1.0, (down_size / up_size.clamp(min=1e-300)).sqrt())
    shape = (-1, *[1] * (factors.down.ndim - 1))
    return Factors(factors.up * ratio, factors.down / ratio.reshape(shape))


def norm(factors: Factors) -> float:
    """Frobenius norm of up · down, by way of two r x r products."""
    down = factors.down.flatten(1)
    squared = ((factors.up.T @ factors.up) * (down @ down.T)).sum().item()
    return math.sqrt(max(0.0, squared))


class _Errors:
    """How far saved modules are from the exact ones: |saved - exact| / |exact| in the Frobenius norm."""

    def __init__(self) -> None:
        self._of: dict[str, float] = {}
        self._squared_error = 0.0
        self._squared_norm = 0.0

    def add(self, name: str, exact: Factors, saved: Factors) -> None:
        error = norm(add_up(name, [(1.0, saved), (-1.0, exact)]))
        size = norm(exact)
        self._of[name] = error / size if size else 0.0
        self._squared_error += error**2
        self._squared_norm += size**2

    def told(self) -> dict[str, object]:
        worst = max(self._of, key=lambda name: self._of[name])
        whole = math.sqrt(self._squared_error / self._squared_norm) if self._squared_norm else 0.0
        return {
            "largest_error": self._of[worst],
            "largest_error_at": worst,
            "mean_error": sum(self._of.values()) / len(self._of),
            "whole_error": whole,
        }


def _read_factors(file: TensorFile, name: str) -> Factors:
    up, down = read_tensor(file, f"{name}.{UP}"), read_tensor(file, f"{name}.{DOWN}")
    if (
        up.ndim not in (2, 4)
        or down.ndim not in (2, 4)
        or up.shape[1] != down.shape[0]
        or up.numel() != math.prod(up.shape[:2])
    ):
        raise ModelError(f"{file.path} is damaged: {name} has the shapes {tuple(down.shape)} and {tuple(up.shape)}.")
    rank = down.shape[0]
    alpha = read_tensor(file, f"{name}.{ALPHA}").double().item() if f"{name}.{ALPHA}" in file.tensors else rank
    return _factors(up, down, alpha / rank)


def _factors(up: torch.Tensor, down: torch.Tensor, scale: float) -> Factors:
    return Factors(up.double().flatten(1) * scale, down.double())


def _file_parts(name: str, factors: Factors) -> Mapping[str, Any]:
    """The tensors of a module whose alpha is its rank, so that the hosts' scale is 1."""
    shape = (*factors.up.shape, *[1] * (factors.down.ndim - 2))
    return {
        f"{name}.{DOWN}": factors.down,
        f"{name}.{UP}": factors.up.reshape(shape),
        f"{name}.{ALPHA}": torch.tensor(float(factors.rank)),
    }
