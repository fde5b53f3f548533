"""Small pictures for the gallery, kept in memory."""

from __future__ import annotations

import io
import threading
from collections import OrderedDict
from pathlib import Path

from lora_train.core.errors import WorkspaceError

_SIDE_PX = 320
_MOST = 512
"""About 20 kB each."""


class Thumbnails:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[Path, int, int], bytes] = OrderedDict()

    def of(self, path: Path) -> bytes:
        """A JPEG of the upright picture, at most 320 pixels a side.

        Raises WorkspaceError where the file is gone, DatasetError where it is damaged.
        """
        from lora_train.data.images import open_picture

        try:
            told = path.stat()
        except FileNotFoundError:
            raise WorkspaceError(f"{path} does not exist any more.", "Refresh the page.") from None
        key = path, told.st_mtime_ns, told.st_size
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        picture = open_picture(path)
        picture.thumbnail((_SIDE_PX, _SIDE_PX))
        stream = io.BytesIO()
        picture.save(stream, "JPEG", quality=85)
        with self._lock:
            self._kept[key] = stream.getvalue()
            if len(self._kept) > _MOST:
                self._kept.popitem(last=False)
        return stream.getvalue()
