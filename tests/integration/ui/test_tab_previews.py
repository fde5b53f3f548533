"""The preview panel on the installed gradio: its settings are saved, and its buttons do what they say."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

pytest.importorskip("gradio")

from lora_train.app import App
from lora_train.core import events as ev
from lora_train.core.assets import DEMO_MODEL
from lora_train.core.config import TrainSettings
from lora_train.core.grid_settings import GridSettings
from lora_train.core.host import BaseModelChoice, NoHost
from lora_train.core.jobs import JobFolder
from lora_train.core.settings import setting_fields
from lora_train.core.specs import GridSpec, TrainSpec
from lora_train.core.workspace import Workspace

if TYPE_CHECKING:
    from tests.integration.ui.conftest import Browser

pytestmark = pytest.mark.compat


def train(app: App) -> None:
    """A finished one with a LoRA that nobody looks into."""
    selection = app.projects.selection()
    version = app.workspace.find_version(selection.project, selection.version)
    job = JobFolder(version.trains_dir / "cat-v1")
    job.create(
        TrainSpec(
            name="cat-v1", dataset="", dataset_fingerprint="", trash="", settings=TrainSettings(base_model="demo")
        )
    )
    job.path.joinpath("cat-v1.safetensors").write_bytes(b"no LoRA")
    writer = ev.EventWriter(job.events_path)
    writer.write(ev.Started(pid=0, step=0), ev.Saved("cat-v1.safetensors", step=1, epoch=1), ev.Finished(step=1))
    writer.close()


def test_every_setting_stands_on_the_page(browser: Browser) -> None:
    ids = {f"train_tools_preview_{field.name}" for field in setting_fields(GridSettings)}
    assert ids <= set(browser.by_id)
    browser.begin_story()
    assert browser.is_visible("preview_prompt")
    assert not browser.is_visible("preview_drawn_by"), "there is no host that could draw"


def test_lists_are_saved_as_they_are_typed(browser: Browser, app: App, open_browser: type[Browser]) -> None:
    browser.begin_story()
    assert "There is no LoRA yet" in browser["grids_sum_live"]
    train(app)
    browser.type("preview_weights", "0, 0.5,1")
    assert "pictures" in browser["grids_sum_live"]
    browser.type("preview_samplers", ["Euler a", "DDIM"])
    browser.type("preview_seeds", "1, 2, 3")
    browser.type("preview_prompt", "a photo,\nof sks")
    selection = app.projects.selection()
    saved = app.settings.preview(selection.project, selection.version)
    assert (saved["weights"], saved["samplers"], saved["seeds"]) == ((0.0, 0.5, 1.0), ("Euler a", "DDIM"), (1, 2, 3))
    assert saved["prompt"] == "a photo,\nof sks"
    other = open_browser(app)
    other.load()
    assert (other["preview_weights"], other["preview_samplers"]) == ("0, 0.5, 1", ["Euler a", "DDIM"])
    browser.type("preview_steps", "20, many")
    assert "comma list of whole numbers from 1 to 150" in browser["preview_problems"]
    browser.press("preview_generate_all")
    assert "comma list of whole numbers from 1 to 150" in browser["message_live"]
    assert app.queue.entries() == []


def test_generate_delete_and_undo(browser: Browser, app: App) -> None:
    browser.begin_story()
    browser.press("preview_generate_all")
    assert "There is no LoRA yet" in browser["message_live"]
    train(app)
    browser.press("preview_generate_all")
    (entry,) = app.queue.entries()
    spec = JobFolder(app.workspace.find_job(entry.job)).read_spec()
    assert isinstance(spec, GridSpec)
    assert [Path(lora).stem for lora in spec.loras] == ["cat-v1"]
    assert "Waiting in the queue" in browser["grids_live"]
    browser.press("preview_delete_all")
    assert "There are no previews that could be deleted." in browser["message_live"]
    app.grids.stop(entry.job)
    browser.press("preview_delete_all")
    assert "trash/restore" in browser["message_live"]
    assert "Grids of pictures appear here." in browser["grids_live"]


class DrawingHost(NoHost):
    def samplers(self) -> tuple[str, ...]:
        return ("Restart", "Euler")

    def base_models(self) -> list[BaseModelChoice]:
        return [BaseModelChoice("demo", str(DEMO_MODEL))]


def test_a_host_that_draws_is_a_choice(tmp_path: Path, open_browser: type[Browser]) -> None:
    app = App(Workspace(tmp_path / "workspace"), DrawingHost())
    browser = open_browser(app)
    browser.load()
    browser.begin_story()
    assert browser.is_visible("preview_drawn_by")
    browser.type("preview_drawn_by", "host")
    browser.type("preview_samplers", ["Restart"])
    train(app)
    assert app.grids.forecast("Kätzchen 猫", "v1").problems == []
    browser.type("preview_drawn_by", "worker")
    assert "Restart" in browser["grids_sum_live"]
    assert "can&#x27;t be drawn by Train Tools" in browser["grids_sum_live"]
