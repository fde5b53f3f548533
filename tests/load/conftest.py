"""A workspace as years of use fill it (a tenth of that without `--full`), and the page over it in a real process."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytest.importorskip("gradio")
pytest.importorskip("safetensors")
sys.path.insert(0, str(Path(__file__).parents[1] / "assets"))

from full_workspace import Full, Sizes, make_workspace
from http_page import Page, Server

SIZES = Sizes(pictures=2000, versions=200, loras=500, events=1_000_000)


@pytest.fixture(scope="session")
def sizes(share: Callable[[int], int]) -> Sizes:
    return Sizes(*map(share, SIZES))


@pytest.fixture(scope="session")
def full(tmp_path_factory: pytest.TempPathFactory, sizes: Sizes) -> Full:
    return make_workspace(tmp_path_factory.mktemp("load"), sizes)


@pytest.fixture(scope="session")
def server(full: Full) -> Iterator[Server]:
    server = Server(full.root, full.lora_dir, full.root.parent / "site.log")
    yield server
    server.close()


@pytest.fixture(scope="session")
def page(server: Server) -> Page:
    return Page(server)
