"""One picture in the place of another, whose captions stay."""

from __future__ import annotations

import shutil
from pathlib import Path

from lora_train.core.errors import DatasetError
from lora_train.core.files import replace, temporary_folder, write_text
from lora_train.core.trash import Trash
from lora_train.data.captions import caption_path
from lora_train.data.images import usual_suffix
from lora_train.data.picture_text import prompt_in

_SAME_KIND = {".jpeg": ".jpg", ".tiff": ".tif"}


def replace_picture(old: Path, name: str, path: Path, trash: Trash) -> str:
    """Put a copy of `path`, a picture called `name`, in the place of `old`, which goes to the trash; the entry there.

    The new one has the old one's stem, and the suffix of its content. Where the caption was the prompt inside the old
    picture, it is written to a file, so that it stays. Raises DatasetError for what is no picture or when the folder
    can't be written, WorkspaceError when the old one can't be moved; nothing has changed then.
    """
    try:
        suffix = usual_suffix(path)
    except DatasetError as error:
        raise DatasetError(error.message.replace(str(path), name), error.hint) from None
    if _SAME_KIND.get(old.suffix.lower(), old.suffix.lower()) == suffix:
        suffix = old.suffix
    target = old.with_name(old.stem + suffix)
    caption = old.with_suffix(".txt")
    prompt = prompt_in(old) if caption_path(old) is None else ""
    try:
        with temporary_folder(old.with_name(".incoming")) as incoming:
            copy = Path(shutil.copyfile(path, incoming / "picture"))
            in_the_way = [target] if target != old and target.exists() else []
            written = [target, caption] if prompt else [target]
            entry = trash.put(old.name, [old, *in_the_way], replaced_by=written)
            try:
                replace(copy, target)
                if prompt:
                    write_text(caption, prompt)
            except OSError:
                trash.restore(entry)
                raise
            trash.keep(entry)
    except OSError as error:
        raise DatasetError(
            f"{old.name} can't be replaced: {error.strerror or error}.",
            "Check that the disk has room and that the folder may be written.",
        ) from None
    return entry
