"""Pickles are read and never run. Hostile ones are written by Python's pickler and by hand."""

from __future__ import annotations

import contextlib
import io
import pickle
import struct
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest

from lora_train.core import pickles
from lora_train.core.errors import ModelError
from lora_train.core.pickles import Described, Opaque, read_pickle


def described(content: bytes) -> Described:
    return read_pickle(io.BytesIO(content), "model.ckpt")


class Calls:
    """Unpickles to `function(*arguments)`."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.function = function
        self.arguments = arguments

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.function, self.arguments


def text(value: str) -> bytes:
    """BINUNICODE."""
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def program(path: Path) -> str:
    return f"open({str(path)!r}, 'w').close()"


@pytest.mark.parametrize("protocol", range(2, 6))
def test_plain_values_come_back(protocol: int) -> None:
    value = {
        "epoch": 7,
        "rate": 1e-4,
        "big": 2**70,
        "negative": -3,
        "name": "日本語",
        "on": True,
        "nothing": None,
        "list": [1, [2, 3], ()],
        "tuple": (1, 2, 3, 4),
        "nested": {"a": {"b": "c"}},
        "ordered": OrderedDict(x=1),
        "same": OrderedDict(x=1),
    }
    assert described(pickle.dumps(value, protocol)).value == value


def test_what_is_not_needed_becomes_opaque() -> None:
    value = described(pickle.dumps({"set": {1, 2}, "frozen": frozenset({1}), "complex": 1j}, 2)).value
    assert isinstance(value, dict)
    assert [type(item) for item in value.values()] == [Opaque] * 3


def test_only_text_keys_are_kept() -> None:
    assert described(pickle.dumps({"a": 1, 2: 3, ("b",): 4}, 2)).value == {"a": 1}


def test_the_stream_stands_after_the_pickle() -> None:
    stream = io.BytesIO(pickle.dumps(1, 2) + pickle.dumps("two", 4) + b"rest")
    assert [read_pickle(stream, "x").value for _ in range(2)] == [1, "two"]
    assert stream.read() == b"rest"


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("function", [exec, eval, __import__, getattr, open, compile])
def test_builtins_that_run_code_are_refused(function: Any, protocol: int, tmp_path: Path) -> None:
    proof = tmp_path / "ran"
    content = pickle.dumps({"state_dict": {"x": Calls(function, program(proof))}}, protocol)
    with pytest.raises(ModelError, match=rf"\.{function.__name__}`.*not opened"):
        described(content)
    assert not proof.exists()


def test_the_same_pickle_would_have_run(tmp_path: Path) -> None:
    """The proof file of the tests here is a working one."""
    proof = tmp_path / "ran"
    pickle.loads(pickle.dumps(Calls(exec, program(proof))))  # our own pickle: that it runs is the point
    assert proof.exists()


def hostile_opcodes(proof: Path) -> dict[str, bytes]:
    source = text(program(proof))
    evil = b"c__builtin__\nexec\n"
    rebuild = b"ctorch._utils\n_rebuild_from_type_v2\n"
    return {
        "reduce": b"\x80\x02" + evil + source + b"\x85R.",
        "inst": b"\x80\x02(" + source + b"i__builtin__\nexec\n.",
        "obj": b"\x80\x02(" + evil + source + b"o.",
        "newobj": b"\x80\x02" + evil + source + b"\x85\x81.",
        "newobj_ex": b"\x80\x04" + evil + source + b"\x85}\x92.",
        "stack_global": b"\x80\x04" + text("builtins") + text("exec") + b"\x93" + source + b"\x85R.",
        "dotted": b"\x80\x04" + text("collections") + text("OrderedDict.__init__.__globals__") + b"\x93.",
        "framework_function": b"\x80\x02cpytorch_lightning.utilities\nrank_zero_only\n.",
        "framework_dotted": b"\x80\x04" + text("lightning") + text("Os.system") + b"\x93.",
        "torch_hub": b"\x80\x02ctorch.hub\nload\n" + source + b"\x85R.",
        "torch_load": b"\x80\x02ctorch\nload\n" + source + b"\x85R.",
        "torch_utils": b"\x80\x02ctorch._utils\n_import_dotted_name\n" + source + b"\x85R.",
        "jit": b"\x80\x02ctorch.jit\nload\n.",
        "numpy": b"\x80\x02cnumpy.testing._private.utils\nrunstring\n.",
        "through_rebuild": b"\x80\x02" + rebuild + evil + b"N" + source + b"\x85}tR.",
        "callable_from_memo": b"\x80\x02" + evil + b"q\x00h\x00" + source + b"\x85R.",
        "build_after_name": b"\x80\x02" + evil + b"}b.",
        "extension_registry": b"\x80\x02\x82\x01.",
    }


@pytest.mark.parametrize("name", hostile_opcodes(Path("x")))
def test_hostile_opcodes_run_nothing(name: str, tmp_path: Path) -> None:
    proof = tmp_path / "ran"
    modules = set(sys.modules)
    with pytest.raises(ModelError):
        described(hostile_opcodes(proof)[name])
    assert not proof.exists()
    assert set(sys.modules) == modules  # nothing was imported either


def test_the_message_names_file_and_culprit() -> None:
    with pytest.raises(ModelError) as error:
        described(b"\x80\x02cos\nsystem\nX\x02\x00\x00\x00ls\x85R.")
    assert "model.ckpt asks to run `os.system`" in error.value.message
    assert ".safetensors" in error.value.hint


def test_state_for_a_stand_in_changes_nothing() -> None:
    """BUILD may set attributes (`__class__`, `items`, `__setstate__`): here it sets nothing."""
    state = b"}(" + text("items") + text("x") + text("__class__") + text("y") + b"u"
    ordered = b"\x80\x02ccollections\nOrderedDict\n)R" + text("w") + b"K\x01s"
    assert described(ordered + state + b"b.").value == {"w": 1}
    slots = b"N" + state + b"\x86"
    trainer = described(b"\x80\x02cpytorch_lightning\nTrainer\n)R" + slots + b"b.").value
    assert type(trainer) is Opaque
    named = described(b"\x80\x02ctorch\nFloatStorage\n" + slots + b"b.").value
    assert named == pickles.Name("torch.FloatStorage")
    assert "items" not in vars(Opaque)
    assert "items" not in vars(pickles.Name)


def test_settings_of_training_frameworks_are_swallowed() -> None:
    """As in Stable Diffusion 1.4's checkpoint: a dict of callbacks whose keys are classes."""
    callback = b"cpytorch_lightning.callbacks.model_checkpoint\nModelCheckpoint\n"
    scalar = b"cnumpy.core.multiarray\nscalar\ncnumpy\ndtype\nX\x02\x00\x00\x00f8K\x00K\x01\x87RU\x08"
    scalar += struct.pack("<d", 1.5) + b"\x86R"
    content = (
        b"\x80\x02}("
        + (text("callbacks") + b"}" + callback + b"}" + text("best") + scalar + b"ss")
        + (text("object") + callback + b")\x81}" + text("x") + b"K\x01sb")
        + (text("config") + b"comegaconf.dictconfig\nDictConfig\n)\x81")
        + (text("step") + b"K\x05u.")
    )
    value = described(content).value
    assert isinstance(value, dict)
    assert value["callbacks"] == {}
    assert isinstance(value["object"], Opaque)
    assert isinstance(value["config"], Opaque)
    assert value["step"] == 5


