"""Trains LoRAs that are good, or bad each in its own way, on the small demo model, and lets the judge rank them.

A JSON line for every LoRA, of each of some seeds. `--table` makes the table of `docs/judge.md` from the lines of a
file. Exit code 1 where a bad one of any seed reaches the good one of any other.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
MEASURES = ("likeness", "obedience", "retention", "copying", "score")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5, help="how many, from 1 on")
    parser.add_argument("--table", metavar="FILE", help="print the table of these lines instead")
    given = parser.parse_args()
    if given.table:
        print(table([json.loads(line) for line in Path(given.table).read_text(encoding="utf-8").splitlines()]))
        return 0
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    lines: list[dict[str, Any]] = []
    with (
        tempfile.TemporaryDirectory() as folder,
        ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as pool,
    ):
        waiting = [pool.submit(run, seed, Path(folder)) for seed in range(1, given.seeds + 1)]
        for done in as_completed(waiting):
            for line in done.result():
                lines.append(line)
                print(json.dumps(line), flush=True)
    return int(overlap(lines))


def run(seed: int, root: Path) -> list[dict[str, Any]]:
    """All kinds of one seed, in this process."""
    from lora_train.app import App
    from lora_train.core.workspace import Workspace
    from tests.assets import judge_kinds

    started_s = time.monotonic()
    rows = judge_kinds.train_and_judge(App(Workspace(root / f"workspace-{seed}")), seed, root)
    return [
        {
            "kind": kind,
            "seed": seed,
            **{name: round(getattr(row, name), 4) for name in MEASURES},
            "seconds_for_the_seed": round(time.monotonic() - started_s, 1),
            "command": " ".join(["judge_seeds.py", *sys.argv[1:]]),
            "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
            "date": time.strftime("%Y-%m-%d"),
        }
        for kind, row in rows.items()
    ]


def overlap(lines: list[dict[str, Any]]) -> bool:
    """Whether the best bad score of all seeds reaches the worst good one."""
    good = [line["score"] for line in lines if line["kind"] == "good"]
    return min(good) <= max(line["score"] for line in lines if line["kind"] != "good")


def table(lines: list[dict[str, Any]]) -> str:
    """Lowest and highest over the seeds, a row for each kind, as Markdown."""
    made = [f"| LoRA | {' | '.join(name.capitalize() for name in MEASURES)} |", "|---" * (len(MEASURES) + 1) + "|"]
    for kind in dict.fromkeys(line["kind"] for line in lines):
        own = [line for line in lines if line["kind"] == kind]
        ranges = [(min(line[name] for line in own), max(line[name] for line in own)) for name in MEASURES]
        made.append(f"| {kind} | {' | '.join(f'{low + 0.0:.2f} to {high + 0.0:.2f}' for low, high in ranges)} |")
    first = lines[0]
    seeds = len({line["seed"] for line in lines})
    return "\n".join([*made, "", f"{seeds} seeds; `{first['command']}`, {first['machine']}, {first['date']}."])


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    sys.exit(main())
