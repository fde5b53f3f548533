"""Pictures by the WebUI's own txt2img: one batch, with LoRAs that are not in its folder, and nothing left behind."""

from __future__ import annotations

import json
import struct
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lora_train.core.errors import JobError, ModelError
from lora_train.core.host import HostPicture
from lora_train.core.jobs import RequestedEnd
from tests.host.test_parking_forge import make_forge

pytestmark = pytest.mark.compat


@pytest.fixture
def host(host_modules: Path) -> Any:
    from lora_train.hosts import drawing
    from lora_train.hosts.webui import WebUI

    drawing._last_lent.clear()
    return WebUI()


@pytest.fixture
def two(host_modules: Path) -> str:
    """The checkpoint that is not loaded."""
    return str(host_modules / "models" / "Stable-diffusion" / "two.safetensors")


@pytest.fixture
def with_schedulers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import modules

    package = tmp_path / "more"
    package.mkdir()
    labels = ("Automatic", "Karras", "SGM Uniform")
    text = f"from types import SimpleNamespace\nschedulers = [SimpleNamespace(label=label) for label in {labels}]\n"
    (package / "sd_schedulers.py").write_text(text, encoding="utf-8")
    monkeypatch.setattr(modules, "__path__", [*modules.__path__, str(package)])


def picture(base_model: str, prompt: str = "a cat", **values: Any) -> HostPicture:
    own: dict[str, Any] = {"negative_prompt": "", "width_px": 64, "height_px": 72, "sampler": "Euler a", "steps": 1}
    return HostPicture(prompt=prompt, base_model=base_model, **{**own, "cfg_scale": 7.0, "seed": 5, **values})


def lora(path: Path, alias: str = "") -> Path:
    header = json.dumps({"__metadata__": {"ss_output_name": alias or path.stem}}).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack("<Q", len(header)) + header + path.stem.encode())
    return path


def is_clean() -> bool:
    """Nothing waits, no job is shown, nothing is interrupted."""
    from modules import call_queue, shared

    state = shared.state
    return not (call_queue.queue_lock.locked() or state.job or state.interrupted or state.skipped)


