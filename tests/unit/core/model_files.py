"""Model files for tests: their writing, what reading a bad one says, and tensors of every kind that torch has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lora_train.core.errors import ModelError
from lora_train.core.tensor_infos import TensorInfo, tensor_bytes
from lora_train.core.tensorfiles import read_tensor_file


def write(folder: Path, content: bytes, name: str = "model.safetensors") -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


def error_for(folder: Path, content: bytes) -> str:
    path = write(folder, content)
    with pytest.raises(ModelError) as error:
        read_tensor_file(path)
    assert "model.safetensors" in error.value.message
    return error.value.message + " " + error.value.hint


def tensors_of_all_kinds() -> dict[str, Any]:
    torch = pytest.importorskip("torch")
    base = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    return {
        "whole": base,
        "transposed": base.t(),
        "window": base[1:3, 2:5],
        "rows": base[1:],
        "every second": base[:, ::2],
        "expanded": torch.ones(3, 1).expand(3, 5),
        "channels last": torch.rand(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "scalar": torch.tensor(2.5, dtype=torch.float64),
        "empty": torch.zeros(0, 4),
        "half": torch.rand(5).half(),
        "bfloat16": torch.rand(2, 2).bfloat16(),
        "float8": torch.rand(7).to(torch.float8_e4m3fn),
        "float8 wide": torch.rand(7).to(torch.float8_e5m2),
        "long": torch.arange(77)[None],
        "bytes": torch.arange(9, dtype=torch.uint8),
        "bool": torch.tensor([True, False]),
        "parameter": torch.nn.Parameter(torch.rand(3)),
        "buffer": torch.nn.Buffer(torch.rand(3)) if hasattr(torch.nn, "Buffer") else torch.rand(3),
        "hooked": torch.nn.Parameter(torch.rand(2, 2).t()),
    }


TORCH_NAMES = {
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "BF16": "bfloat16",
    "F16": "float16",
}
TORCH_NAMES |= {"F32": "float32", "F64": "float64", "I64": "int64", "U8": "uint8", "BOOL": "bool"}


def rebuilt(path: Path, info: TensorInfo) -> Any:
    """A tensor as a reader with torch makes it from what the header says."""
    import torch

    dtype = getattr(torch, TORCH_NAMES[info.dtype])
    content = tensor_bytes(path, info)
    if not content:
        return torch.zeros(info.shape, dtype=dtype)
    flat = torch.frombuffer(content, dtype=dtype)
    if info.stride is not None:
        return flat.as_strided(info.shape, info.stride)
    return flat.reshape(info.shape)
