"""Runs a training script of others as it is, and prints its seconds per step, for `lora-train bench --compare`.

    python tests/bench/time_steps.py [--skip N] SCRIPT ARGUMENTS ...

A step is from the end of one step of its torch optimizer to the end of the next, whatever else the script does between;
the device is waited for, as `lora-train bench` does. The first N (2) steps are left out. Works within the script's own
environment: it needs nothing but torch.
"""

from __future__ import annotations

import json
import runpy
import statistics
import sys
import time
from pathlib import Path


def main() -> int:
    arguments = sys.argv[1:]
    skip = 2
    if arguments[:1] == ["--skip"]:
        skip, arguments = int(arguments[1]), arguments[2:]
    if not arguments:
        print(__doc__)
        return 2
    import torch
    from torch.optim.optimizer import register_optimizer_step_post_hook

    moments: list[tuple[float, float]] = []

    def note(*_: object) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        moments.append((time.perf_counter(), time.process_time()))

    register_optimizer_step_post_hook(note)
    sys.argv = arguments
    sys.path.insert(0, str(Path(arguments[0]).absolute().parent))  # where Python would look for its modules
    runpy.run_path(arguments[0], run_name="__main__")

    if len(moments) < skip + 3:
        print(f"{arguments[0]} made only {len(moments)} optimizer steps; let it make 10 or more.")
        return 1
    steps = list(zip(moments[skip:], moments[skip + 1 :], strict=False))
    wall_s, cpu_s = (statistics.median(after[of] - before[of] for before, after in steps) for of in (0, 1))
    print(json.dumps({"s_per_step": wall_s, "cpu_s_per_step": cpu_s, "steps": len(steps)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
