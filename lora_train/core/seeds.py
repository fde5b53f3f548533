"""Randomness as a function of what it is for, never of a running state."""

from __future__ import annotations

import hashlib


def derive_seed(seed: int, *purpose: int | str) -> int:
    """A 63-bit seed for one purpose, e.g. `derive_seed(23, epoch, position, "noise")`.

    The parts are hashed (BLAKE2b) with a separator, so neighbouring positions give unrelated seeds and the
    result is the same on every platform, in every process and for every number of processes.
    """
    text = "\x1f".join(str(part) for part in (seed, *purpose))
    digest = hashlib.blake2b(text.encode("utf-8"), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
