"""Checkpoints with hostile pickles: none runs anything, none takes all memory or time, each is told in words."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest

from lora_train.core.errors import ModelError
from lora_train.core.inspection import describe, inspect_file
from lora_train.core.tensorfiles import read_tensor_file

_READER = Path(__file__).parents[1] / "assets" / "watched_reader.py"


def watched(folder: Path, hostile_pickles: Any) -> dict[str, Any]:
    """Has the files of a folder read by a process of its own, which must do nothing beside reading them.

    Gives how many there were, and how many of them were refused.
    """
    warm_up = {
        "warm-up.ckpt": hostile_pickles.valid("zip"),
        "warm-up-damaged.ckpt": hostile_pickles.packed(b"\x80\x02", "zip"),
        "warm-up-text.ckpt": hostile_pickles.packed(
            b"\x80\x02Vabc\n.", "zip"
        ),  # Python imports this codec at its first use
        "warm-up-legacy.ckpt": hostile_pickles.valid("legacy"),
    }
    for name, content in warm_up.items():
        (folder / name).write_bytes(content)
    done = subprocess.run(
        [sys.executable, str(_READER), str(folder)],
        stdout=subprocess.PIPE,
        env={"PYTHONPATH": str(Path(__file__).parents[2]), "PATH": "/usr/bin:/bin"},
        check=True,
        timeout=600,
    )
    told = json.loads(done.stdout)
    assert told["found"] == {}
    assert told["new"] == [], "a file made it import something"
    return {"files": told["files"] - len(warm_up), "refused": told["refused"] - 2}


def test_the_watch_hears_what_is_done(tmp_path: Path, hostile_pickles: Any) -> None:
    """The same hook, while Python's own unpickler has such a file: else silence would prove nothing."""
    programs = dict(hostile_pickles.programs(tmp_path / "sentinel"))
    script = (
        "import pickle, sys; sys.argv.append('.');"
        "from watched_reader import *; import watched_reader as w;"
        "sys.addaudithook(w.note); w.is_watching = True; pickle.loads(bytes.fromhex(sys.argv[1]));"
        "w.is_watching = False; print(json.dumps(w.noted))"
    )
    for what, heard in (
        ("posix.system by GLOBAL REDUCE02", "os.system"),
        ("builtins.eval by STACK_GLOBAL REDUCE04", "open for writing"),
        ("posix.system by INST", "os.system"),
        ("posix.system by OBJ02", "os.system"),
    ):
        done = subprocess.run(
            [sys.executable, "-c", script, programs[what].hex() + b".".hex()],
            stdout=subprocess.PIPE,
            env={"PYTHONPATH": f"{_READER.parent}:{Path(__file__).parents[2]}", "PATH": "/usr/bin:/bin"},
            check=True,
        )
        assert heard in done.stdout.decode()
        assert (tmp_path / "sentinel").exists(), f"{what} is no program at all"
        (tmp_path / "sentinel").unlink()


@pytest.mark.parametrize("place", ["zip", "legacy", "bare"])
def test_no_program_is_run(
    tmp_path: Path, hostile_pickles: Any, share: Callable[[int], int], count: Callable[[str, int], None], place: str
) -> None:
    sentinel, folder = tmp_path / "sentinel", tmp_path / "files"
    folder.mkdir()
    all_programs = [*hostile_pickles.programs(sentinel)]
    chosen = Random(f"programs {place}").sample(all_programs, share(len(all_programs)))
    for number, (_, program) in enumerate(chosen):
        begin, end = (program[:2], program[2:]) if program[:1] == b"\x80" else (b"", program)
        for how, pickled in (("alone", program + b"."), ("beside", begin + hostile_pickles.state_dict(end) + b".")):
            (folder / f"{number:05d}-{how}.ckpt").write_bytes(hostile_pickles.packed(pickled, place))
    told = watched(folder, hostile_pickles)
    assert not sentinel.exists()
    harmless = told["files"] - told["refused"]
    assert harmless < told["files"] / 10, "most want what is refused by its name"
    count("cases", told["files"])
    count("refused", told["refused"])
    count("watched", told["files"])


def look_at(path: Path) -> None:
    describe(inspect_file(path)).encode("utf-8")


def test_bombs(tmp_path: Path, guard: Any, share: Callable[[int], int], hostile_pickles: Any) -> None:
    """Their memory is measured in test_fuzz_bombs.py."""
    path = tmp_path / "model.ckpt"
    for number, (_, pickled) in enumerate(hostile_pickles.bombs()):
        if number % 2 and share(10) < 10:
            continue
        path.write_bytes(hostile_pickles.packed(pickled, "zip"))
        assert isinstance(guard(look_at, path), ModelError)


