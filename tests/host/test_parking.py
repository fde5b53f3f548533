"""The host's model gives way to a training, and always comes back."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.compat


def draw(**values: Any) -> str:
    """A picture as the API makes it; its bytes as text."""
    from modules import call_queue, processing

    with call_queue.queue_lock:
        p = processing.StableDiffusionProcessingTxt2Img(prompt="a cat", steps=1, **values)
        return processing.process_images(p).images[0].tobytes().hex()


def wait_until(condition: Callable[[], bool], limit_s: float = 60.0) -> None:
    until = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


@pytest.fixture
def host(host_modules: Path) -> Any:
    from modules import shared

    from lora_train.hosts.webui import WebUI

    _ = shared.sd_model  # loads it
    return WebUI()


def device() -> str:
    from modules import sd_models

    return sd_models.model_data.sd_model.device


def test_the_picture_is_the_same_before_and_after(host: Any) -> None:
    before = draw()
    with host.parked("auto"):
        assert device() == "cpu"
    assert device() == "cuda"
    assert draw() == before


@pytest.mark.parametrize("kind", ["cpu", "mps", "xpu"])
def test_another_device_takes_nothing_away(host: Any, kind: str) -> None:
    with host.parked(kind):
        assert device() == "cuda"
        draw()


@pytest.mark.parametrize(
    ("of_host", "asked", "shared"),
    [
        ("cuda", "auto", True),
        ("cuda:0", "cuda", True),
        ("cuda:1", "cuda", False),
        ("cuda", "cpu", False),
        ("cpu", "auto", False),
        ("mps", "auto", True),
        ("mps", "mps", True),
    ],
)
def test_who_shares_a_card(host_modules: Path, of_host: str, asked: str, shared: bool) -> None:
    from modules.devices import Device

    from lora_train.hosts.webui import shares_card

    assert shares_card(Device(of_host), asked) is shared


def test_a_picture_is_refused_in_words(host: Any) -> None:
    from lora_train.hosts.parking import CardInUse

    host.describe_work = lambda: "Train Tools is training on this card: Cat v1."
    with host.parked("auto"), pytest.raises(CardInUse, match=r"training on this card: Cat v1\.") as caught:
        draw()
    assert caught.value.status_code == 503
    draw()


def test_a_description_that_fails_hides_nothing(host: Any) -> None:
    from lora_train.hosts.parking import CardInUse

    def fail() -> str:
        raise OSError("gone")

    host.describe_work = fail
    with host.parked("auto"), pytest.raises(CardInUse, match="Stop or pause it in the Train Tools tab"):
        draw()


@pytest.mark.parametrize("error", [RuntimeError("worker died"), KeyboardInterrupt(), SystemExit(1)])
def test_it_comes_back_whatever_is_raised(host: Any, error: BaseException) -> None:
    with pytest.raises(type(error)), host.parked("auto"):
        raise error
    assert device() == "cuda"
    draw()


def test_the_lock_is_held_only_while_the_model_moves(host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from modules import call_queue, sd_models

    held: list[bool] = []
    move = sd_models.Model.to
    monkeypatch.setattr(
        sd_models.Model, "to", lambda *args: (held.append(call_queue.queue_lock.locked()), move(*args))[1]
    )
    with host.parked("auto"):
        assert not call_queue.queue_lock.locked()
    assert held == [True, True]
    assert not call_queue.queue_lock.locked()


def test_it_waits_for_the_picture_that_is_being_made(host: Any) -> None:
    from modules import call_queue

    seen: list[str] = []

    def train() -> None:
        with host.parked("auto"):
            seen.append(device())

    with call_queue.queue_lock:
        thread = threading.Thread(target=train)
        thread.start()
        wait_until(lambda: host.is_waiting_for_picture())
        time.sleep(0.05)
        assert device() == "cuda"
        assert seen == []
    thread.join(5)
    assert seen == ["cpu"]
    assert not host.is_waiting_for_picture()
    assert device() == "cuda"


def test_the_model_that_is_there_now_comes_back(host: Any) -> None:
    """Another extension may have loaded a checkpoint past our guard; the old model is then no more."""
    from modules import sd_models

    with host.parked("auto"):
        old = sd_models.model_data.sd_model
        sd_models.load_model.__wrapped__(sd_models.checkpoints_list["two.safetensors [0123456789]"])
        sd_models.model_data.sd_model.to("cpu")
    assert old.device == "meta"
    assert device() == "cuda"


def test_another_checkpoint_is_loaded_when_the_card_is_free(host: Any) -> None:
    from modules import sd_models, sd_vae, shared

    with host.parked("auto"):
        shared.opts.set("sd_model_checkpoint", "two.safetensors")
        sd_models.reload_model_weights()  # what the host calls when it is chosen
        sd_vae.reload_vae_weights()
        assert sd_models.model_data.sd_model.sd_checkpoint_info.name == "one.safetensors"
        assert device() == "cpu"
    assert sd_models.model_data.sd_model.sd_checkpoint_info.name == "two.safetensors"
    assert device() == "cuda"
    draw()


def test_a_picture_with_another_checkpoint_loads_nothing(host: Any) -> None:
    from modules import sd_models

    from lora_train.hosts.parking import CardInUse

    with host.parked("auto"):
        with pytest.raises(CardInUse):
            draw(override_settings={"sd_model_checkpoint": "two.safetensors"})
        assert sd_models.model_data.sd_model.sd_checkpoint_info.name == "one.safetensors"
        assert device() == "cpu"


def test_no_model_is_loaded_for_parking(host_modules: Path) -> None:
    from modules import sd_models

    from lora_train.hosts.parking import CardInUse
    from lora_train.hosts.webui import WebUI

    with WebUI().parked("auto"):
        assert sd_models.model_data.sd_model is None
        with pytest.raises(CardInUse):
            draw()
        assert sd_models.model_data.sd_model is None
    assert sd_models.model_data.sd_model is None
    draw()
    assert device() == "cuda"


def test_a_checkpoint_that_is_loading_is_waited_for(host_modules: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hosts load the first one in a thread of its own, without the queue lock."""
    from modules import sd_models, shared

    from lora_train.hosts.webui import WebUI

    move, begun = sd_models.Model.to, threading.Event()

    def slow(model: Any, where: Any) -> Any:
        begun.set()
        time.sleep(0.2)
        return move(model, where)

    monkeypatch.setattr(sd_models.Model, "to", slow)
    loading = threading.Thread(target=lambda: shared.sd_model)
    loading.start()
    begun.wait(5)
    with WebUI().parked("auto"):
        assert device() == "cpu"
    loading.join(5)
    assert device() == "cuda"


