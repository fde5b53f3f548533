"""Adds the packages that Train Tools needs and the WebUI lacks. The WebUI runs this at every start.

Nothing that is installed is changed: pip gets every version as a constraint. Whether a package works is judged by
importing it in a process of its own; the verdict is kept in `.installed.json` until a version changes, so that a start
with nothing to do costs next to nothing. Whatever fails, the WebUI starts.
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tempfile
from pathlib import Path


def main() -> None:
    """Install what is missing, and say what still stands in the way. Raises nothing."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8", errors="replace")  # as the host reads it; paths are in any script
    if sys.version_info < (3, 10):  # noqa: UP036  (WebUIs run on anything)
        say(f"needs Python 3.10 or newer; this WebUI runs on {sys.version.split()[0]}.")
        return
    try:
        _main()
    except Exception as error:  # the border: a WebUI's start must not depend on us
        say(f"could not look at its packages ({type(error).__name__}: {error}). The tab will say what is missing.")


def _main() -> None:
    from lora_train.core import packages  # lies beside this file

    verdict = packages.read_verdict()
    is_new = verdict is None
    if verdict is None:
        verdict = packages.judge()
    missing = [name for name, error in verdict.items() if error == "missing" and name in packages.ADDED]
    if missing:
        is_new = install([packages.requirement(name) for name in missing], packages.constraints())
        verdict = packages.judge() if is_new else verdict
    if is_new and (helpful := packages.helpful_not_found()):  # by itself: what is needed must not fail with it
        install([packages.requirement(name) for name in helpful], packages.constraints())
    packages.write_verdict(verdict)
    for sentence in packages.advice(verdict):
        say(sentence)


def install(requirements: list[str], constraints: str) -> bool:
    """Let pip add these, and whether it did."""
    names = ", ".join(requirements)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "constraints.txt"
        file.write_text(constraints, encoding="utf-8")
        try:
            _run_pip(["--constraint", str(file), *requirements], names)
        except (OSError, RuntimeError, subprocess.SubprocessError) as error:
            last = str(error).strip().splitlines()[-1:] or [type(error).__name__]
            say(f"could not install {names} (no network?): {last[0]}")
            return False
    return True


def _run_pip(arguments: list[str], names: str) -> None:
    """By the host's own function, which knows its index and obeys --skip-install; by hand without a host."""
    os.environ.setdefault("PIP_RETRIES", "1")  # offline, a start must not hang
    os.environ.setdefault("PIP_TIMEOUT", "15")
    os.environ.setdefault("PIP_DISABLE_PIP_VERSION_CHECK", "1")
    try:
        import launch  # pyright: ignore[reportMissingImports]  (the host's)
    except ImportError:
        subprocess.run([sys.executable, "-m", "pip", "install", *arguments], check=True)
    else:
        quoted = " ".join(f'"{argument}"' for argument in arguments)
        launch.run_pip(f"install {quoted}", f"{names} for Train Tools")


def say(sentence: str) -> None:
    print(f"Train Tools: {sentence}", flush=True)  # noqa: T201  (the host shows it in its console)


if __name__ == "__main__":
    main()
