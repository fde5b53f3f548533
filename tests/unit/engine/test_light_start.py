"""A worker tells that it is there before it imports what takes seconds, and takes along no more than it needs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from lora_train.core.config import TrainSettings
from lora_train.core.jobs import JobFolder
from lora_train.core.specs import TrainSpec

pytestmark = pytest.mark.compat

ROOT = Path(__file__).parents[3]


def packages_after(code: str) -> set[str]:
    """Packages that a fresh interpreter has after `code`, and torch's compiler, which is one by itself."""
    script = f"{code}\nimport sys\nprint(*{{n.split('.')[0] for n in sys.modules}}, 'torch._dynamo' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_a_worker_tells_that_it_started_before_torch_is_imported(tmp_path: Path) -> None:
    """Within 1.5 s of its process, as an import of the training's modules would take longer; CPU, for others may be at
    work beside it.
    """
    job = JobFolder(tmp_path / "job")
    job.create(TrainSpec(name="a", dataset="..", settings=TrainSettings(), dataset_fingerprint="", trash="../trash"))
    script = f"""
import sys, time
from lora_train import worker

def stop(*_):
    print(time.process_time(), "torch" in sys.modules)
    raise SystemExit

worker._do = stop
worker.main([{str(job.path)!r}])
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    cpu_s, has_torch = done.stdout.split()
    assert [type(event).__name__ for event in job.events()] == ["Started"]
    assert float(cpu_s) < 1.5
    assert has_torch == "False"


def test_a_training_takes_along_no_more_than_it_needs() -> None:
    """Its own modules; what diffusers and transformers bring is imported with them, in one go (`engine.libraries`)."""
    found = packages_after("import lora_train.worker, lora_train.engine.train")
    assert "torch" in found
    assert not found & {"diffusers", "transformers", "tokenizers", "huggingface_hub", "accelerate"}
    assert not found & {"scipy", "sympy", "pandas", "True"}, "True: torch's compiler takes as long as torch"
