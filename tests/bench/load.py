"""Times the page over a workspace as years of use fill it: every click, GET and POST, 20 pages that poll, its memory.

Makes the workspace first (`--workspace` keeps it for the next time), then starts `lora-train ui`. One JSON line each.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "assets")]

import psutil  # noqa: E402
from acting import Actor  # noqa: E402
from asking import Times, clicks_of, gets_of, poll, times_from, times_of  # noqa: E402
from full_workspace import Full, Sizes, make_workspace  # noqa: E402
from http_page import Client, Page, Server  # noqa: E402

LIMIT_MS = 200


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workspace", type=Path, help="a folder that is made, or that an earlier run has made")
    parser.add_argument("--python", default=sys.executable, help="serves the page; with the gradio to measure")
    parser.add_argument("--share", type=float, default=1.0, help="of everything (0.1 is what the tests take)")
    parser.add_argument("--pages", type=int, default=20)
    parser.add_argument("--polls", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3, help="of all that starts, moves or makes something")
    parser.add_argument("--all", action="store_true", help="tell every question, not the slowest alone")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.workspace or Path(temporary)
        full = _full(folder, given.share)
        measure(folder, full, given)
    return 0


def _full(folder: Path, share: float) -> Full:
    """The workspace in the folder, made where there is none."""
    kept = folder / "full.json"
    if kept.is_file():
        told: dict[str, Any] = json.loads(kept.read_text(encoding="utf-8"))
        return Full(**{**told, "root": Path(told["root"]), "lora_dir": Path(told["lora_dir"])})
    folder.mkdir(parents=True, exist_ok=True)
    sizes = Sizes(*(int(share * most) for most in (2000, 200, 500, 1_000_000)))
    began = time.perf_counter()
    full = make_workspace(folder, sizes)
    kept.write_text(json.dumps(full._asdict(), default=str), encoding="utf-8")
    _tell("made", {**sizes._asdict(), "s": round(time.perf_counter() - began, 1)})
    return full


def measure(folder: Path, full: Full, given: argparse.Namespace) -> None:
    """Start the page, ask everything, and tell."""
    began = time.perf_counter()
    server = Server(full.root, full.lora_dir, folder / "site.log", given.python)
    try:
        _tell("started", {"s": round(time.perf_counter() - began, 1), "rss_mb": round(server.rss_bytes() / 2**20)})
        page = Page(server)
        (load,) = (handler for name, handler in clicks_of(page) if name == "load page")
        everything = [times_of("load page", lambda: page.call(load))]
        everything += [times_of(name, partial(page.call, handler)) for name, handler in clicks_of(page)]
        client = Client(server, page.token)
        everything += [
            times_of(f"GET {route} {query.get('parts', '')}", partial(client.get, route, **query))
            for route, query in gets_of(full)
        ]
        everything += _thumbnails(client, full)
        _tell_times("questions", everything, given.all)
        _tell("memory", {"rss_mb": round(server.rss_bytes() / 2**20)})
        clicks: list[float] = []
        other = Page(server)
        handler = next(handler for name, handler in clicks_of(other) if name == "input train_epochs")
        polls = poll(
            server,
            page.token,
            full,
            given.pages,
            given.polls // given.pages,
            lambda: clicks.append(1000 * other.call(handler).wall_s),
        )
        clicks.sort()
        meanwhile = {"clicks": len(clicks), "p50_ms": round(statistics.median(clicks), 1), "max_ms": round(clicks[-1])}
        _tell("polls", {**polls._asdict(), "meanwhile": meanwhile, "rss_mb": round(server.rss_bytes() / 2**20)})
        actor = Actor(Page(server), full)
        for _ in range(given.rounds):
            actor.round()
        acts = [times_from(what, answers) for what, answers in actor.answers.items()]
        _tell_times("acts", acts, given.all)
        _tell("memory", {"rss_mb": round(server.rss_bytes() / 2**20)})
    finally:
        server.close()


def _tell_times(what: str, measured: list[Times], tells_all: bool) -> None:
    """Each, or the slowest, and what they come to."""
    slow = sorted(measured, key=lambda times: -times.cpu_ms)
    for times in slow if tells_all else slow[:12]:
        _tell(what, times._asdict())
    cpus = [times.cpu_ms for times in reversed(slow)]
    walls = sorted(times.p50_ms for times in measured)
    summary = {
        "count": len(slow),
        "first_cpu_ms_max": max(times.first_cpu_ms for times in measured),
        f"over_{LIMIT_MS}_ms_cpu": sum(cpu > LIMIT_MS for cpu in cpus),
        f"over_{LIMIT_MS}_ms_wall": sum(wall > LIMIT_MS for wall in walls),
    }
    for name, sizes in (("cpu_ms", cpus), ("wall_ms", walls)):
        told = statistics.median(sizes), sizes[int(0.95 * len(sizes))], sizes[-1]
        summary |= {f"{name}_{which}": size for which, size in zip(("p50", "p95", "max"), told, strict=True)}
    _tell(f"all {what}", summary)


def _thumbnails(client: Client, full: Full) -> list[Any]:
    version = {"project": full.project, "version": full.version}
    pictures = client.get("dataset", **version).json()["pictures"]
    asked = [{**version, "file": picture["file"], "size": "thumb"} for picture in pictures[:5]]
    return [times_of("GET dataset/picture thumb", partial(client.get, "dataset/picture", **one)) for one in asked]


def _tell(what: str, told: dict[str, Any]) -> None:
    machine = f"{platform.system()} {platform.machine()}, {psutil.cpu_count()} cores"
    line = {"what": what, **told, "date": time.strftime("%Y-%m-%d"), "machine": machine}
    print(json.dumps(line, default=str), flush=True)


if __name__ == "__main__":
    sys.exit(main())
