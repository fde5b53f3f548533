"""The WebUI's own captioners: loaded and unloaded in pairs, under its queue lock, whatever happens between."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lora_train.core.caption_settings import CaptionSettings
from lora_train.core.errors import JobError, ModelError
from lora_train.core.jobs import RequestedEnd

pytestmark = pytest.mark.compat


@pytest.fixture
def host(host_modules: Path) -> Any:
    from lora_train.hosts.webui import WebUI

    return WebUI()


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / "赤.png", tmp_path / "clear.png"]
    Image.new("RGB", (8, 8), (250, 0, 0)).save(paths[0])
    Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(paths[1])  # transparent: white
    return paths


def interrogator() -> Any:
    from modules import shared

    return shared.interrogator


def deepbooru() -> Any:
    from modules import deepbooru

    return deepbooru.model


def captions(host: Any, pictures: list[Path], *kinds: str, **settings: Any) -> list[str]:
    with host.open_captioner(kinds, CaptionSettings(**settings)) as captioner:
        return list(captioner.captions(pictures))


def is_free() -> bool:
    from modules import call_queue

    return not call_queue.queue_lock.locked()


def test_what_there_is(host: Any, host_modules: Path) -> None:
    assert host.captioners() == ("blip", "deepbooru")
    assert host.absent_captioners() == ("blip", "deepbooru")
    for folder, name in (("BLIP", "model_base_caption_capfilt_large.pth"), ("torch_deepdanbooru", "model.pt")):
        (host_modules / "models" / folder).mkdir()
        (host_modules / "models" / folder / name).touch()
    assert host.absent_captioners() == ()


def test_a_sentence_then_tags(host: Any, pictures: list[Path]) -> None:
    assert captions(host, pictures, "blip") == ["a picture of red", "a picture of red"]
    assert captions(host, pictures[:1], "deepbooru") == ["1girl, ribbon (hair), red"]
    both = captions(host, pictures[:1], "deepbooru", "blip", excluded_tags="1Girl")
    assert both == ["a picture of red, ribbon (hair), red"]
    assert interrogator().calls == ["load", "caption", "caption", "unload", "load", "caption", "unload"]
    assert deepbooru().calls == ["start", "tag", "stop", "start", "tag", "stop"]
    assert not interrogator().is_loaded
    assert deepbooru().model is None
    assert is_free()


def test_the_hosts_own_options_hold(host: Any, pictures: list[Path]) -> None:
    from modules import shared

    with host.open_captioner(("blip", "deepbooru"), CaptionSettings()) as captioner:
        before = captioner.fingerprint
    shared.opts.interrogate_clip_max_length = 9
    shared.opts.interrogate_return_ranks = True
    shared.opts.interrogate_deepbooru_score_threshold = 1.0
    shared.opts.deepbooru_escape = False
    assert captions(host, pictures[:1], "blip", "deepbooru") == ["a picture, 1girl, ribbon (hair)"]
    with host.open_captioner(("blip", "deepbooru"), CaptionSettings()) as captioner:
        assert captioner.fingerprint != before


@pytest.mark.parametrize("call", ["load", "caption", "start", "tag"])
def test_what_fails_is_told_and_everything_is_unloaded(host: Any, pictures: list[Path], call: str) -> None:
    model = interrogator() if call in ("load", "caption") else deepbooru()
    model.fails_on = call
    with pytest.raises(ModelError, match=r"The WebUI could not (load its|caption) .*no network\.$"):
        captions(host, pictures, "blip", "deepbooru")
    assert interrogator().calls[-1] == "unload"
    assert deepbooru().calls[-1:] in ([], ["stop"])
    assert not any(told.endswith("!") for told in interrogator().calls + deepbooru().calls)
    assert not interrogator().is_loaded
    assert deepbooru().model is None
    assert is_free()


def test_who_stops_between_two_pictures(host: Any, pictures: list[Path]) -> None:
    def stopped() -> None:
        with host.open_captioner(("blip", "deepbooru"), CaptionSettings()) as captioner:
            next(captioner.captions(pictures))
            raise RequestedEnd("stop")

    with pytest.raises(RequestedEnd):
        stopped()
    assert interrogator().calls == ["load", "caption", "unload"]
    assert deepbooru().calls == ["start", "tag", "stop"]
    assert is_free()


def test_the_hosts_progress_is_left_alone(host: Any, pictures: list[Path]) -> None:
    from modules import shared

    shared.state.begin("a picture of somebody else")
    captions(host, pictures, "blip", "deepbooru")
    assert shared.state.job == "a picture of somebody else"
    assert "interrogate" not in interrogator().calls


def test_not_while_a_training_has_the_card(host: Any, pictures: list[Path]) -> None:
    with host.parked("cuda"), pytest.raises(JobError, match="A training has the card"):
        captions(host, pictures, "blip")
    assert interrogator().calls == []
    assert is_free()


def test_a_host_without_any(host: Any, pictures: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Forge Classic."""
    from modules import shared

    real = sys.modules["importlib.util"].find_spec
    missing = ("modules.deepbooru", "modules.interrogate")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name in missing else real(name))
    monkeypatch.setattr(shared, "interrogator", None, raising=False)
    assert host.captioners() == host.absent_captioners() == ()
    with pytest.raises(ModelError, match="This WebUI has no BLIP of its own"):
        captions(host, pictures, "blip")
    assert is_free()
