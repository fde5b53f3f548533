"""Zip archives of pictures: looked at before anything is unpacked, and unpacked without trusting what they tell.

An archive that tries to lead out of its folder, or is larger than it should be, is refused as a whole: nothing of it
is kept. A single entry that can't be read is told, and left out.
"""

from __future__ import annotations

import stat
import struct
import unicodedata
import zipfile
import zlib
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from lora_train.core.errors import DatasetError, shown
from lora_train.data.captions import CAPTION_SUFFIXES, decode_text
from lora_train.data.images import PICTURE_SUFFIXES

MOST_ENTRIES = 5_000
LARGEST_ENTRY_BYTES = 256 * 2**20
"""Of one picture or caption, unpacked."""
LARGEST_TOTAL_BYTES = 4 * 2**30
"""Of everything, unpacked."""
_UNSUSPICIOUS_BYTES = 256 * 2**20
_MOST_TIMES = 100
"""What unpacks to more than that, and to so many times its own size, is no archive of pictures: even plain ones hardly
get smaller. Four gigabytes of zeros fit into four megabytes."""

_BEGINNINGS = (b"PK\x03\x04", b"PK\x05\x06", b"PK\x07\x08")
_DIRECTORY_ENTRY = b"PK\x01\x02"
_READ_BYTES = 2**20
_UTF_8_FLAG = 0x800
_ENCRYPTED_FLAGS = 0x41
_UNICODE_PATH = 0x7075
"""Extra field of Info-ZIP: the name in UTF-8, with a checksum of the one that it stands for."""

# zipfile has an error of its own only for some kinds of damage.
_DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, ValueError, LookupError, struct.error, NotImplementedError)


class _Entry(NamedTuple):
    info: zipfile.ZipInfo
    name: str
    """Decoded, with forward slashes."""


def is_archive(path: Path) -> bool:
    """Whether the file begins as a zip does, whatever it is called. Raises OSError when it can't be read."""
    with path.open("rb") as file:
        return file.read(4) in _BEGINNINGS


def is_hidden(name: str) -> bool:
    """Whether a path (with forward slashes) leads to what a system hides or adds by itself, and nobody misses."""
    parts = name.split("/")
    return any(part.startswith((".", "__MACOSX")) for part in parts) or parts[-1].lower() in (
        "thumbs.db",
        "desktop.ini",
    )


def unpack(archive: Path, told: str, folder: Path) -> tuple[list[tuple[str, Path]], list[str]]:
    """Unpack the pictures and captions of a zip into `folder`, under numbers.

    Returns (name in the archive with forward slashes, file) for each, and a sentence for everything left out. `told`
    is what the archive is called in sentences. Raises DatasetError for an archive that is damaged, encrypted, too
    large, or has an entry that leads out of it; OSError when `folder` can't be written.
    """
    try:
        if _count(archive, _DIRECTORY_ENTRY) > MOST_ENTRIES:  # before its directory is read: it may be made to burst
            raise _refused(told, f"it has more than {MOST_ENTRIES} entries")
        with zipfile.ZipFile(archive) as file:
            entries = _entries(file)
            for entry in entries:
                _require_harmless(entry, told)
            room_bytes = min(LARGEST_TOTAL_BYTES, max(_UNSUSPICIOUS_BYTES, _MOST_TIMES * archive.stat().st_size))
            if sum(entry.info.file_size for entry in entries) > room_bytes:
                raise _too_large(told, room_bytes)
            folder.mkdir()
            return _unpack_all(file, entries, told, folder, room_bytes)
    except _DAMAGED as error:
        raise _refused(told, f"it is damaged or cut short ({shown(error)})") from None


def _unpack_all(
    file: zipfile.ZipFile, entries: list[_Entry], told: str, folder: Path, room_bytes: int
) -> tuple[list[tuple[str, Path]], list[str]]:
    unpacked: list[tuple[str, Path]] = []
    problems: list[str] = []
    left_bytes = room_bytes
    for number, (info, name) in enumerate(entries):
        if is_hidden(name) or name.endswith("/"):
            continue
        path = folder / str(number)
        why = _why_unusable(info, name) or _unpack_one(file, info, path, left_bytes)
        if path.exists():
            left_bytes -= path.stat().st_size
            if left_bytes < 0:
                raise _too_large(told, room_bytes)
        if why:
            path.unlink(missing_ok=True)
            problems.append(f"{shown(name)} in {told} can't be used: {why}.")
        else:
            unpacked.append((name, path))
    return unpacked, problems


def _why_unusable(info: zipfile.ZipInfo, name: str) -> str:
    """Told by its name and its header; empty where it is worth unpacking."""
    suffix = PurePosixPath(name).suffix.lower()
    if suffix and suffix not in PICTURE_SUFFIXES.union(CAPTION_SUFFIXES):
        return "an archive in an archive is not opened" if suffix == ".zip" else "it is neither a picture nor a caption"
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return "it is compressed in an unusual way; pack it in the usual one (Deflate)"
    return ""


