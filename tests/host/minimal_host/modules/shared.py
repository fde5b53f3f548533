"""What the modules share: flags, settings, the state of the server."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from modules import options
from modules.options import OptionInfo as OptionInfo
from modules.shared_cmd_options import cmd_opts as cmd_opts

opts = options.Options()
demo: Any = None
builds = 0
"""How often the UI was built."""


class State:
    def __init__(self) -> None:
        self.restart = threading.Event()
        self.job = ""

    def begin(self, job: str = "") -> None:
        self.job = job

    def end(self) -> None:
        self.job = ""

    def request_restart(self) -> None:
        self.restart.set()


state = State()


def config_path() -> Path:
    return Path(cmd_opts.data_dir, "config.json")


def reset_options() -> None:
    """The host's own settings, without those of extensions; the saved values stay."""
    opts.data_labels.clear()
    section = ("sd", "Stable Diffusion")
    opts.add_option("sd_model_checkpoint", OptionInfo("", "Stable Diffusion checkpoint", section=section))
    opts.add_option("localization", OptionInfo(cmd_opts.localization, "Localization", section=section))


def __getattr__(name: str) -> Any:
    if name == "sd_model":  # loads one where there is none, as the hosts' does
        from modules import sd_models

        return sd_models.model_data.get_sd_model()
    raise AttributeError(name)
