"""A server over a real App in this process (`tests/assets/servers.py`), and calls to it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Call = Callable[..., Any]


@pytest.fixture
def call(servers: Any) -> Call:
    """`call(server, method, path, **what httpx takes)` gives the answer; what the server raises is raised."""
    return servers.call


@pytest.fixture
def world(servers: Any, tmp_path: Path) -> Any:
    """A server over a version with a picture and a finished training."""
    return servers.World(tmp_path).fill()


@pytest.fixture
def empty_world(servers: Any, tmp_path: Path) -> Any:
    """The same server over a workspace that is not there yet."""
    return servers.World(tmp_path)
