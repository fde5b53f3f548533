"""`install.py`: adds what is missing, changes nothing, costs nothing, and never breaks a start."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from lora_train.core import packages

pytestmark = pytest.mark.compat

INSTALLER = Path(__file__).parents[2] / "install.py"


@pytest.fixture
def installer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("train_tools_install", INSTALLER)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(packages, "VERDICT", tmp_path / ".installed.json")
    monkeypatch.setattr(packages, "helpful_not_found", list)
    return module


@pytest.fixture
def pip(installer: ModuleType, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What pip was asked for; nothing is installed."""
    calls: list[list[str]] = []

    def run_pip(arguments: list[str], names: str) -> None:
        assert arguments[0] == "--constraint"
        assert Path(arguments[1]).read_text(encoding="utf-8") == packages.constraints()
        calls.append(arguments[2:])

    monkeypatch.setattr(installer, "_run_pip", run_pip)
    return calls


def verdicts(monkeypatch: pytest.MonkeyPatch, *answers: dict[str, str]) -> list[int]:
    """`judge` gives these, one after the other; the list grows with each time it is asked."""
    asked: list[int] = []

    def judge() -> dict[str, str]:
        asked.append(1)
        return answers[len(asked) - 1]

    monkeypatch.setattr(packages, "judge", judge)
    return asked


def installed(monkeypatch: pytest.MonkeyPatch, **found: str) -> None:
    real = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: found.get(name) or real(name))