def _unpack_one(file: zipfile.ZipFile, info: zipfile.ZipInfo, path: Path, left_bytes: int) -> str:
    """Write an entry to `path`, never more than a block beyond the limits; why it can't be used, or nothing.

    What is read is counted: the size in an entry's header is whatever somebody wrote there.
    """
    read_bytes = 0
    try:
        with file.open(info) as source, path.open("xb") as target:
            while block := source.read(_READ_BYTES):
                if read_bytes == 0 and block.startswith(_BEGINNINGS):
                    return "an archive in an archive is not opened"
                target.write(block)
                read_bytes += len(block)
                if read_bytes > LARGEST_ENTRY_BYTES:
                    return f"the limit of one file is {LARGEST_ENTRY_BYTES / 2**20:g} MB"
                if read_bytes > left_bytes:
                    return "the archive is too large"
    except _DAMAGED as error:
        return f"it is damaged ({shown(error)})"
    return ""


def _entries(file: zipfile.ZipFile) -> list[_Entry]:
    """What is in the archive, with names as their writers meant them.

    Without the UTF-8 flag a name is in the code page of some Windows (Shift-JIS in Japan, GBK in China) or in UTF-8 all
    the same (macOS); the format's own cp437 is what is left.
    """
    infos = file.infolist()
    raw_names = [info.orig_filename.encode("utf-8" if info.flag_bits & _UTF_8_FLAG else "cp437") for info in infos]
    unmarked = b"\n".join(
        raw.replace(b"\n", b"_") for raw, info in zip(raw_names, infos, strict=True) if not _is_utf_8(info)
    )
    encoding = _encoding_of(unmarked)
    names = [
        _unicode_path(info, raw) or raw.decode("utf-8" if _is_utf_8(info) else encoding, errors="replace")
        for info, raw in zip(infos, raw_names, strict=True)
    ]
    return [
        _Entry(info, unicodedata.normalize("NFC", name).replace("\\", "/"))
        for info, name in zip(infos, names, strict=True)
    ]


def _is_utf_8(info: zipfile.ZipInfo) -> bool:
    return bool(info.flag_bits & _UTF_8_FLAG)


def _encoding_of(names: bytes) -> str:
    """The encoding in which these names are what `decode_text` makes of them."""
    text = decode_text(names)
    for encoding in ("utf-8", "cp932", "gb18030"):
        try:
            if names.decode(encoding) == text:
                return encoding
        except UnicodeDecodeError:
            continue
    return "cp437"


def _unicode_path(info: zipfile.ZipInfo, raw_name: bytes) -> str:
    """The name in Info-ZIP's extra field, if there is one and it is of this very name."""
    extra = info.extra
    while len(extra) >= 4:
        kind, size_bytes = struct.unpack_from("<HH", extra)
        content, extra = extra[4 : 4 + size_bytes], extra[4 + size_bytes :]
        if kind == _UNICODE_PATH and len(content) > 5 and content[1:5] == struct.pack("<I", zlib.crc32(raw_name)):
            return content[5:].decode("utf-8", errors="replace")
    return ""


def _require_harmless(entry: _Entry, told: str) -> None:
    """Raise DatasetError for an entry that no archive of pictures has."""
    info, name = entry
    quoted = repr(shown(name))
    if name.startswith("/") or "\x00" in name or ".." in name.split("/"):
        raise _refused(told, f"its entry {quoted} leads out of it")
    if name[1:2] == ":":
        raise _refused(told, f"its entry {quoted} names a drive")
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise _refused(told, f"its entry {quoted} is a link or a device, no file")
    if info.flag_bits & _ENCRYPTED_FLAGS:
        raise _refused(told, "it is encrypted", "Unpack it, and add the pictures.")


def _count(path: Path, mark: bytes) -> int:
    """How often some bytes stand in a file; a mark that lies across two blocks counts too."""
    count, before = 0, b""
    with path.open("rb") as file:
        while block := file.read(_READ_BYTES):
            count += (before + block).count(mark)
            before = block[1 - len(mark) :]
    return count


def _too_large(told: str, limit_bytes: int) -> DatasetError:
    for_this = "" if limit_bytes == LARGEST_TOTAL_BYTES else " for an archive of its size"
    return _refused(told, f"it is too large: the limit{for_this} is {limit_bytes / 2**30:g} GB, unpacked")


def _refused(told: str, reason: str, hint: str = "Nothing of it was added.") -> DatasetError:
    return DatasetError(f"{told} can't be used: {reason}.", hint)
