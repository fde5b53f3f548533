"""What the panels of one page share: which version its controls show, its live parts, and how events are answered.

A page knows what it shows by a hidden text of its own, `project/version`, that is set together with the values of the
controls, and never by its dropdowns: so an answer that comes late can't carry one version's values into another.
"""

from __future__ import annotations

import html
import itertools
import logging
import threading
from collections.abc import Callable, Iterable
from typing import Any, Literal

import gradio as gr
import msgspec

from lora_train.app import App
from lora_train.app.snapshot import BaseModelSnapshot, Selection, Undo
from lora_train.app.tasks import SOON_S, Task, told_of
from lora_train.core.caption_settings import CaptionSettings
from lora_train.core.config import TrainSettings
from lora_train.core.dataset_settings import DatasetSettings
from lora_train.core.errors import TrainToolsError
from lora_train.core.grid_settings import GridSettings
from lora_train.core.settings import check_settings
from lora_train.core.sweep_settings import SweepSettings
from lora_train.ui import live, view
from lora_train.ui.carrier import Carrier
from lora_train.ui.compat import Component, Updates, make, triggers_of_a_hand
from lora_train.ui.form import SettingControl
from lora_train.ui.html import sentences

Values = dict[Component, Any]
Handler = Callable[[Values], Updates]

_DRAWN_WITH = {"base_model": ("model", "preset"), "optimizer": ("optimizers",)}
"""What of the live parts a setting changes, besides the sum."""
_BY_HANDLERS = "model"
"""The live part that the page's script can't draw: nothing but a person's choice changes it."""
_SUMS = {"preview": "grids_sum", "sweep": "sweep_sum"}
"""The live part that tells what the settings of a section amount to, where it is not that of the training."""
_SCHEMAS: dict[str, type[msgspec.Struct]] = {
    "train": TrainSettings,
    "dataset": DatasetSettings,
    "caption": CaptionSettings,
    "preview": GridSettings,
    "sweep": SweepSettings,
}

_log = logging.getLogger(__name__)


