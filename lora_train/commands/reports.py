"""`lora-train report` and `lora-train curves`: a training as one page, and its curves as data."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from lora_train.commands.arguments import add_command, app_of, job_of
from lora_train.commands.console import Result
from lora_train.core.errors import ConfigError
from lora_train.core.files import write_text


def add_commands(commands: Any) -> None:
    """Put the commands of this file among the others."""
    report = add_command(commands, "report", _report, "write a training into one HTML page that opens by itself")
    report.add_argument("--out", required=True, metavar="FILE.html")
    curves = add_command(commands, "curves", _curves, "write the curves of a training as CSV or JSON")
    curves.add_argument("--out", required=True, metavar="FILE.csv|.json")
    for command in (report, curves):
        command.add_argument("job_dir", metavar="TRAIN_DIR", help="the folder that `train` printed first")


def _report(options: argparse.Namespace) -> Result:
    out = Path(options.out)
    if out.suffix.lower() not in (".html", ".htm"):
        raise ConfigError([f"--out: {out} does not end with .html"])
    write_text(out, app_of(options).reports.html_of(job_of(options)))
    return _written(options, out)


def _curves(options: argparse.Namespace) -> Result:
    out = Path(options.out)
    rows = app_of(options).reports.write_curves(job_of(options), out)
    return {**_written(options, out), "rows": rows}


def _written(options: argparse.Namespace, out: Path) -> Result:
    if not options.json:
        print(out)
    return {"out": str(out)}
