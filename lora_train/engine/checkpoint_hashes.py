"""The hashes of base model and VAE, which every LoRA file tells."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

from lora_train.core.hash_cache import HashCache
from lora_train.core.tensorfiles import file_sha256, legacy_checkpoint_hash
from lora_train.engine.metadata import RunFacts


class CheckpointHashes:
    """The base model's hashes for the metadata, worked out by a thread while the training goes on."""

    def __init__(
        self, checkpoint: Path, vae: Path | None, known: HashCache, when_known: Callable[[str, str], None]
    ) -> None:
        """`when_known` is called in the thread, with the SHA-256 of checkpoint and VAE, "" for what is no file."""
        self._known = known
        self._when_known = when_known
        self._files = [path for path in (checkpoint, vae) if path is not None and path.is_file()]
        self._sha256: dict[Path, str] = {}
        self._checkpoint = checkpoint
        self._vae = vae
        self._thread = threading.Thread(target=self._work, name="hashes", daemon=True)

    def start(self) -> None:
        """Begin to read the files."""
        self._thread.start()

    def known(self) -> tuple[str, ...]:
        """SHA-256 of base model and VAE, "" for what is no file. Empty until all are known, and where one can't be
        read.
        """
        if self._thread.is_alive() or any(path not in self._sha256 for path in self._files):
            return ()
        return self._both()

    def wait(self) -> tuple[str, ...]:
        """`known`, when they are. A file that nobody has touched since the last start is not read again."""
        self._thread.join()
        return self.known()

    def fill(self, facts: RunFacts) -> None:
        """Wait for the hashes (they are long done at the first save) and put them into `facts`."""
        self._thread.join()
        if self._checkpoint in self._sha256:
            facts.base_model_sha256 = self._sha256[self._checkpoint]
            facts.base_model_legacy_hash = legacy_checkpoint_hash(self._checkpoint)
        if self._vae is not None and self._vae in self._sha256:
            facts.vae_sha256 = self._sha256[self._vae]
            facts.vae_legacy_hash = legacy_checkpoint_hash(self._vae)

    def _work(self) -> None:
        for path in self._files:
            self._sha256[path] = self._known.get(path, "sha256", partial(file_sha256, path))
        self._when_known(*self._both())

    def _both(self) -> tuple[str, str]:
        vae = self._sha256.get(self._vae, "") if self._vae is not None else ""
        return self._sha256.get(self._checkpoint, ""), vae


def are_others(before: tuple[str, ...], now: tuple[str, ...]) -> bool:
    """Whether the files that `CheckpointHashes.known` told of have changed, as far as both times tell."""
    if len(before) == 1:  # of an earlier release, which noted no "": the base model's, unless that is a folder
        before = ("", *before) if now[:1] == ("",) else before
    return any(one and other and one != other for one, other in zip(before, now, strict=False))
