"""Describes pictures. As in the real ones: without `load` there is no caption, and after `unload` neither."""

from __future__ import annotations

from typing import Any

from modules import call_queue, devices, shared


class InterrogateModels:
    def __init__(self) -> None:
        self.is_loaded = False
        self.calls: list[str] = []
        """What was asked of it; "!" where the queue lock was not held."""
        self.fails_on = ""
        """The call that raises."""

    def load(self) -> None:
        self._told("load")
        self.is_loaded = True

    def generate_caption(self, picture: Any) -> str:
        self._told("caption")
        if not self.is_loaded:
            raise AttributeError("'InterrogateModels' object has no attribute 'dtype'")
        assert picture.mode == "RGB"
        red, green, blue = picture.getpixel((0, 0))
        length = shared.opts.interrogate_clip_max_length
        return f"a picture of {max((red, 'red'), (green, 'green'), (blue, 'blue'))[1]}\n"[:length]

    def unload(self) -> None:
        self._told("unload")
        if not shared.opts.interrogate_keep_models_in_memory:
            self.is_loaded = False
        devices.torch_gc()

    def interrogate(self, _picture: Any) -> str:
        self._told("interrogate")
        shared.state.begin("interrogate")
        shared.state.end()
        return "<error>"

    def _told(self, call: str) -> None:
        self.calls.append(call if call_queue.queue_lock.locked() else f"{call}!")
        if self.fails_on == call:
            raise OSError("no network")