def test_nothing_to_do(
    installer: Any, pip: list[list[str]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = verdicts(monkeypatch, {})
    installer.main()
    installer.main()
    assert pip == []
    assert len(asked) == 1  # the second time it is known
    assert capsys.readouterr().out == ""


def test_what_is_missing_is_added_and_judged_again(
    installer: Any, pip: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(monkeypatch, transformers="4.30.2", torch="2.1.2")
    asked = verdicts(monkeypatch, {"diffusers": "missing", "lion_pytorch": "missing", "yaml": "missing"}, {})
    installer.main()
    assert pip == [["diffusers==0.31.0", "lion-pytorch", "pyyaml"]]
    assert len(asked) == 2
    assert packages.read_verdict() == {}


def test_what_only_helps_is_tried_once_and_by_itself(
    installer: Any, pip: list[list[str]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where it can't be had, what is needed comes all the same, and no later start waits for a network."""
    run_pip = installer._run_pip

    def refuse(arguments: list[str], names: str) -> None:
        run_pip(arguments, names)
        if names == "imagehash":
            raise RuntimeError("no wheel")

    monkeypatch.setattr(installer, "_run_pip", refuse)
    monkeypatch.setattr(packages, "helpful_not_found", lambda: list(packages.HELPFUL))
    verdicts(monkeypatch, {"msgspec": "missing"}, {})
    installer.main()
    installer.main()
    assert pip == [["msgspec"], ["imagehash"]]
    assert capsys.readouterr().out.splitlines() == ["Train Tools: could not install imagehash (no network?): no wheel"]
    assert packages.read_verdict() == {}  # nothing stands in the way of training


def test_without_what_only_helps_nothing_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.delitem(sys.modules, "imagehash", raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "imagehash" else real(name))
    assert packages.helpful_not_found() == ["imagehash"]
    assert "imagehash" not in packages.not_found()


@pytest.mark.parametrize(
    ("transformers", "torch", "wanted"),
    [
        ("4.30.2", "2.1.2+cu121", "diffusers==0.31.0"),
        ("4.46.1", "2.3.1", "diffusers==0.31.0"),
        ("4.30.2", "2.6.0", "diffusers==0.31.0"),
        ("4.48.1", "2.9.0", "diffusers"),
        ("5.0.0rc1", "2.13.0", "diffusers"),
    ],
)
def test_the_diffusers_that_works_beside_what_is_there(
    monkeypatch: pytest.MonkeyPatch, transformers: str, torch: str, wanted: str
) -> None:
    installed(monkeypatch, transformers=transformers, torch=torch)
    assert packages.requirement("diffusers") == wanted


def test_every_installed_version_is_held() -> None:
    lines = packages.constraints().splitlines()
    assert f"msgspec=={importlib.metadata.version('msgspec')}" in lines
    assert all(line.count("==") == 1 and " " not in line for line in lines)
    assert len(lines) > 20


def test_a_leftover_or_an_odd_version_does_not_stop_pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two versions of one package, or one that pip can't read, and it installs nothing."""
    for folder, name, version in (
        ("~sgspec-0.1.0", "msgspec", "0.1.0"),
        ("odd-1.0", "odd", "1.0-weird-x"),
        ("fine_name-2.0rc1", "fine.name", "2.0rc1.post2+cu121"),
    ):
        (tmp_path / f"{folder}.dist-info").mkdir()
        text = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        (tmp_path / f"{folder}.dist-info" / "METADATA").write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    lines = packages.constraints().splitlines()
    assert [line for line in lines if line.startswith(("msgspec=", "odd=", "fine"))] == [
        "fine.name==2.0rc1.post2+cu121",
        f"msgspec=={importlib.metadata.version('msgspec')}",
    ]


def test_what_is_broken_is_told_and_left_alone(
    installer: Any, pip: list[list[str]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    verdicts(monkeypatch, {"diffusers": "AttributeError: module 'torch' has no attribute 'xpu'"})
    installer.main()
    assert pip == []
    told = capsys.readouterr().out
    assert "can't be imported: AttributeError: module 'torch' has no attribute 'xpu'" in told
    assert f'"{sys.executable}" -m pip install diffusers' in told


def test_offline(installer: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Each start tries again, without judging again, and says what to do."""

    def no_network(arguments: list[str], names: str) -> None:
        raise RuntimeError("Couldn't install.\nERROR: No matching distribution found for msgspec")

    monkeypatch.setattr(installer, "_run_pip", no_network)
    asked = verdicts(monkeypatch, {"msgspec": "missing"})
    installer.main()
    installer.main()
    told = capsys.readouterr().out
    assert told.count("could not install msgspec (no network?): ERROR: No matching distribution found") == 2
    assert told.count(f'Not installed: msgspec. To install: "{sys.executable}" -m pip install msgspec') == 2
    assert len(asked) == 1


def test_another_version_of_anything_is_judged_anew(
    installer: Any, pip: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = verdicts(monkeypatch, {}, {})
    installer.main()
    installed(monkeypatch, transformers="99.0")
    installer.main()
    assert len(asked) == 2


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"versions": {}}', '{"versions": 1, "verdict": 2}', "\x00"])
def test_a_damaged_verdict_is_none(installer: Any, text: str) -> None:
    packages.VERDICT.write_text(text, encoding="utf-8")
    assert packages.read_verdict() is None


@pytest.mark.parametrize("error", [OSError("disk"), subprocess.TimeoutExpired("python", 1), KeyError("x")])
def test_nothing_is_raised_into_the_host(
    installer: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception
) -> None:
    def fail() -> None:
        raise error

    monkeypatch.setattr(packages, "judge", fail)
    installer.main()
    assert "Train Tools: could not look at its packages" in capsys.readouterr().out


def test_a_folder_that_cannot_be_written(
    installer: Any, pip: list[list[str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(packages, "VERDICT", tmp_path / "no such folder" / "file.json")
    verdicts(monkeypatch, {})
    installer.main()


def test_an_old_python(installer: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 9, 18))
    installer.main()
    assert "needs Python 3.10 or newer" in capsys.readouterr().out


def test_the_hosts_own_pip_is_used(installer: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It knows the index that the person set, and does nothing under --skip-install."""
    (tmp_path / "launch.py").write_text(
        "calls = []\ndef run_pip(command, desc=None): calls.append((command, desc))\n", encoding="utf-8"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "launch", raising=False)
    installer._run_pip(["--constraint", "C:\\My files\\c.txt", "msgspec"], "msgspec")
    import launch  # type: ignore[import-not-found]

    assert launch.calls == [('install "--constraint" "C:\\My files\\c.txt" "msgspec"', "msgspec for Train Tools")]
    monkeypatch.delitem(sys.modules, "launch")


@pytest.fixture
def fake_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Packages of these names and contents come first in every process that is started."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "fakes"))

    def make(**contents: str) -> None:
        for name, text in contents.items():
            package = tmp_path / "fakes" / name
            package.mkdir(parents=True)
            (package / "__init__.py").write_text(text, encoding="utf-8")

    return make


def test_a_package_is_judged_by_importing_it(fake_packages: Callable[..., None]) -> None:
    """All by fakes, so that the libraries' own imports cost no time."""
    works = "def __getattr__(name): return 1"
    fake_packages(
        torch=works,
        transformers=works,
        numpy=works,
        PIL=works,
        safetensors=works,
        lion_pytorch="raise SystemExit(3)",
        diffusers="import torch, sys\nassert sys.modules['peft'] is None\nraise AttributeError('no xpu\\nmore')",
    )
    assert packages.judge() == {"diffusers": "AttributeError: no xpu", "lion_pytorch": "SystemExit: 3"}


def test_a_start_with_nothing_to_do_takes_no_time(tmp_path: Path) -> None:
    """As a process, as the host starts it: less than a second, most of which is Python itself."""
    root = tmp_path / "extension"
    (root / "lora_train" / "hosts").mkdir(parents=True)
    (root / "lora_train" / "core").mkdir()
    for name in (
        "install.py",
        "lora_train/__init__.py",
        "lora_train/core/__init__.py",
        "lora_train/core/installing.py",
        "lora_train/hosts/__init__.py",
        "lora_train/core/packages.py",
    ):
        (root / name).write_bytes((INSTALLER.parent / name).read_bytes())
    verdict = {"versions": packages.versions(), "verdict": {}}
    (root / ".installed.json").write_text(json.dumps(verdict), encoding="utf-8")
    start = time.perf_counter()
    done = subprocess.run([sys.executable, str(root / "install.py")], capture_output=True, text=True, cwd=tmp_path)
    assert time.perf_counter() - start < 3.0  # with slack for a busy machine
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_what_is_said_may_be_in_any_script(installer: Any, tmp_path: Path) -> None:
    """A console of Windows knows few of them; the host reads UTF-8."""
    code = (
        "import importlib.util as u, sys\n"
        "spec = u.spec_from_file_location('i', sys.argv[1])\n"
        "module = u.module_from_spec(spec)\n"
        "spec.loader.exec_module(module)\n"
        "module._main = lambda: module.say('猫')\n"
        "module.main()\n"
    )
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    done = subprocess.run([sys.executable, "-c", code, str(INSTALLER)], capture_output=True, env=environment)
    assert (done.returncode, done.stdout.decode("utf-8").strip()) == (0, "Train Tools: 猫")
