"""What VAE and text encoders gave, kept on the disk under a hash of everything that went into it.

A second start with the same pictures, captions and settings needs neither of the two. What is kept is the result of
the very call that would be made without it, batch for batch, so a run from the cache has the same bytes.

The folder may be deleted at any time. What is damaged or not ours is made anew; where nothing can be written, nothing
is kept.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import numpy as np
import PIL
import safetensors.torch
import torch

from lora_train.core.files import write_bytes
from lora_train.core.history import package_versions, processor_name
from lora_train.engine.devices import Device

Tensors = dict[str, torch.Tensor]

MOST_BYTES = 4_000_000_000
"""Of one kind: about 4000 mirrored pictures of 1024 px, or 6000 captions of SDXL in full precision."""
_FORMAT = "1"
"""Part of every key. Another number for another way of encoding; each release of ours begins anew anyway."""


def circumstances(device: Device) -> tuple[str, ...]:
    """Besides model and input, what decides the last bits of a number on this device."""
    versions = [f"{name} {version}" for name, version in sorted(package_versions().items())]
    computes = (platform.machine(), processor_name() if device.is_cpu else "", device.label)
    switches = f"deterministic {torch.are_deterministic_algorithms_enabled()}"
    return (_FORMAT, *versions, f"Pillow {PIL.__version__}", f"numpy {np.__version__}", *computes, switches)


class DiskCache:
    """Tensors of one kind in a folder, a safetensors file for each key. Several workers may share it."""

    def __init__(
        self,
        folder: Path | None,
        constants: Sequence[str],
        note: Callable[[str], None],
        most_bytes: int = MOST_BYTES,
    ) -> None:
        """`constants` are part of every key. With `folder` None nothing is kept. `note` hears why, at most once."""
        self._folder = folder
        self._constants = tuple(constants)
        self._note = note
        self._most_bytes = most_bytes
        self._writes = folder is not None

    def key(self, *parts: str) -> str:
        """40 hex digits of what is encoded and how."""
        content = msgspec.json.encode((self._constants, parts))
        return hashlib.blake2b(content, digest_size=20).hexdigest()

    def find(self, key: str) -> Tensors | None:
        """What was kept under `key`, on the CPU; None where there is nothing, or something else."""
        if self._folder is None:
            return None
        path = self._folder / f"{key}.safetensors"
        try:
            content = path.read_bytes()
            found = _read(content, key)
        except OSError:
            return None
        except Exception:  # safetensors has an error of its own below no common class; a damaged file is none at all
            return None
        with contextlib.suppress(OSError):
            os.utime(path)  # what is used stays longest
        return found

    def keep(self, key: str, tensors: Tensors) -> None:
        """Write it down. A folder that can't be written, or a full disk, is told of and then left alone."""
        if self._folder is None or not self._writes:
            return
        try:
            write_bytes(self._folder / f"{key}.safetensors", _content(key, tensors))
        except OSError as error:
            self._writes = False
            self._note(f"What is encoded can't be kept for the next start: {error.strerror or error}.")

    def get(self, make: Callable[[], Tensors], *parts: str) -> Tensors:
        """What is kept for these parts of a key, or else what `make` gives now."""
        key = self.key(*parts)
        found = self.find(key)
        if found is None:
            found = make()
            self.keep(key, found)
        return found

    def trim(self) -> None:
        """Delete what was not used for the longest time, until the rest is small enough."""
        if self._folder is None or not self._folder.is_dir():
            return
        files: list[tuple[float, int, Path]] = []
        for path in self._folder.iterdir():
            with contextlib.suppress(OSError):  # another worker deletes too
                facts = path.stat()
                files.append((facts.st_mtime, facts.st_size, path))
        left = sum(size for _, size, _ in files)
        for _, size, path in sorted(files):
            if left <= self._most_bytes:
                return
            with contextlib.suppress(OSError):
                path.unlink()
                left -= size


def _content(key: str, tensors: Tensors) -> bytes:
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    facts = {"key": key, "content": _digest(whole)}
    return safetensors.torch.save(whole, metadata=facts)


def _read(content: bytes, key: str) -> Tensors | None:
    """The tensors of a file, None where they are not what was kept under `key`."""
    header = msgspec.json.decode(content[8 : 8 + int.from_bytes(content[:8], "little")], type=dict[str, object])
    tensors = safetensors.torch.load(content)
    return tensors if header.get("__metadata__") == {"key": key, "content": _digest(tensors)} else None


def _digest(tensors: Tensors) -> str:
    """Of all bytes: a disk that lost power leaves files of the right size with zeros in them."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
