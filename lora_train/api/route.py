"""One route of the HTTP API: method, path, what it takes and gives, and the one call of `App` behind it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

from lora_train.api.shapes import Nothing
from lora_train.app import App

_BODY_LIMIT_BYTES = 1024 * 1024

Taken = TypeVar("Taken")
Given = TypeVar("Given")


@dataclass(frozen=True)
class Route(Generic[Taken, Given]):
    """One route. `takes` is the JSON body of a POST or the query of a GET."""

    method: Literal["GET", "POST"]
    path: str
    """Below `train-tools/v1/`."""
    summary: str
    takes: type[Taken]
    gives: type[Given]
    call: Callable[[App, Taken], Given]
    body_limit_bytes: int = _BODY_LIMIT_BYTES


def nothing(_done: None) -> Nothing:
    """The answer of a call that gives none."""
    return Nothing()
