"""Whatever people start, move or make over a full workspace, the server answers soon; workers do what takes long.

Measured as in `test_answers.py`. What is written, or read again, for each of 2,000 pictures takes longer, and has a
limit of its own here, so that it does not grow unseen.
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
MOST_OF_MANY_MS = 10_000.0
ONCE = 7
"""So many times the limit without `--full`: everything is done once then, and what else the machine does counts."""
OF_MANY = {
    *("click captions_apply", "click captions_undo", "click captions_redo", "click captions_write"),
    *("POST captions/edit", "POST captions/undo", "POST captions/redo", "POST captions/make"),
    *("click version_duplicate", "POST versions/duplicate"),
    *("POST dataset/replace", "POST dataset/remove", "click regularisation_generate", "POST history/repeat"),
    *("GET jobs/curves.csv", "GET jobs/curves.json", "GET jobs/report", "POST judge", "click version_delete"),
    *("click train_begin", "click sweep_begin", "POST sweeps", "POST loras/private", "click show_last"),
}
"""A file is written, flushed or linked for each picture or LoRA, a set that has just changed is read again, or all
events are told.
"""
NOT_ASKED = {"grids/picture"}
"""A GET for what only a real worker draws."""


def test_everything_is_answered(
    server: Server, full: Full, sizes: Sizes, share: Callable[[int], int], count: Callable[[str, int], None]
) -> None:
    actor = Actor(Page(server), full)
    rounds = share(3)
    for _ in range(rounds):
        actor.round()
    limit_ms = MOST_MS if rounds > 1 else ONCE * MOST_MS
    limits_ms = dict.fromkeys(OF_MANY, MOST_OF_MANY_MS)
    done = [times_from(what, answers) for what, answers in actor.answers.items()]
    too_dear = [times for times in done if times.least_cpu_ms > limits_ms.get(times.what, limit_ms)]
    assert too_dear == []
    assert {f"click {name}" for name in ACTS} <= actor.answers.keys()
    posts = {f"POST {route.path}" for route in ROUTES if route.method == "POST"}
    assert posts <= actor.answers.keys(), "a route that nobody measures"
    gets = {route.path for route in ROUTES if route.method == "GET"}
    others = {what.removeprefix("GET ") for what in actor.answers}
    assert gets <= {*(route for route, _ in gets_of(full)), *NOT_ASKED, *others}
    count("acts", sum(map(len, actor.answers.values())))
    count("pictures", sizes.pictures)
