"""What is offered to train on, and what is told of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lora_train.app import planning
from lora_train.core.assets import DEMO_MODEL
from lora_train.core.errors import ConfigError
from lora_train.core.host import BaseModelChoice

if TYPE_CHECKING:
    from tests.unit.app.conftest import Desk


def test_base_models(desk: Desk, tmp_path: Path) -> None:
    desk.host.checkpoints = [BaseModelChoice("anime/model", str(DEMO_MODEL))]
    choices = desk.app.base_models.offered()
    assert [choice.name for choice in choices] == ["anime/model", "Small demo model"]
    named = desk.app.base_models.look(str(DEMO_MODEL))
    assert (named.name, named.problem) == ("anime/model", "")
    demo = desk.app.base_models.look("demo")
    assert (demo.name, demo.prediction, demo.resolution_px, demo.clip_skip_matters) == (
        *("Small demo model", "epsilon", 64, True),
    )
    assert "1" in demo.family
    text = tmp_path / "text.safetensors"
    text.write_bytes(b"I am a text, and long enough to be read as a header.")
    for path in (text, tmp_path / "gone.ckpt"):
        snapshot = desk.app.base_models.look(str(path))
        assert path.name in snapshot.problem
        assert snapshot.family == ""


def test_an_open_page_takes_no_paths(desk: Desk) -> None:
    """What the list offers may be chosen, also as the default was saved while the page was local."""
    desk.trained("4_cat/a.png")
    desk.save(base_model=str(DEMO_MODEL), vae=str(DEMO_MODEL))
    desk.host.is_local = False
    problems = desk.app.training.forecast("cat", "v1").problems
    assert len(problems) == 2
    assert all("takes no paths" in problem for problem in problems)
    assert "takes no paths" in desk.app.base_models.look("/etc/passwd").problem
    with pytest.raises(ConfigError, match="takes no paths"):
        desk.app.training.begin("cat", "v1")
    desk.host.checkpoints = [BaseModelChoice("model", str(DEMO_MODEL))]
    desk.save(base_model=str(DEMO_MODEL), vae="")
    assert desk.app.training.forecast("cat", "v1").problems == []


def test_a_header_is_read_once(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    desk.trained("4_cat/a.png")
    desk.save()
    planning._read_header.cache_clear()
    read: list[Path] = []
    original = planning.read_checkpoint
    monkeypatch.setattr(planning, "read_checkpoint", lambda path: read.append(path) or original(path))
    for _ in range(3):
        assert desk.app.training.forecast("cat", "v1").problems == []
    assert len(read) == 1
