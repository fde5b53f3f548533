"""Runs the long suites whole, and prints the rows of docs/reliability.md: what was counted by file, and the time.

python tests/bench/full_runs.py [SUITE ...]       # all of SUITES; about an hour on two quiet cores
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

SUITES = ("faults", "fuzz", "security", "load", "packaging")
_TESTS = Path(__file__).parents[1]


def main(suites: list[str]) -> int:
    status = 0
    for suite in suites or SUITES:
        with tempfile.TemporaryDirectory() as folder:
            figures = Path(folder) / "figures.jsonl"
            command = [sys.executable, "-m", "pytest", "-q", str(_TESTS / suite), "--full", "--figures", str(figures)]
            status |= subprocess.run(command, check=False, stdout=sys.stderr).returncode
            for row in rows(figures.read_text(encoding="utf-8") if figures.exists() else ""):
                print(row, flush=True)
    return status


def rows(lines: str) -> list[str]:
    """A table row for each test file: its counts, and the seconds of its tests that count."""
    counted: dict[str, Counter[str]] = {}
    seconds: Counter[str] = Counter()
    for line in map(json.loads, lines.splitlines()):
        file = line["test"].partition("::")[0]
        counted.setdefault(file, Counter()).update(line["counted"])
        seconds[file] += line["s"]
    return [
        f"| `{file}` | {', '.join(f'{number:,} {what}' for what, number in own.items())} | {seconds[file]:.0f} |"
        for file, own in sorted(counted.items())
    ]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
