"""Checkpoints of PyTorch, written by hand by their formats, and by torch."""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest

from lora_train.core import pickles
from lora_train.core.errors import ModelError
from lora_train.core.tensor_infos import tensor_bytes
from lora_train.core.tensorfiles import read_tensor_file
from tests.unit.core.model_files import error_for, rebuilt, tensors_of_all_kinds, write

# --- written by hand ---


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
    monkeypatch.setattr("lora_train.core.torch_files.MAX_PICKLE_BYTES", 20)
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
