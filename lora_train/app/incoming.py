"""Files that come over the network, as files on the disk for as long as they are looked at."""

from __future__ import annotations

import tempfile
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def as_files(files: Sequence[tuple[str, bytes]]) -> Generator[list[tuple[str, Path]], None, None]:
    """Each name as it was told, and a temporary file with its content."""
    with tempfile.TemporaryDirectory() as folder:
        found = [(name, Path(folder) / str(number)) for number, (name, _) in enumerate(files)]
        for (_, path), (_, content) in zip(found, files, strict=True):
            path.write_bytes(content)
        yield found
