"""Runs `lora-train bench` over the cases of docs/benchmarks.md and prints one JSON object a line."""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time

CPU_CASES = [
    ["--base-model", "demo", "--batch-size", "4"],
    ["--base-model", "sd15", "--resolution", "256", "--set", "train_text_encoder=false"],
    ["--base-model", "sd15", "--resolution", "256"],
    ["--base-model", "sd15", "--resolution", "512", "--set", "train_text_encoder=false"],
]
GPU_CASES = [
    ["--base-model", "sd15", "--resolution", "512", "--batch-size", size, "--precision", precision, "--set", setting]
    for size in ("1", "4")
    for precision in ("bf16", "fp32")
    for setting in ("gradient_checkpointing=false", "gradient_checkpointing=true")
]
GPU_CASES += [
    ["--base-model", "sdxl", "--resolution", "1024", "--precision", "bf16", "--set", setting]
    for setting in ("gradient_checkpointing=false", "gradient_checkpointing=true")
]
GPU_CASES += [  # speed and memory over a longer time
    ["--base-model", model, "--resolution", resolution, "--precision", "bf16", "--steps", "300"]
    for model, resolution in (("sd15", "512"), ("sdxl", "1024"))
]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gpu", action="store_true", help="the cases for a GPU")
    cases = GPU_CASES if parser.parse_args().gpu else CPU_CASES
    for case in cases:
        with tempfile.TemporaryDirectory() as workspace:
            command = [sys.executable, "-m", "lora_train", "bench", *case, "--json", "--workspace", workspace]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, encoding="utf-8", check=False)
            measured = json.loads(done.stdout.splitlines()[-1])
        measured.pop("result", None)
        print(
            json.dumps(
                {
                    "command": f"lora-train bench {' '.join(case)}",
                    "date": time.strftime("%Y-%m-%d"),
                    "machine": f"{platform.system()} {platform.machine()}",
                    **measured,
                }
            ),
            flush=True,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
