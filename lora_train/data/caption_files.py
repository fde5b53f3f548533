"""Writing the captions of a trained set."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from lora_train.core.errors import DatasetError
from lora_train.core.files import write_text
from lora_train.core.progress import StopAskedForError, tell
from lora_train.core.trash import Trash
from lora_train.data.captions import caption_stem, captions_by_stem

_MOST_AT_ONCE = 8
"""Files that are flushed to the disk at the same time: waiting for it is all that takes long."""
_TOLD_AFTER = 4 * _MOST_AT_ONCE


def write_captions(root: Path, captions: Mapping[str, str], trash: Trash, remedy: str) -> None:
    """Write each picture's caption to NAME.txt beside it; the caption file that it had under another name, say
    NAME.caption, goes to the trash. Pictures are relative to `root`. Tells its progress.

    Raises DatasetError that tells how many were not written, and the `remedy`; those are as they were.
    """
    pictures = {root / file: text for file, text in captions.items()}
    try:
        old = {folder: captions_by_stem(folder.iterdir()) for folder in {path.parent for path in pictures}}
    except OSError as error:
        raise DatasetError(f"{root} can't be read ({error.strerror}); no caption was written.") from None
    waiting = list(pictures.items())
    written: list[Path] = []
    problems: list[str] = []
    has_stopped = False
    with ThreadPoolExecutor(max_workers=_MOST_AT_ONCE) as pool:
        while waiting and not has_stopped:
            now, waiting = waiting[:_TOLD_AFTER], waiting[_TOLD_AFTER:]
            problems += filter(None, pool.map(_write, *zip(*now, strict=True)))
            written += [path for path, _ in now]
            try:
                tell(len(written), len(pictures))
            except StopAskedForError:
                has_stopped = True
    replaced = [
        caption
        for path in written
        if (caption := old[path.parent].get(caption_stem(path))) is not None and _is_left_over(caption, path)
    ]
    if replaced:
        what = "old captions" if len(replaced) > 1 else f"the old caption of {replaced[0].stem}"
        trash.put(what, list(dict.fromkeys(replaced)))
    if problems:
        raise DatasetError(f"{len(problems)} of {len(pictures)} captions could not be written. {problems[0]}", remedy)
    if waiting:
        raise DatasetError(f"Stopped: {len(written)} of {len(pictures)} captions were written.", remedy)


def _write(picture: Path, text: str) -> str:
    """A sentence where it can't be."""
    path = _text_file(picture)
    try:
        write_text(path, text)
    except OSError as error:
        return f"{path}: {error.strerror or error}."
    return ""


def _text_file(picture: Path) -> Path:
    return picture.with_suffix(".txt")


def _is_left_over(caption: Path, picture: Path) -> bool:
    """Whether it is another file than the one that was written, and that one is there."""
    new = _text_file(picture)
    return caption != new and new.exists() and caption.exists() and not caption.samefile(new)
