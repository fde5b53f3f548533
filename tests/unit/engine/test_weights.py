"""Weights from a memory map are those of the file, in their final form, and leave none of it behind in memory."""

from __future__ import annotations

import json
import os
import struct
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from lora_train.core.errors import ModelError
from lora_train.core.hash_cache import HashCache
from lora_train.core.tensorfiles import read_tensor_file
from lora_train.engine import weights as engine_weights
from lora_train.engine.ldm_names import Place
from lora_train.engine.weights import Weights, fill, identity

pytestmark = pytest.mark.compat

CPU = torch.device("cpu")


class Model(nn.Module):
    """A convolution, a Linear and a vector on the meta device."""

    def __init__(self) -> None:
        super().__init__()
        with torch.device("meta"):
            self.conv = nn.Conv2d(3, 4, 3)
            self.linear = nn.Linear(5, 6, bias=False)


def own_name(name: str) -> list[str]:
    return [name]


@pytest.fixture
def tensors() -> dict[str, torch.Tensor]:
    numbers = torch.Generator().manual_seed(0)
    return {
        "conv.weight": torch.randn(4, 3, 3, 3, generator=numbers).half(),
        "conv.bias": torch.randn(4, generator=numbers).half(),
        "linear.weight": torch.randn(6, 5, generator=numbers).half(),
    }


@pytest.fixture
def path(tensors: dict[str, torch.Tensor], tmp_path: Path) -> Path:
    place = tmp_path / "重み.safetensors"
    save_file(tensors, place)
    return place


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_weights_get_their_final_form(
    path: Path, tensors: dict[str, torch.Tensor], dtype: torch.dtype, layout: torch.memory_format
) -> None:
    model = Model()
    fill(model, Weights.of(read_tensor_file(path)), own_name, CPU, dtype, layout)
    path.write_bytes(bytes(path.stat().st_size))  # nothing of the map is in use any more
    for name, parameter in model.named_parameters():
        assert parameter.dtype == dtype
        assert torch.equal(parameter, tensors[name].to(dtype))
        parameter.data.add_(1)
    assert model.conv.weight.is_contiguous(memory_format=layout)
    assert model.linear.weight.is_contiguous()


def test_parts_and_transposed_ones(path: Path, tmp_path: Path) -> None:
    whole = torch.arange(18 * 5).reshape(18, 5).float()
    turned = tmp_path / "turned.safetensors"
    save_file({"joined": whole, "turned": whole[:6].t().contiguous(), "one": torch.ones(4, 3, 3, 3)}, turned)
    source = Weights.of(read_tensor_file(turned))
    for place, wanted in [(Place("joined", third=1), whole[6:12]), (Place("turned", is_transposed=True), whole[:6])]:
        model = nn.Module()
        with torch.device("meta"):
            model.linear = nn.Linear(5, 6, bias=False)
        fill(model, source, lambda _, place=place: [place], CPU, torch.float32)
        weight = model.get_parameter("linear.weight")
        assert torch.equal(weight, wanted)
        assert weight.is_contiguous()
        assert weight.untyped_storage().nbytes() == 6 * 5 * 4, "no more is kept than is used"


def test_a_file_that_cannot_be_mapped_or_lies_askew_is_read(
    path: Path, tensors: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refused(*_: object, **__: object) -> None:
        raise OSError("this file system has no maps")

    askew = tmp_path / "askew.safetensors"
    header = json.dumps(_header(tensors)).encode() + b" "
    header += b" " * (len(header) % 2 == 0)
    content = b"".join(tensor.numpy().tobytes() for tensor in tensors.values())
    askew.write_bytes(struct.pack("<Q", len(header)) + header + content)
    for source in (read_tensor_file(askew), read_tensor_file(path)):
        model = Model()
        fill(model, Weights.of(source), own_name, CPU, torch.float32)
        for name, parameter in model.named_parameters():
            assert torch.equal(parameter, tensors[name].float())
        monkeypatch.setattr(engine_weights.mmap, "mmap", refused)


def _header(tensors: dict[str, torch.Tensor]) -> dict[str, object]:
    at, header = 0, dict[str, object]()
    for name, tensor in tensors.items():
        size = tensor.numel() * 2
        header[name] = {"dtype": "F16", "shape": list(tensor.shape), "data_offsets": [at, at + size]}
        at += size
    return header


def test_a_file_that_became_shorter_is_named(path: Path) -> None:
    source = Weights.of(read_tensor_file(path))
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ModelError, match=r"重み\.safetensors was cut short"):
        fill(Model(), source, own_name, CPU, torch.float32)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_no_page_of_the_file_stays_in_memory(tmp_path: Path) -> None:
    """200 MB of fp16 become 400 MB of fp32; never was more of the file in memory than one tensor of 20 MB."""
    path, script = tmp_path / "large.safetensors", tmp_path / "load.py"
    save_file({f"{index}.weight": torch.zeros(10_000, 1000).half() for index in range(10)}, path)
    script.write_text(_LOAD, encoding="utf-8")
    import subprocess

    root = str(Path(__file__).parents[3])
    command = [sys.executable, str(script), str(path)]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": root}, capture_output=True, text=True, check=True)
    grown_mb, most_file_mb = map(float, done.stdout.split())
    assert 400 <= grown_mb < 430
    assert most_file_mb < 40


_LOAD = """
import sys
from pathlib import Path
import torch
from torch import nn
from lora_train.core.tensorfiles import read_tensor_file
from lora_train.engine import weights

def pages_mb(kind):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(kind)) / 1e3

final, most = weights._final, []
def spied(*arguments):
    made = final(*arguments)
    most.append(pages_mb("RssFile"))
    return made
weights._final = spied
torch.zeros(1000, 1000).half().float()
with torch.device("meta"):
    model = nn.Sequential(*[nn.Linear(1000, 10_000, bias=False) for _ in range(10)])
file_before, before = pages_mb("RssFile"), pages_mb("VmHWM")
source = weights.Weights.of(read_tensor_file(Path(sys.argv[1])))
weights.fill(model, source, lambda name: [name], torch.device("cpu"), torch.float32)
print(pages_mb("VmHWM") - before, max(most) - file_before)
"""


def test_identity_is_of_the_chosen_tensors_alone(path: Path, tensors: dict[str, torch.Tensor], tmp_path: Path) -> None:
    def of(place: Path) -> str:
        return identity(Weights.of(read_tensor_file(place)), "x", lambda name: name.startswith("conv"), HashCache(None))

    other = tmp_path / "other.safetensors"
    save_file({**tensors, "linear.weight": tensors["linear.weight"] + 1, "more": torch.zeros(3)}, other)
    assert of(other) == of(path)
    save_file({**tensors, "conv.bias": tensors["conv.bias"] + 1}, other)
    assert of(other) != of(path)
    save_file({**tensors, "conv.weight": tensors["conv.weight"].float()}, other)
    assert of(other) != of(path)
