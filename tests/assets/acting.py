"""What people do on the page and through the API that starts, moves or makes something, over a full workspace.

Everything is done for real, but for the workers (`waiting_workers.py`), in a copy of the large version where it would
change it, and taken back at the end: a round can follow another.
"""

from __future__ import annotations

import base64
import io
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from full_workspace import Full
from http_page import Answer, Page
from PIL import Image

_WAIT_S = 60.0
_COPY = "a copy"
_THROWN_AWAY = "thrown away"
_PRESET = "my own"
_OTHER_PRESET = "another of my own"
_CLASS = "person"


class Actor:
    """Does everything, and keeps what was answered."""

    def __init__(self, page: Page, full: Full) -> None:
        self._page = page
        self._full = full
        self.answers: dict[str, list[Answer]] = {}
        """To what was done, such as `click train_begin` or `POST trains`."""

    def round(self) -> None:
        full = {"project": self._full.project, "version": self._full.version}
        (load,) = (own for own in self._page.handlers_of("load") if own.get("backend_fn"))
        self._page.call(load)
        self._throw_away_a_project()
        self._show(**full)
        with self._copy() as copy:
            self._change_pictures(copy)
            self._change_captions(copy)
            self._draw_class(copy)
            self._train(copy)
            self._sweep(copy)
            self._choose_presets(copy)
        self._show(**full)
        self._handle_loras()
        self._draw_previews(full)
        self._look_after()

    # --- asking ---

    def _click(self, name: str, **typed: Any) -> None:
        """Press a button, with these values of other components; the page shows no error then."""
        for component, value in typed.items():
            self._page.type(f"train_tools_{component}", value)
        (handler,) = (own for own in self._page.handlers_of("click", f"train_tools_{name}") if own.get("backend_fn"))
        self._keep(f"click {name}", self._page.call(handler))
        message = self._page.value("train_tools_message_live")
        assert "train-tools-error" not in message, (name, message)

    def _post(self, route: str, **body: Any) -> Any:
        answer = self._page.post(route, **body)
        assert answer.status == 200, (route, body, answer.body[:1000])
        self._keep(f"POST {route}", answer)
        told = answer.json()
        assert not (isinstance(told, dict) and told.get("problems")), (route, told)
        return told

    def _get(self, route: str, **query: Any) -> Answer:
        answer = self._page.get(route, **query)
        assert answer.status == 200, (route, query, answer.body[:1000])
        self._keep(f"GET {route}", answer)
        return answer

    def _keep(self, what: str, answer: Answer) -> None:
        self.answers.setdefault(what, []).append(answer)

    def _show(self, **version: str) -> None:
        self._post("selection", **version)
        self._click("show_last")

    def _state(self, job: str) -> str:
        return self._page.get("jobs/status", job=job).json()["state"]

    def _wait_for(self, job: str, state: str) -> None:
        until = time.monotonic() + _WAIT_S
        while self._state(job) != state:
            assert time.monotonic() < until, (job, state, self._state(job))
            time.sleep(0.05)

    def _stop(self, job: str) -> None:
        self._wait_for(job, "running")
        self._post("jobs/stop", job=job)
        self._wait_for(job, "stopped")

    def _queue(self) -> list[str]:
        return [entry["job"] for entry in self._page.get("queue").json()]

    def _empty_queue(self) -> None:
        """Let nothing wait or run any more."""
        until = time.monotonic() + _WAIT_S
        while jobs := self._queue():
            assert time.monotonic() < until, jobs
            for job in reversed(jobs):
                self._page.post("jobs/stop", job=job)
            time.sleep(0.05)

    # --- what is done ---

    def _throw_away_a_project(self) -> None:
        self._click("project_create_ok", project_name=_THROWN_AWAY)
        self._click("version_create_ok", version_name="v1")
        self._click("version_rename", version_new_name="v2")
        self._click("project_rename", project_new_name=f"{_THROWN_AWAY} soon")
        self._click("project_delete")
        project = self._post("projects", name=_THROWN_AWAY)["project"]
        version = self._post("versions", project=project, name="v1")["version"]
        self._post("versions/rename", project=project, version=version, name="v2")
        project = self._post("projects/rename", project=project, name=f"{_THROWN_AWAY} soon")["project"]
        self._post("projects/delete", project=project)

    @contextmanager
    def _copy(self) -> Iterator[dict[str, str]]:
        """A copy of the large version, which the page shows; deleted twice, the second time for ever."""
        project, name = self._full.project, f"{_COPY} {time.time_ns()}"
        self._click("version_duplicate", version_new_name=name)
        copy = self._page.get("selection").json()
        assert copy["version"] != self._full.version
        yield copy
        self._empty_queue()
        undo = self._post("versions/delete", **copy)
        self._post("trash/restore", entry=undo["entry"])
        self._click("show_last")
        self._click("version_delete")
        self._post("versions/duplicate", project=project, version=self._full.version, name=name)
        self._page.post("versions/delete", project=project, version=self._page.get("selection").json()["version"])

    def _change_pictures(self, copy: dict[str, str]) -> None:
        self._click("dataset_update")
        self._post("dataset/update/stop", **copy)
        self._wait_for(self._job_of(self._info("dataset", copy)["update"]), "stopped")
        job = self._post("dataset/update", **copy)["job"]
        self._page.post("dataset/update/stop", **copy)
        self._wait_for(job, "stopped")
        job = self._post("dataset/check", **copy)["job"]
        self._stop(job)
        picture = _picture()
        self._post("dataset/upload", **copy, files=[{"name": "one more.png", "content": picture}])
        self._post("dataset/server-files", **copy, paths=[str(self._full.root.parent / "photos" / "photo 0000.jpg")])
        first, second, *_ = self._info("dataset", copy)["pictures"]
        self._post("dataset/caption", **copy, file=first["file"], caption="cat girl, a new caption")
        self._post("dataset/replace", **copy, file=first["file"], name="other.png", content=picture)
        undo = self._post("dataset/remove", **copy, file=second["file"])
        self._post("trash/restore", entry=undo["entry"])

    def _change_captions(self, copy: dict[str, str]) -> None:
        """Of all pictures at once."""
        self._click("captions_apply", captions_text="a new tag")
        self._click("captions_undo")
        self._click("captions_redo")
        operation = {"kind": "add", "tags": "another new tag"}
        self._post("captions/preview", **copy, operation=operation)
        self._post("captions/edit", **copy, operation=operation)
        self._post("captions/undo", **copy)
        self._post("captions/redo", **copy)
        self._post("captioners/answer", choice="none")
        self._stop(self._post("captioners/download", model="wd-vit-tagger-v3")["job"])
        captioner = self._full.root.parent / "captioner"
        captioner.mkdir(exist_ok=True)
        for name in ("config.json", "model.safetensors"):
            (captioner / name).touch()
        self._post("settings", **copy, caption={"use_blip": True, "blip_model": str(captioner)})
        self._click("captions_write")
        self._post("captions/stop", **copy)
        self._wait_for(self._job_of(self._info("captioners", copy)["job"]), "stopped")
        job = self._post("captions/make", **copy)["job"]
        self._page.post("captions/stop", **copy)
        self._wait_for(job, "stopped")

    def _draw_class(self, copy: dict[str, str]) -> None:
        typed = {"class_name": _CLASS, "prompt": f"a photo of a {_CLASS}", "count": 20}
        self._click("regularisation_generate", **{f"regularisation_{name}": value for name, value in typed.items()})
        self._empty_queue()
        self._post("regularisation/generate", **copy, **typed)
        self._empty_queue()
        files = [{"name": "one.png", "content": _picture()}]
        self._post("regularisation/upload", **copy, class_name=_CLASS, files=files)
        (folder,) = (told["folder"] for told in self._info("regularisation", copy)["classes"])
        self._post("regularisation/remove", **copy, folder=folder)

    def _train(self, copy: dict[str, str]) -> None:
        self._click("train_begin")
        (job,) = self._queue()
        self._wait_for(job, "running")
        second, third = (self._post("trains", **copy)["job"] for _ in range(2))
        self._post("queue/move", job=third, place=1)
        self._post("queue/cancel", job=third)
        self._post("jobs/stop", job=second)
        self._post("jobs/pause", job=job)
        self._wait_for(job, "paused")
        self._post("jobs/resume", job=job)
        self._wait_for(job, "running")
        self._post("jobs/kill", job=job)
        self._empty_queue()
        self._post("history/use", job=job)
        self._post("history/undo", job=job)
        for ended in (job, second, third):
            self._post("jobs/delete", job=ended)

    def _sweep(self, copy: dict[str, str]) -> None:
        """Of four runs; one of them saves a LoRA."""
        self._post("settings", **copy, sweep={"learning_rates": "1e-4, 2e-4", "ranks": "4, 8"})
        self._click("show_last")
        self._click("sweep_begin")
        self._post("sweeps/stop", sweep=self._info("sweeps", copy)[0]["id"])
        self._empty_queue()
        sweep = self._post("sweeps", **copy)["sweep"]
        first = self._info("sweeps", copy)[0]["rows"][0]["job"]
        self._stop(first)
        self._post("sweeps/stop", sweep=sweep)
        self._empty_queue()
        self._post("sweeps/grid", sweep=sweep)
        self._empty_queue()

    def _choose_presets(self, copy: dict[str, str]) -> None:
        self._click("preset_save", preset_name=_PRESET)
        self._click("preset_rename", preset_own=_PRESET, preset_name=_OTHER_PRESET)
        self._click("preset_delete", preset_own=_OTHER_PRESET)
        self._post("presets/save", **copy, name=_PRESET)
        content = self._get("presets/file", name=_PRESET).body
        self._post("presets/rename", name=_PRESET, new_name=_OTHER_PRESET)
        self._post("presets/delete", name=_OTHER_PRESET)
        imported = self._post("presets/import", name=f"{_PRESET}.json", content=base64.b64encode(content).decode())
        self._page.post("presets/delete", name=imported["name"])
        self._post("presets/apply", **copy, name="character")
        self._post("presets/undo", **copy)

    def _handle_loras(self) -> None:
        """Of the training with very many."""
        train = {"job": self._full.train}
        lora = {**train, "lora": f"{self._full.train.rpartition('/')[2]}.safetensors"}
        undo = self._post("loras/unpublish", **lora)
        self._post("trash/restore", entry=undo["entry"])
        self._post("loras/publish", **lora)
        self._post("loras/publish-recommended", **train)
        self._post("loras/private", **train, private=True)
        self._post("loras/private", **train, private=False)
        self._empty_queue()
        self._post("loras/prove", **lora)
        self._post("judge", **train)
        self._post("judge/choose", **lora, weight=0.8)
        self._post("judge/follow", **train)
        self._empty_queue()
        undo = self._post("loras/delete", **lora)
        self._post("trash/restore", entry=undo["entry"])
        undo = self._post("jobs/delete", **train)
        self._post("trash/restore", entry=undo["entry"])
        self._post("jobs/previews", job=self._full.other_train)
        self._empty_queue()
        again = self._post("history/repeat", **train)["job"]
        self._empty_queue()
        self._page.post("jobs/delete", job=again)

    def _draw_previews(self, full: dict[str, str]) -> None:
        train = {"job": self._full.train}
        self._click("preview_generate_all")
        self._empty_queue()
        self._click("preview_delete_all")
        (grid,) = self._post("grids", **full)["jobs"]
        self._wait_for(grid, "running")
        self._get("grids/table", job=grid)
        self._post("grids/stop", job=grid)
        self._empty_queue()
        self._post("grids/resume", job=grid)
        self._empty_queue()
        self._post("grids/delete", job=grid)
        self._post("grids/train", **train)
        self._post("grids/lora", **train, lora=f"{self._full.train.rpartition('/')[2]}.safetensors")
        self._empty_queue()
        self._post("grids/delete_all", **full)

    def _look_after(self) -> None:
        self._post("doctor")
        until = time.monotonic() + _WAIT_S
        while self._page.get("doctor").json()["is_running"]:
            assert time.monotonic() < until
            time.sleep(0.05)
        self._get("doctor/report")
        for file in ("jobs/curves.csv", "jobs/curves.json", "jobs/report"):  # made of all events
            self._get(file, job=self._full.train)
        self._post("base-models/refresh")

    def _job_of(self, status: dict[str, Any]) -> str:
        return Path(status["job_dir"]).relative_to(self._full.root.resolve()).as_posix()

    def _info(self, route: str, version: dict[str, str]) -> Any:
        return self._page.get(route, **version).json()


def _picture() -> str:
    """In base64, as the page sends it."""
    stream = io.BytesIO()
    Image.effect_noise((256, 256), 50).convert("RGB").save(stream, "PNG")
    return base64.b64encode(stream.getvalue()).decode()
