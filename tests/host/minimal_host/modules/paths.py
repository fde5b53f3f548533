"""Where things are. Read anew at every access: a test may change `cmd_opts` after the import."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from modules.shared_cmd_options import cmd_opts

script_path = str(Path(__file__).resolve().parents[1])


def __getattr__(name: str) -> Any:
    data = Path(cmd_opts.data_dir).absolute()
    known = {"data_path": data, "models_path": data / "models", "extensions_dir": data / "extensions"}
    if name not in known:
        raise AttributeError(name)
    return str(known[name])


def lora_dir() -> Path:
    return Path(cmd_opts.lora_dir or Path(cmd_opts.data_dir, "models", "Lora")).absolute()
