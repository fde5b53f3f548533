"""A worker tells what it does before it imports what takes seconds, and takes along no more than it needs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.compat

ROOT = Path(__file__).parents[3]


def packages_after(code: str) -> set[str]:
    """Packages that a fresh interpreter has after `code`, and torch's compiler, which is one by itself."""
    script = f"{code}\nimport sys\nprint(*{{n.split('.')[0] for n in sys.modules}}, 'torch._dynamo' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_pictures_are_read_before_anything_but_torch_is_imported() -> None:
    """What lies between a worker's start and its first phase: `Started` was written even before this."""
    found = packages_after("import lora_train.worker, lora_train.engine.train")
    assert "torch" in found
    assert not found & {"diffusers", "transformers", "tokenizers", "huggingface_hub", "accelerate"}
    assert not found & {"scipy", "sympy", "pandas", "True"}, "True: torch's compiler takes as long as torch"
