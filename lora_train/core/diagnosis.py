"""What the doctor finds about an installation: facts, each good or not, and the command that mends it.

Titles and remedies are fixed texts, which languages translate; what was measured stands beside them. Nothing in it is
private: no path, no name of a person, a project or a picture, but the commands, which name the Python that runs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import msgspec

from lora_train.core.installing import install_command

_FOLDERS = re.compile(r"""(?:\b[A-Za-z]:[\\/]|(?<![\w.])[\\/]{1,2})(?:[^\\/\n"'<>|]+[\\/]+)+""")
"""An absolute path but for its last part, of any system; spaces are part of names."""

State = Literal["good", "warning", "error"]
Title = Literal[
    "Train Tools",
    "Host",
    "Python",
    "System",
    "PyTorch",
    "NVIDIA card",
    "Device",
    "Precision",
    "Number format",
    "Main memory",
    "Disk of the workspace",
    "Packages",
    "Package",
    "Not installed",
]
"""Fixed texts, which the page translates."""

KERNELS = ("matrix product", "convolution", "attention")
"""What a training is made of; each is tried forward and backward."""

_LEAST_FREE_DISK_BYTES = 5_000_000_000
_LEAST_FREE_MEMORY_BYTES = 4_000_000_000
"""Base model, caches and a few LoRAs; what an SD 1.5 takes on a CPU (docs/benchmarks.md)."""


class ProbedDevice(msgspec.Struct, frozen=True, kw_only=True):
    """As torch tells. Bytes are 0 where it doesn't."""

    kind: str
    label: str
    capability: str = ""
    total_bytes: int = 0
    free_bytes: int = 0


class Probe(msgspec.Struct, frozen=True, kw_only=True):
    """What `engine.probe` found out in a process of its own."""

    torch: str
    build: str
    """`CUDA 12.4`, `ROCm 6.2` or `CPU`."""
    devices: tuple[ProbedDevice, ...]
    """The first one is what trainings take by themselves."""
    kernels: dict[str, dict[str, str]]
    """By number format and kernel, on the first device: empty where it worked, or else the error."""
    precision: str
    """The number format that trainings take there by themselves."""


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """One line of a diagnosis."""

    title: Title
    value: str = ""
    state: State = "good"
    remedy: str = ""
    error: str = ""
    """As told by whoever noticed."""
    command: str = ""
    """What mends it, to be typed into a terminal."""


class Diagnosis(msgspec.Struct, frozen=True, kw_only=True):
    at: float
    """Unix seconds."""
    found: tuple[Found, ...]

    @property
    def is_good(self) -> bool:
        return all(line.state != "error" for line in self.found)

    def text(self) -> str:
        """A report to be shown to others; the home folder in commands is cut to `~`."""
        lines: list[str] = []
        for line in self.found:
            mark = {"good": "ok  ", "warning": "note", "error": "BAD "}[line.state]
            lines.append(f"{mark}  {line.title}: {line.value}".rstrip(": "))
            lines += [f"      {text}" for text in (line.error, line.remedy, line.command) if text]
        return "\n".join(map(without_home, lines)) + "\n"


def without_home(text: str) -> str:
    """The text with the person's folder, whose name is theirs, as `~`; also where it is that of another system."""
    home = str(Path.home())
    text = text.replace(home, "~") if len(home) > 1 else text
    return re.sub(r"(?:/home/|/Users/|[A-Za-z]:\\Users\\)[^/\\\"']+", "~", text)


def without_folders(text: str) -> str:
    """The text with every absolute path cut to its last part."""
    return _FOLDERS.sub("…/", text)


def packages_found(versions: Mapping[str, str], verdict: Mapping[str, str], commands: Mapping[str, str]) -> list[Found]:
    """A line for each package that training needs. All are called as in the package index: their `versions`, "" where
    there is none; the `verdict` on those that can't be imported, and the `commands` that mend them.
    """
    lines: list[Found] = []
    for name, version in versions.items():
        error = verdict.get(name, "")
        if not error:
            lines += [Found(title="Package", value=f"{name} {version}")] if version else []
            continue
        is_missing = error == "missing"
        lines.append(
            Found(
                title="Package",
                value=f"{name} {version}".strip(),
                state="error",
                error="" if is_missing else error,
                remedy="It is not installed. This adds it:"
                if is_missing
                else "It is installed, but can't be imported. This would change it:",
                command=commands.get(name, ""),
            )
        )
    return lines


def helpful_found(versions: Mapping[str, str], verdict: Mapping[str, str], uses: Mapping[str, str]) -> list[Found]:
    """The same for packages that training can do without; `uses` tells what each is for. What is not there is no
    fault: one line names it all.
    """
    lines: list[Found] = []
    for name, version in versions.items():
        error = verdict.get(name, "")
        if error == "missing":
            continue
        lines.append(
            Found(
                title="Package",
                value=f"{name} {version} ({uses[name]})",
                state="warning" if error else "good",
                error=error,
                remedy="It is installed, but can't be imported. Only what it is for goes without it." if error else "",
                command=install_command(["--upgrade", name]) if error else "",
            )
        )
    missing = [name for name in versions if verdict.get(name) == "missing"]
    if missing:
        lines.append(
            Found(
                title="Not installed",
                value=", ".join(f"{name} ({uses[name]})" for name in missing),
                remedy="Needed by nothing else. This adds them:",
                command=install_command(missing),
            )
        )
    return lines


def torch_found(probe: Probe | None, error: str, cards: Sequence[str]) -> list[Found]:
    """torch, its devices and what works on the first one. `cards` are the NVIDIA cards that the driver tells of."""
    if probe is None:
        return [
            Found(
                title="PyTorch",
                state="error",
                error=error,
                remedy="It can't be used, so nothing can be trained. A WebUI puts its own back when it is started once "
                "with --reinstall-torch; elsewhere this does:",
                command=install_command(["--force-reinstall", "torch"]),
            )
        ]
    lines = [Found(title="PyTorch", value=f"{probe.torch}, {probe.build}")]
    if cards and probe.devices[0].kind == "cpu":
        is_cpu_build = probe.build == "CPU"
        lines.append(
            Found(
                title="NVIDIA card",
                value=", ".join(cards),
                state="error",
                remedy="This PyTorch is made for the CPU and can't use the card. This puts the right one in its place:"
                if is_cpu_build
                else "PyTorch can't use the card: update its driver, and look whether CUDA_VISIBLE_DEVICES hides it.",
                command=cuda_command(probe.torch) if is_cpu_build else "",
            )
        )
    if _lacks_kernels(probe):
        card = probe.devices[0]
        lines.append(
            Found(
                title="NVIDIA card",
                value=f"{card.label}, compute capability {card.capability}",
                state="error",
                remedy="This PyTorch was built before there was such a card. This puts a newer one in its place:",
                command=install_command(["--upgrade", "torch", "torchvision", "--index-url", f"{_INDEX}/cu128"]),
            )
        )
    for device in probe.devices:
        memory = f", {device.free_bytes / 1e9:.1f} of {device.total_bytes / 1e9:.1f} GB free" * bool(device.total_bytes)
        capability = f", compute capability {device.capability}" if device.capability else ""
        lines.append(Found(title="Device", value=f"{device.label} ({device.kind}){capability}{memory}"))
    lines.append(Found(title="Precision", value=probe.precision))
    for dtype, kernels in probe.kernels.items():
        broken = {kernel: told for kernel, told in kernels.items() if told}
        is_needed = dtype in ("fp32", probe.precision)
        lines.append(
            Found(
                title="Number format",
                value=f"{dtype}: {', '.join(kernel for kernel in kernels if kernel not in broken) or '–'}",
                state="good" if not broken else "error" if is_needed else "warning",
                error="; ".join(f"{kernel}: {told}" for kernel, told in broken.items()),
                remedy="" if not broken else "Choose another precision for trainings on this device.",
            )
        )
    return lines


def _lacks_kernels(probe: Probe) -> bool:
    """Whether a CUDA build has no code for the first device (cudaErrorNoKernelImageForDevice)."""
    told = [told for kernels in probe.kernels.values() for told in kernels.values()]
    return probe.build.startswith("CUDA") and any("no kernel image" in error for error in told)


_INDEX = "https://download.pytorch.org/whl"


def cuda_command(torch: str) -> str:
    """What puts the CUDA build of this very version in the place of the CPU's, from PyTorch's own index."""
    plain = torch.partition("+")[0]
    numbers = tuple(int(part) for part in plain.split(".")[:2] if part.isdigit())
    build = "cu128" if numbers >= (2, 7) else "cu124" if numbers >= (2, 4) else "cu121"
    return install_command(["--force-reinstall", f"torch=={plain}", "--index-url", f"{_INDEX}/{build}"])


def machine_found(*, python: str, system: str, host: str, release: str) -> list[Found]:
    return [
        Found(title="Train Tools", value=release),
        Found(title="Host", value=host),
        Found(title="Python", value=python),
        Found(title="System", value=system),
    ]


def room_found(*, memory_bytes: int, total_memory_bytes: int, disk_bytes: int) -> list[Found]:
    """Free main memory, and free space on the disk of the workspace."""
    is_short = memory_bytes < _LEAST_FREE_MEMORY_BYTES
    is_full = disk_bytes < _LEAST_FREE_DISK_BYTES
    return [
        Found(
            title="Main memory",
            value=f"{memory_bytes / 1e9:.1f} of {total_memory_bytes / 1e9:.1f} GB free",
            state="warning" if is_short else "good",
            remedy="Close other programs: loading a base model needs more." if is_short else "",
        ),
        Found(
            title="Disk of the workspace",
            value=f"{disk_bytes / 1e9:.1f} GB free",
            state="warning" if is_full else "good",
            remedy="Free some space: LoRAs and resumable states need more." if is_full else "",
        ),
    ]
