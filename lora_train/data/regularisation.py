"""Where regularisation pictures of a class go, and how those that are drawn are called."""

from __future__ import annotations

import itertools
from pathlib import Path

from lora_train.core.files import write_text
from lora_train.core.names import fold, folder_name
from lora_train.data.dataset import regularisation_folders

_LAST_NUMBER = ".last-number"
"""In a class folder: a number is given once, so that a removed picture may come back, and is not drawn again."""


def class_dir(dataset_dir: Path, class_name: str) -> Path:
    """The folder of a class beside the trained set: the one that is there, with its repeats, else `1_<class>`.

    Raises WorkspaceError where nothing of the name can be a folder's, DatasetError for a folder that can't be listed.
    """
    name = folder_name(class_name)
    for found in regularisation_folders(dataset_dir):
        if found.folder.startswith("../") and fold(found.name) == fold(name):
            return dataset_dir.with_name("reg") / found.folder.rpartition("/")[2]
    return dataset_dir.with_name("reg") / f"1_{name}"


def file_stem(number: int) -> str:
    """How the picture of this number (from 1) is called, and its caption."""
    return f"{number:04}"


def free_numbers(folder: Path, count: int) -> list[int]:
    """The next numbers for pictures in a class folder, which need not be there yet."""
    try:
        last = folder.joinpath(_LAST_NUMBER).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        last = ""
    taken = {path.stem for path in folder.iterdir()} if folder.is_dir() else set[str]()
    numbers = itertools.count(int(last) + 1 if last.isascii() and last.isdecimal() else 1)
    return list(itertools.islice((number for number in numbers if file_stem(number) not in taken), count))


def remember_number(folder: Path, number: int) -> None:
    """The picture of this number, and all before it, were drawn."""
    write_text(folder / _LAST_NUMBER, f"{number}\n")
