"""`lora-train tool`: what can be done with finished LoRAs."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from lora_train.commands.arguments import add_command, add_group, app_of, numbers
from lora_train.commands.console import Result, run_job


def add_commands(commands: Any) -> None:
    """Put the commands of this file among the others."""
    tools = add_group(commands, "tool", "merge or resize finished LoRAs")
    merge = add_command(tools, "merge", _merge, "add LoRAs up into a new one, exactly; with --rank or --keep smaller")
    merge.add_argument("loras", metavar="LORA", nargs="+")
    merge.add_argument("--weights", metavar="W,W", default="", help="one for each LoRA, comma list (default all 1)")
    resize = add_command(tools, "resize", _resize, "make a LoRA smaller by singular values")
    resize.add_argument("lora", metavar="LORA")
    for command in (merge, resize):
        command.add_argument("--out", required=True, metavar="FILE", help="the new .safetensors file")
        command.add_argument("--rank", type=int, default=0, metavar="N", help="no module has a higher rank than this")
        command.add_argument(
            "--keep", type=float, default=0.0, metavar="X", help="every module keeps this share of its squared norm"
        )
        command.add_argument(
            "--precision", choices=("fp16", "bf16", "fp32"), default="fp16", help="number format (default fp16)"
        )


def _merge(options: argparse.Namespace) -> Result:
    weights = numbers("weights", options.weights) if options.weights else ()
    return _run(options, [Path(lora) for lora in options.loras], weights)


def _resize(options: argparse.Namespace) -> Result:
    return _run(options, [Path(options.lora)], ())


def _run(options: argparse.Namespace, loras: list[Path], weights: tuple[float, ...]) -> Result:
    app = app_of(options)
    job = app.plan_merge(
        loras=loras,
        weights=weights,
        out=Path(options.out),
        rank=options.rank,
        keep=options.keep,
        precision=options.precision,
    )
    result = run_job(app, job)
    made = result["result"]
    if made and not options.json:
        print(
            f"LoRA     {made['lora']}\n"
            f"Modules  {made['modules']}, rank {', '.join(map(str, made['ranks']))}, {made['bytes'] / 1e6:.1f} MB\n"
            f"Error    {made['largest_error']:.2g} at most ({made['largest_error_at']}), "
            f"{made['mean_error']:.2g} on average, {made['whole_error']:.2g} of the whole"
        )
    return {**result, **made, "exit_code": int(result["state"] != "finished")}