def test_a_model_in_low_memory_mode_stays_where_it_is_put(host: Any) -> None:
    from modules import sd_models

    sd_models.model_data.sd_model.lowvram = True
    from lora_train.hosts.parking import CardInUse

    with host.parked("auto"), pytest.raises(CardInUse):
        draw()
    assert device() == "cpu"
    draw()


def test_a_model_that_will_not_leave_stops_no_training(host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from modules import sd_models

    def stuck(model: Any) -> None:
        raise RuntimeError("no")

    monkeypatch.setattr(sd_models, "send_model_to_cpu", stuck)
    entered = False
    with host.parked("auto"):
        entered = True
    assert entered
    draw()


def test_an_interrupt_while_it_leaves_brings_it_back(host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from modules import devices, processing

    original, collect = processing.process_images_inner, devices.torch_gc

    def interrupt() -> None:
        monkeypatch.setattr(devices, "torch_gc", collect)
        raise KeyboardInterrupt

    monkeypatch.setattr(devices, "torch_gc", interrupt)
    with pytest.raises(KeyboardInterrupt), host.parked("auto"):
        pass
    assert device() == "cuda"
    assert processing.process_images_inner is original
    draw()


def test_coming_back_is_tried_again(host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker's memory may still be taken for a moment."""
    from modules import sd_models

    from lora_train.hosts import parking

    monkeypatch.setattr(parking, "_GIVE_BACK_PAUSE_S", 0.01)
    send, tries = sd_models.send_model_to_device, []

    def full_at_first(model: Any) -> None:
        tries.append(1)
        if len(tries) < 3:
            raise RuntimeError("CUDA out of memory")
        send(model)

    monkeypatch.setattr(sd_models, "send_model_to_device", full_at_first)
    with host.parked("auto"):
        pass
    assert len(tries) == 3
    assert device() == "cuda"


def test_two_trainings_give_it_back_once(host: Any) -> None:
    with host.parked("auto"):
        with host.parked("auto"):
            pass
        assert device() == "cpu"
    assert device() == "cuda"


def test_nothing_of_the_host_stays_wrapped(host: Any) -> None:
    from modules import processing, sd_models

    before = (processing.process_images_inner, sd_models.load_model, sd_models.reload_model_weights)
    for _ in range(3):
        with host.parked("auto"):
            assert processing.process_images_inner is not before[0]
    assert (processing.process_images_inner, sd_models.load_model, sd_models.reload_model_weights) == before


def test_it_is_guarded_again_where_an_extension_put_the_original_back(host: Any) -> None:
    from modules import processing

    from lora_train.hosts.parking import CardInUse

    original = processing.process_images_inner
    with host.parked("auto"):
        host.guard_again()
        assert processing.process_images_inner.__wrapped__ is original  # not twice
        processing.process_images_inner = original
        host.guard_again()
        with pytest.raises(CardInUse):
            draw()
    assert processing.process_images_inner is original
    host.guard_again()
    assert processing.process_images_inner is original


def test_an_extension_may_keep_what_we_put_there(host: Any) -> None:
    from modules import processing

    with host.parked("auto"):
        kept = processing.process_images_inner
        processing.process_images_inner = lambda p: kept(p)
    draw()
