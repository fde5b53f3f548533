"""The captions that came along with uploaded pictures: files beside them, or prompts inside them."""

from __future__ import annotations

from pathlib import Path

from lora_train.data.captions import caption_stem, caption_text, captions_by_stem, read_caption_bytes
from lora_train.data.images import PICTURE_SUFFIXES
from lora_train.data.picture_text import prompt_in


def existing_captions(origin_dir: Path) -> dict[str, str]:
    """The caption of each stem (NFC) of a folder: its file's, or else the prompt that a WebUI wrote into the picture.

    An empty caption file counts: somebody wanted no caption. Pictures without either are left out. Raises DatasetError
    for a caption file that can't be read.
    """
    try:
        files = [path for path in sorted(origin_dir.iterdir()) if not path.name.startswith(".") and path.is_file()]
    except FileNotFoundError:
        return {}
    found = {stem: caption_text(read_caption_bytes(path)) for stem, path in captions_by_stem(files).items()}
    for path in files:
        is_open = path.suffix.lower() in PICTURE_SUFFIXES and caption_stem(path) not in found
        if is_open and (prompt := prompt_in(path)):
            found[caption_stem(path)] = prompt
    return found
