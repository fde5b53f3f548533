"""Twenty open pages poll a full workspace: clicks are answered meanwhile, and the web process does not grow."""

from __future__ import annotations

import statistics
from collections.abc import Callable

import pytest
from asking import clicks_of, poll
from full_workspace import Full
from http_page import Page, Server

pytestmark = pytest.mark.compat

PAGES = 20
MOST_POLL_MS = 100.0
"""CPU of a poll of all parts of the page by one of many."""
MOST_CLICK_MS = 200.0
"""Of the clock, the median of the clicks meanwhile: a machine that is busy for a moment delays some of them."""
MOST_UNCHANGED_BYTES = 4096
MOST_GROWTH_BYTES = 8 * 2**20
"""Of memory over the last four fifths of the polls; what every poll left behind would be more soon."""
MOST_SETTLED_GROWTH_BYTES = 2**20
"""Over the last third of 2,000 polls. A kilobyte that each left behind would be 650 KB; few polls settle nothing."""


def test_many_pages(
    server: Server,
    page: Page,
    full: Full,
    share: Callable[[int], int],
    count: Callable[[str, int], None],
    pytestconfig: pytest.Config,
) -> None:
    (load,) = (handler for name, handler in clicks_of(page) if name == "load page")
    page.call(load)
    other = Page(server)
    click = next(handler for name, handler in clicks_of(other) if name == "click captions_preview")
    clicks_ms: list[float] = []

    def between() -> None:
        clicks_ms.append(1000 * other.call(click).wall_s)

    told = poll(server, page.token, full, PAGES, share(100), between)
    for _ in range(2):
        if told.changed:  # time alone may change something, such as a training that nobody hears of any more
            told = poll(server, page.token, full, PAGES, share(100), between)
    assert statistics.median(clicks_ms) < MOST_CLICK_MS, clicks_ms
    assert told.cpu_ms < MOST_POLL_MS, told
    assert {*told.changed} <= {"sum"}, "nothing has changed but what other programs hold of the memory"
    assert told.most_bytes < MOST_UNCHANGED_BYTES, told
    assert told.growth_bytes < MOST_GROWTH_BYTES, told
    if pytestconfig.getoption("--full"):
        assert told.settled_growth_bytes <= MOST_SETTLED_GROWTH_BYTES, told
    count("polls", told.count)
    count("clicks", len(clicks_ms))
