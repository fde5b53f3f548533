"""Files that come over the network, as files on the disk for as long as they are looked at."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from lora_train.core.errors import DatasetError
from lora_train.core.files import temporary_folder


@contextmanager
def as_files(files: Sequence[tuple[str, bytes]], root: Path) -> Generator[list[tuple[str, Path]], None, None]:
    """Each name as it was told, and a temporary file with its content, in a folder of the workspace `root`: what a
    process that dies leaves there is removed at the next start, as nothing in the system's own folder is.

    Raises DatasetError when they can't be written.
    """
    with ExitStack() as stack:
        try:
            root.mkdir(parents=True, exist_ok=True)
            folder = stack.enter_context(temporary_folder(root / "incoming"))
            found = [(name, folder / str(number)) for number, (name, _) in enumerate(files)]
            for (_, path), (_, content) in zip(found, files, strict=True):
                path.write_bytes(content)
        except OSError as error:
            raise DatasetError(
                f"{root} can't be written: {error.strerror or error}.",
                "Check that the disk has room and that the folder may be written.",
            ) from None
        yield found
