"""Parking in Forge, reForge and Forge Classic: stand-ins for their packages, as far as they matter here."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.compat


def draw() -> str:
    """A picture; its bytes as text."""
    from modules import processing

    p = processing.StableDiffusionProcessingTxt2Img(prompt="a cat", steps=1)
    return processing.process_images(p).images[0].tobytes().hex()


MAIN_THREAD = """
import threading, traceback
tasks, results, last_exception, keeps_exception = [], {}, None, %s
wake = threading.Condition()
def async_run(func, *args, **kwargs):
    with wake:
        tasks.append((len(results) + len(tasks) + 1, func, args, kwargs))
        wake.notify_all()
        return tasks[-1][0]
def loop():
    global last_exception
    while True:
        with wake:
            wake.wait_for(lambda: tasks)
            number, func, args, kwargs = tasks[0]
        result = None
        try:
            result = func(*args, **kwargs)
        except Exception as error:
            if keeps_exception:
                last_exception = error
        with wake:
            tasks.pop(0)
            results[number] = result
            wake.notify_all()
def run_and_wait_result(func, *args, **kwargs):
    number = async_run(func, *args, **kwargs)
    with wake:
        wake.wait_for(lambda: number in results)
    return results[number]
threading.Thread(target=loop, daemon=True, name="main-thread").start()
"""

MEMORY = """
import threading
calls = []
def unload_all_models(): calls.append(("unload", threading.current_thread().name))
def soft_empty_cache(): calls.append(("empty", threading.current_thread().name))
"""


def make_forge(folder: Path, monkeypatch: pytest.MonkeyPatch, *, new_line: bool) -> Any:
    """The packages by which these hosts are known, and the adapter."""
    memory = "backend/memory_management.py" if new_line else "ldm_patched/modules/model_management.py"
    for name, text in ((memory, MEMORY), ("modules_forge/main_thread.py", MAIN_THREAD % new_line)):
        file = folder / name
        file.parent.mkdir(parents=True)
        file.write_text(text, encoding="utf-8")
        for parent in (file.parent, file.parent.parent):
            if parent != folder:
                (parent / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(folder))
    from modules import processing, shared

    from lora_train.hosts.forge import Forge, is_forge

    def load(p: Any) -> None:
        p.was_loaded = True

    if new_line:
        monkeypatch.setattr(processing, "manage_model_and_prompt_cache", load, raising=False)
    _ = shared.sd_model
    assert is_forge()
    return Forge()


def test_forge_frees_the_card_on_its_main_thread(
    host_modules: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lora_train.hosts.parking import CardInUse

    host = make_forge(tmp_path / "forge", monkeypatch, new_line=True)
    assert host.name.startswith("Forge v")
    import backend.memory_management as memory
    from modules import processing

    p = processing.StableDiffusionProcessingTxt2Img(steps=1)
    with host.parked("cuda"):
        assert memory.calls == [("unload", "main-thread"), ("empty", "main-thread")]
        with pytest.raises(CardInUse):
            processing.manage_model_and_prompt_cache(p)
        with pytest.raises(CardInUse):
            processing.process_images_inner(p)
    processing.manage_model_and_prompt_cache(p)
    draw()


@pytest.mark.parametrize(("has_schedulers", "name"), [(True, "reForge"), (False, "Forge Classic")])
def test_the_older_line_refuses_before_its_main_thread_loses_the_words(
    host_modules: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_schedulers: bool, name: str
) -> None:
    from lora_train.hosts.parking import CardInUse

    if has_schedulers:
        import modules

        package = tmp_path / "more"
        package.mkdir()
        (package / "sd_schedulers.py").touch()
        monkeypatch.setattr(modules, "__path__", [*modules.__path__, str(package)])
    host = make_forge(tmp_path / "forge", monkeypatch, new_line=False)
    assert host.name.startswith(f"{name} v")
    import ldm_patched.modules.model_management as memory
    from modules import sd_models, shared
    from modules_forge import main_thread

    with host.parked("auto"):
        assert [what for what, _ in memory.calls] == ["unload", "empty"]
        with pytest.raises(CardInUse):
            main_thread.run_and_wait_result(draw)
        shared.opts.set("sd_model_checkpoint", "two.safetensors")
        main_thread.run_and_wait_result(sd_models.reload_model_weights)  # another checkpoint was chosen
        assert sd_models.model_data.sd_model.sd_checkpoint_info.name == "one.safetensors"
    assert sd_models.model_data.sd_model.sd_checkpoint_info.name == "two.safetensors"
    assert main_thread.run_and_wait_result(draw)


def test_a_main_thread_that_fails_stops_no_training(
    host_modules: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    host = make_forge(tmp_path / "forge", monkeypatch, new_line=True)
    import backend.memory_management as memory

    def fail() -> None:
        raise RuntimeError("device lost")

    monkeypatch.setattr(memory, "unload_all_models", fail)
    with host.parked("auto"):
        pass
    assert "device lost" in caplog.text
    draw()


def test_automatic1111_is_no_forge(host_modules: Path) -> None:
    from lora_train.hosts.forge import is_forge

    assert "modules_forge" not in sys.modules
    assert not is_forge()
