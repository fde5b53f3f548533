"""Grid jobs before they run: what was left open is chosen, what is wrong is told at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lora_train.app.grid_planning import plan_grid_job
from lora_train.core.config import TrainSettings
from lora_train.core.errors import ConfigError, ModelError
from lora_train.core.grid_settings import GridSettings
from lora_train.core.grids import cells
from lora_train.core.jobs import JobFolder
from lora_train.core.specs import GridSpec
from lora_train.core.workspace import Workspace


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "workspace")


def lora_at(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def plan(workspace: Workspace, *loras: Path, base_model: str = "demo", fallback: str = "sks", **grid: Any) -> GridSpec:
    settings = TrainSettings(base_model=base_model)
    return plan_grid_job(workspace, loras, GridSettings(**grid), settings, fallback_prompt=fallback)


def test_what_was_left_open(workspace: Workspace, tmp_path: Path) -> None:
    lora = lora_at(tmp_path / "猫.safetensors")
    spec = plan(workspace, lora, seeds=(-1, 5, -1), prompt="  ", height_px=96)
    grid = spec.grid
    assert (grid.prompt, grid.width_px, grid.height_px) == ("sks", 64, 96)
    first, second, third = grid.seeds
    assert second == 5
    assert first != third
    assert all(0 <= seed < 2**32 for seed in grid.seeds)
    assert plan(workspace, lora, seeds=(-1,)).grid.seeds != plan(workspace, lora, seeds=(-1,)).grid.seeds
    assert spec.settings.cpu_threads > 0


def test_what_was_given_stays(workspace: Workspace, tmp_path: Path) -> None:
    lora = lora_at(tmp_path / "cat.safetensors")
    grid = plan(workspace, lora, seeds=(7,), prompt="a (cat:1.2)", width_px=128, weights=(0, 2.5)).grid
    assert (grid.seeds, grid.prompt, grid.width_px, grid.weights) == ((7,), "a (cat:1.2)", 128, (0, 2.5))


def test_the_job_finds_its_loras(workspace: Workspace, tmp_path: Path) -> None:
    """Also when the whole workspace has been moved."""
    lora = lora_at(workspace.root / "projects" / "p" / "猫.safetensors")
    spec = plan(workspace, lora, lora_at(tmp_path / "else where" / "b.safetensors"))
    job = JobFolder(workspace.new_job_dir("grid"))
    job.create(spec)
    read = job.read_spec()
    assert isinstance(read, GridSpec)
    assert read == spec
    assert all((job.path / path).is_file() for path in read.loras)
    assert {cell.lora for cell in cells(read)} == {"猫", "b"}
    assert not Path(read.loras[0]).is_absolute()


def test_everything_wrong_is_told_at_once(workspace: Workspace, tmp_path: Path) -> None:
    lost = tmp_path / "lost.safetensors"
    with pytest.raises(ConfigError) as error:
        plan(workspace, lost, fallback="", samplers=("Euler", "Restart", "nothing"))
    told = error.value.problems
    assert len(told) == 4
    assert f"{lost} is not a LoRA file that exists" in told
    assert "prompt (Prompt): give one" in told
    assert [problem for problem in told if "'Restart'" in problem and "Euler a" in problem]
    with pytest.raises(ConfigError, match="give at least one"):
        plan(workspace)


def test_grids_have_names_of_their_own(workspace: Workspace, tmp_path: Path) -> None:
    """Also on file systems that take A for a, and beside the grid of all."""
    one, other = (
        lora_at(tmp_path / folder / name) for folder, name in (("a", "x.safetensors"), ("b", "X.safetensors"))
    )
    with pytest.raises(ConfigError, match=r"X-grid\.png"):
        plan(workspace, one, other)
    with pytest.raises(ConfigError, match=r"all-grid\.png"):
        plan(workspace, lora_at(tmp_path / "all.safetensors"))


def test_the_hosts_samplers_are_its_own(workspace: Workspace, tmp_path: Path) -> None:
    lora = lora_at(tmp_path / "x.safetensors")
    assert plan(workspace, lora, samplers=("Restart",), drawn_by="host").grid.samplers == ("Restart",)


def test_the_base_model_is_looked_at(workspace: Workspace, tmp_path: Path) -> None:
    lora = lora_at(tmp_path / "x.safetensors")
    with pytest.raises(ModelError, match="does not exist"):
        plan(workspace, lora, base_model=str(tmp_path / "gone.safetensors"))
    with pytest.raises(ConfigError, match="none was chosen"):
        plan(workspace, lora, base_model="")
