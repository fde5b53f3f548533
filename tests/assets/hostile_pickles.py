"""Pickles that want to run something, or to take all memory or time: written opcode by opcode, never run here.

`programs(sentinel)` are those that would leave a file at `sentinel` or end the process; `bombs()` those that would not
end. `packed` puts a pickle where checkpoints have theirs.
"""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

Build = Callable[[str, str, bytes], bytes]
"""Module, attribute and the pickled argument -> opcodes that would call it and leave the result on the stack."""


def text(value: str) -> bytes:
    raw = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(raw)) + raw


def name(module: str, attribute: str) -> bytes:
    return f"c{module}\n{attribute}\n".encode()


_WAYS: dict[str, Build] = {
    "GLOBAL REDUCE": lambda m, a, arg: name(m, a) + arg + b"\x85R",
    "STACK_GLOBAL REDUCE": lambda m, a, arg: text(m) + text(a) + b"\x93" + arg + b"\x85R",
    "STACK_GLOBAL from the memo": lambda m, a, arg: (
        text(m) + b"q\x01" + text(a) + b"q\x0200h\x01h\x02\x93" + arg + b"\x85R"
    ),
    "INST": lambda m, a, arg: b"(" + arg + f"i{m}\n{a}\n".encode(),
    "OBJ": lambda m, a, arg: b"(" + name(m, a) + arg + b"o",
    "NEWOBJ": lambda m, a, arg: name(m, a) + arg + b"\x85\x81",
    "NEWOBJ_EX": lambda m, a, arg: name(m, a) + arg + b"\x85}\x92",
    "BUILD __setstate__": lambda m, a, arg: (
        b"ctorch\nSize\n)R}" + text("__setstate__") + name(m, a) + b"sb" + arg + b"b"
    ),
    "BUILD of attributes": lambda m, a, arg: b"cargparse\nNamespace\n)R}" + text("x") + name(m, a) + arg + b"\x85Rsb",
    "EXT1": lambda m, a, arg: b"\x82\x01" + arg + b"\x85R",
    "EXT2": lambda m, a, arg: b"\x83\x01\x01" + arg + b"\x85R",
    "EXT4": lambda m, a, arg: b"\x84\x01\x00\x00\x01" + arg + b"\x85R",
    "PERSID": lambda m, a, arg: f"P{m}.{a}\n".encode(),
    "BINPERSID": lambda m, a, arg: name(m, a) + arg + b"\x85RQ",
    "dotted name": lambda m, a, arg: b"\x8c\x05torch\x8c" + _short(f"storage.{m}.{a}") + b"\x93" + arg + b"\x85R",
    "dotted name in a framework": lambda m, a, arg: (
        text("pytorch_lightning.Trainer") + text(f"X.{m}.{a}") + b"\x93" + arg + b"\x85R"
    ),
    "rebuilt from a type": lambda m, a, arg: (
        name("torch._tensor", "_rebuild_from_type_v2") + b"(" + name(m, a) + b"N" + arg + b"\x85NtR"
    ),
    "a mapping's factory": lambda m, a, arg: (
        name("collections", "defaultdict") + name(m, a) + b"\x85R" + text("k") + arg + b"s"
    ),
    "a key of a dict": lambda m, a, arg: b"}" + name(m, a) + arg + b"\x85RNs",
    "in a storage": lambda m, a, arg: b"(" + text("storage") + name(m, a) + text("0") + text("cpu") + b"K\x01tQ",
    "after the end": lambda m, a, arg: b"N.\x80\x02" + name(m, a) + arg + b"\x85R",
}


def _short(value: str) -> bytes:
    raw = value.encode()
    return bytes([len(raw)]) + raw


_CALLS = (
    *(("os", "system"), ("posix", "system"), ("nt", "system"), ("subprocess", "Popen"), ("subprocess", "check_output")),
    *(("builtins", "eval"), ("builtins", "exec"), ("__builtin__", "eval"), ("builtins", "__import__")),
    *(("builtins", "getattr"), ("builtins", "open"), ("io", "open"), ("os", "execv"), ("pty", "spawn")),
    *(("runpy", "run_path"), ("importlib", "import_module"), ("socket", "create_connection"), ("os", "remove")),
    *(("shutil", "rmtree"), ("webbrowser", "open"), ("ctypes", "CDLL"), ("code", "interact"), ("pdb", "run")),
    *(("pickle", "loads"), ("torch", "load"), ("torch.hub", "load"), ("torch.jit", "load"), ("torch", "compile")),
    *(("numpy", "load"), ("numpy.f2py.crackfortran", "_eval_length"), ("timeit", "timeit"), ("cProfile", "run")),
    *(("operator", "attrgetter"), ("functools", "partial"), ("types", "CodeType"), ("marshal", "loads")),
    *(("pathlib", "Path.unlink"), ("bdb", "Bdb"), ("asyncio", "run"), ("pip", "main"), ("sys", "exit")),
    *(("pytorch_lightning", "seed_everything"), ("omegaconf", "os.system"), ("torch.storage", "os.system")),
    *(("typing", "Any.os"), ("torch", "Size.__class__"), ("torch.utils.collect_env", "run")),
)


