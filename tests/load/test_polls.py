"""Twenty open pages poll a full workspace: clicks are answered meanwhile, and the web process does not grow."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from asking import clicks_of, poll
from full_workspace import Full
from http_page import Page, Server

pytestmark = pytest.mark.compat

PAGES = 20
MOST_POLL_MS = 100.0
"""CPU of a poll of all parts of the page by one of many."""
MOST_UNCHANGED_BYTES = 4096
MOST_GROWTH_BYTES = 8 * 2**20
"""Of memory over the last four fifths of the polls; what every poll left behind would be more soon."""


def test_many_pages(
    server: Server, page: Page, full: Full, share: Callable[[int], int], count: Callable[[str, int], None]
) -> None:
    (load,) = (handler for name, handler in clicks_of(page) if name == "load page")
    page.call(load)
    other = Page(server)
    click = next(handler for name, handler in clicks_of(other) if name == "click captions_preview")
    clicks = 0

    def between() -> None:
        nonlocal clicks
        other.call(click)
        clicks += 1

    told = poll(server, page.token, full, PAGES, max(10, share(50)), between)
    for _ in range(2):
        if told.changed:  # time alone may change something, such as a training that nobody hears of any more
            told = poll(server, page.token, full, PAGES, max(10, share(50)), between)
    assert clicks, "none was answered meanwhile"
    assert told.cpu_ms < MOST_POLL_MS, told
    assert {*told.changed} <= {"sum"}, "nothing has changed but what other programs hold of the memory"
    assert told.most_bytes < MOST_UNCHANGED_BYTES, told
    assert told.growth_bytes < MOST_GROWTH_BYTES, told
    count("polls", told.count)
