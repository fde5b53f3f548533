"""Tries optimizers out in a child process: to be installed is not the same as to work, and a crash stays there."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence

from lora_train.core.config import Device, Optimizer
from lora_train.launch.launcher import OWN_CONSOLE, PACKAGE_ROOT, environment

_LIMIT_S = 180.0
_MOST_LETTERS = 200


def try_optimizers(names: Sequence[Optimizer], device: Device) -> dict[Optimizer, str]:
    """Let each take a step on `device`: "" where it worked, or else the error. Takes seconds, as torch is imported."""
    try:
        done = subprocess.run(
            [sys.executable, "-m", "lora_train.engine.try_optimizers", device, *names],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            env=environment(),
            cwd=PACKAGE_ROOT,
            creationflags=OWN_CONSOLE,
            timeout=_LIMIT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        told = error.stdout.decode("utf-8", "replace") if isinstance(error.stdout, bytes) else error.stdout or ""
        return {name: _read(told).get(name, f"no answer within {_LIMIT_S:.0f} seconds") for name in names}
    except OSError as error:
        return dict.fromkeys(names, f"it could not be tried: {error.strerror or error}")
    last = (done.stderr.strip().splitlines() or [f"the process ended with code {done.returncode}"])[-1]
    return {name: _read(done.stdout).get(name, last[:_MOST_LETTERS]) for name in names}


def _read(told: str) -> dict[str, str]:
    """What the child has told of each, one JSON object a line; libraries print lines of their own between."""
    found: dict[str, str] = {}
    for line in told.splitlines():
        try:
            found |= json.loads(line)
        except (ValueError, TypeError):
            continue
    return found
