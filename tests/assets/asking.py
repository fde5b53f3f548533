"""What open pages ask of the server, one after the other or many at once, and how long each answer takes."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from full_workspace import Full
from http_page import Answer, Client, Page, Server

PARTS = (
    *("dataset", "sum", "optimizers", "preset", "presets", "progress", "queue", "results", "sweep_sum", "sweeps"),
    *("judge", "captioning", "captions", "health", "regularisation", "doctor", "grids_sum", "grids", "tasks"),
)
ACTS = (
    *("project_create_ok", "project_rename", "project_delete"),
    *("version_create_ok", "version_rename", "version_duplicate", "version_delete"),
    *("dataset_update", "captions_apply", "captions_undo", "captions_redo", "captions_write"),
    *("regularisation_generate", "train_begin", "sweep_begin", "preview_generate_all", "preview_delete_all"),
    *("preset_save", "preset_rename", "preset_delete"),
)
"""Buttons that start, move or make something: they are pressed where that is taken back (`acting.py`)."""


class Times(NamedTuple):
    """Of one kind of question, milliseconds; CPU is that of the server process."""

    what: str
    first_cpu_ms: float
    cpu_ms: float
    """Median of the later ones ..."""
    least_cpu_ms: float
    """... and the least: what else the machine does meanwhile makes answers dearer, and never cheaper."""
    p50_ms: float
    p95_ms: float
    max_ms: float
    bytes: int
    """Of the last answer."""


def times_of(what: str, ask: Callable[[], Answer], times: int = 5) -> Times:
    """Ask once, then so many times more."""
    return times_from(what, [ask() for _ in range(times + 1)])


def times_from(what: str, answers: Sequence[Answer]) -> Times:
    """Of answers to the same question; a single one counts as a first and a later one."""
    assert all(answer.status in (200, 304) for answer in answers), (what, answers[0].body[:500])
    walls = sorted(1000 * answer.wall_s for answer in answers)
    later = [answer.cpu_s for answer in answers[1:] or answers]
    return Times(
        what,
        first_cpu_ms=round(1000 * answers[0].cpu_s, 1),
        cpu_ms=round(1000 * statistics.median(later), 1),
        least_cpu_ms=round(1000 * min(later), 1),
        p50_ms=round(statistics.median(walls), 1),
        p95_ms=round(walls[min(len(walls) - 1, int(0.95 * len(walls)))], 1),
        max_ms=round(walls[-1], 1),
        bytes=len(answers[-1].body),
    )


def clicks_of(page: Page) -> list[tuple[str, dict[str, Any]]]:
    """Every handler of the page but those of ACTS, each with a name; typing counts once."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for handler in page.handlers:
        targets = handler["targets"]
        if handler.get("trigger"):  # gradio 3
            targets = [(target, handler["trigger"]) for target in targets or [0]]
        if not handler.get("backend_fn") or not targets:
            continue
        target, event = targets[0][:2]
        name = page.names.get(target, "").removeprefix("train_tools_") or "page"
        if event in ("click", "input", "change", "load", "select") and name not in ACTS:
            found.setdefault((name, event), handler)
    return [(f"{event} {name}", handler) for (name, event), handler in found.items()]


def gets_of(full: Full) -> list[tuple[str, dict[str, Any]]]:
    """Every kind of GET that a page or a program sends, for the large version, but for those in `acting.py`."""
    version = {"project": full.project, "version": full.version}
    job = {"job": full.train}
    lora = {**job, "file": f"{full.train.rpartition('/')[2]}.safetensors"}
    picture = {**version, "file": full.picture}
    return [
        *[(route, {}) for route in ("version", "projects", "selection", "settings/schema", "base-models", "queue")],
        *[(route, {}) for route in ("presets", "doctor", "tasks")],
        *[(route, version) for route in ("settings", "forecast", "trains", "dataset", "dataset/health")],
        *[(route, version) for route in ("captioners", "captions", "regularisation", "regularisation/estimate")],
        *[(route, version) for route in ("sweeps", "sweeps/forecast", "grids", "grids/forecast", "presets/state")],
        *[(route, job) for route in ("jobs/status", "jobs/log", "judge", "judge/forecast")],
        ("base-model", {"name": "demo"}),
        ("presets/show", {"name": "character"}),
        ("captions/trained-text", picture),
        ("dataset/picture", picture),
        ("dataset/picture", {**picture, "size": "thumb"}),
        ("history/compare", {**job, "other": full.other_train}),
        ("jobs/events", {**job, "offset": 0}),
        ("jobs/file", lora),
        *[("live", {**version, "parts": part}) for part in PARTS],
        ("live", {**version, "parts": "dataset", "gallery": "2"}),
        ("live", {"project": full.other_project, "version": full.other_version}),
    ]


class Polls(NamedTuple):
    count: int
    cpu_ms: float
    """Of the server, for each poll."""
    p50_ms: float
    p95_ms: float
    max_ms: float
    most_bytes: int
    """Of an answer when nothing has changed."""
    changed: list[str]
    """The parts that were sent again all the same."""
    growth_bytes: int
    """Of the server's memory over the last four fifths of the rounds ..."""
    settled_growth_bytes: int
    """... and over the last third, when its heap has found its size."""


def poll(server: Server, token: str, full: Full, pages: int, rounds: int, between: Callable[[], None]) -> Polls:
    """So many pages poll everything in sight at once, so many times, as the page's script does: with the marks of
    what they show. `between` is done by this thread meanwhile, again and again.
    """
    walls: list[float] = []
    sizes: list[int] = []
    memory: list[int] = []
    barrier = threading.Barrier(pages, lambda: memory.append(server.rss_bytes()))
    failures: list[str] = []
    changed: set[str] = set()

    def work() -> None:
        client = Client(server, token)
        seen = ""
        for number in range(rounds):
            barrier.wait()
            answer = client.get(
                "live", project=full.project, version=full.version, parts=",".join(PARTS), seen=seen, train=full.train
            )
            if answer.status != 200:
                failures.append(answer.body[:200].decode("utf-8", errors="replace"))
                continue
            seen = ",".join(answer.json()["marks"].values())
            if number:
                changed.update(answer.json()["fragments"])
                walls.append(1000 * answer.wall_s)
                sizes.append(len(answer.body))
        barrier.wait()

    threads = [threading.Thread(target=work) for _ in range(pages)]
    cpu_s = server.cpu_s()
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        between()
        time.sleep(0.2)
    assert not failures, failures[:3]
    walls.sort()
    return Polls(
        count=pages * rounds,
        cpu_ms=round(1000 * (server.cpu_s() - cpu_s) / (pages * rounds), 1),
        p50_ms=round(statistics.median(walls), 1),
        p95_ms=round(walls[int(0.95 * len(walls))], 1),
        max_ms=round(walls[-1], 1),
        most_bytes=max(sizes),
        changed=sorted(changed),
        growth_bytes=memory[-1] - memory[len(memory) // 5],
        settled_growth_bytes=memory[-1] - memory[2 * len(memory) // 3],
    )
