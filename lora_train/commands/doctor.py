"""`lora-train doctor`: what is installed here, what works, and the command that mends what doesn't."""

from __future__ import annotations

import argparse
from typing import Any

import msgspec

from lora_train.commands.arguments import add_command, app_of
from lora_train.commands.console import Result


def add_commands(commands: Any) -> None:
    """Put the command among the others."""
    add_command(commands, "doctor", _doctor, "look at the installation, and tell what mends it")


def _doctor(options: argparse.Namespace) -> Result:
    diagnosis = app_of(options).doctor.examine()
    if not options.json:
        print(diagnosis.text(), end="")
    return {**msgspec.to_builtins(diagnosis), "exit_code": int(not diagnosis.is_good)}
