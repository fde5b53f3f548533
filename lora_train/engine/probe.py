"""`python -m lora_train.engine.probe` tells what torch can do here, as one JSON object on the last line."""

from __future__ import annotations

import sys

import msgspec
import torch
import torch.nn.functional as functional

from lora_train.core.diagnosis import KERNELS, Probe, ProbedDevice
from lora_train.engine.devices import DTYPES, Device, all_devices, choose_precision

_SIZE = 64


def main() -> int:
    sys.stdout.write("\n" + msgspec.json.encode(probe()).decode() + "\n")
    return 0


def probe() -> Probe:
    """Versions, devices, and every kernel of a training in every number format, on the device that is taken first."""
    devices = all_devices()
    names = {dtype: name for name, dtype in DTYPES.items()}
    return Probe(
        torch=str(torch.__version__),
        build=_build(),
        devices=tuple(map(_told, devices)),
        kernels={
            name: {kernel: _error(kernel, dtype, devices[0]) for kernel in KERNELS} for name, dtype in DTYPES.items()
        },
        precision=names[choose_precision("auto", devices[0])[0]],
    )


def _build() -> str:
    if torch.version.cuda:
        return f"CUDA {torch.version.cuda}"
    return f"ROCm {torch.version.hip}" if torch.version.hip else "CPU"


def _told(device: Device) -> ProbedDevice:
    if not device.is_cuda:
        return ProbedDevice(kind=device.torch.type, label=device.label)
    free_bytes, total_bytes = torch.cuda.mem_get_info(device.torch)
    major, minor = torch.cuda.get_device_capability(device.torch)
    return ProbedDevice(
        kind=device.torch.type,
        label=device.label,
        capability=f"{major}.{minor}",
        total_bytes=total_bytes,
        free_bytes=free_bytes,
    )


def _error(kernel: str, dtype: torch.dtype, device: Device) -> str:
    """The first line of what it raises, forward or backward; "" where its numbers are finite."""
    made = {"matrix product": _product, "convolution": _convolution, "attention": _attention}[kernel]
    try:
        x = torch.linspace(-1, 1, 4 * _SIZE * _SIZE, device=device.torch).to(dtype).requires_grad_()
        made(x).float().sum().backward()
        if x.grad is None or not bool(torch.isfinite(x.grad).all()):
            return "its numbers are not finite"
    except Exception as error:  # whatever a driver or a build lacks
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return ""


def _product(x: torch.Tensor) -> torch.Tensor:
    square = x.reshape(4, _SIZE, _SIZE)
    return square @ square


def _convolution(x: torch.Tensor) -> torch.Tensor:
    pictures = x.reshape(1, 16, 32, 32)
    return functional.conv2d(pictures, x[: 16 * 16 * 9].reshape(16, 16, 3, 3), padding=1)


def _attention(x: torch.Tensor) -> torch.Tensor:
    heads = x.reshape(1, 4, _SIZE, _SIZE)
    return functional.scaled_dot_product_attention(heads, heads, heads)


if __name__ == "__main__":
    sys.exit(main())
