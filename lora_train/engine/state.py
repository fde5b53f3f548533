"""The resumable state of a run: one safetensors file a state, the two newest kept, each written atomically.

The file's tensors are the network's and the optimizer's; everything else is JSON in its metadata, together with a
hash over both, so that a damaged state is noticed and the one before it is used.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from lora_train.core.errors import JobError
from lora_train.core.files import DAMAGED_JSON, write_bytes
from lora_train.engine.validation import Progress

_GENERATIONS = 2


class Clock(msgspec.Struct):
    """Where a run is: optimizer steps done, the epoch (from 0) and the next step within it."""

    step: int = 0
    epoch: int = 0
    step_in_epoch: int = 0


class StateFacts(msgspec.Struct, kw_only=True):
    """What a state holds besides tensors."""

    clock: Clock
    dataset_fingerprint: str
    halvings: int
    session_id: int
    started_at: float
    optimizer_groups: list[dict[str, Any]]
    optimizer_scalars: dict[str, int | float]
    schedule: dict[str, Any]
    scaler: dict[str, Any]
    validation: Progress = msgspec.field(default_factory=Progress)
    continued_sha256: str = ""
    """Of the LoRA that the training began with."""
    base_sha256: tuple[str, ...] = ()
    """Of base model and VAE, "" for folders; empty until they are known (see `checkpoint_hashes`)."""
    base_built: str = ""
    """`BaseModel.built`; empty where an earlier release wrote the state."""
    is_flat: bool = False
    """Whether the optimizer knew each part of the model as one flat parameter (see `flat`)."""


class LoadedState(msgspec.Struct):
    """A state as read from its file."""

    path: Path
    facts: StateFacts
    tensors: dict[str, torch.Tensor]

    def tensors_of(self, part: str) -> dict[str, torch.Tensor]:
        """Those that were saved as `<part>.<name>`, by their names."""
        prefix = f"{part}."
        return {name[len(prefix) :]: tensor for name, tensor in self.tensors.items() if name.startswith(prefix)}


def save_state(folder: Path, facts: StateFacts, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write the state after step `facts.clock.step`, flushed to the disk; older generations are removed after."""
    on_cpu = _apart({name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()})
    text = msgspec.json.encode(facts).decode("utf-8")
    metadata = {"state": text, "hash": _hash(text, on_cpu)}
    write_bytes(folder / f"state-{facts.clock.step:08d}.safetensors", save(on_cpu, metadata=metadata))
    half_written = folder.glob("*.tmp")  # by a worker that died
    for old in (*_states(folder)[:-_GENERATIONS], *half_written):
        with suppress(OSError):  # another program holds it, or has removed it: no reason to end, it goes the next time
            old.unlink()


def load_state(folder: Path) -> LoadedState | None:
    """The newest state that is whole, or None where none was written.

    Raises JobError when there are states but all are damaged.
    """
    states = _states(folder)
    for path in reversed(states):
        loaded = _read(path)
        if loaded is not None:
            return loaded
    if states:
        raise JobError(
            f"Every state in {folder} is damaged; this training can't go on.",
            "Start it anew: its pictures and finished LoRAs are untouched.",
        )
    return None


def forget_states_after(folder: Path, step: int) -> None:
    """Remove states of later steps than the one that the run goes back to."""
    for path in _states(folder):
        if int(path.stem.rpartition("-")[2]) > step:
            path.unlink()


def flatten_optimizer(optimizer: torch.optim.Optimizer) -> tuple[dict[str, torch.Tensor], dict[str, int | float]]:
    """The optimizer's state as named tensors and named numbers: `<parameter index>.<what>`.

    Read where it is kept: bitsandbytes' `state_dict` packs it differently from version to version.
    """
    tensors: dict[str, torch.Tensor] = {}
    scalars: dict[str, int | float] = {}
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for index, parameter in enumerate(parameters):
        for what, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, torch.Tensor):
                tensors[f"{index}.{what}"] = value
            elif value is not None:
                scalars[f"{index}.{what}"] = value
    return tensors, scalars


def restore_optimizer(
    optimizer: torch.optim.Optimizer,
    groups: list[dict[str, Any]],
    tensors: Mapping[str, torch.Tensor],
    scalars: Mapping[str, int | float],
) -> None:
    """The inverse of `flatten_optimizer`; `groups` are the saved parameter groups without their parameters."""
    state: dict[int, dict[str, Any]] = {}
    for key, value in (*tensors.items(), *scalars.items()):
        index, _, what = key.partition(".")
        state.setdefault(int(index), {})[what] = value
    own = optimizer.state_dict()["param_groups"]
    merged = [{**mine, **group} for group, mine in zip(groups, own, strict=True)]
    optimizer.load_state_dict({"state": state, "param_groups": merged})


_NOT_SAVED = ("params", "fused", "foreach", "capturable")
"""How the optimizer computes depends on the device, which may be another one after a resume."""


def group_values(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """The optimizer's parameter groups without their parameters.

    Nor has JSON a word for infinity: an optimizer's limits may be that, but nothing that it changes.
    """
    groups = optimizer.state_dict()["param_groups"]
    return [
        {key: value for key, value in group.items() if key not in _NOT_SAVED and value != math.inf} for group in groups
    ]


def _apart(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same tensors, none of which shares memory with another: a safetensors file has no way to say so."""
    seen: set[int] = set()
    apart: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        place = tensor.untyped_storage().data_ptr()
        apart[name] = tensor.clone() if place in seen else tensor
        seen.add(place)
    return apart


def _states(folder: Path) -> list[Path]:
    return sorted(folder.glob("state-*.safetensors"))


def _read(path: Path) -> LoadedState | None:
    try:
        with safe_open(str(path), framework="pt") as stored:
            metadata: dict[str, str] = stored.metadata() or {}
            tensors = {name: stored.get_tensor(name).clone() for name in stored.keys()}  # noqa: SIM118
        text = metadata["state"]
        if metadata["hash"] != _hash(text, tensors):
            return None
        return LoadedState(path, msgspec.json.decode(text, type=StateFacts), tensors)
    except (SafetensorError, OSError, KeyError, *DAMAGED_JSON):
        return None


def _hash(text: str, tensors: Mapping[str, torch.Tensor]) -> str:
    digest = hashlib.blake2b(text.encode("utf-8"), digest_size=16)
    for name in sorted(tensors):
        digest.update(name.encode("utf-8"))
        content: Any = tensors[name].reshape(-1).view(torch.uint8).numpy()
        digest.update(content)
    return digest.hexdigest()