class TestSamplers:
    def test_those_that_the_host_shows(self, host: Any) -> None:
        assert host.samplers() == ("DPM++ 2M", "Euler a", "DDIM")

    def test_with_each_schedule_where_that_is_chosen_apart(self, host: Any, with_schedulers: None) -> None:
        assert host.samplers()[:3] == ("DPM++ 2M", "Euler a", "DDIM")
        assert set(host.samplers()[3:]) == {
            f"{name} {label}" for name in ("DPM++ 2M", "Euler a") for label in ("Karras", "SGM Uniform")
        }

    def test_none_where_the_host_fails(self, host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        from modules import sd_samplers

        monkeypatch.setattr(sd_samplers, "visible_samplers", None)
        assert host.samplers() == ()


class TestDrawing:
    def test_a_batch_with_its_parameters(self, host: Any, two: str) -> None:
        from modules import processing, sd_models, shared

        shared.opts.set("CLIP_stop_at_last_layers", 1)
        shared.opts.set("sd_model_checkpoint", "one.safetensors")
        drawn = host.draw(picture(two, count=2, clip_skip=2))
        assert [one.size for one in drawn] == [(64, 72)] * 2
        assert [one.info["parameters"].split("Seed: ")[1] for one in drawn] == ["5, Size: 64x72", "6, Size: 64x72"]
        (p,) = processing.closed
        assert p.do_not_save_samples
        assert p.do_not_save_grid
        assert p.scripts is None
        assert p.override_settings == {
            "sd_model_checkpoint": "two.safetensors [0123456789]",
            "CLIP_stop_at_last_layers": 2,
        }
        assert sd_models.model_data.sd_model.sd_checkpoint_info.filename == two
        assert host.loaded_base_model() == Path(two)
        assert (shared.opts.sd_model_checkpoint, shared.opts.CLIP_stop_at_last_layers) == ("one.safetensors", 1)
        assert shared.total_tqdm.clears == 1
        assert is_clean()

    def test_a_schedule_goes_its_own_way(self, host: Any, two: str, with_schedulers: None) -> None:
        (drawn,) = host.draw(picture(two, sampler="DPM++ 2M SGM Uniform"))
        assert "Sampler: DPM++ 2M, Schedule type: SGM Uniform" in drawn.info["parameters"]
        (plain,) = host.draw(picture(two, sampler="DPM++ 2M"))
        assert "Sampler: DPM++ 2M, Schedule type: Automatic" in plain.info["parameters"]

    def test_no_checkpoint_is_loaded_to_tell_which_is(self, host: Any) -> None:
        from modules import sd_models

        assert host.loaded_base_model() is None
        assert sd_models.model_data.sd_model is None

    def test_what_can_not_be(self, host: Any, two: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from modules import processing

        with pytest.raises(ModelError, match="Restart is none of the WebUI's samplers"):
            host.draw(picture(two, sampler="Restart"))
        with pytest.raises(ModelError, match="does not list"):
            host.draw(picture(str(tmp_path / "three.safetensors")))

        def fail(p: Any) -> None:
            raise RuntimeError("CUDA out of memory")

        monkeypatch.setattr(processing, "process_images", fail)
        with pytest.raises(ModelError, match="could not draw: CUDA out of memory"):
            host.draw(picture(two))
        monkeypatch.setattr(processing, "process_images", lambda p: processing.Processed([], ""))
        with pytest.raises(ModelError, match="gave 0 of 1 pictures"):
            host.draw(picture(two))
        assert is_clean()

    def test_another_checkpoint_than_asked_for_is_told(
        self, host: Any, two: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from modules import sd_models

        sd_models.load_model()
        monkeypatch.setattr(sd_models, "reload_model_weights", lambda: None)
        with pytest.raises(ModelError, match=r"drew with one\.safetensors instead of two\.safetensors"):
            host.draw(picture(two))

    def test_interrupted_in_the_webui(self, host: Any, two: str, monkeypatch: pytest.MonkeyPatch) -> None:
        from modules import processing, shared

        original = processing.process_images_inner

        def interrupted(p: Any) -> Any:
            shared.state.interrupted = True
            return original(p)

        monkeypatch.setattr(processing, "process_images_inner", interrupted)
        with pytest.raises(RequestedEnd):
            host.draw(picture(two))
        assert is_clean()

    def test_waits_for_the_picture_before(self, host: Any, two: str) -> None:
        from modules import call_queue

        drawn: list[Any] = []
        thread = threading.Thread(target=lambda: drawn.extend(host.draw(picture(two))), daemon=True)
        with call_queue.queue_lock:
            thread.start()
            wait_until(lambda: call_queue.queue_lock.waiting)
            assert not drawn
        thread.join(10)
        assert len(drawn) == 1

    def test_refused_while_a_training_has_the_card(self, host: Any, two: str) -> None:
        with host.parked("auto"), pytest.raises(JobError, match="A training has the card"):
            host.draw(picture(two))
        assert host.draw(picture(two))


class TestLoras:
    def test_a_file_of_any_folder_for_the_time_of_drawing(self, host: Any, two: str, tmp_path: Path) -> None:
        networks = sys.modules["networks"]
        file = lora(tmp_path / "猫-000002.safetensors")
        bare = host.draw(picture(two))[0].tobytes()
        at_zero = host.draw(picture(two, "<lora:猫-000002:0> a cat", loras=(str(file),)))[0].tobytes()
        at_one = host.draw(picture(two, "<lora:猫-000002:1> a cat", loras=(str(file),)))[0]
        assert bare == at_zero != at_one.tobytes()
        assert at_one.info["parameters"].startswith("<lora:猫-000002:1> a cat")
        assert networks.available_networks == {}
        assert networks.available_network_aliases == {}

    def test_a_published_one_of_that_name_is_there_again(
        self, host: Any, two: str, tmp_path: Path, host_modules: Path
    ) -> None:
        networks = sys.modules["networks"]
        published = lora(host_modules / "models" / "Lora" / "cat.safetensors")
        networks.list_available_networks()
        own = lora(tmp_path / "cat.safetensors")
        host.draw(picture(two, "<lora:cat:1>", loras=(str(own),)))
        assert networks.loaded_networks[0].filename == str(own)
        assert networks.available_networks["cat"].filename == str(published)
        assert networks.available_network_aliases["cat"].filename == str(published)

    def test_another_file_of_that_name_is_read_anew(self, host: Any, two: str, tmp_path: Path) -> None:
        """The hosts keep what has the same name and weight; a picture without it makes them forget."""
        from modules import processing

        files = [lora(tmp_path / folder / "cat.safetensors") for folder in ("a", "b")]
        for file in (files[0], files[0], files[1]):
            host.draw(picture(two, "<lora:cat:1>", loras=(str(file),)))
        prompts = [(p.prompt, p.width) for p in processing.closed]
        assert prompts == [("<lora:cat:1>", 64), ("<lora:cat:1>", 64), ("", 64), ("<lora:cat:1>", 64)]

    def test_one_that_the_host_did_not_load_is_told(
        self, host: Any, two: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        networks = sys.modules["networks"]
        file = lora(tmp_path / "cat.safetensors")
        monkeypatch.setattr(networks, "fingerprints", lambda loras: [])
        with pytest.raises(ModelError, match=r"could not load cat\.safetensors"):
            host.draw(picture(two, "<lora:cat:1>", loras=(str(file),)))
        monkeypatch.delitem(sys.modules, "networks")
        with pytest.raises(ModelError, match="LoRA extension is switched off"):
            host.draw(picture(two, "<lora:cat:1>", loras=(str(file),)))
        assert is_clean()


def test_forge_draws_on_its_main_thread(
    host_modules: Path, two: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = make_forge(tmp_path / "forge", monkeypatch, new_line=True)
    from modules import processing

    threads: list[str] = []
    original = processing.process_images

    def watched(p: Any) -> Any:
        threads.append(threading.current_thread().name)
        return original(p)

    monkeypatch.setattr(processing, "process_images", watched)
    assert len(host.draw(picture(two, count=2))) == 2
    assert threads == ["main-thread"]

    def fail(p: Any) -> None:
        raise RuntimeError("device lost")

    monkeypatch.setattr(processing, "process_images", fail)
    with pytest.raises(ModelError, match="could not draw: device lost"):
        host.draw(picture(two))
    assert is_clean()


def wait_until(condition: Callable[[], object]) -> None:
    until = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)
