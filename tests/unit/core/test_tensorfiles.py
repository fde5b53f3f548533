"""Headers of model files, written by hand by their formats, and by torch and safetensors."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import struct
import subprocess
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest

from lora_train.core import pickles
from lora_train.core.errors import ModelError
from lora_train.core.tensorfiles import (
    TensorInfo,
    file_sha256,
    legacy_checkpoint_hash,
    read_tensor_file,
    tensor_bytes,
    tensor_part_sha256,
)


def safetensors(header: Any, data: bytes = b"") -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw + data


def entry(dtype: str, shape: list[Any], begin: int, end: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


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


# --- zip and legacy checkpoints, written by hand ---


def half_tensor(name: str, key: str = "0", *, offset: int = 0, shape: int = 3) -> bytes:
    """Opcodes for {name: a half tensor of `shape` elements in storage `key` of 4}."""

    def text(value: str) -> bytes:
        return b"X" + struct.pack("<I", len(value)) + value.encode()

    storage = b"(" + text("storage") + b"ctorch\nHalfStorage\n" + text(key) + text("cpu") + b"K\x04tQ"
    view = bytes([ord("K"), offset]) + bytes([ord("K"), shape]) + b"\x85K\x01\x85\x89N"
    return b"\x80\x02}" + text(name) + b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + view + b"tRs."


def zipped(members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return stream.getvalue()


@pytest.mark.parametrize("root", ["archive", "mein Modell", "模型"])
def test_zip_by_hand(root: str, tmp_path: Path) -> None:
    members = {
        f"{root}/data.pkl": half_tensor("w", offset=1),
        f"{root}/byteorder": b"little",
        f"{root}/data/0": b"aabbccdd",
    }
    path = write(tmp_path, zipped(members), "model.ckpt")
    file = read_tensor_file(path)
    assert (file.format, file.metadata) == ("ckpt", {})
    assert tensor_bytes(path, file.tensors["w"]) == b"bbccdd"


@pytest.mark.parametrize(
    ("members", "says"),
    [
        ({"a/data.pkl": half_tensor("w")}, "the block 0 of its weights is missing"),
        ({"a/data.pkl": half_tensor("w"), "a/data/0": b"aabb"}, "w reaches beyond its block of 4"),
        ({"a/data.pkl": half_tensor("w", offset=2), "a/data/0": b"aabbccdd"}, "w reaches beyond"),
        ({"a/data.pkl": half_tensor("w"), "a/byteorder": b"big"}, "big-endian"),
        ({"a/data.pkl": pickle.dumps({"step": 1}, 2)}, "no tensors with names"),
        ({"a/data.pkl": pickle.dumps([1], 2)}, "no tensors with names"),
        ({"a/data.pkl": b"\x80\x02cos\nsystem\nN\x85R."}, "asks to run `os.system`"),
        (
            {"a/data.pkl": half_tensor("w"), "b/data.pkl": half_tensor("w")},
            "no checkpoint of PyTorch",
        ),
        ({"readme.txt": b"hello"}, "no checkpoint of PyTorch"),
    ],
)
def test_bad_zips(members: dict[str, bytes], says: str, tmp_path: Path) -> None:
    assert says in error_for(tmp_path, zipped(members))


def test_compressed_zip(tmp_path: Path) -> None:
    members = {"a/data.pkl": half_tensor("w"), "a/data/0": b"aabbccdd"}
    assert "is compressed" in error_for(tmp_path, zipped(members, zipfile.ZIP_DEFLATED))


def test_zip_cut_short(tmp_path: Path) -> None:
    content = zipped({"a/data.pkl": half_tensor("w"), "a/data/0": b"aabbccdd"})
    assert "damaged or cut short" in error_for(tmp_path, content[:-40])


def test_zip_whose_pickle_is_too_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lora_train.core.tensorfiles.MAX_PICKLE_BYTES", 20)
    assert "no checkpoint" in error_for(tmp_path, zipped({"a/data.pkl": half_tensor("w")}))


def legacy(object_pickle: bytes, keys: list[str], storages: bytes, *, little: bool = True) -> bytes:
    parts = [pickle.dumps(value, 2) for value in (0x1950A86A20F9469CFC6C, 1001)]
    parts.append(pickle.dumps({"protocol_version": 1001, "little_endian": little}, 2))
    return b"".join([*parts, object_pickle, pickle.dumps(keys, 2), storages])


BLOCK = struct.pack("<q", 4) + b"aabbccdd"


def test_legacy_by_hand(tmp_path: Path) -> None:
    path = write(tmp_path, legacy(half_tensor("w", "77"), ["77"], BLOCK))
    file = read_tensor_file(path)
    assert file.tensors["w"].offset == path.stat().st_size - 8
    assert tensor_bytes(path, file.tensors["w"]) == b"aabbcc"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (legacy(half_tensor("w"), ["0"], BLOCK[:-1]), "is cut short"),
        (legacy(half_tensor("w"), ["0"], BLOCK[:5]), "is cut short"),
        (legacy(half_tensor("w"), ["0"], struct.pack("<q", -4) + b"aabbccdd"), "is cut short"),
        (legacy(half_tensor("w"), [], b""), "the weights of w are missing"),
        (legacy(half_tensor("w"), ["0", "1"], BLOCK * 2), "the block 1"),
        (legacy(half_tensor("w"), ["0"], BLOCK, little=False), "big-endian"),
        (legacy(b"\x80\x02cnt\nsystem\n.", ["0"], BLOCK), "asks to run `nt.system`"),
    ],
)
def test_bad_legacy_files(content: bytes, says: str, tmp_path: Path) -> None:
    assert says in error_for(tmp_path, content)


def test_limits_are_shared() -> None:
    """An SD 1.x checkpoint with EMA weights has about 1,800 tensors of 45 operations each."""
    assert pickles.MAX_OPERATIONS > 10 * 1_800 * 45


# --- against torch ---


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


@pytest.mark.parametrize("new_format", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("is_wrapped", [True, False])
def test_checkpoints_of_torch(new_format: bool, is_wrapped: bool, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    tensors = tensors_of_all_kinds()
    content: Any = OrderedDict(tensors)
    if is_wrapped:
        optimizer = {"state": {0: {"exp_avg": torch.rand(3)}}, "lr": torch.tensor(0.1)}
        content = {"state_dict": content, "epoch": 3, "optimizer_states": [optimizer]}
        content |= {"dtype": torch.float16, "size": torch.Size([1]), "device": torch.device("cpu")}
    path = tmp_path / "model.ckpt"
    torch.save(content, path, _use_new_zipfile_serialization=new_format)
    file = read_tensor_file(path)
    assert list(file.tensors) == list(tensors)
    for name, tensor in tensors.items():
        info = file.tensors[name]
        assert info.shape == tuple(tensor.shape)
        assert (info.stride is None) == tensor.is_contiguous()
        ours = rebuilt(path, info)
        assert ours.dtype == tensor.dtype
        assert torch.equal(ours.to(torch.float64), tensor.detach().to(torch.float64))


@pytest.mark.parametrize("new_format", [True, False], ids=["zip", "legacy"])
def test_numbers_of_numpy_do_not_disturb(new_format: bool, tmp_path: Path) -> None:
    torch, numpy = pytest.importorskip("torch"), pytest.importorskip("numpy")
    content = {"w": torch.ones(2), "best": numpy.float64(0.5), "all": numpy.arange(3)}
    torch.save(content, tmp_path / "a.pt", _use_new_zipfile_serialization=new_format)
    assert set(read_tensor_file(tmp_path / "a.pt").tensors) == {"w"}


def test_a_whole_module_is_refused(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    torch.save(torch.nn.Linear(1, 1), tmp_path / "a.pt")
    with pytest.raises(ModelError, match=r"asks to run `torch\.nn\.modules\.linear\.Linear`"):
        read_tensor_file(tmp_path / "a.pt")


def test_a_textual_inversion_gives_its_vectors(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    content = {"string_to_token": {"*": 265}, "string_to_param": {"*": torch.ones(4, 768)}}
    torch.save(content, tmp_path / "a.pt")
    assert read_tensor_file(tmp_path / "a.pt").tensors["string_to_param.*"].shape == (4, 768)


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
