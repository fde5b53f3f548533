"""`lora-train prove`: a published LoRA is read back, and drawn with."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from lora_train.commands.arguments import add_command, app_of
from lora_train.commands.console import Result, run_job
from lora_train.core.jobs import JobFolder


def add_commands(commands: Any) -> None:
    """Put the commands of this file among the others."""
    prove = add_command(commands, "prove", _prove, "read a published LoRA back, and draw with it at weight 0 and 1")
    prove.add_argument("train", metavar="TRAIN_DIR", help="the folder that `train` printed first")
    prove.add_argument("--lora", default="", metavar="FILE", help="one of its LoRAs; without it the best or last one")


def _prove(options: argparse.Namespace) -> Result:
    app = app_of(options)
    train = JobFolder(Path(options.train).absolute())
    file = options.lora or app.loras.recommended_file(train)
    result = run_job(app, app.proofs.plan(train, file))
    found = result["result"]
    if result["state"] != "finished":
        return result
    if not found["is_proven"]:
        result |= {"exit_code": 1, "message": found["reason"], "hint": found["hint"]}
    if not options.json:
        for fact in found["facts"]:
            print(f"{fact['name']}: {fact['value']}" if fact["value"] else fact["name"])
        print("Proven." if found["is_proven"] else f"Not proven: {found['reason']} {found['hint']}")
    return result
