"""`lora-train bench --count` and `--compare`, as processes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

TARGETS = {"sd15_512_b1": 2750, "sdxl_1024_b1": 8300}
"""Kernels per step with rank 16, float32 LoRA weights, AdamW; kohya's sd-scripts asks for 6355 and 19651."""
PEAKS = {
    "": {"sd15_512_b1": 2.65, "sdxl_1024_b1": 11.7},
    "gradient_checkpointing=true": {"sd15_512_b1": 2.1, "sdxl_1024_b1": 6.4},
    "gradient_checkpointing=true base_weights=int8": {"sd15_512_b1": 1.2, "sdxl_1024_b1": 3.8},
}
"""GB of tensors at most, in bf16, by what is set."""
TIME_STEPS = Path(__file__).parents[1] / "bench" / "time_steps.py"
PHASE_KEYS = {"kernels", "bytes_moved", "flops", "host_syncs"}


def bench(workspace: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "lora_train", "bench", "--workspace", str(workspace), "--json", *arguments]
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=False, timeout=300)


@pytest.fixture(scope="module")
def counted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    done = bench(tmp_path_factory.mktemp("count"), "--count")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_the_two_cases_are_told(counted: dict[str, Any]) -> None:
    assert set(counted) == set(TARGETS)
    for case in counted.values():
        assert {*PHASE_KEYS, "peak_bytes", "phases"} <= set(case)
        for key in PHASE_KEYS:
            assert case[key] == sum(phase[key] for phase in case["phases"].values())
        assert sum(case["calls"].values()) == case["kernels"]
        assert case["phases"]["optimizer"]["kernels"] <= 2


@pytest.mark.parametrize("name", TARGETS)
def test_the_host_never_waits(counted: dict[str, Any], name: str) -> None:
    assert counted[name]["host_syncs"] == 0, counted[name]["waited_for"]


@pytest.mark.parametrize("name", TARGETS)
def test_kernels_per_step(counted: dict[str, Any], name: str) -> None:
    assert counted[name]["kernels"] <= TARGETS[name], counted[name]["calls"]


@pytest.mark.parametrize("settings", PEAKS)
def test_memory_of_a_step(counted: dict[str, Any], tmp_path: Path, settings: str) -> None:
    found = counted
    if settings:
        done = bench(tmp_path, "--count", *(part for pair in settings.split() for part in ("--set", pair)))
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout.splitlines()[-1])
    peaks = {name: case["peak_bytes"] / 1e9 for name, case in found.items()}
    assert {name: peak for name, peak in peaks.items() if peak > PEAKS[settings][name]} == {}


@pytest.mark.parametrize(("name", "tera"), [("sd15_512_b1", 1.80), ("sdxl_1024_b1", 14.65)])
def test_flops_are_those_of_another_count(counted: dict[str, Any], name: str, tera: float) -> None:
    """Within 2 % of a trace of a fused step by another program; another LoRA's products make the difference."""
    assert counted[name]["flops"] / 1e12 == pytest.approx(tera, rel=0.02)


def test_what_can_not_be_counted_is_told(tmp_path: Path) -> None:
    done = bench(tmp_path, "--count", "--base-model", "demo")
    assert done.returncode == 2
    assert "base_model: --count has Stable Diffusion 1.5 at 512" in json.loads(done.stdout.splitlines()[-1])["message"]


def test_compare_runs_both_and_tells_the_ratio(tmp_path: Path) -> None:
    """The other trainer is a script of 6 steps that sleep 0.2 s; its flags are its own, though we have such, too.

    Of 6 steps 2 are left out, which leaves 3 from step to step.
    """
    log, theirs = tmp_path / "theirs.txt", tmp_path / "theirs.py"
    theirs.write_text(
        f"""
import sys, time, torch
open({str(log)!r}, 'a').write(' '.join(sys.argv[1:]) + chr(10))
weight = torch.nn.Parameter(torch.ones(2))
optimizer = torch.optim.AdamW([weight])
for _ in range(6):
    time.sleep(0.2)
    weight.sum().backward()
    optimizer.step()
""",
        encoding="utf-8",
    )
    options = ["--base-model", "demo", "--steps", "1", "--pictures", "2", "--rank", "2", "--pairs", "2"]
    timed = [sys.executable, str(TIME_STEPS), str(theirs), "--json", "--steps", "7"]
    done = bench(tmp_path, *options, "--compare", "--", *timed)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert log.read_text().splitlines() == ["--json --steps 7"] * 2
    assert told["theirs_s_per_step"] >= 0.2
    assert told["ratio"] == pytest.approx(sum(told["ratios"]) / 2)
    assert told["pairs"] == 2
    assert {"date", "machine", "versions", "device", "precision", "torch", "cpu_ratio"} <= set(told)


def test_compare_with_a_command_that_is_not_there(tmp_path: Path) -> None:
    options = ["--base-model", "demo", "--steps", "1", "--pictures", "1", "--pairs", "1"]
    done = bench(tmp_path, *options, "--compare", "--", "no-such-trainer")
    assert done.returncode == 1
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["message"].startswith("no-such-trainer can't be run")
    assert "Traceback" not in done.stderr
