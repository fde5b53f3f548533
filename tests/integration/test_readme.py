"""What the README and the pages of `docs` tell people to type, typed: `tests/assets/pages.py` says which commands.

Base models are the small demo model, or a small SDXL, under the names that the pages give them; trainings are a few
steps long. Nothing else is put in the place of anything.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from lora_train.__main__ import main
from lora_train.app import App
from lora_train.core.assets import DEMO_MODEL, DEMO_PICTURES
from lora_train.core.jobs import JobFolder
from lora_train.core.workspace import Workspace
from tests.integration.conftest import WAIT_S, environment
from tests.packaging.test_distributions import checkout

if TYPE_CHECKING:
    from tests.integration.conftest import Files

ROOT = Path(__file__).resolve().parents[2]
LORA_DIR = "path/to/stable-diffusion-webui/models/Lora"
CAPTIONS = ("mycat, grey cat, indoors", "mycat, gray kitten, sofa, indoors", "mycat, cat, garden")
SHORT = [
    *("--epochs", "1", "--repeats", "1", "--rank", "2", "--set", "aimed_steps=0", "--set", "cpu_threads=1"),
    *("--set", "generate_previews=false"),
]
"""Put behind every training: the settings that come last count."""
TABLE = {
    "dataset list": "dataset list",
    "status": "status JOB_DIR --follow",
    "publish": f"publish TRAIN_DIR --to {LORA_DIR} --private",
    "sweep": 'sweep --name "My cat" --learning-rates 1e-4,2e-4 --optimizers Lion,AdamW --finish-by 07:30 --plan',
    "report": "report TRAIN_DIR --out report.html",
    "curves": "curves TRAIN_DIR --out curves.csv",
    "inspect": "inspect LORA",
    "doctor": "doctor",
    "presets list": "presets list",
    "presets import": "presets import cats.json",
    "presets rename": 'presets rename "Cats as I like them" Cats',
    "presets delete": "presets delete Cats",
    "captions redo": 'captions redo --name "My cat"',
    "tool merge": "tool merge LORA LORA --out merged.safetensors --weights 1,0.5",
    "tool resize": "tool resize LORA --out small.safetensors --rank 1",
}
"""Commands of the table that stand in no block, as they are run here."""
ELSEWHERE = {
    "demo": "test_demo.py",
    "stop": "test_cli.py",
    "pause": "test_cli.py",
    "resume": "test_cli.py",
    "grid": "test_grid_job.py",
    "preview": "test_cli.py",
    "judge": "test_judge.py",
    "prove": "test_proof.py",
    "bench": "test_count.py",
    "caption": "test_cli_datasets.py",
}
"""Commands that whole tests are about."""


MOMENTS = """
from pathlib import Path
import pytest

def test_of_a_long_suite(share, count):
    count("cases", share(20))
    Path("ran.txt").write_text(f"{share(20)} of 20 cases")

@pytest.mark.slow
def test_that_is_slow():
    Path("ran.txt").write_text("slow")
