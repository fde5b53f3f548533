"""What is told of the installation."""

from __future__ import annotations

from lora_train.app.doctor import DoctorSnapshot
from lora_train.core.diagnosis import (
    KERNELS,
    Diagnosis,
    Found,
    Probe,
    ProbedDevice,
    helpful_found,
    machine_found,
    packages_found,
    room_found,
    torch_found,
)
from lora_train.ui import view


def doctor_states() -> dict[str, str]:
    works = dict.fromkeys(KERNELS, "")
    cpu = ProbedDevice(kind="cpu", label="CPU, 2 threads")
    probe = Probe(torch="2.5.1", build="CPU", devices=(cpu,), kernels={"fp32": works}, precision="fp32")
    hidden = Probe(
        torch="2.5.1",
        build="CUDA 12.4",
        devices=(cpu,),
        kernels={"fp32": works, "fp16": {**works, "attention": "RuntimeError: not implemented"}},
        precision="fp32",
    )
    none = dict.fromkeys(KERNELS, "RuntimeError: CUDA error: no kernel image is available for execution on the device")
    card = ProbedDevice(kind="cuda", label="RTX 5090", capability="12.0")
    too_new = Probe(torch="2.1.2", build="CUDA 12.1", devices=(card, cpu), kernels={"fp32": none}, precision="bf16")
    machine = machine_found(python="3.10.6", system="Linux", host="Forge", release="1.0")
    room = room_found(memory_bytes=10**10, total_memory_bytes=2 * 10**10, disk_bytes=10**11)
    short = room_found(memory_bytes=10**9, total_memory_bytes=2 * 10**10, disk_bytes=10**9)
    helpful = helpful_found(
        {"bitsandbytes": "0.45.5", "onnxruntime": ""},
        {"bitsandbytes": "OSError: libcudart", "onnxruntime": "missing"},
        {"bitsandbytes": "AdamW8bit", "onnxruntime": "WD14 tags"},
    )
    packages = packages_found(
        {"torch": "2.5.1", "diffusers": "", "transformers": "4.30.2"},
        {"diffusers": "missing", "transformers": "ImportError: x"},
        {"diffusers": "pip install diffusers", "transformers": "pip install transformers"},
    )
    crashed = [Found(title="Packages", state="error", error="TimeoutExpired: x")]

    def shown(*found: list[Found]) -> str:
        lines = tuple(line for lines in found for line in lines)
        return view.doctor_html(DoctorSnapshot(diagnosis=Diagnosis(at=0.0, found=lines)), "token")

    return {
        "doctor not asked": view.doctor_html(DoctorSnapshot(), "token"),
        "doctor at work": view.doctor_html(DoctorSnapshot(is_running=True), "token"),
        "doctor all good": shown(machine, torch_found(probe, "", []), room),
        "doctor wrong build": shown(machine, torch_found(probe, "", ["RTX 3060"]), short, packages),
        "doctor hidden card": shown(torch_found(hidden, "", ["RTX 3060"]), crashed, helpful),
        "doctor new card": shown(torch_found(too_new, "", ["RTX 5090"])),
        "doctor no torch": shown(torch_found(None, "ImportError: x", [])),
    }
