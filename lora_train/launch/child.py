"""One of our modules run in a child process, for what must not be imported here: a crash stays there."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from typing import NamedTuple

from lora_train.launch.launcher import OWN_CONSOLE, PACKAGE_ROOT, environment

_MOST_LETTERS = 200


class Answer(NamedTuple):
    """What a module wrote to its standard output, and why it may be incomplete ("" where it ended well)."""

    told: str
    error: str


def run_module(module: str, arguments: Sequence[str], limit_s: float) -> Answer:
    """Run `python -m module`, for so long at most. Raises nothing."""
    try:
        done = subprocess.run(
            [sys.executable, "-m", module, *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            env=environment(),
            cwd=PACKAGE_ROOT,
            creationflags=OWN_CONSOLE,
            timeout=limit_s,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        told = error.stdout.decode("utf-8", "replace") if isinstance(error.stdout, bytes) else error.stdout or ""
        return Answer(told, f"no answer within {limit_s:.0f} seconds")
    except OSError as error:
        return Answer("", f"it could not be tried: {error.strerror or error}")
    if done.returncode == 0:
        return Answer(done.stdout, "")
    last = (done.stderr.strip().splitlines() or [f"the process ended with code {done.returncode}"])[-1]
    return Answer(done.stdout, last[:_MOST_LETTERS])