"""
"""In the place of all tests; "ran.txt" says which one ran."""
TESTED = {
    "python -m pytest": "2 of 20 cases",
    "python -m pytest tests --full --figures figures.jsonl": "20 of 20 cases",
    "python -m pytest -m slow": "slow",
}


@pytest.fixture(scope="module")
def pages() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "tests" / "assets")
        import pages

        return pages


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, checkpoint_of: Callable[[str], Path]) -> Path:
    """Where a person stands who follows the pages: everything that they name is there."""
    monkeypatch.chdir(tmp_path)
    sources = sorted(DEMO_PICTURES.glob("1_sks/*.png"))
    for place, numbers in {"pictures": (1, 2, 3), "more": (4,), ".": ("one",)}.items():
        Path(place).mkdir(exist_ok=True)
        for index, number in enumerate(numbers):
            shutil.copyfile(sources[index if number == index + 1 else 5 + index], Path(place, f"{number}.png"))
            Path(place, f"{number}.txt").write_text(CAPTIONS[index], encoding="utf-8")
    with zipfile.ZipFile("more.zip", "w") as archive:
        archive.write("more/4.png")
        archive.write("more/4.txt")
    for name in ("v1-5-pruned", "model"):
        shutil.copyfile(DEMO_MODEL, f"{name}.safetensors")
    shutil.copyfile(checkpoint_of("sdxl"), "sdxl.safetensors")
    Path(LORA_DIR).mkdir(parents=True)
    Path("path/to/checkpoints").mkdir(parents=True)
    return tmp_path


def test_the_pages_commands_run_one_after_the_other(
    pages: Any, folder: Path, files: type[Files], capsys: pytest.CaptureFixture[str]
) -> None:
    """In the order of the pages, each in what the ones before it have left."""
    names = ("commands.md", "several_machines.md", "README.md")
    found = [command for name in names for page in pages.PROVEN if page.name == name for command in _runs(pages, page)]
    ran = []
    for text in dict.fromkeys(command.text for command in found):
        ran.append(_run(text, capsys))
    assert len(ran) > 12

    (lora,) = Path(LORA_DIR).glob("*.safetensors")
    assert lora.stem == "My cat-v1"
    assert files.metadata(lora)["ss_output_name"] == "My cat-v1"
    train = folder / "outputs" / "train_tools" / "projects" / "My cat" / "versions" / "v1" / "trains" / "My cat-v1"
    assert {"My cat-v1", "My cat-v1-r2", "My cat-v1-r3"} <= {path.name for path in train.parent.iterdir()}
    by_words = dict(ran)
    assert "at home" in by_words["captions edit --dry-run"]
    assert "mycat" in by_words["captions show"]
    assert json.loads(Path("cats.json").read_text(encoding="utf-8"))["name"] == "Cats as I like them"

    _run('lora-train presets delete "Cats as I like them"', capsys)  # so that its file can come back
    for line in ("presets import", *(key for key in TABLE if key != "presets import")):
        text = TABLE[line].replace("JOB_DIR", shlex.quote(str(train))).replace("TRAIN_DIR", shlex.quote(str(train)))
        _run(f"lora-train {text.replace('LORA', shlex.quote(str(lora))) if 'LORA' in text else text}", capsys)
    assert Path("report.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert len(Path("curves.csv").read_text(encoding="utf-8").splitlines()) > 1
    assert files.are_finite(Path("merged.safetensors"))
    assert Path("small.safetensors").stat().st_size < Path("merged.safetensors").stat().st_size


def _runs(pages: Any, page: Path) -> list[Any]:
    return [command for command in pages.commands_of(page) if command.way == "run"]


def _texts(pages: Any, way: str) -> set[str]:
    return {command.text for command in pages.proven_commands() if command.way == way}


def _run(text: str, capsys: pytest.CaptureFixture[str]) -> tuple[str, str]:
    """What a command printed, by the words of its name and whether it is a dry run."""
    words = shlex.split(text)[1:]
    assert main([*words, *(SHORT if words[0] == "train" else [])]) == 0, (text, capsys.readouterr())
    name = " ".join(word for word in words[:2] if not word.startswith("-"))
    return name + (" --dry-run" if "--dry-run" in words else ""), capsys.readouterr().out


def test_commands_of_tables_and_sentences_are_run_here_or_elsewhere(pages: Any) -> None:
    section = pages.section_of(ROOT / "docs" / "commands.md", "All commands")
    ran = {" ".join(shlex.split(c.text)[1:3]) for page in pages.PROVEN for c in _runs(pages, page)} | set(TABLE)
    mentioned = [mention.text for page in pages.PROVEN for mention in pages.mentions_of(page) if mention.way == "run"]
    for text in [*(row[0] for row in pages.rows_of(section)), *(f"`{text}`" for text in mentioned)]:
        for name in pages.names_in(text):
            if name in ELSEWHERE:
                words = (Path(__file__).parent / ELSEWHERE[name]).read_text(encoding="utf-8")
                assert f'"{name}"' in words, name
            elif name != "ui":  # which has a test of its own
                assert any(one == name or one.startswith(f"{name} ") for one in ran), name


# --- the page and its API ---


@pytest.fixture
def serve(folder: Path) -> Iterator[Callable[[str], str]]:
    """Runs a `lora-train ui` command until its page answers; gives the address."""
    running: list[subprocess.Popen[str]] = []

    def start(text: str) -> str:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        words = [*shlex.split(text)[1:], "--port", str(port)]
        process = subprocess.Popen(
            [sys.executable, "-m", "lora_train", *words],
            cwd=folder,
            env=environment(),
            stdout=subprocess.PIPE,
            text=True,
        )
        running.append(process)
        assert process.stdout is not None
        first = process.stdout.readline()
        assert f"Train Tools: http://127.0.0.1:{port}" in first, first
        return f"http://127.0.0.1:{port}"

    yield start
    for process in running:
        process.terminate()
        process.communicate(timeout=30)


def test_pages_are_served_and_their_api_is_called(pages: Any, folder: Path, serve: Callable[[str], str]) -> None:
    pytest.importorskip("gradio")
    if shutil.which("curl") is None or shutil.which("bash") is None:
        pytest.skip("curl and bash are not installed")
    address = serve("lora-train ui --auth user:password")
    block = next(block for block in pages.blocks_of(ROOT / "docs" / "api.md") if block.startswith("API="))
    readme = "\n".join(
        command.text for command in pages.commands_of(ROOT / "README.md") if command.way == "calls"
    ).replace("curl ", "curl --silent --show-error --fail-with-body ")
    told = _bash(f"{block}\n{readme}".replace("http://127.0.0.1:7870", address))
    answers = list(_values(told))
    errors = [answer for answer in answers if isinstance(answer, dict) and answer.get("error")]
    assert not errors
    (train,) = next(answer for answer in answers if isinstance(answer, list) and answer and "loras" in answer[0])
    assert train["status"]["state"] in ("waiting", "running", "finished")
    names = {answer["project"] for answer in answers if isinstance(answer, dict) and "project" in answer}
    assert names == {"My cat", "My dog"}
    _end_trainings(address)


def _values(text: str) -> Iterator[Any]:
    """Every JSON value of a text, one behind the other."""
    decoder, place = json.JSONDecoder(), 0
    while text[place:].strip():
        place += len(text[place:]) - len(text[place:].lstrip())
        value, place = decoder.raw_decode(text, place)
        yield value


def _bash(script: str) -> str:
    done = subprocess.run(
        ["bash", "-e", "-o", "pipefail", "-c", script],
        capture_output=True,
        encoding="utf-8",
        timeout=120,
        check=False,
        env={**os.environ, "no_proxy": "127.0.0.1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _end_trainings(address: str) -> None:
    """The training that the calls began: ended, and waited for."""
    import httpx

    with httpx.Client(base_url=f"{address}/train-tools/v1", auth=("user", "password"), trust_env=False) as client:
        until = time.monotonic() + 60
        while jobs := client.get("/queue").json():
            assert time.monotonic() < until, jobs
            for job in jobs:
                client.post("/jobs/kill", json={"job": job["job"]})
            time.sleep(0.2)


@pytest.mark.parametrize("number", [0, 1])
def test_a_page_of_its_own_opens(pages: Any, folder: Path, serve: Callable[[str], str], number: int) -> None:
    pytest.importorskip("gradio")
    import httpx

    commands = [command.text for command in pages.commands_of(ROOT / "README.md") if command.way == "page"]
    assert len(commands) == 2
    answer = httpx.get(serve(commands[number]), trust_env=False, timeout=30)
    assert answer.status_code == 200
    assert "gradio" in answer.text


# --- two machines ---


def test_two_terminals_train_as_two_machines(pages: Any, tmp_path: Path, files: type[Files]) -> None:
    """As docs/several_machines.md says that it may be tried: on the CPU, both at this machine's own address."""
    if int(version("accelerate").partition(".")[0]) < 1:
        pytest.skip("the second launch refuses a port that the first listens at, as they are on one machine")
    (text,) = _texts(pages, "accelerate")
    shared = tmp_path / "shared"
    (shared / "pictures").mkdir(parents=True)
    for source in (DEMO_PICTURES / "1_sks").glob("sks_0[0-3].*"):
        shutil.copy(source, shared / "pictures")
    shutil.copyfile(DEMO_MODEL, shared / "model.safetensors")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    for there, here in {"/shared/": f"{shared}/", "192.168.1.10": "127.0.0.1", " 29500 ": f" {port} "}.items():
        assert there in text
        text = text.replace(there, here)
    first, other = text, text.replace("--machine_rank 0", "--machine_rank 1")
    assert other != first
    machines = [
        subprocess.Popen(
            [sys.executable, "-m", "accelerate.commands.launch", *shlex.split(line)[2:], *SHORT, "--set", "device=cpu"],
            cwd=tmp_path,
            env=environment(),
        )
        for line in (first, other)
    ]
    try:
        assert [machine.wait(WAIT_S) for machine in machines] == [0, 0]
    finally:
        for machine in machines:
            machine.kill()
            machine.wait()
    (spec,) = shared.rglob("job.json")
    status = App(Workspace(shared / "train_tools")).status(job := JobFolder(spec.parent))
    assert status.state == "finished"
    assert "2 processes share every batch." in status.notes
    assert files.are_finite(files.final(job))