class Page:
    """The components that are not one panel's, and everything that panels ask of each other."""

    def __init__(self, app: App, token: str) -> None:
        self.app = app
        self.token = token
        self._messages = itertools.count()
        self._live: dict[str, Component] = {}
        self._folded: set[str] = set()
        self._settings: dict[SettingControl, Component] = {}
        self._problems: list[Component] = []
        self._fillers: list[Callable[[Selection], Updates]] = []
        self._filled: set[Component] = set()
        self._drawing: set[Selection] = set()
        self._taken: set[Component] = set()
        """Whatever a task may change."""

    # --- making the page ---

    def add_shown(self) -> None:
        """The hidden memory of what the page shows: one for us, one for the page's script. First of all."""
        self._carrier = Carrier()
        self.shown = make(gr.Textbox, value="", visible=False)
        self._shown_element = make(gr.HTML, value=_shown_html(Selection()), elem_classes=["train-tools-hidden"])

    def add_message(self) -> None:
        """Where answers, errors and undo buttons appear, and what takes longer than a click."""
        self.message = make(gr.HTML, value=view.live("message", ""), elem_id="train_tools_message_live")
        self._tasks = make(gr.HTML, value=view.live("tasks", ""), elem_id="train_tools_tasks_live")
        # The task that this page began last: one for us, one for the page's script, which presses the button when it
        # has come to its end.
        self._begun = make(gr.Textbox, value="", visible=False)
        self._begun_element = make(gr.HTML, value=_begun_html(""), elem_classes=["train-tools-hidden"])
        self._take = make(gr.Button, value="", elem_id="train_tools_take", elem_classes=["train-tools-hidden"])

    def add_heading(self, number: str, text: str) -> None:
        """The head of a step of the story; the number is no part of the text, for the sake of translation."""
        words = f'<span class="train-tools-step">{number}</span> <span>{text}</span>'
        make(gr.HTML, value=f'<h2 class="train-tools-heading">{words}</h2>')

    def add_live(self, name: str, *, is_folded: bool = False) -> None:
        """A part that is drawn from a snapshot, by handlers and by the page's script. One that is in an accordion which
        is closed at first is `is_folded`: the script draws it as soon as somebody sees it.
        """
        if is_folded:
            self._folded.add(name)
        self._live[name] = make(gr.HTML, value=view.live(name, ""), elem_id=f"train_tools_{name}_live")

    def add_filler(self, fill: Callable[[Selection], Updates], *components: Component) -> None:
        """What a panel shows of a selection: called whenever another one is shown."""
        self._fillers.append(fill)
        self._filled.update(components)

    # --- answering events ---

    def on(
        self,
        trigger: Callable[..., Any],
        handler: Handler,
        inputs: Iterable[Component] = (),
        outputs: Iterable[Component] = (),
        *,
        is_typing: bool = False,
        keeps_message: bool = False,
    ) -> None:
        """Bind a handler that gets the values of `inputs` and of `shown`. Its errors go to the message.

        `is_typing`: it is called at every letter; the last call counts. The message before goes away, unless it is
        typing or `keeps_message`.
        """

        def answer(values: Values) -> Updates:
            cleared = {} if is_typing or keeps_message else {self.message: self.message_html("")}
            return self._told(lambda: cleared | handler(values))

        self._carrier.on(trigger, answer, {self.shown, *inputs}, {self.message, *outputs}, keeps_latest=is_typing)

    def on_press(
        self,
        button: Component,
        handler: Handler,
        inputs: Iterable[Component] = (),
        outputs: Iterable[Component] = (),
        *,
        trigger: Callable[..., Any] | None = None,
    ) -> None:
        """Bind a handler, as `on`, to a button or upload (or to a `trigger` that does the same) whose work may take
        longer than a click. What is not done soon goes on as a task; the page's script then has its updates taken
        (`bind_tasks`).
        """
        what = button.value if isinstance(button, gr.Button) else button.label

        is_upload = not isinstance(button, gr.Button)

        def press(values: Values) -> Updates:
            # Files may be dropped again at once; what a second press would do, nobody wants twice.
            once = None if is_upload else (what, values[self.shown])
            task = self.app.tasks.begin(what, lambda: handler(values), once)
            if task.is_answered:
                return task.result()
            return {
                self._begun: f"{task.id} {values[self.shown]}",
                self._begun_element: _begun_html(task.id),
                self._tasks: self._tasks_html(),
            }

        def answer(values: Values) -> Updates:
            return {self.message: self.message_html(""), **self._told(lambda: press(values))}

        parts = {self.message, self._begun, self._begun_element, self._tasks}
        self._taken |= {self.message, *outputs}
        self._carrier.on(trigger or button.click, answer, {self.shown, *inputs}, {*parts, *outputs})

    def bind_tasks(self) -> None:
        """After every `on_press`: what a task came to is shown when it is over."""
        self.on(self._take.click, self._take_ended, [self._begun], {*self._taken, self._tasks}, keeps_message=True)

    def _take_ended(self, values: Values) -> Updates:
        """The updates of the task that this page began. Of those that show a version the controls are read anew: they
        may have been changed meanwhile. Where the page shows another one by now, that stays.
        """
        task_id, _, shown = (values[self._begun] or "").partition(" ")
        task = self.app.tasks.take(task_id)
        if task is None:
            return {}
        updates = self._told(task.result)
        is_shown = shown == values[self.shown]
        told = {self.message: updates[self.message]} if self.message in updates else {}
        if self.shown in updates:
            updates = self.fill(self.selection(updates if is_shown else values), values) | told
        elif not is_shown:
            updates = told
        return {**updates, self._tasks: self._tasks_html()}

    def _tasks_html(self) -> str:
        return view.live("tasks", view.tasks_html(self.app.tasks.entries()))

    def _empty(self, name: str) -> str:
        """A live part that the page's script is to draw; never the same text twice, as of messages."""
        return f"{view.live(name, '')}<!-- {next(self._messages)} -->"

    def _told(self, answer: Callable[[], Updates]) -> Updates:
        """What a handler answers; its errors as a message."""
        try:
            return answer()
        except Exception as error:  # the border to the host: a mistake of ours must not become its error box
            if not isinstance(error, (TrainToolsError, OSError)):
                _log.exception("Train Tools could not answer")
            return {self.message: self.message_html(*told_of(error), "error")}

    def selection(self, values: Values) -> Selection:
        """The version that the controls show, whose values these are."""
        project, _, version = (values[self.shown] or "").partition("/")
        return Selection(project, version)

    def message_html(self, text: str, hint: str = "", kind: Literal["info", "error"] = "info") -> str:
        return self._message(view.message_html(text, hint, kind))

    def counted_html(self, number: int, one: str, many: str) -> str:
        """A message that tells how many, e.g. `16 captions changed.`"""
        return self._message(view.counted_message_html(number, one, many))

    def undo_html(self, undo: Undo) -> str:
        return self._message(view.message_html("", undo=undo))

    def _message(self, inner: str) -> str:
        """Never the same text twice: gradio would not draw it again, though the script has emptied the place."""
        return f"{view.live('message', inner)}<!-- {next(self._messages)} -->"

    # --- showing a version ---

    def everything(self) -> set[Component]:
        """The outputs of `fill`."""
        own = {self.shown, self._shown_element, *self._problems, *self._live.values()}
        return own | self._filled | set(self.controls())

    def fill(self, selection: Selection, values: Values | None = None) -> Updates:
        """The whole page for a version, but for what the page's script is to draw, which is empty then: what is in
        closed accordions, and live parts that take longer than a click, as after a start. Where the page that asks
        shows this version already, as its `values` tell, those stay until the script draws them anew.

        Raises WorkspaceError where there is no such version.
        """
        updates: Updates = {
            self.shown: f"{selection.project}/{selection.version}",
            self._shown_element: _shown_html(selection),
            **dict.fromkeys(self._problems, ""),
        }
        with self.app.datasets.glancing():
            for fill in self._fillers:
                updates |= fill(selection)
            updates |= self._saved_settings(selection)
        updates |= {self._live[name]: self._empty(name) for name in self._folded}
        updates |= self.redraw(selection, _BY_HANDLERS)
        opened = [name for name in self._live if name not in (*self._folded, _BY_HANDLERS)]
        drawn = self._drawn_soon(selection, opened)
        if drawn is None:
            is_shown = values is not None and self.selection(values) == selection
            drawn = {} if is_shown else {self._live[name]: self._empty(name) for name in opened}
        return updates | drawn

    def _drawn_soon(self, selection: Selection, names: list[str]) -> Updates | None:
        """`redraw`; None where that takes longer than a click. It goes on then, for what it reads is remembered, and is
        not begun twice.
        """
        if selection in self._drawing:
            return None
        self._drawing.add(selection)

        def draw() -> Updates:
            try:
                return self.redraw(selection, *names)
            finally:
                self._drawing.discard(selection)

        drawing = Task("draw a page")
        threading.Thread(target=drawing.run, args=(draw,), name="train-tools-drawing", daemon=True).start()
        drawing.wait(SOON_S)
        return drawing.result() if drawing.has_ended else None

    def refresh(self, values: Values) -> Updates:
        """What the page shows, read again; where that is gone, what was looked at last."""
        shown = self.selection(values)
        exists = any(
            project.id == shown.project and shown.version in ("", *(version.id for version in project.versions))
            for project in self.app.projects.list()
        )
        return self.fill(shown if exists else self.app.projects.selection(), values)

    def live_parts(self, *names: str) -> set[Component]:
        """The outputs of `redraw`."""
        return {self._live[name] for name in names}

    def redraw(self, selection: Selection, *names: str, **shown: str) -> Updates:
        """Live parts as they are now; empty where no version is shown. `shown` says what of them (see `ui.live`)."""
        parts = dict.fromkeys(names, "")
        if selection.version:
            ids = {"project": selection.project, "version": selection.version, "token": self.token}
            parts |= live.fragments(self.app, {**shown, **ids, "parts": ",".join(names)})
            if _BY_HANDLERS in names:
                parts[_BY_HANDLERS] = self._model_html(selection)
        return {self._live[name]: view.live(name, parts[name]) for name in names}

    def _model_html(self, selection: Selection) -> str:
        chosen = self.app.settings.train(selection.project, selection.version)["base_model"]
        return view.model_html(self.app.base_models.look(chosen) if chosen else BaseModelSnapshot())

    # --- settings ---

    def add_settings(self, panel: str, controls: Iterable[SettingControl]) -> None:
        """Controls of a panel, and here what is wrong with them as long as it is."""
        elem_id = f"train_tools_{panel}_problems"
        problems = make(gr.HTML, value="", elem_id=elem_id, elem_classes=["train-tools-problems"])
        self._problems.append(problems)
        for control in controls:
            self._settings[control] = problems

    def save_as_changed(self) -> None:
        """Save every control when a person changes it, tell what is wrong in its panel, draw what depends on it."""
        for control, problems in self._settings.items():
            panel = [other.component for other, place in self._settings.items() if place is problems]
            drawn = (_SUMS.get(control.section, "sum"), *_DRAWN_WITH.get(control.field.name, ()))
            outputs = {problems, *self.live_parts(*drawn)}
            save = self._saving(control, problems, drawn)
            for trigger in triggers_of_a_hand(control.component):
                self.on(trigger, save, panel, outputs, is_typing=True)

    def _saving(self, control: SettingControl, problems: Component, drawn: tuple[str, ...]) -> Handler:
        def save(values: Values) -> Updates:
            self.save({self.shown: values[self.shown], control.component: values[control.component]})
            told = sentences(self._wrong(values), "train-tools-error")
            return {problems: told, **self.redraw(self.selection(values), *drawn)}

        return save

    def _wrong(self, values: Values) -> list[str]:
        """What is wrong with those of `values` that are controls, saved or not."""
        given = self._given(values)
        return [problem for section, base in _SCHEMAS.items() for problem in check_settings(given[section], base())[1]]

    def show_settings(self, selection: Selection) -> Updates:
        """Every control as it is saved, and nothing wrong any more."""
        return {**dict.fromkeys(self._problems, ""), **self._saved_settings(selection)}

    def settings_parts(self) -> set[Component]:
        """The outputs of `show_settings`."""
        return {*self._problems, *self.controls()}

    def controls(self) -> list[Component]:
        return [control.component for control in self._settings]

    def save(self, values: Values) -> list[str]:
        """Save what those of `values` that are controls hold; returns what is wrong with them."""
        selection, given = self.selection(values), self._given(values)
        return self.app.settings.save(selection.project, selection.version, **given)

    def _given(self, values: Values) -> dict[str, dict[str, Any]]:
        given: dict[str, dict[str, Any]] = {section: {} for section in _SCHEMAS}
        for control in self._settings:
            if control.component in values:
                given[control.section][control.field.name] = control.meant(values[control.component])
        return given

    def _saved_settings(self, selection: Selection) -> Updates:
        if not selection.version:
            return {}
        settings = self.app.settings
        readers = (settings.train, settings.dataset, settings.caption, settings.preview, settings.sweep)
        saved = {
            section: read(selection.project, selection.version) for section, read in zip(_SCHEMAS, readers, strict=True)
        }
        return {
            control.component: control.update(saved[control.section][control.field.name]) for control in self._settings
        }


def _begun_html(task: str) -> str:
    return f'<div id="train_tools_begun" hidden data-task="{html.escape(task)}"></div>'


def _shown_html(selection: Selection) -> str:
    project, version = html.escape(selection.project), html.escape(selection.version)
    return f'<div id="train_tools_shown" hidden data-project="{project}" data-version="{version}"></div>'
