"""The one place that knows device names: which device, which number format, and what each can do."""

from __future__ import annotations

import sys
from typing import Any, NamedTuple

import psutil
import torch

from lora_train.core.config import Device as DeviceName
from lora_train.core.config import Precision
from lora_train.core.errors import ConfigError, DeviceMemoryError

_FULL_SHARE = 0.01

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Device(NamedTuple):
    """A torch device and what a person calls it."""

    torch: torch.device
    label: str

    @property
    def is_cpu(self) -> bool:
        return self.torch.type == "cpu"

    @property
    def is_cuda(self) -> bool:
        return self.torch.type == "cuda"


def choose_device(wanted: DeviceName, card: int = 0) -> Device:
    """The wanted device, or with "auto" the fastest there is. Raises ConfigError when it is not there.

    `card`: of several of a kind, counted from 0.
    """
    available = all_devices(card)
    if wanted == "auto":
        return available[0]
    for device in available:
        if device.torch.type == wanted:
            return device
    names = ", ".join(device.torch.type for device in available)
    raise ConfigError([f"device: {wanted} is not available here; torch {torch.__version__} offers {names}"])


def all_devices(card: int = 0) -> list[Device]:
    """The fastest first; the CPU is always there, and last. `card` as in `choose_device`."""
    devices: list[Device] = []
    if torch.cuda.is_available():
        if card >= (count := torch.cuda.device_count()):
            raise ConfigError([f"processes: there is no card for process {card + 1}; torch sees {count} here"])
        devices.append(Device(torch.device("cuda", card), torch.cuda.get_device_name(card)))
    xpu = getattr(torch, "xpu", None)
    if xpu is not None and xpu.is_available():
        devices.append(Device(torch.device("xpu", 0), "Intel XPU"))
    if torch.backends.mps.is_available():
        devices.append(Device(torch.device("mps"), "Apple GPU"))
    devices.append(Device(torch.device("cpu"), _cpu_label(torch.get_num_threads())))
    return devices


def _cpu_label(threads: int) -> str:
    return f"CPU, {threads} thread{'' if threads == 1 else 's'}"


_AS_ASKED = {
    "fp32": "Precision fp32, as asked for.",
    "bf16": "Precision bf16, as asked for.",
    "fp16": "Precision fp16, as asked for.",
}


def choose_precision(wanted: Precision, device: Device) -> tuple[torch.dtype, str]:
    """The compute dtype of the frozen weights, and a sentence that says why. Raises ConfigError for what can't be."""
    if wanted == "fp16" and device.is_cpu and torch_version() < (2, 3):
        raise ConfigError([f"precision: torch {torch.__version__} has no fp16 on a CPU; choose fp32 or bf16"])
    if wanted == "bf16" and not _has_bf16(device):
        raise ConfigError([f"precision: {device.label} has no bf16; choose fp16, or auto"])
    if wanted != "auto":
        return DTYPES[wanted], _AS_ASKED[wanted]
    if device.is_cuda:
        if _has_bf16(device):
            return torch.bfloat16, "Precision bf16: this card has it."
        return torch.float16, "Precision fp16 with loss scaling: this card has no bf16."
    if device.torch.type == "xpu":
        return torch.bfloat16, "Precision bf16: Intel XPUs have it."
    if device.is_cpu:
        return torch.float32, "Precision fp32: the fastest on most CPUs."
    return torch.float32, "Precision fp32: the safe choice on this device."


def _has_bf16(device: Device) -> bool:
    """False for NVIDIA's cards before Ampere: torch imitates its products there, but cuDNN has no convolutions."""
    return not device.is_cuda or torch.cuda.get_device_capability(device.torch)[0] >= 8


def torch_version() -> tuple[int, int]:
    """Major and minor number."""
    major, minor = torch.__version__.split(".")[:2]
    return int(major), int(minor)


def set_up(wanted: DeviceName, cpu_threads: int, card: int = 0) -> Device:
    """`choose_device`, and the process-wide switches: CPU threads, TF32 for fp32 products, cuDNN's kernel search."""
    if cpu_threads:
        torch.set_num_threads(cpu_threads)
    device = choose_device(wanted, card)
    if device.is_cuda:
        torch.cuda.set_device(device.torch)
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.allow_tf32 = True
        torch.backends.cudnn.benchmark = True
    return device


def prefers_channels_last(device: Device, dtype: torch.dtype) -> bool:
    """Where `lora-train bench` shows the layout to be faster: CPU convolutions, and half precision on CUDA."""
    return device.is_cpu or (device.is_cuda and dtype != torch.float32)


def has_fused_optimizers(device: Device) -> bool:
    return device.is_cuda


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy to the device without waiting for it, where the device can."""
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=device.type in ("cuda", "meta"))


class ToHost:
    """A tensor on its way to the host, on the current stream; the loop does not wait for it, whoever reads it does."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self._arrived: torch.cuda.Event | None = None
        self._tensor = tensor
        self._device = tensor.device
        if tensor.device.type == "cuda":
            host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self._tensor = host.copy_(tensor, non_blocking=True)
            self._arrived = torch.cuda.Event()
            self._arrived.record(torch.cuda.current_stream(tensor.device))

    def has_arrived(self) -> bool:
        if self._arrived is None:
            return True
        with torch.cuda.device(self._device):  # a thread begins with the first card, and would claim memory there
            return self._arrived.query()

    def tensor(self) -> torch.Tensor:
        """On the host; waits for it if need be."""
        if self._arrived is not None:
            with torch.cuda.device(self._device):
                self._arrived.synchronize()
        return self._tensor

    def values(self) -> list[float]:
        """The numbers; waits for them if need be."""
        return self.tensor().tolist()


def free_cached_memory(device: Device) -> None:
    """Hand memory that torch keeps for later back to the system."""
    backend: Any = getattr(torch, device.torch.type, None)
    if hasattr(backend, "empty_cache"):
        backend.empty_cache()


def synchronize(device: Device) -> None:
    """Wait until the device has done everything (for measuring only)."""
    if not device.is_cpu:
        getattr(torch, device.torch.type).synchronize()


def peak_device_bytes(device: torch.device) -> int:
    """The most memory that tensors took on the device so far; 0 where it can't be told."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0


def spills(device: torch.device) -> bool:
    """Whether the device is so full that its driver now moves memory of programs into main memory, as NVIDIA's for
    Windows does; others refuse it.
    """
    if sys.platform != "win32" or device.type != "cuda":
        return False
    free_bytes, all_bytes = torch.cuda.mem_get_info(device)
    return free_bytes < _FULL_SHARE * all_bytes


def peak_process_bytes() -> int:
    """The most main memory that this process took so far."""
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


_OUT_OF_MEMORY_SIGNS = ("out of memory", "can't allocate memory", "not enough memory", "alloc_failed")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch gave up for lack of memory (CUDA and other accelerators, or the CPU allocator)."""
    kind = getattr(torch, "OutOfMemoryError", torch.cuda.OutOfMemoryError)
    if isinstance(error, (kind, MemoryError)):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(sign in text for sign in _OUT_OF_MEMORY_SIGNS)


def out_of_memory(error: BaseException) -> DeviceMemoryError:
    """The same failure in words a person can use."""
    return DeviceMemoryError(
        f"The device has too little memory for these settings: {(str(error) or type(error).__name__).splitlines()[0]}",
        "Three settings help most, in this order: switch gradient_checkpointing on, "
        "lower batch_size (use gradient_accumulation_steps to make up for it), lower resolution.",
    )
