from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("diffusers")
pytestmark = pytest.mark.compat

ROOT = Path(__file__).parents[3]


def run(code: str) -> str:
    """What the code prints in a process of its own, which begins as a worker does."""
    code = f"import sys; sys.modules['peft'] = None\nfrom lora_train.engine.libraries import import_libraries\n{code}"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_what_is_imported_stays_out_of_the_search_for_garbage() -> None:
    told = run(
        "import gc\n"
        "import_libraries()\n"
        "loaded = {'torch', 'diffusers', 'transformers.models.clip.modeling_clip'} <= set(sys.modules)\n"
        "print(loaded, gc.isenabled(), gc.get_freeze_count() > 100_000)"
    )
    assert told == "True True True"


@pytest.mark.parametrize("package", ["bitsandbytes", "scipy", "sklearn"])
def test_heavy_packages_are_left_for_those_who_need_them(package: str) -> None:
    pytest.importorskip(package)
    told = run(
        "import_libraries()\n"
        f"is_imported = {package!r} in sys.modules\n"
        f"import {package}\n"
        f"print(is_imported, {package}.__version__ != '')"
    )
    assert told == "False True"


@pytest.mark.parametrize("error", ["ImportError", "RuntimeError"])
def test_what_can_not_be_imported_is_told_where_it_is_needed(error: str) -> None:
    told = run(
        "from importlib.abc import MetaPathFinder\n"
        "class Broken(MetaPathFinder):\n"
        "    def find_spec(self, name, path, target=None):\n"
        f"        if name == 'diffusers': raise {error}('broken')\n"
        "sys.meta_path.insert(0, Broken())\n"
        "import_libraries()\n"
        "import gc; print(gc.isenabled())"
    )
    assert told == "True"