# --- pip and the tests ---


def test_pip_installs_it(pages: Any, tmp_path: Path) -> None:
    """Without what it depends on, and by the setuptools that is here, as there is no network."""
    if int(version("setuptools").partition(".")[0]) < 77:
        pytest.skip("pyproject.toml asks for a newer setuptools")
    source = checkout(tmp_path / "train-tools")
    module = source / "lora_train" / "__init__.py"
    module.write_text(module.read_text(encoding="utf-8") + '\n__version__ = "7.8.9"\n', encoding="utf-8")
    (text,) = _texts(pages, "pip")
    target = tmp_path / "installed"
    words = [sys.executable, *shlex.split(text)[1:], "--no-deps", "--no-build-isolation", "--no-compile"]
    words += ["--target", str(target)]
    done = subprocess.run(words, cwd=source, capture_output=True, text=True, timeout=WAIT_S, check=False)
    assert done.returncode == 0, done.stderr
    told = subprocess.run(
        [target / "bin" / "lora-train", "--version"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(target)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert told.stdout.strip() == "7.8.9", told.stderr


def test_the_tests_are_run_as_it_is_told(pages: Any, tmp_path: Path) -> None:
    (tmp_path / "tests").mkdir()
    for name in ("pyproject.toml", "tests/conftest.py"):
        shutil.copyfile(ROOT / name, tmp_path / name)
    (tmp_path / "tests" / "test_moments.py").write_text(MOMENTS, encoding="utf-8")
    ran: dict[str, str] = {}
    light = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}  # others' plugins take seconds each time
    for text in _texts(pages, "pytest"):
        words = [sys.executable, *shlex.split(text)[1:]]
        done = subprocess.run(
            words, cwd=tmp_path, env=light, capture_output=True, text=True, timeout=WAIT_S, check=False
        )
        assert done.returncode == 0, done.stdout
        assert "1 passed, 1 deselected" in done.stdout
        ran[text] = (tmp_path / "ran.txt").read_text(encoding="utf-8")
    assert ran == TESTED
    (line,) = (tmp_path / "figures.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(line)["counted"] == {"cases": 20}


def test_the_gate_is_a_script_that_bash_understands(pages: Any) -> None:
    if shutil.which("bash") is None:
        pytest.skip("bash is not installed")
    install, gate = sorted(_texts(pages, "gate"), key=len, reverse=True)
    assert install.rpartition(" ")[2] in (ROOT / gate).read_text(encoding="utf-8"), "it installs what is tested so, too"
    assert os.access(ROOT / gate, os.X_OK)
    assert subprocess.run(["bash", "-n", ROOT / gate], check=False).returncode == 0


# --- git ---


def test_the_repository_is_cloned_and_brought_up_to_date(pages: Any, tmp_path: Path) -> None:
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("this is no git repository")
    (tmp_path / "path" / "to" / "stable-diffusion-webui" / "extensions").mkdir(parents=True)
    found = [command.text for command in pages.commands_of(ROOT / "README.md") if command.way == "git"]
    assert len(found) == 6
    in_webui, on_its_own = [*found[:2], found[4]], [found[2], found[3], found[5]]
    for commands in (in_webui, on_its_own):
        script = " && ".join(commands).replace("<this repository>", shlex.quote(str(ROOT)))
        begun = time.monotonic()
        done = subprocess.run(
            ["sh", "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stderr
        assert time.monotonic() - begun < 60
    assert (tmp_path / "path/to/stable-diffusion-webui/extensions/train-tools/scripts/train_tools.py").is_file()
    assert (tmp_path / "train-tools" / "README.md").is_file()
