"""Counts the steps of docs/benchmarks.md and prints the table's rows of ours."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile

CASES = {"sd15_512_b1": "SD 1.5 512", "sdxl_1024_b1": "SDXL 1024"}
_CHECKPOINTING = ["--set", "gradient_checkpointing=true"]
VARIANTS = {
    "": [],
    ", checkpointing": _CHECKPOINTING,
    ", checkpointing, int8": [*_CHECKPOINTING, "--set", "base_weights=int8"],
}


def main() -> int:
    for variant, options in VARIANTS.items():
        with tempfile.TemporaryDirectory() as workspace:
            command = [sys.executable, "-m", "lora_train", "bench", "--count", "--json", "--workspace", workspace]
            done = subprocess.run([*command, *options], stdout=subprocess.PIPE, text=True, encoding="utf-8", check=True)
        for name, counted in json.loads(done.stdout.splitlines()[-1]).items():
            phases = counted["phases"]
            numbers = [
                counted["kernels"],
                phases["forward"]["kernels"],
                phases["backward"]["kernels"],
                f"{counted['flops'] / 1e12:.2f}",
                f"{counted['bytes_moved'] / 1e9:.1f}",
                f"{counted['peak_bytes'] / 1e9:.2f}",
                counted["host_syncs"],
            ]
            print(f"| {CASES[name]} b1, ours{variant} | {' | '.join(map(str, numbers))} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
