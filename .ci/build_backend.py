"""setuptools' build backend, whose files are the same bytes each time: wherever, whenever and under whatever umask the
same source is built with the same setuptools and Python.

setuptools alone writes the time of the build into an sdist, the modes of the checkout's files into both, and packs what
an earlier build has left in `build`.
"""

from __future__ import annotations

import gzip
import os
import shutil
import tarfile
import zipfile
from pathlib import Path
from typing import Any

from setuptools import build_meta
from setuptools.build_meta import (  # the hooks that pack nothing
    build_editable,
    get_requires_for_build_editable,
    get_requires_for_build_sdist,
    get_requires_for_build_wheel,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
    "prepare_metadata_for_build_editable",
    "prepare_metadata_for_build_wheel",
]

_TIME_S = 315_532_800
"""1980-01-01, the first second that a zip can tell."""


def build_sdist(sdist_directory: str, config_settings: Any = None) -> str:
    _forget_earlier_builds()
    name = build_meta.build_sdist(sdist_directory, config_settings)
    path = Path(sdist_directory, name)
    new = path.with_suffix(".new")
    with tarfile.open(path) as packed, new.open("wb") as stream, gzip.GzipFile("", "wb", 9, stream, mtime=0) as zipped:
        members = [member for member in packed.getmembers() if member.isfile()]
        with tarfile.open(fileobj=zipped, mode="w", format=tarfile.PAX_FORMAT) as target:
            for member in sorted(members, key=lambda member: member.name):
                plain = tarfile.TarInfo(member.name)
                plain.size, plain.mtime, plain.mode = member.size, _TIME_S, _mode(member.mode)
                target.addfile(plain, packed.extractfile(member))
    new.replace(path)
    return name


def build_wheel(wheel_directory: str, config_settings: Any = None, metadata_directory: str | None = None) -> str:
    _forget_earlier_builds()
    os.environ.setdefault("SOURCE_DATE_EPOCH", str(_TIME_S))
    name = build_meta.build_wheel(wheel_directory, config_settings, metadata_directory)
    path = Path(wheel_directory, name)
    with zipfile.ZipFile(path) as packed, zipfile.ZipFile(path.with_suffix(".new"), "w") as target:
        for member in packed.infolist():
            plain = zipfile.ZipInfo(member.filename)
            plain.compress_type, plain.external_attr = (
                zipfile.ZIP_DEFLATED,
                (0o100000 | _mode(member.external_attr >> 16)) << 16,
            )
            target.writestr(plain, packed.read(member))
    path.with_suffix(".new").replace(path)
    return name


def _mode(mode: int) -> int:
    return 0o755 if mode & 0o100 else 0o644


def _forget_earlier_builds() -> None:
    """What they left would be packed too: files that were deleted since, and an older list of files."""
    shutil.rmtree("build", ignore_errors=True)
    Path("train_tools.egg-info", "SOURCES.txt").unlink(missing_ok=True)
