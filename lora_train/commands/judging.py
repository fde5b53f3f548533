"""`lora-train judge`: which LoRA of a training is best, at which weight, and why."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from lora_train.commands.arguments import add_command, app_of, numbers
from lora_train.commands.console import Result, run_job
from lora_train.core.jobs import JobFolder
from lora_train.core.judgement import FILE_NAME, PICTURES, WEIGHTS, Judged, Judgement


def add_commands(commands: Any) -> None:
    """Put the commands of this file among the others."""
    judge = add_command(commands, "judge", _judge, "measure every LoRA of a training, and recommend one")
    judge.add_argument("train", metavar="TRAIN_DIR", help="the folder that `train` printed first")
    weights = ",".join(f"{weight:g}" for weight in WEIGHTS)
    judge.add_argument(
        "--weights", default=weights, metavar="W,W", help=f"LoRA weights, comma list (default {weights})"
    )
    judge.add_argument(
        "--pictures", type=int, default=PICTURES, metavar="N", help=f"drawn for each of them (default {PICTURES})"
    )
    judge.add_argument(
        "--encoder", default="", metavar="PATH", help="judge with this image encoder (a folder or an .onnx file)"
    )


def _judge(options: argparse.Namespace) -> Result:
    app = app_of(options)
    train = JobFolder(Path(options.train).absolute())
    job = app.judging.plan(
        train, weights=numbers("weights", options.weights), pictures=options.pictures, encoder=options.encoder or None
    )
    result = run_job(app, job)
    if result["state"] != "finished":
        return result
    judgement = msgspec.json.decode((train.path / FILE_NAME).read_bytes(), type=Judgement)
    if not options.json:
        print(table(judgement.rows))
        print(judgement.reason)
    return {**result, "judgement": msgspec.to_builtins(judgement)}


def table(rows: Sequence[Judged]) -> str:
    """The rows as lines of columns."""
    width = max(len("LoRA"), *(len(row.lora) for row in rows))
    lines = [f"{'LoRA':{width}}  weight  score  likeness  held out  obedience  kept  copying"]
    for row in rows:
        held_out = "-" if row.held_out_likeness is None else f"{row.held_out_likeness:.2f}"
        lines.append(
            f"{row.lora:{width}}  {row.weight:6g}  {row.score:5.2f}  {row.likeness:8.2f}  {held_out:>8}  "
            f"{row.obedience:9.0%}  {row.retention:4.0%}  {row.copying:7.2f}"
        )
    return "\n".join(lines)
