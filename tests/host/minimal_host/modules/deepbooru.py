"""Tags pictures. As in the real ones: loaded by `start`, brackets escaped, `rating:` tags left out."""

from __future__ import annotations

from typing import Any

from modules import call_queue, shared


class DeepDanbooru:
    def __init__(self) -> None:
        self.model: object = None
        self.calls: list[str] = []
        """As of the interrogator."""
        self.fails_on = ""

    def start(self) -> None:
        self._told("start")
        self.model = object()

    def tag_multi(self, picture: Any, force_disable_ranks: bool = False) -> str:
        self._told("tag")
        if self.model is None:
            raise AttributeError("'NoneType' object has no attribute 'tags'")
        red = picture.getpixel((0, 0))[0] / 255
        tags = ["1girl", "ribbon (hair)", *(["red"] if red > shared.opts.interrogate_deepbooru_score_threshold else [])]
        if shared.opts.deepbooru_escape:
            tags = [tag.replace("\\", "\\\\").replace("(", "\\(").replace(")", "\\)") for tag in tags]
        if shared.opts.interrogate_return_ranks and not force_disable_ranks:
            tags = [f"({tag}:0.9)" for tag in tags]
        return ", ".join(tags)

    def stop(self) -> None:
        self._told("stop")
        if self.model is None:
            raise AttributeError("'NoneType' object has no attribute 'to'")
        self.model = None

    def _told(self, call: str) -> None:
        self.calls.append(call if call_queue.queue_lock.locked() else f"{call}!")
        if self.fails_on == call:
            raise OSError("no network")


model = DeepDanbooru()
