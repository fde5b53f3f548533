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

_INTERROGATE: dict[str, Any] = {
    "interrogate_keep_models_in_memory": False,
    "interrogate_return_ranks": False,
    "interrogate_clip_num_beams": 1,
    "interrogate_clip_min_length": 24,
    "interrogate_clip_max_length": 48,
    "interrogate_deepbooru_score_threshold": 0.5,
    "deepbooru_sort_alpha": True,
    "deepbooru_use_spaces": True,
    "deepbooru_escape": True,
    "deepbooru_filter_tags": "",
}


class State:
    def __init__(self) -> None:
        self.restart = threading.Event()
        self.job = ""
        self.interrupted = self.skipped = self.stopping_generation = False

    def begin(self, job: str = "") -> None:
        self.job = job
        self.interrupted = self.skipped = self.stopping_generation = False

    def end(self) -> None:
        self.job = ""

    def request_restart(self) -> None:
        self.restart.set()


class TotalTqdm:
    def __init__(self) -> None:
        self.clears = 0

    def clear(self) -> None:
        self.clears += 1


state = State()
total_tqdm = TotalTqdm()


def config_path() -> Path:
    return Path(cmd_opts.data_dir, "config.json")


def reset_options() -> None:
    """The host's own settings, without those of extensions; the saved values stay."""
    opts.data_labels.clear()
    section = ("sd", "Stable Diffusion")
    opts.add_option("sd_model_checkpoint", OptionInfo("", "Stable Diffusion checkpoint", section=section))
    opts.add_option("CLIP_stop_at_last_layers", OptionInfo(1, "Clip skip", section=section))
    opts.add_option("localization", OptionInfo(cmd_opts.localization, "Localization", section=section))
    for name, default in _INTERROGATE.items():
        opts.add_option(name, OptionInfo(default, name, section=("interrogate", "Interrogate")))


def __getattr__(name: str) -> Any:
    if name == "interrogator":  # made when it is first asked for: its module imports this one
        from modules import interrogate

        globals()["interrogator"] = interrogate.InterrogateModels()
        return globals()["interrogator"]
    if name == "sd_model":  # loads one where there is none, as the hosts' does
        from modules import sd_models

        return sd_models.model_data.get_sd_model()
    raise AttributeError(name)
