"""What `install.py` does to a host's environment; run by `host_pins.sh` with that environment's Python.

Prints a line for each thing that was looked at and ends with 1 at the first that is not as it should be. Needs nothing
that the environment lacks: no pytest.
"""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

MINIMAL_HOST = Path(__file__).parents[1] / "host" / "minimal_host"
ADDED = {"diffusers", "imagehash", "importlib-metadata", "lion-pytorch", "msgspec", "zipp", "pywavelets"}
"""All that `install.py` may add to a WebUI: what it names, and what those need."""

SECOND_RUN_S = 1.0
OFFLINE_S = 60.0
"""Of processor time, whatever else the machine does. The first start judges torch and diffusers by importing them."""


def main() -> None:
    webui, extension = Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve()
    verdict = extension / ".installed.json"
    before, complaints = freeze(), check()
    told(f"Python {sys.version.split()[0]}, {len(before)} packages, pip check: {len(complaints)} complaints")

    verdict.unlink(missing_ok=True)
    for which in ("first", "next"):
        seconds, cpu_s, output = install(webui, extension, is_online=False)
        told(f"offline, {which} start: {seconds:.1f} s ({cpu_s:.1f} s of processor); {output or 'silent'}")
        expect(freeze() == before, "an offline start changed the environment")
        expect(cpu_s < OFFLINE_S, "an offline start takes too long")

    verdict.unlink(missing_ok=True)
    seconds, cpu_s, output = install(webui, extension)
    after = freeze()
    added = {name: version for name, version in after.items() if name not in before}
    told(f"online, first start: {seconds:.1f} s ({cpu_s:.1f} s of processor); {output or 'silent'}")
    told(f"added: {added or 'nothing'}")
    expect({name: after.get(name) for name in before} == before, "install.py changed what was there")
    expect(added.keys() <= ADDED, "install.py added what it does not need")
    expect("could not install" not in output, "install.py could not add what is missing")
    expect(check() <= complaints, f"pip check complains: {check() - complaints}")
    for is_online in (True, False):
        seconds, cpu_s, output = install(webui, extension, is_online=is_online)
        told(f"next start, {'online' if is_online else 'offline'}: {seconds:.2f} s ({cpu_s:.2f} s of processor)")
        expect(cpu_s < SECOND_RUN_S, "a start with nothing to do takes too long")
        expect(output == "", "a start with nothing to do is silent")
    expect(freeze() == after, "a later start changed the environment")
    told(f"the tab is on the page after {tab_s(extension):.1f} s")


def freeze() -> dict[str, str]:
    """Every installed package with its version, or where it came from."""
    lines = pip("freeze", "--all").splitlines()
    pairs = (re.split(r"==| @ ", line, maxsplit=1) for line in lines if line and not line.startswith(("#", "-e")))
    return {name.lower().replace("_", "-"): version for name, version in pairs}


def check() -> set[str]:
    return {line for line in pip("check").splitlines() if line and line != "No broken requirements found."}


def pip(*arguments: str) -> str:
    command = [sys.executable, "-m", "pip", *arguments]
    return subprocess.run(command, capture_output=True, encoding="utf-8", check=False).stdout


def install(webui: Path, extension: Path, *, is_online: bool = True) -> tuple[float, float, str]:
    """Seconds, of them of the processor, and what was printed by `install.py` as the host starts it; its exit code
    must be 0.
    """
    command = [sys.executable, str(extension / "install.py")]
    environment = {**os.environ, "PYTHONPATH": str(webui)}
    if not is_online:
        if subprocess.run(["unshare", "-rn", "true"], capture_output=True, check=False).returncode == 0:
            command = ["unshare", "-rn", *command]
        environment = {key: value for key, value in environment.items() if not key.startswith("PIP_")}
        environment |= {"PIP_CONFIG_FILE": os.devnull, "PIP_INDEX_URL": "http://127.0.0.1:9/simple"}
    start, cpu_before_s = time.perf_counter(), _children_cpu_s()
    done = subprocess.run(command, capture_output=True, encoding="utf-8", cwd=webui, env=environment, check=False)
    seconds, cpu_s = time.perf_counter() - start, _children_cpu_s() - cpu_before_s
    expect(done.returncode == 0, f"install.py ended with {done.returncode}: {done.stderr}")
    return seconds, cpu_s, done.stdout.strip()


def _children_cpu_s() -> float:
    used = os.times()
    return used.children_user + used.children_system


def tab_s(extension: Path) -> float:
    """Seconds until the extension's tab is on the page of the tests' minimal host, which has this gradio."""
    with socket.socket() as probe, tempfile.TemporaryDirectory() as folder:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        log = Path(folder) / "host.log"
        command = [sys.executable, str(MINIMAL_HOST / "launch.py"), "--port", str(port), "--data-dir", folder]
        start = time.perf_counter()
        with log.open("wb") as stream:
            host = subprocess.Popen([*command, "--extension", str(extension)], stdout=stream, stderr=stream, cwd=folder)
        try:
            while "ready: " not in (text := log.read_text(encoding="utf-8")):
                expect(host.poll() is None and time.perf_counter() - start < 120, f"the page did not come up: {text}")
                time.sleep(0.1)
            seconds = time.perf_counter() - start
            opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
            with opener.open(f"http://127.0.0.1:{port}/config", timeout=60) as answer:
                page = answer.read().decode("utf-8")
        finally:
            host.terminate()
            host.wait(10)
    expect("train_tools_app" in page and "train_tools_broken" not in page, "the tab is not on the page")
    expect("start yet" not in page, "the page says that training can't start")
    return seconds


def told(sentence: str) -> None:
    print(sentence, flush=True)


def expect(condition: bool, otherwise: str) -> None:
    if not condition:
        sys.exit(f"NOT AS IT SHOULD BE: {otherwise}")


if __name__ == "__main__":
    main()
