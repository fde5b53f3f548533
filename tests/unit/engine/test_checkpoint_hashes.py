"""The hashes that states keep of base model and VAE: all of them or none, and compared as far as they are known."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from lora_train.core.hash_cache import HashCache
from lora_train.core.tensorfiles import file_sha256
from lora_train.engine import checkpoint_hashes
from lora_train.engine.checkpoint_hashes import CheckpointHashes, are_others


def written(path: Path) -> Path:
    path.write_text(path.name, encoding="utf-8")
    return path


def known(checkpoint: Path, vae: Path | None) -> tuple[str, ...]:
    hashes = CheckpointHashes(checkpoint, vae, HashCache(None), lambda *_: None)
    hashes.start()
    return hashes.wait()


def test_each_has_its_place(tmp_path: Path) -> None:
    base, vae = written(tmp_path / "base"), written(tmp_path / "vae")
    assert known(base, vae) == (file_sha256(base), file_sha256(vae))
    assert known(base, None) == (file_sha256(base), "")
    assert known(tmp_path, vae) == ("", file_sha256(vae))
    assert known(tmp_path, None) == ("", "")


@pytest.mark.parametrize("locked", ["base", "vae"])
def test_nothing_is_known_where_a_file_can_not_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, locked: str
) -> None:
    def refusing(path: Path) -> str:
        if path.name == locked:
            raise PermissionError(13, "Permission denied", str(path))
        return file_sha256(path)

    monkeypatch.setattr(checkpoint_hashes, "file_sha256", refusing)
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    assert known(written(tmp_path / "base"), written(tmp_path / "vae")) == ()


@pytest.mark.parametrize(
    ("before", "now", "expected"),
    [
        (("a", "b"), ("a", "b"), False),
        (("a", "b"), ("x", "b"), True),
        (("a", "b"), ("a", "x"), True),
        (("a", "b"), (), False),
        (("", "b"), ("", "x"), True),
        (("", ""), ("a", "b"), False),
        ((), ("a", "b"), False),
        # as an earlier release kept them: of the base model alone, or of the VAE beside a folder
        (("a",), ("a", ""), False),
        (("a",), ("a", "b"), False),
        (("a",), ("x", "b"), True),
        (("b",), ("", "b"), False),
        (("b",), ("", "x"), True),
        (("a",), (), False),
    ],
)
def test_what_is_known_both_times_is_compared(before: tuple[str, ...], now: tuple[str, ...], expected: bool) -> None:
    assert are_others(before, now) is expected
