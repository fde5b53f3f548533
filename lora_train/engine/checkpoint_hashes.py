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
        self._when_known(
            self._sha256.get(self._checkpoint, ""), self._sha256.get(self._vae, "") if self._vae is not None else ""
        )