STORAGE = b"(" + text("storage") + b"ctorch\nHalfStorage\n" + text("0") + text("cpu") + b"K\x0ctQ"
TENSOR = b"ctorch._utils\n_rebuild_tensor_v2\n(" + STORAGE + b"K\x02K\x02K\x03\x86K\x03K\x01\x86\x89NtR"


def test_a_tensor_is_described() -> None:
    value, storages = described(b"\x80\x02" + TENSOR + b".")
    storage = pickles.StorageReference("0", "F16", 12)
    assert value == pickles.StoredTensor(storage, "F16", 2, (2, 3), (3, 1))
    assert storages == {"0": storage}


def test_a_parameter_is_its_tensor() -> None:
    wrapped = b"\x80\x02ctorch._utils\n_rebuild_parameter\n" + TENSOR + b"\x88}\x87R."
    assert described(wrapped).value == described(b"\x80\x02" + TENSOR + b".").value


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x80\x02",
        b"\x80\x02.",
        b"\x80\x02N",
        b"\x80\x02R.",
        b"\x80\x02NNR.",
        b"\x80\x02h\x05.",
        b"\x80\x02tu.",
        b"\x80\x02}NNNe.",
        b"\x80\x02X\xff\xff\xff\x7fabc.",
        b"\x80\x05\x96" + b"\xff" * 7 + b"\x7fabc.",
        b"\x80\x02X\x01\x00\x00\x00\xff.",
        b"\xff\xfe",
        b"\x80\x02" + TENSOR.replace(b"storage", b"modules") + b".",
        b"\x80\x02" + TENSOR.replace(b"HalfStorage\n", b"Size\n") + b".",
        b"\x80\x02" + TENSOR.replace(b"K\x02K\x02K\x03", b"J\xff\xff\xff\xffK\x02K\x03") + b".",
        b"\x80\x02" + TENSOR.replace(b"K\x03K\x01\x86", b"K\x03\x85") + b".",
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n)R.",
        b"\x80\x02Pstorage\n.",
    ],
)
def test_damaged_pickles_are_refused_in_words(content: bytes) -> None:
    with pytest.raises(ModelError, match=r"model\.ckpt is damaged"):
        described(content)


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x02" + b"(" * 500_000 + b".",
        b"\x80\x02)" + b"\x85" * 500_000 + b".",
        b"\x80\x02}" + b")" + b"\x85" * 500_000 + b"Ns.",  # hashing this key would crash Python
        b"\x80\x02" + b"]" * 200_000 + b"a" * 199_999 + b".",
        b"\x80\x02Nr\xff\xff\xff\x7f.",  # a memo of 2 billion places
    ],
    ids=["marks", "nested tuples", "nested key", "nested lists", "memo"],
)
def test_bombs_fizzle(content: bytes) -> None:
    """Each takes seconds at most and little memory, and Python survives it."""
    with contextlib.suppress(ModelError):
        described(content)


def test_endless_calls_end_in_words() -> None:
    """`_rebuild_from_type_v2` of itself, 20,000 deep: deeper than Python's own limit."""
    rebuild = b"ctorch._tensor\n_rebuild_from_type_v2\nq\x00"
    arguments = b")" + b"".join([b"q\x01h\x00Nh\x01\x87"] * 20_000)
    with pytest.raises(ModelError, match="RecursionError"):
        described(b"\x80\x02" + rebuild + b"0" + arguments + b"q\x01h\x00h\x01R.")


def test_too_many_operations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pickles, "MAX_OPERATIONS", 1000)
    with pytest.raises(ModelError, match="1,000 operations"):
        described(b"\x80\x02" + b"]0" * 600 + b"N.")


def test_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pickles, "MAX_PICKLE_BYTES", 1000)
    with pytest.raises(ModelError, match="only 1,000 bytes"):
        described(b"\x80\x02" + text("x" * 2000) + b".")
