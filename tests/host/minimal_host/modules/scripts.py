"""Extensions, and the running of their scripts."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import time
import traceback
from pathlib import Path
from types import ModuleType

from modules import paths
from modules.shared_cmd_options import cmd_opts

load_s = 0.0
"""Processor time that the import of all scripts took."""

loaded: dict[str, ModuleType] = {}
_current = Path(paths.script_path)


def basedir() -> str:
    """The folder of the extension whose script is being imported; of the host at any other time."""
    return str(_current)


def extensions() -> list[Path]:
    folder = Path(paths.extensions_dir)
    found = sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    return [*found, *(Path(path).absolute() for path in cmd_opts.extension)]


def extension_files(folder: str, suffix: str) -> list[Path]:
    """`<extension>/<folder>/*<suffix>` of all extensions."""
    return [path for root in extensions() for path in sorted((root / folder).glob(f"*{suffix}"))]


def load_scripts() -> None:
    """Run every script, its extension's folder on `sys.path` only meanwhile."""
    global _current, load_s
    loaded.clear()
    start = time.thread_time()
    for root in extensions():
        for file in sorted((root / "scripts").glob("*.py")):
            before, _current = list(sys.path), root
            sys.path.insert(0, str(root))
            try:
                loaded[str(file)] = _run(file)
            except Exception:
                print(f"*** Error loading script: {file}")
                traceback.print_exc()
            finally:
                sys.path[:], _current = before, Path(paths.script_path)
    load_s = time.thread_time() - start


def _run(file: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_installers() -> None:
    """A failing one is reported, and the start goes on."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([paths.script_path, os.environ.get("PYTHONPATH", "")])}
    for root in extensions():
        installer = root / "install.py"
        if installer.is_file():
            done = subprocess.run(
                [sys.executable, str(installer)], env=environment, capture_output=True, encoding="utf-8"
            )
            print(done.stdout, end="")
            if done.returncode:
                print(f"*** Error running install.py for extension {root}\n{done.stderr}")
