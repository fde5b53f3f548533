"""Gradient checkpointing as this package needs it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from torch.utils import checkpoint


@contextmanager
def without_random_state() -> Iterator[None]:
    """Within, what is checkpointed keeps no state of random generators for its second run.

    Nothing in a model draws numbers (dropout masks are drawn before a step), keeping states takes time at every block,
    and a CUDA graph can't put one back. diffusers has no switch for it, so torch's function is another one meanwhile.
    """
    own = checkpoint.checkpoint
    checkpoint.checkpoint = partial(own, preserve_rng_state=False)
    try:
        yield
    finally:
        checkpoint.checkpoint = own
