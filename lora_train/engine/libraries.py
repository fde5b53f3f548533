"""The import of torch, diffusers and transformers, which is most of the time to a worker's first step."""

from __future__ import annotations

import gc
import sys
from collections.abc import Generator, Iterable
from contextlib import contextmanager, suppress

_NOT_FOR_US = ("bitsandbytes", "scipy", "sklearn")
"""diffusers and transformers import them where they are installed, for quantisation, schedulers and drafts of texts,
which nobody here uses. They take as long as all the rest."""


def import_libraries() -> None:
    """Import what every job with a base model needs, at once.

    Half a million objects come into being that all stay. Looking for garbage among them again and again is a third of
    the time, in vain, and would go on later: they are taken out of it for good. What can't be imported is told where it
    is needed.
    """
    gc.disable()
    try:
        with _hidden(_NOT_FOR_US), suppress(Exception):  # a broken package that these two look at may raise anything
            from diffusers import AutoencoderKL, UNet2DConditionModel  # noqa: F401
            from transformers import CLIPTextModel, CLIPTokenizer  # noqa: F401
    finally:
        gc.freeze()
        gc.enable()


@contextmanager
def _hidden(packages: Iterable[str]) -> Generator[None, None, None]:
    """Within the block it looks as if these were not installed; those that were imported before stay."""
    hidden = [name for name in packages if name not in sys.modules]
    sys.modules |= dict.fromkeys(hidden)  # pyright: ignore[reportArgumentType]  (None: not to be found)
    try:
        yield
    finally:
        for name in hidden:
            sys.modules.pop(name, None)
