"""Imports point down only, and light entrances stay light."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "lora_train"

# Room -> rooms of ours and packages of others that it may import. A file of the package's root is a room of its own.
ALLOWED = {
    "core": {"__init__", "msgspec"},
    "data": {"core", "msgspec", "numpy", "PIL", "pillow_avif", "cv2", "imagehash", "tokenizers", "ftfy"},
    "engine": {
        *("data", "core", "msgspec", "numpy", "PIL", "yaml", "psutil"),
        *("torch", "diffusers", "transformers", "safetensors", "accelerate", "lion_pytorch", "onnxruntime"),
    },
    "caption": {
        *("data", "core", "msgspec", "numpy", "PIL"),
        *("onnxruntime", "torch", "transformers", "huggingface_hub"),
    },
    "launch": {"core", "msgspec", "psutil"},
    "publish": {"core", "msgspec"},
    "report": {"data", "core", "msgspec", "PIL"},
    "app": {"__init__", "launch", "publish", "report", "data", "core", "msgspec"},
    "api": {"app", "core", "__init__", "msgspec", "fastapi", "starlette"},
    "ui": {"app", "core", "__init__", "msgspec", "gradio"},
    "hosts": {
        "ui",
        "api",
        "app",
        "data",
        "core",
        "__init__",
        "gradio",
        "fastapi",
        "starlette",
        "modules",
        "modules_forge",
        "backend",
    },
    "worker": {"engine", "caption", "data", "core"},
    "commands": {"hosts", "app", "core", "__init__", "msgspec"},
    "__main__": {"commands", "core", "__init__"},
    "__init__": set(),
}


def room_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return parts[0]


def imported_names(tree: ast.AST) -> Iterator[str]:
    """Dotted names of everything that the code imports, inside functions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are written in full"
            yield from (f"{node.module}.{name.name}" for name in node.names)


def for_types_only(tree: ast.AST) -> set[str]:
    blocks = [node for node in ast.walk(tree) if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    return {name for block in blocks for name in imported_names(block)}


def everything_below(room: str) -> set[str]:
    """What the room may import, what that may import, and so on."""
    below = ALLOWED.get(room, set())
    return below.union(*(everything_below(lower) for lower in below))


def room_or_package(name: str) -> str:
    """ "lora_train.core.jobs.JobFolder" -> "core", "torch.nn" -> "torch", "lora_train.__version__" -> "__init__"."""
    first, *rest = name.split(".")
    if first != "lora_train":
        return first
    is_room = rest and ((PACKAGE / rest[0]).is_dir() or (PACKAGE / f"{rest[0]}.py").is_file())
    return rest[0] if is_room else "__init__"


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_imports_point_down(path: Path) -> None:
    """A type alone may come from any room below, past those between."""
    room, tree = room_of(path), ast.parse(path.read_text(encoding="utf-8"))
    types = for_types_only(tree)
    for name in imported_names(tree):
        allowed = everything_below(room) if name in types else ALLOWED[room]
        assert room_or_package(name) in allowed | {room} | sys.stdlib_module_names, f"{room} may not import {name}"


def test_the_table_has_no_circle() -> None:
    """Every room can be put above those it may import."""
    left = {room: below & ALLOWED.keys() for room, below in ALLOWED.items()}
    while left:
        lowest = [room for room, below in left.items() if not below & left.keys()]
        assert lowest, f"a circle in {sorted(left)}"
        for room in lowest:
            del left[room]


def test_every_package_is_installed() -> None:
    """A checkout hides what pip would leave out."""
    pyproject = (PACKAGE.parent / "pyproject.toml").read_text(encoding="utf-8")
    listed = set(re.findall(r'^    "(lora_train[\w.]*)",$', pyproject, re.MULTILINE))
    folders = {path.parent.relative_to(PACKAGE.parent) for path in PACKAGE.rglob("__init__.py")}
    assert listed == {".".join(folder.parts) for folder in folders}


MSGSPEC = {"msgspec", "typing_extensions"}
"""msgspec takes the second one along where it is installed."""


def modules_after(code: str) -> set[str]:
    """What a fresh interpreter has imported after `code`, beyond what it had at its start and the standard library."""
    script = (
        "import sys; before = set(sys.modules)\n"
        f"{code}\n"
        "new = set(sys.modules) - before\n"
        "print(*sorted(n for n in new if n.split('.')[0] not in sys.stdlib_module_names), file=sys.stderr)"
    )
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=PACKAGE.parent, capture_output=True, text=True, check=True, timeout=60)
    return set(done.stderr.split())


def test_import_of_the_package_imports_nothing() -> None:
    assert modules_after("import lora_train") == {"lora_train"}


def test_help_needs_next_to_nothing() -> None:
    modules = modules_after("from lora_train.__main__ import main\ntry: main(['--help'])\nexcept SystemExit: pass")
    ours = {name for name in modules if name.startswith("lora_train")}
    assert {name.split(".")[0] for name in modules} <= {"lora_train", *MSGSPEC}
    assert ours == {
        "lora_train",
        "lora_train.__main__",
        "lora_train.commands",
        *(
            f"lora_train.commands.{name}"
            for name in (
                *("arguments", "benching", "captions", "console", "datasets", "doctor", "grids", "judging"),
                *("presets", "proving", "publishing", "reports", "sweeps", "tools", "training"),
            )
        ),
        "lora_train.core",
        *(f"lora_train.core.{name}" for name in ("caches", "curves", "failures", "judgement", "sealed", "settings")),
        *(f"lora_train.core.{name}" for name in ("caption_settings", "config", "dataset_settings", "errors")),
        *(f"lora_train.core.{name}" for name in ("events", "files", "installing", "jobs", "optimizers", "purposes")),
        *("lora_train.core.path_limits", "lora_train.core.places", "lora_train.core.samplers", "lora_train.core.specs"),
        *(
            f"lora_train.core.{name}_settings"
            for name in ("grid", "memory", "network", "noise", "preview", "validation")
        ),
    }


@pytest.mark.parametrize("module", ["lora_train.app", "lora_train.worker", "lora_train.core.inspection"])
def test_no_heavy_package_without_need(module: str) -> None:
    """The page's process never needs torch, and the worker only for jobs that compute."""
    others = {name.split(".")[0] for name in modules_after(f"import {module}")} - {"lora_train"}
    assert others <= {"psutil", *MSGSPEC}