def programs(sentinel: Path) -> Iterator[tuple[str, bytes]]:
    """What it does and how, and the pickle."""
    arguments = {
        "eval": f"open({str(sentinel)!r}, 'w').close()",
        "exec": f"open({str(sentinel)!r}, 'w').close()",
        "system": f"touch '{sentinel}'",
    }
    for module, attribute in _CALLS:
        argument = text(arguments.get(attribute, str(sentinel)))
        for way, build in _WAYS.items():
            for protocol in (b"\x80\x02", b"\x80\x04", b""):
                yield (
                    f"{module}.{attribute} by {way}{protocol[1:].hex()}",
                    protocol + build(module, attribute, argument),
                )


TENSOR = (
    name("torch._utils", "_rebuild_tensor_v2")
    + b"("
    + b"("
    + text("storage")
    + name("torch", "FloatStorage")
    + text("0")
    + text("cpu")
    + b"K\x01tQK\x00K\x01\x85K\x01\x85\x89}tR"
)
"""One number, in the storage "0"."""


def state_dict(more: bytes = b"") -> bytes:
    """Opcodes of a checkpoint with one tensor; what `more` leaves on the stack is another value in it."""
    return b"}" + text("weight") + TENSOR + b"s" + (text("x") + more + b"s" if more else b"")


def bombs() -> Iterator[tuple[str, bytes]]:
    laughs = b"]q\x00" + b"".join(
        b"]q" + bytes([n + 1]) + b"h" + bytes([n]) + b"ah" + bytes([n]) + b"a" for n in range(90)
    )
    laughing = laughs + b"0" * 90
    tuples = b")" + b"2\x86" * 100_000
    yield "lists of lists, doubled", b"\x80\x02" + laughs + b"h\x5a."
    yield "tuples of tuples, doubled", b"\x80\x02" + tuples + b"."
    key = laughing + b"0(" + text("storage") + name("torch", "FloatStorage") + b"h\x5a" + text("cpu") + b"K\x01tQ"
    yield "a storage called by doubled lists", b"\x80\x02" + key + b"."
    called = b")" + b"2\x86" * 60 + b"q\x01"
    yield (
        "a storage called by doubled tuples",
        (
            b"\x80\x02"
            + called
            + b"0("
            + text("storage")
            + name("torch", "FloatStorage")
            + b"h\x01"
            + text("cpu")
            + b"K\x01tQ."
        ),
    )
    size = name("torch", "Size") + b"q\x01"
    long = b"(" + b"N" * 400_000 + b"tq\x02"
    yield "a long tuple, given again and again", b"\x80\x02" + size + long + b"h\x01h\x02R0" * 200_000 + b"."
    yield (
        "a long text, given again and again",
        (b"\x80\x02" + size + text("x" * 2_000_000) + b"q\x02" + b"h\x01h\x02R0" * 200_000 + b"."),
    )
    yield (
        "a long name, called again and again",
        (
            b"\x80\x02"
            + text("omegaconf" + ".x" * 500_000)
            + b"q\x01"
            + text("X")
            + b"q\x02"
            + b"h\x01h\x02\x930" * 200_000
            + b"."
        ),
    )
    yield "a long reference, again and again", b"\x80\x02" + long + b"h\x02Q0" * 200_000 + b"."
    yield "a number of a million digits", b"\x80\x02I" + b"9" * 1_000_000 + b"\n."
    yield "a long number of a million digits", b"\x80\x02L" + b"9" * 1_000_000 + b"L\n."
    yield (
        "a key of a million digits",
        (
            b"\x80\x02("
            + text("storage")
            + name("torch", "FloatStorage")
            + b"\x8b"
            + struct.pack("<i", 500_000)
            + b"\x7f" * 500_000
            + text("cpu")
            + b"K\x01tQ."
        ),
    )
    yield "as many lists as there may be", b"\x80\x02" + b"]" * 1_999_990 + b"."
    yield "as many dicts as there may be, in the memo", b"\x80\x04" + b"}\x94" * 999_990 + b"."
    yield "a text of four gigabytes", b"\x80\x02X\xff\xff\xff\xffabc."
    yield "bytes without end", b"\x80\x04\x8e" + b"\xff" * 8 + b"abc."
    yield "a bytearray without end", b"\x80\x05\x96" + b"\xff" * 7 + b"\x7f."
    yield "a negative length", b"\x80\x02\x8b\xff\xff\xff\xff."
    yield (
        "a text of many wide letters",
        b"\x80\x02" + b"".join(text("x" * 1000 + "\U0001f642") + b"0" for _ in range(20_000)) + b"N.",
    )
    yield "a list in itself", b"\x80\x02]q\x00h\x00a."
    yield (
        "calls of calls",
        (
            b"\x80\x02"
            + name("torch._tensor", "_rebuild_from_type_v2")
            + b"q\x000)"
            + b"q\x01h\x00Nh\x01\x87" * 20_000
            + b"h\x00h\x01R."
        ),
    )
    yield "marks", b"\x80\x02" + b"(" * 1_000_000 + b"."


PLACES = ("zip", "legacy", "bare")


def packed(pickled: bytes, place: str) -> bytes:
    """A file with this pickle as its list of tensors."""
    if place == "bare":
        return pickled
    if place == "legacy":
        head = b"".join(pickle.dumps(value, 2) for value in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}))
        return head + pickled + pickle.dumps(["0"], 2) + struct.pack("<q", 1) + bytes(4)
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("model/data.pkl", pickled)
        archive.writestr("model/data/0", bytes(4))
        archive.writestr("model/byteorder", "little")
    return stream.getvalue()


def valid(place: str) -> bytes:
    """A checkpoint of one tensor."""
    return packed(b"\x80\x02" + state_dict() + b".", place)
