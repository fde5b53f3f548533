"""Whatever people start, move or make over a full workspace, the server answers soon; workers do what takes long.

Measured as in `test_answers.py`, to the server's first word: what takes longer goes on as a task, whose outcome is
waited for here before the next thing is done.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
from acting import Actor
from asking import ACTS, gets_of, times_from
from full_workspace import Full, Sizes
from http_page import Page, Server

from lora_train.api.routes import ROUTES

pytestmark = pytest.mark.compat

MOST_MS = 200.0
ONCE = 7
"""So many times the limit without `--full`: everything is done once then, and what else the machine does counts."""
NOT_ASKED = {"grids/picture", "tasks/stop", "tasks/close"}
"""For what only a real worker draws; and for tasks, which end before they can be stopped: each sets a mark."""


def test_everything_is_answered(
    server: Server, full: Full, sizes: Sizes, share: Callable[[int], int], count: Callable[[str, int], None]
) -> None:
    actor = Actor(Page(server), full)
    rounds = share(3)
    for _ in range(rounds):
        actor.round()
    limit_ms = MOST_MS if rounds > 1 else ONCE * MOST_MS
    done = [times_from(what, answers) for what, answers in actor.answers.items()]
    assert [times for times in done if times.least_cpu_ms > limit_ms] == []
    assert {f"click {name}" for name in ACTS} <= actor.answers.keys()
    posts = {f"POST {route.path}" for route in ROUTES if route.method == "POST" and route.path not in NOT_ASKED}
    assert posts <= actor.answers.keys(), "a route that nobody measures"
    gets = {route.path for route in ROUTES if route.method == "GET"}
    others = {what.removeprefix("GET ") for what in actor.answers}
    assert gets <= {*(route for route, _ in gets_of(full)), *NOT_ASKED, *others}
    count("acts", sum(map(len, actor.answers.values())))
    count("pictures", sizes.pictures)
