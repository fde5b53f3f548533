"""A device beside main memory that is none: copies arrive when they are waited for, and not before."""

from __future__ import annotations

from typing import Any

import torch


class LateMover:
    """An `offload.Mover`. A place is NaN (or -1, of 8-bit integers) from the moment in which a copy into it may begin
    until the copy is waited for; and none may begin before the mark of what used the place last.
    """

    def __init__(self) -> None:
        self.copies = 0
        self.ahead = 0
        """Copies that had begun before the unit that they are for was needed."""
        self._marks = 0
        self._begun: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._used: dict[int, int] = {}
        self._of_mark: dict[int, int] = {}

    def waiting(self, size_bytes: int) -> torch.Tensor:
        return torch.empty(size_bytes, dtype=torch.uint8)

    def place(self, size_bytes: int) -> torch.Tensor:
        return torch.full((size_bytes,), 0xFF, dtype=torch.uint8)

    def mark(self) -> int:
        self._marks += 1
        return self._marks

    def bring(self, place: torch.Tensor, waiting: torch.Tensor, after: Any) -> int:
        used = self._used.get(place.data_ptr(), 0)
        assert not used or after > used, "the copy may begin while the place is in use"
        place.fill_(0xFF)
        self.copies += 1
        mark = self.mark()
        self._begun[mark] = place, waiting
        self._of_mark[mark] = place.data_ptr()
        return mark

    def wait(self, mark: int) -> None:
        if mark in self._begun:
            place, waiting = self._begun.pop(mark)
            self.ahead += self._marks > mark
            place.copy_(waiting)
        self._used[self._of_mark[mark]] = self._marks
