"""The packages that Train Tools needs: which are missing or broken here, and how to mend that.

Standard library only. `install.py` reads this before anything is installed, and the tab when nothing else can be
imported.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from lora_train.core.installing import install_command

ROOT = Path(__file__).resolve().parents[2]
"""The extension's folder."""

VERDICT = ROOT / ".installed.json"
"""What was found out last, and with which versions it was."""

ADDED = {
    "msgspec": "msgspec",
    "psutil": "psutil",
    "yaml": "pyyaml",
    "safetensors": "safetensors",
    "lion_pytorch": "lion-pytorch",
    "diffusers": "diffusers",
}
"""What we install where it is missing: name in `import`, name in the package index."""

HELPFUL = {"imagehash": "imagehash"}
"""What we install too, once, and can do without: the health check then finds no near-duplicates, and says so."""

OF_THE_HOST = {"torch": "torch", "transformers": "transformers", "numpy": "numpy", "PIL": "pillow"}
"""What every WebUI brings; too large, or too dear to the host, to be touched by us."""

_TRIED = {
    "diffusers": "from diffusers import AutoencoderKL, UNet2DConditionModel; "
    "from diffusers.optimization import get_scheduler",
    "transformers": "from transformers import CLIPTextModel, CLIPTokenizer",
}
"""What is imported to see that a package works, where that is more than its name."""

_JUDGE = """
import importlib.util, json, os, sys
os.environ["HF_HUB_OFFLINE"] = os.environ["TRANSFORMERS_OFFLINE"] = "1"
sys.modules["peft"] = None  # as the worker does
found = {}
for name, code in json.loads(sys.argv[1]).items():
    if importlib.util.find_spec(name) is None:
        found[name] = "missing"
        continue
    try:
        exec(code, {})
    except BaseException as error:
        found[name] = f"{type(error).__name__}: {error}".splitlines()[0]
print("\\n" + json.dumps(found))
"""

_JUDGE_LIMIT_S = 300

_PLAIN = re.compile(r"[a-z0-9][\w.-]*==\d[\d.]*((a|b|rc)\d+)?(\.post\d+)?(\.dev\d+)?(\+[a-z0-9.]+)?", re.IGNORECASE)
"""Where pip can't read a constraint, it installs nothing at all."""


def versions() -> dict[str, str]:
    """What a verdict depends on: Python, and the installed version of each package ("" where there is none)."""
    found = {"python": sys.version, "executable": sys.executable}
    asked_for = (*ADDED.values(), *HELPFUL.values(), *OF_THE_HOST.values(), "accelerate", "huggingface_hub")
    return found | {distribution: version(distribution) for distribution in asked_for}


def version(distribution: str) -> str:
    """The installed version; "" where there is none."""
    try:
        return importlib.metadata.version(distribution) or ""
    except importlib.metadata.PackageNotFoundError:
        return ""


def not_found() -> list[str]:
    """The needed packages that are not there, by a quick look that imports none of them."""
    return _not_there((*ADDED, *OF_THE_HOST))


def helpful_not_found() -> list[str]:
    """The same of those that only help."""
    return _not_there(HELPFUL)


def judge(others: Iterable[str] = ()) -> dict[str, str]:
    """The packages, those that are needed and `others`, that can't be imported in a fresh process: "missing", or the
    first line of the error.

    Takes seconds: torch and diffusers are imported. Raises OSError or subprocess.SubprocessError.
    """
    tried = {name: _TRIED.get(name, f"import {name}") for name in (*OF_THE_HOST, *ADDED, *others)}
    command = [sys.executable, "-c", _JUDGE, json.dumps(tried)]
    environment = {**os.environ, "PYTHONUTF8": "1"}
    done = subprocess.run(
        command, capture_output=True, encoding="utf-8", check=True, timeout=_JUDGE_LIMIT_S, env=environment
    )
    return json.loads(done.stdout.splitlines()[-1])


def read_verdict() -> dict[str, str] | None:
    """What `judge` said when it was asked last; None where it was not, or other versions are installed now."""
    try:
        content = json.loads(VERDICT.read_text(encoding="utf-8"))
        return dict(content["verdict"]) if content["versions"] == versions() else None
    except (OSError, ValueError, LookupError, TypeError):
        return None


def write_verdict(verdict: dict[str, str]) -> None:
    """Keep it for the next start. Where that can't be written, the next start judges again."""
    with contextlib.suppress(OSError):
        VERDICT.write_text(json.dumps({"versions": versions(), "verdict": verdict}, indent=1), encoding="utf-8")


def requirement(name: str) -> str:
    """What to ask pip for, to get the package that is imported as `name`.

    Newer versions of diffusers install beside an older transformers or torch, and then can't be imported.
    """
    distribution = {**ADDED, **HELPFUL, **OF_THE_HOST}.get(name, name)
    is_old = _release("transformers") < (4, 41) or _release("torch") < (2, 4)
    return "diffusers==0.31.0" if name == "diffusers" and is_old else distribution


def pip_command(names: list[str]) -> str:
    """What a person types to install these packages into the Python that runs now."""
    return install_command([*map(requirement, names)])


def constraints() -> str:
    """A pip constraints file that holds every installed package at its version.

    Windows leaves folders like `~umpy-1.25.0.dist-info` behind, which tell a name and another version. So a version is
    asked for by name, which finds what is imported.
    """
    names = {distribution.metadata["Name"] for distribution in importlib.metadata.distributions()}
    lines: list[str] = []
    for name in sorted(filter(None, names)):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            lines.append(f"{name}=={importlib.metadata.version(name)}")
    return "\n".join(filter(_PLAIN.fullmatch, lines)) + "\n"


def advice(verdict: dict[str, str]) -> list[str]:
    """One sentence for each thing that stands in the way of training, with what to do."""
    missing = [name for name, error in verdict.items() if error == "missing"]
    sentences = [
        f"{requirement(name)} is installed, but can't be imported: {error}. Train Tools doesn't change what is "
        f"installed; this would: {pip_command([name])}"
        for name, error in verdict.items()
        if error != "missing"
    ]
    if missing:
        sentences.insert(0, f"Not installed: {', '.join(missing)}. To install: {pip_command(missing)}")
    return sentences


def _not_there(names: Iterable[str]) -> list[str]:
    return [name for name in names if sys.modules.get(name) is None and importlib.util.find_spec(name) is None]


def _release(distribution: str) -> tuple[int, ...]:
    """(4, 30) of version 4.30.2; a package that is not there counts as new."""
    try:
        parts = importlib.metadata.version(distribution).split(".")[:2]
    except importlib.metadata.PackageNotFoundError:
        return (999,)
    return tuple(int(part) for part in parts if part.isdigit())
