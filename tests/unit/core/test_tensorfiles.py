"""Headers of model files, told apart by content; safetensors are written by hand, and by their library."""

from __future__ import annotations

import hashlib
import json
import pickle
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lora_train.core.errors import ModelError
from lora_train.core.tensor_infos import TensorInfo, tensor_bytes
from lora_train.core.tensorfiles import file_sha256, legacy_checkpoint_hash, read_tensor_file, tensor_part_sha256
from tests.unit.core.model_files import error_for, rebuilt, tensors_of_all_kinds, write


def safetensors(header: Any, data: bytes = b"") -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw + data


def entry(dtype: str, shape: list[Any], begin: int, end: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


# --- safetensors ---


def test_safetensors(tmp_path: Path) -> None:
    header = {
        "__metadata__": {"ss_seed": "42"},
        "b": entry("F16", [2, 3], 0, 12),
        "a": entry("F32", [], 12, 16),
        "none": entry("F32", [0, 4], 16, 16),
    }
    path = write(tmp_path, safetensors(header, bytes(range(16))), "unlike its format.ckpt")
    file = read_tensor_file(path)
    start = 8 + len(json.dumps(header))
    assert file.format == "safetensors"
    assert file.metadata == {"ss_seed": "42"}
    assert list(file.tensors.values()) == [
        TensorInfo("b", "F16", (2, 3), start, 12),
        TensorInfo("a", "F32", (), start + 12, 4),
        TensorInfo("none", "F32", (0, 4), start + 16, 0),
    ]
    assert tensor_bytes(path, file.tensors["a"]) == bytearray(range(12, 16))
    assert tensor_bytes(path, file.tensors["none"]) == bytearray()


def test_header_may_be_padded_with_blanks(tmp_path: Path) -> None:
    raw = json.dumps({"a": entry("U8", [1], 0, 1)}).encode() + b"     "
    assert set(read_tensor_file(write(tmp_path, safetensors(raw, b"x"))).tensors) == {"a"}


def test_two_gigabytes_are_not_read(tmp_path: Path) -> None:
    """A sparse file: reading its data would take seconds and its pages would show up."""
    size = 2 << 30
    path = write(tmp_path, safetensors({"a": entry("U8", [size], 0, size)}))
    with path.open("r+b") as stream:
        stream.truncate(path.stat().st_size + size)
    assert read_tensor_file(path).tensors["a"].nbytes == size


@pytest.mark.parametrize(
    ("header", "data", "says"),
    [
        ({"a": entry("F32", [2], 0, 4)}, b"1234", "has 4 bytes, but F32 [2] takes 8"),
        ({"a": entry("F32", [2], 0, 8)}, b"1234", "is cut short"),
        ({"a": entry("F32", [1], 0, 4), "b": entry("F32", [1], 2, 6)}, b"123456", "overlap"),
        ({"a": entry("F32", [1], 0, 4), "b": entry("F32", [1], 0, 4)}, b"1234", "overlap"),
        ({"a": entry("F32", [-1], 0, 4)}, b"1234", "negative"),
        ({"a": entry("F32", [1], -4, 0)}, b"1234", "negative"),
        ({"a": entry("F32", [1], 4, 0)}, b"1234", "negative"),
        ({"a": entry("F32", [1] * 9, 0, 4)}, b"1234", "9 dimensions"),
        ({"a": entry("X7", [1], 0, 4)}, b"1234", "number format X7"),
        ({"a": {"dtype": "F32"}}, b"", "not that of a safetensors file"),
        ({"a": 5}, b"", "not that of a safetensors file"),
        ({"a": entry("F32", [1.5], 0, 4)}, b"1234", "not that of a safetensors file"),
        ({"__metadata__": {"a": 1}}, b"", "not that of a safetensors file"),
        (b'{"a": 1, "a": 1}', b"", "a stands in it twice"),
        (b'{"a": ' + b"[" * 100_000, b"", "can't be read"),
        (b'{"a": ', b"", "can't be read"),
        (b'{"\xff": 1}', b"", "not UTF-8"),
    ],
)
def test_damaged_safetensors(header: Any, data: bytes, says: str, tmp_path: Path) -> None:
    assert says in error_for(tmp_path, safetensors(header, data))


def test_header_length_out_of_range(tmp_path: Path) -> None:
    assert "the limit is 100,000,000" in error_for(tmp_path, struct.pack("<Q", 2**40) + b'{"a": 1}')
    assert "is cut short" in error_for(tmp_path, struct.pack("<Q", 1000) + b'{"a": 1}')


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is empty"),
        (b"\n <!DOCTYPE html><html>", "is a web page"),
        (b"<html><body>Login", "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00", "Git LFS pointer"),
        (b"GGUF\x03\x00\x00\x00", "GGUF"),
        (b"\x89PNG\r\n\x1a\n0000", "neither"),
        (b"short", "neither"),
        (b"PK\x03\x04 and then nothing", "damaged or cut short"),
        (pickle.dumps({"a": 1}, 2), "no checkpoint of PyTorch"),
        (pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1000, 2), "version of PyTorch"),
    ],
)
def test_other_files(content: bytes, says: str, tmp_path: Path) -> None:
    assert says in error_for(tmp_path, content)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="does not exist"):
        read_tensor_file(tmp_path / "none.ckpt")
    with pytest.raises(ModelError):
        read_tensor_file(tmp_path)


def test_file_cut_after_its_header_was_read(tmp_path: Path) -> None:
    path = write(tmp_path, safetensors({"a": entry("U8", [8], 0, 8)}, b"12345678"))
    info = read_tensor_file(path).tensors["a"]
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(ModelError, match="ends within a: 5 of 8 bytes"):
        tensor_bytes(path, info)


def test_safetensors_library_agrees(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    library = pytest.importorskip("safetensors.torch")
    tensors = {name: value.detach().clone() for name, value in tensors_of_all_kinds().items()}
    tensors = {name: value.contiguous() for name, value in tensors.items()}
    path = tmp_path / "model.safetensors"
    library.save_file(tensors, path, metadata={"a": "b"})
    file = read_tensor_file(path)
    assert file.metadata == {"a": "b"}
    assert set(file.tensors) == set(tensors)
    for name, tensor in tensors.items():
        ours = rebuilt(path, file.tensors[name])
        assert torch.equal(ours.to(torch.float64), tensor.to(torch.float64))


# --- hashes ---


def test_hashes(tmp_path: Path) -> None:
    """The 8-digit hash of a file below 1 MiB is that of nothing, e3b0c442 (SHA-256 of no bytes)."""
    small = write(tmp_path, safetensors({"a": entry("U8", [3], 0, 3)}, b"abc"))
    assert legacy_checkpoint_hash(small) == "e3b0c442"
    assert tensor_part_sha256(small) == hashlib.sha256(b"abc").hexdigest()
    content = bytes(0x100000) + b"\x01" * 0x10000 + b"\x02" * 9
    large = write(tmp_path, content, "large")
    assert legacy_checkpoint_hash(large) == hashlib.sha256(b"\x01" * 0x10000).hexdigest()[:8]
    assert file_sha256(large) == hashlib.sha256(content).hexdigest()


def test_no_heavy_library_is_imported() -> None:
    code = (
        "import sys, lora_train.core.inspection;"
        "print([m for m in ('torch', 'numpy', 'safetensors', 'PIL') if m in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.strip() == "[]"
