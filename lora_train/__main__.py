"""The command line. Progress goes to standard error, results to standard output."""

from __future__ import annotations

import argparse
import io
import json
import sys
from collections.abc import Sequence

from lora_train import __version__
from lora_train.commands import (
    benching,
    captions,
    datasets,
    doctor,
    grids,
    judging,
    presets,
    proving,
    publishing,
    reports,
    sweeps,
    tools,
    training,
)
from lora_train.commands.arguments import Parser
from lora_train.commands.console import Result, say_error, tell
from lora_train.core.errors import ConfigError, TrainToolsError
from lora_train.core.failures import refusal_of


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Returns 0, 1 (failed, the reason was printed) or 2 (bad arguments)."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    arguments, other_command = _parted(arguments)
    as_json = "--json" in arguments
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="replace")  # names in any script, also on Windows
    try:
        options = _parser().parse_args(arguments)
        options.other_command = other_command
        result: Result = options.run(options)
    except TrainToolsError as error:
        say_error(error)
        result = {
            "error": type(error).__name__,
            "message": error.message,
            "hint": error.hint,
            "exit_code": 2 if isinstance(error, ConfigError) else 1,
        }
    except KeyboardInterrupt:
        tell("Interrupted.")
        result = {"error": "Interrupted", "message": "Interrupted.", "exit_code": 1}
    except OSError as error:
        refused = refusal_of(error)
        say_error(refused)
        result = {"error": "OSError", "message": refused.message, "hint": refused.hint, "exit_code": 1}
    exit_code = int(result.pop("exit_code", 0))
    if as_json:
        print(json.dumps(result, ensure_ascii=False, default=str))
    return exit_code


def _parted(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Our own arguments, and those after `--compare ... --`, which are another program with its arguments."""
    if "--compare" not in arguments or "--" not in arguments:
        return arguments, []
    end = arguments.index("--")
    return arguments[:end], arguments[end + 1 :]


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="lora-train", description="Make a LoRA from a folder of pictures.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    training.add_commands(commands)
    benching.add_commands(commands)
    datasets.add_commands(commands)
    captions.add_commands(commands)
    presets.add_commands(commands)
    grids.add_commands(commands)
    sweeps.add_commands(commands)
    publishing.add_commands(commands)
    proving.add_commands(commands)
    reports.add_commands(commands)
    tools.add_commands(commands)
    judging.add_commands(commands)
    doctor.add_commands(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
