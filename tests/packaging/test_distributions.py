"""Wheel and sdist: the same bytes from the same source, the assets in them and nothing else."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from lora_train import __version__

REPOSITORY = Path(__file__).parents[2]
SOURCES = (
    *(".ci/build_backend.py", "LICENSE", "MANIFEST.in", "NOTICE", "README.md", "pyproject.toml", "style.css"),
    *("javascript/train_tools.js", "localizations/ja_JP.json", "localizations/zh_CN.json"),
)
MADE = {"PKG-INFO", "setup.cfg"} | {
    f"train_tools.egg-info/{name}"
    for name in ("PKG-INFO", "SOURCES.txt", "dependency_links.txt", "entry_points.txt", "requires.txt", "top_level.txt")
}
DEMO = "lora_train/assets/demo"
ASSETS = {
    *(f"lora_train/assets/clip_vocabulary/{name}" for name in ("merges.txt", "vocab.json")),
    *(f"lora_train/assets/font/{name}" for name in ("OFL.txt", "unifont.woff", "unifont_upper.woff")),
    *(
        f"lora_train/assets/presets/{name}.json"
        for name in ("character", "concept", "object", "outfit", "pose", "style")
    ),
    *(f"{DEMO}/{name}" for name in ("tiny_clip/config.json", "tiny_sd.safetensors", "tiny_sd.yaml")),
    *(f"{DEMO}/heldout/sks_{number:02}.png" for number in range(8)),
    *(
        f"{DEMO}/pictures/{name}_{number:02}.{suffix}"
        for name in ("1_sks/sks", "reg/1_ordinary/ordinary")
        for number in range(16)
        for suffix in ("png", "txt")
    ),
}
DATA = f"train_tools-{__version__}.data/data/share/train-tools"
INFO = f"train_tools-{__version__}.dist-info"


def modules() -> set[str]:
    return {path.relative_to(REPOSITORY).as_posix() for path in (REPOSITORY / "lora_train").rglob("*.py")}


def checkout(folder: Path) -> Path:
    """A copy of everything that a build could take, as a working checkout is: with what must not be in a package."""
    for name in SOURCES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(REPOSITORY / name, folder / name)
    shutil.copytree(REPOSITORY / "lora_train", folder / "lora_train")
    for name in ("tests/test_one.py", "docs/picture.png", "outputs/train_tools/secret.txt", "scripts/train_tools.py"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("not to be packed", encoding="utf-8")
    return folder


def build(source: Path, hook: str, target: Path, **environment: str) -> Path:
    """The file that a hook of the build backend makes, as `python -m build` calls it; no network is needed."""
    target.mkdir(exist_ok=True)
    code = f"import sys; sys.path.insert(0, '.ci'); import build_backend as b; print(b.{hook}(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-c", code, str(target)],
        cwd=source,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return target / done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path]]:
    """The sdist of a checkout, and the wheel made from it."""
    folder = tmp_path_factory.mktemp("built")
    sdist = build(checkout(folder / "checkout"), "build_sdist", folder / "dist")
    with tarfile.open(sdist) as packed:
        packed.extractall(folder)
    wheel = build(folder / f"train_tools-{__version__}", "build_wheel", folder / "dist")
    yield sdist, wheel
    shutil.rmtree(folder)


def test_the_sdist_has_the_sources_and_nothing_else(built: tuple[Path, Path]) -> None:
    with tarfile.open(built[0]) as packed:
        members = packed.getmembers()
    names = {member.name.removeprefix(f"train_tools-{__version__}/") for member in members}
    assert names == {*SOURCES, *MADE} | ASSETS | modules()
    assert {(member.uid, member.gid, member.uname, member.gname) for member in members} == {(0, 0, "", "")}


def test_the_wheel_has_the_package_and_nothing_else(built: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(built[1]) as packed:
        names = set(packed.namelist())
        assert packed.testzip() is None
        assert "lora-train = lora_train.__main__:main" in packed.read(f"{INFO}/entry_points.txt").decode("utf-8")
    data = {f"{DATA}/{name}" for name in SOURCES if name == "style.css" or name.startswith(("javascript", "local"))}
    info = {f"{INFO}/{name}" for name in ("METADATA", "RECORD", "WHEEL", "entry_points.txt", "top_level.txt")}
    licences = {f"{INFO}/licenses/{name}" for name in ("LICENSE", "NOTICE")}
    assert names == modules() | ASSETS | data | info | licences


def test_every_build_gives_the_same_bytes(built: tuple[Path, Path], tmp_path: Path) -> None:
    """From another folder, with other times, modes and zone, after a build that left something, not by way of the
    sdist.
    """
    other = checkout(tmp_path / "another folder")
    (other / "build" / "lib" / "lora_train").mkdir(parents=True)
    (other / "build" / "lib" / "lora_train" / "deleted.py").write_text("", encoding="utf-8")
    for number, path in enumerate(sorted(other.rglob("*"))):
        path.chmod(0o700 if path.is_dir() else 0o664)
        os.utime(path, (1_600_000_000 + number, 1_600_000_000 + number))
    for hook, first in zip(("build_sdist", "build_wheel"), built, strict=True):
        again = build(other, hook, tmp_path / "dist", TZ="Asia/Tokyo", SOURCE_DATE_EPOCH="1700000000")
        assert again.name == first.name
        assert again.read_bytes() == first.read_bytes(), hook


def test_a_wheel_is_unpacked_and_runs(built: tuple[Path, Path], tmp_path: Path) -> None:
    """Where no checkout is: its command, its assets, and the page's own files where they are looked for."""
    with zipfile.ZipFile(built[1]) as packed:
        packed.extractall(tmp_path)
    code = (
        "from lora_train import __main__\n"
        "from lora_train.core import assets\n"
        "assert __main__.__file__.startswith(__import__('os').getcwd()), __main__.__file__\n"
        "__main__.main(['--version'])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, __version__), done.stderr
