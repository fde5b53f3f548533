"""What many tests share: small base models and LoRAs that change something.

torch is imported inside the fixtures, so that the tests of `core` and `data` run where there is none.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

hypothesis.settings.register_profile("a machine with other work", deadline=None)
hypothesis.settings.load_profile("a machine with other work")
os.environ["HF_HUB_OFFLINE"] = "1"
# What a developer downloaded is not there; libraries leave a note of their version in it.
os.environ["HF_HUB_CACHE"] = str(Path(tempfile.gettempdir()) / "train-tools-no-hub-cache")
# Products of the small models are too short to be shared out; this is read when torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="every case of the long suites, not a share of them")
    parser.addoption("--figures", type=Path, help="a file to which long suites add what they counted, as JSON lines")


_HALVED = ("browser", "integration")
"""Folders of whole trainings and pages in a browser: of a test with several cases half run, rounded up. Which ones is
chosen by their names, so that all kinds of pages and families have their turn in each file."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--full") or any("::" in argument for argument in config.args):
        return
    cases: dict[str, list[pytest.Item]] = {}
    for item in items:
        if item.path.relative_to(Path(__file__).parent).parts[0] in _HALVED:
            cases.setdefault(item.nodeid.partition("[")[0], []).append(item)
    left_out: set[str] = set()
    for own in cases.values():
        by_chance = sorted(own, key=lambda item: hashlib.sha256(item.nodeid.encode()).digest())
        left_out |= {item.nodeid for item in by_chance[(len(own) + 1) // 2 :]}
    config.hook.pytest_deselected(items=[item for item in items if item.nodeid in left_out])
    items[:] = [item for item in items if item.nodeid not in left_out]


@pytest.fixture(scope="session")
def share(request: pytest.FixtureRequest) -> Callable[[int], int]:
    """How many of so many cases a long suite runs: a tenth (one at least), or all with `--full`."""
    is_full = request.config.getoption("--full")
    return lambda cases: cases if is_full else max(1, cases // 10)


@pytest.fixture
def count(request: pytest.FixtureRequest) -> Iterator[Callable[[str, int], None]]:
    """Notes what a test of a long suite did (`count("kills", 20)`); told in `--figures` if the test passed."""
    counted: dict[str, int] = {}
    begun = time.monotonic()

    def note(what: str, number: int) -> None:
        counted[what] = counted.get(what, 0) + number

    yield note
    file: Path | None = request.config.getoption("--figures")
    if file and counted and not request.node.stash.get(_FAILED, False):
        line = {"test": request.node.nodeid, "counted": counted, "s": round(time.monotonic() - begun, 1)}
        with file.open("a", encoding="utf-8") as open_file:
            open_file.write(json.dumps(line, ensure_ascii=False) + "\n")


_FAILED = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Any:
    report = yield
    if report.failed:
        item.stash[_FAILED] = True
        # Said at once: a run that is ended for its time never comes to its summary.
        terminal = item.config.pluginmanager.get_plugin("terminalreporter")
        told = [line for line in report.longreprtext.splitlines() if line.startswith("E ")]
        terminal.write_line("\n".join(["", f"{time.strftime('%T')} {item.nodeid} failed:", *told[:20]]))
    return report


@pytest.fixture(scope="session")
def taggers() -> Any:
    """`tests/assets/taggers.py`, which makes taggers for onnxruntime."""
    for package in ("onnx", "onnxruntime"):
        pytest.importorskip(package, reason=f"{package} is no part of the hosts' libraries")
    return _asset("taggers")


@pytest.fixture(scope="session")
def servers() -> Any:
    """`tests/assets/servers.py`, with a server of our API over a real App."""
    return _asset("servers")


@pytest.fixture(scope="session")
def tapes() -> Any:
    """`tests/assets/tapes.py`, which records work on the CPU as a CUDA graph does on a GPU."""
    return _asset("tapes")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """`tests/assets/hubs.py`, at work; processes that are started from now on ask it for models."""
    running = _asset("hubs").Hub()
    monkeypatch.setenv("HF_ENDPOINT", running.url)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    yield running
    running.close()


@pytest.fixture(scope="session")
def small_blip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a BLIP with random weights."""
    return _asset("small_captioners").make_blip(tmp_path_factory.mktemp("small") / "blip")


@pytest.fixture
def make_captioner(tmp_path: Path) -> Callable[[str], Path]:
    """Makes an image-to-text model of a kind (`tests/assets/small_captioners.py`) and returns its folder."""
    return lambda kind: getattr(_asset("small_captioners"), f"make_{kind}")(tmp_path / kind)


@pytest.fixture(scope="session")
def small_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stable Diffusion 1.x in the original layout with few channels and random weights, float32."""
    import torch

    from lora_train.engine.random_model import SMALL, write_random_checkpoint

    path = tmp_path_factory.mktemp("small") / "small.safetensors"
    write_random_checkpoint(path, SMALL, dtype=torch.float32, seed=7)
    return path


@pytest.fixture(scope="session")
def checkpoint_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Writes a small base model of a family ("sdxl", "sd2-inpaint", ...), once for all tests, and returns its path."""
    import torch

    from lora_train.engine import random_model

    folder = tmp_path_factory.mktemp("families")
    sizes = {"sd1": random_model.SMALL, "sd2": random_model.SMALL_SD2, "sdxl": random_model.SMALL_SDXL}

    def write(family: str) -> Path:
        path = folder / f"{family}.safetensors"
        if not path.exists():
            plain, _, variant = family.partition("-")
            chosen = random_model.with_in_channels(sizes[plain], 9 if variant == "inpaint" else 4)
            random_model.write_random_checkpoint(path, chosen, dtype=torch.float32, seed=7)
        return path

    return write


@pytest.fixture(scope="session")
def model_of(checkpoint_of: Callable[[str], Path]) -> Callable[[str], Any]:
    """Loads a small base model of a family, once for all tests that leave it as it is."""
    loaded: dict[str, Any] = {}

    def load(family: str) -> Any:
        if family not in loaded:
            loaded[family] = _load(checkpoint_of(family))
        return loaded[family]

    return load


@pytest.fixture
def load_small(small_checkpoint: Path) -> Callable[[], Any]:
    """Loads a fresh copy of the small model at every call."""
    return lambda: _load(small_checkpoint)


@pytest.fixture(scope="session")
def small_model(small_checkpoint: Path) -> Any:
    """The small model, for tests that leave it as it is."""
    return _load(small_checkpoint)


@pytest.fixture(scope="session")
def demo_model() -> Any:
    """The trained small model that ships with the package, for tests that leave it as it is."""
    from lora_train.core.assets import DEMO_MODEL

    return _load(DEMO_MODEL)


def _asset(name: str) -> Any:
    """A module of `tests/assets`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parent / "assets")
        return importlib.import_module(name)


def _load(path: Path) -> Any:
    import torch

    from lora_train.engine.loading import load_base_model

    return load_base_model(path, vae_path=None, device=torch.device("cpu"), dtype=torch.float32)


@pytest.fixture
def make_lora() -> Callable[..., Any]:
    """Makes a LoRA, not attached, for a loaded model; its `up` weights are random, as after a training."""
    import torch

    from lora_train.engine.network import LoraNetwork, text_encoder_targets, unet_targets

    def make(
        model: Any,
        *,
        convolutions: bool = False,
        rank: int = 4,
        alpha: float = 3.0,
        up: float = 0.1,
        groups: dict[str, tuple[int, float]] | None = None,
    ) -> LoraNetwork:
        targets = unet_targets(model.unet, with_convolutions=convolutions)
        targets += text_encoder_targets(*model.text_encoders)
        network = LoraNetwork.new(targets, {"linear": (rank, alpha), "conv": (2, 1.0), **(groups or {})}, seed=3)
        generator = torch.Generator().manual_seed(11)
        with torch.no_grad():
            for _, lora in network.pairs():
                lora.up.normal_(std=up, generator=generator)
        network.requires_grad_(False)
        return network

    return make


@pytest.fixture(scope="session")
def make_pipeline() -> Callable[..., Any]:
    """diffusers' own pipeline around the parts of a loaded model, to compare with."""

    def make(model: Any, scheduler: Any = None) -> Any:
        from diffusers import DDIMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline

        model.unet.register_to_config(sample_size=64)  # the pipeline of diffusers 0.31 asks for a number
        parts: dict[str, Any] = {
            "vae": model.vae,
            "text_encoder": model.text_encoders[0],
            "tokenizer": model.tokenizers[0],
            "unet": model.unet,
            "scheduler": scheduler or DDIMScheduler(),
        }
        if len(model.text_encoders) == 2:
            second = {"text_encoder_2": model.text_encoders[1], "tokenizer_2": model.tokenizers[1]}
            return StableDiffusionXLPipeline(**parts, **second, add_watermarker=False)
        return StableDiffusionPipeline(
            **parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False
        )

    return make
