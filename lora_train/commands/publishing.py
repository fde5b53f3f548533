"""`lora-train publish`: a LoRA of a training as a complete card in a WebUI's folder."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from lora_train.commands.arguments import add_command, app_of
from lora_train.commands.console import Result, tell
from lora_train.core.errors import ConfigError
from lora_train.core.jobs import JobFolder


def add_commands(commands: Any) -> None:
    """Put the command of this file among the others."""
    publish = add_command(commands, "publish", _publish, "copy a LoRA as a card into a WebUI's models/Lora")
    publish.add_argument("train_dir", metavar="TRAIN_DIR", help="the folder that `train` printed first")
    publish.add_argument(
        "--lora", metavar="FILE", default="", help="its name in that folder (default: the recommended one, or the last)"
    )
    publish.add_argument("--to", metavar="DIR", required=True, help="where the copy goes")
    publish.add_argument(
        "--private", action="store_true", help="mark it for private use: asks not to share it, tells no captions"
    )


def _publish(options: argparse.Namespace) -> Result:
    folder = Path(options.to).absolute()
    if folder.exists() and not folder.is_dir():
        raise ConfigError([f"to: {folder} is not a folder"])
    job = JobFolder(Path(options.train_dir).absolute())
    app = app_of(options)
    published = app.loras.publish_to(job, folder, file=options.lora, is_private=options.private)
    card = [path for path in map(Path(published.path).with_suffix, (".safetensors", ".json", ".png")) if path.exists()]
    if published.problem:
        tell(published.problem)
    if not options.json:
        for path in card:
            print(path)
    return {"published": published.path, "files": [str(path) for path in card], "problem": published.problem}
