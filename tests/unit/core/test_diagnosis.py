"""What the doctor makes of what was found out."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from lora_train.core.diagnosis import (
    KERNELS,
    Diagnosis,
    Found,
    Probe,
    ProbedDevice,
    cuda_command,
    helpful_found,
    packages_found,
    room_found,
    torch_found,
    without_home,
)

WORKING = dict.fromkeys(KERNELS, "")
CPU = ProbedDevice(kind="cpu", label="CPU, 2 threads")
CARD = ProbedDevice(
    kind="cuda", label="RTX 3060", capability="8.6", total_bytes=12_000_000_000, free_bytes=11_000_000_000
)
PROBE = Probe(
    torch="2.5.1+cpu", build="CPU", devices=(CPU,), kernels={"fp32": WORKING, "bf16": WORKING}, precision="fp32"
)


def test_a_cpu_torch_beside_an_nvidia_card() -> None:
    (card,) = [line for line in torch_found(PROBE, "", ["RTX 3060"]) if line.title == "NVIDIA card"]
    assert (card.state, card.value) == ("error", "RTX 3060")
    assert card.command.endswith(
        "-m pip install --force-reinstall torch==2.5.1 --index-url https://download.pytorch.org/whl/cu124"
    )


@pytest.mark.parametrize(("torch", "build"), [("2.1.2", "cu121"), ("2.4.0", "cu124"), ("2.13.0+cpu", "cu128")])
def test_the_index_that_has_this_torch(torch: str, build: str) -> None:
    assert cuda_command(torch).endswith(
        f"torch=={torch.partition('+')[0]} --index-url https://download.pytorch.org/whl/{build}"
    )


def test_a_cuda_torch_that_sees_no_card_needs_no_other_torch() -> None:
    hidden = msgspec.structs.replace(PROBE, build="CUDA 12.4")
    (card,) = [line for line in torch_found(hidden, "", ["RTX 3060"]) if line.title == "NVIDIA card"]
    assert card.state == "error"
    assert card.command == ""
    assert "driver" in card.remedy


def test_a_working_card_is_good() -> None:
    probe = msgspec.structs.replace(PROBE, build="CUDA 12.4", devices=(CARD, CPU), precision="bf16")
    lines = torch_found(probe, "", ["RTX 3060"])
    assert {line.state for line in lines} == {"good"}
    assert "RTX 3060 (cuda), compute capability 8.6, 11.0 of 12.0 GB free" in [line.value for line in lines]


def test_a_number_format_that_does_not_work_is_bad_only_where_it_is_used() -> None:
    broken = {**WORKING, "convolution": "RuntimeError: no kernel image"}
    probe = msgspec.structs.replace(PROBE, kernels={"fp32": WORKING, "fp16": broken})
    (fp16,) = [line for line in torch_found(probe, "", []) if line.value.startswith("fp16")]
    assert (fp16.state, fp16.value) == ("warning", "fp16: matrix product, attention")
    assert fp16.error == "convolution: RuntimeError: no kernel image"
    used = msgspec.structs.replace(probe, precision="fp16")
    assert next(line for line in torch_found(used, "", []) if line.value.startswith("fp16:")).state == "error"


def test_a_card_that_is_newer_than_its_torch() -> None:
    """PyTorch's builds for CUDA 12.8 (from 2.7 on) are the first with kernels for compute capability 12.0."""
    none = dict.fromkeys(WORKING, "RuntimeError: CUDA error: no kernel image is available for execution on the device")
    new = msgspec.structs.replace(CARD, label="RTX 5090", capability="12.0")
    probe = msgspec.structs.replace(PROBE, build="CUDA 12.1", devices=(new, CPU), kernels={"fp32": none})
    (card,) = [line for line in torch_found(probe, "", ["RTX 5090"]) if line.title == "NVIDIA card"]
    assert (card.state, card.value) == ("error", "RTX 5090, compute capability 12.0")
    assert card.command.endswith("--upgrade torch torchvision --index-url https://download.pytorch.org/whl/cu128")


def test_no_torch_at_all() -> None:
    (line,) = torch_found(None, "ImportError: libcuda", [])
    assert (line.state, line.error) == ("error", "ImportError: libcuda")
    assert "--reinstall-torch" in line.remedy
    assert line.command.endswith("--force-reinstall torch")


def test_packages() -> None:
    lines = packages_found(
        {"torch": "2.1.2", "diffusers": "", "peft": "0.20", "optional": ""},
        {"diffusers": "missing", "peft": "ImportError: cached_download"},
        {"diffusers": "pip install diffusers==0.31.0", "peft": "pip install peft"},
    )
    assert [(line.value, line.state) for line in lines] == [
        ("torch 2.1.2", "good"),
        ("diffusers", "error"),
        ("peft 0.20", "error"),
    ]
    assert lines[1].command == "pip install diffusers==0.31.0"
    assert lines[2].error == "ImportError: cached_download"


def test_little_room_is_worth_a_look() -> None:
    memory, disk = room_found(memory_bytes=10**9, total_memory_bytes=8 * 10**9, disk_bytes=10**9)
    assert (memory.state, disk.state) == ("warning", "warning")
    assert (memory.value, disk.value) == ("1.0 of 8.0 GB free", "1.0 GB free")


def test_the_report_names_no_person() -> None:
    command = f'"{Path.home()}/webui/venv/bin/python" -m pip install x'
    told = Diagnosis(at=0.0, found=(Found(title="Package", value="x", state="error", command=command),)).text()
    assert "~/webui/venv/bin/python" in told or str(Path.home()) == "/"
    assert told.startswith("BAD   Package: x")


@pytest.mark.parametrize("path", ["/home/anna/a", "/Users/anna/a", "C:\\Users\\anna\\a", "d:\\Users\\あんな\\a"])
def test_homes_of_any_system(path: str) -> None:
    assert without_home(f"in {path}!") == f"in ~{path[-2:]}!"


def test_what_training_can_do_without_is_tried_too() -> None:
    uses = {"gradio": "the page", "bitsandbytes": "AdamW8bit", "onnxruntime": "WD14 tags", "prodigyopt": "Prodigy"}
    versions = {"gradio": "4.40.0", "bitsandbytes": "0.45.5", "onnxruntime": "", "prodigyopt": ""}
    verdict = {"bitsandbytes": "OSError: libcudart", "onnxruntime": "missing", "prodigyopt": "missing"}
    page, broken, absent = helpful_found(versions, verdict, uses)
    assert (page.state, page.value) == ("good", "gradio 4.40.0 (the page)")
    assert (broken.state, broken.error) == ("warning", "OSError: libcudart")
    assert broken.command.endswith("-m pip install --upgrade bitsandbytes")
    assert (absent.state, absent.value) == ("good", "onnxruntime (WD14 tags), prodigyopt (Prodigy)")
    assert absent.command.endswith("-m pip install onnxruntime prodigyopt")
    assert helpful_found({"gradio": "6"}, {}, {"gradio": "the page"})[-1].title == "Package"
