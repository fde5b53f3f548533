"""Imports every module of the installed package that needs no torch; run by `pythons.sh` in a venv without it."""

from __future__ import annotations

import importlib
import pkgutil

import lora_train

WITH_TORCH = ("engine",)
WITH_GRADIO = ("ui", "api", "hosts")  # and fastapi


def main() -> None:
    left_out = tuple(f"lora_train.{room}" for room in (*WITH_TORCH, *WITH_GRADIO))
    names = [module.name for module in pkgutil.walk_packages(lora_train.__path__, "lora_train.", onerror=print)]
    names = [name for name in names if not name.startswith(left_out)]
    for name in names:
        importlib.import_module(name)
    print(f"{len(names)} modules imported from {lora_train.__path__[0]}")


if __name__ == "__main__":
    main()
