"""What the driver's tool tells of cards, and which of them a worker would take."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import psutil
import pytest

from lora_train.launch.device_memory import main_memory, nvidia_cards, visible_cards

# Lines as `nvidia-smi --query-gpu=index,uuid,name,memory.total,memory.free --format=csv,noheader,nounits` prints them.
TWO = "0, GPU-aa11, NVIDIA GeForce RTX 3070, 8192, 7100\n1, GPU-bb22, NVIDIA GeForce RTX 4090, 24564, 24000\n"


@pytest.mark.parametrize(
    ("visible", "names"),
    [
        (None, ["NVIDIA GeForce RTX 3070", "NVIDIA GeForce RTX 4090"]),
        ("1", ["NVIDIA GeForce RTX 4090"]),
        ("1,0", ["NVIDIA GeForce RTX 4090", "NVIDIA GeForce RTX 3070"]),
        (" GPU-aa ", ["NVIDIA GeForce RTX 3070"]),
        ("", []),
        ("-1", []),
        ("7,0", []),  # CUDA reads no further than the first that there is not
    ],
)
def test_cards_that_can_be_seen(visible: str | None, names: list[str]) -> None:
    assert [card.name for card in visible_cards(TWO, visible)] == names


def test_memory_is_told_in_bytes() -> None:
    card = visible_cards(TWO, None)[0]
    assert (card.total_bytes, card.free_bytes, card.on_cpu) == (8192 * 2**20, 7100 * 2**20, False)


@pytest.mark.parametrize(
    "told",
    [
        "",
        "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.\n",
        "No devices were found\n",
        "0, GPU-aa11, NVIDIA GB10, [N/A], [N/A]\n",
        "0, GPU-aa11, NVIDIA GeForce RTX 3070, 8192\n",
    ],
)
def test_what_tells_no_memory_is_no_card(told: str) -> None:
    assert visible_cards(told, None) == []


def put_tool(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = folder / "nvidia-smi"
    tool.write_text(f"#!{sys.executable}\n{script}", encoding="utf-8")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder) + os.pathsep + os.environ["PATH"])


@pytest.mark.skipif(sys.platform == "win32", reason="the tool here is a script")
def test_the_tool_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = "import sys\nassert sys.argv[1].startswith('--query-gpu=index,uuid,name,memory.total,memory.free')\n"
    put_tool(tmp_path, f"{asked}print({TWO!r}, end='')", monkeypatch)
    assert [card.total_bytes >> 20 for card in nvidia_cards({})] == [8192, 24564]
    assert [card.total_bytes >> 20 for card in nvidia_cards({"CUDA_VISIBLE_DEVICES": "1"})] == [24564]


@pytest.mark.skipif(sys.platform == "win32", reason="the tool here is a script")
@pytest.mark.parametrize("script", ["raise SystemExit(9)", "print(chr(0xff) * 9)"])
def test_a_tool_that_fails_knows_no_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    put_tool(tmp_path, script, monkeypatch)
    assert nvidia_cards({}) == []


def test_without_the_tool_there_is_no_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert nvidia_cards({}) == []


def test_main_memory_is_that_of_the_machine() -> None:
    memory = main_memory()
    assert memory.total_bytes == psutil.virtual_memory().total
    assert 0 < memory.free_bytes < memory.total_bytes
    assert memory.on_cpu