@pytest.mark.parametrize("place", ["zip", "legacy"])
@pytest.mark.parametrize("seed", range(2))
def test_damaged_checkpoints(
    tmp_path: Path,
    guard: Any,
    share: Callable[[int], int],
    count: Callable[[str, int], None],
    damaged: Callable[[bytes, Random], bytes],
    hostile_pickles: Any,
    place: str,
    seed: int,
) -> None:
    random, whole = Random(f"{place} {seed}"), hostile_pickles.valid(place)
    pickled = b"\x80\x02" + hostile_pickles.state_dict() + b"."
    for number in range(share(5_000)):
        path = tmp_path / f"{number:05d}.ckpt"
        if random.random() < 0.6:
            path.write_bytes(hostile_pickles.packed(damaged(pickled, random), place))
        else:
            path.write_bytes(damaged(whole, random))
        guard(look_at, path)
    assert 0 < guard.refused < guard.cases
    told = watched(tmp_path, hostile_pickles)
    assert told == {"files": guard.cases, "refused": guard.refused}
    count("watched", told["files"])


@pytest.mark.parametrize("seed", range(2))
def test_pickles_of_drawn_operations(
    tmp_path: Path,
    guard: Any,
    share: Callable[[int], int],
    count: Callable[[str, int], None],
    hostile_pickles: Any,
    odd: Any,
    seed: int,
) -> None:
    """Any opcode after any other, with arguments that mean something to it often enough to get on."""
    random = Random(f"operations {seed}")
    pieces = [
        *(
            b"(",
            b")",
            b"]",
            b"}",
            b"N",
            b"0",
            b"1",
            b"2",
            b"R",
            b"\x81",
            b"\x92",
            b"b",
            b"o",
            b"Q",
            b"s",
            b"u",
            b"a",
            b"e",
        ),
        *(b"t", b"\x85", b"\x86", b"\x87", b"l", b"d", b"\x8f", b"\x90", b"\x91", b"\x93", b"\x94", b"\x95" + bytes(8)),
        *(
            b"K\x01",
            b"J\xff\xff\xff\xff",
            b"I12\n",
            b"L5L\n",
            b"F1.5\n",
            b"G" + b"\x7f\xf8" + bytes(6),
            b"h\x00",
            b"q\x00",
        ),
        *(
            b"r\xff\xff\xff\xff",
            b"j\x00\x00\x00\x00",
            b"p3\n",
            b"g3\n",
            b"g-1\n",
            b"\x88",
            b"\x89",
            b"\x8a\x01\x05",
            b".",
        ),
        *(b"\x97", b"\x98", b"\x82\x01", b"P0\n", b"Vabc\n", b"S'x'\n", b"T\x01\x00\x00\x00x", b"U\x01x", b"C\x01x"),
        hostile_pickles.name("torch._utils", "_rebuild_tensor_v2"),
        hostile_pickles.name("torch", "FloatStorage"),
        hostile_pickles.name("collections", "OrderedDict"),
        hostile_pickles.name("torch._tensor", "_rebuild_from_type_v2"),
        hostile_pickles.text("storage"),
        hostile_pickles.TENSOR,
        hostile_pickles.state_dict(),
    ]
    for number in range(share(8_000)):
        body = b"".join(random.choices(pieces, k=random.randrange(1, 25)))
        if random.random() < 0.2:
            body += hostile_pickles.text(odd.odd_text(random)) + hostile_pickles.TENSOR + b"s"
        begin = b"" if random.random() < 0.3 else hostile_pickles.state_dict()
        place = random.choice(hostile_pickles.PLACES)
        path = tmp_path / f"{number:05d}.ckpt"
        path.write_bytes(hostile_pickles.packed(b"\x80\x04" + begin + body + b".", place))
        guard(look_at, path)
    told = watched(tmp_path, hostile_pickles)
    assert told == {"files": guard.cases, "refused": guard.refused}
    count("watched", told["files"])


def test_a_second_pickle_that_pytorch_might_take_is_refused(tmp_path: Path, hostile_pickles: Any) -> None:
    """PyTorch's zip reader takes no notice of letter case, and of two of a name it takes another one than zipfile."""
    for second in ("model/data.pkl", "model/DATA.PKL", "MODEL/data.pkl"):
        stream = io.BytesIO(hostile_pickles.valid("zip"))
        with zipfile.ZipFile(stream, "a") as archive, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of zipfile, about the name
            archive.writestr(second, b"cos\nsystem\n(S'x'\ntR.")
        (tmp_path / "model.ckpt").write_bytes(stream.getvalue())
        with pytest.raises(ModelError, match=r"same name|no checkpoint"):
            read_tensor_file(tmp_path / "model.ckpt")


def test_a_tar_archive_in_a_pickle_is_refused(tmp_path: Path, hostile_pickles: Any) -> None:
    """PyTorch looks for a tar first; its header fits into the beginning of a valid older checkpoint."""
    head = bytearray(512)
    head[: len(hostile_pickles.valid("legacy")[:60])] = hostile_pickles.valid("legacy")[:60]
    head[100:108], head[124:136], head[156:157] = b"0000644\0", b"00000000000\0", b"0"
    head[148:156] = b" " * 8
    head[148:156] = b"%06o\0 " % sum(head)
    (tmp_path / "model.ckpt").write_bytes(bytes(head) + bytes(1024))
    with pytest.raises(ModelError, match="tar archive"):
        read_tensor_file(tmp_path / "model.ckpt")
