"""The head of the page: which project and version is shown; making, renaming, copying and deleting them."""

from __future__ import annotations

from collections.abc import Callable

import gradio as gr

from lora_train.app.snapshot import ProjectEntry, Selection, Undo, VersionEntry
from lora_train.core.errors import WorkspaceError
from lora_train.ui.compat import Component, Updates, make, on
from lora_train.ui.form import label_of, labels, refresh_button
from lora_train.ui.page import Page, Values

_FIRST_VERSION = "v1"


class ProjectPanel:
    """Dropdowns of gradio 3.41 hold texts alone, so a choice is a name; `labels` tells whose."""

    def __init__(self, page: Page) -> None:
        self.page = page
        with make(gr.Row, equal_height=False, elem_classes=["train-tools-head"]):
            with make(gr.Column, min_width=320), make(gr.Row, elem_classes=["train-tools-with-tool"]):
                self.project = _choice("project", "Project")
                self.project_refresh = refresh_button("project")
                # Until the page has been filled: its first answer would undo what a quick person has begun.
                self.project_create = _button("project_create", "Create Project", interactive=False)
            self.version_part = make(gr.Column, min_width=320, visible=False)
            with self.version_part, make(gr.Row, elem_classes=["train-tools-with-tool"]):
                self.version = _choice("version", "Version")
                self.version_refresh = refresh_button("version")
                self.version_create = _button("version_create", "Create Version")
            self.refresh = _button("refresh", "Refresh")
            # The script presses it when something came back from the trash: what then is to be looked at is shown.
            self.show_last = make(
                gr.Button, value="", elem_id="train_tools_show_last", elem_classes=["train-tools-hidden"]
            )
        self.hint = make(gr.HTML, value=_hint_html(Selection()), elem_classes=["train-tools-hint"])
        with make(gr.Row, visible=False, elem_classes=["train-tools-ask"]) as self.project_ask:
            self.project_name = _name("project_name", "Project name")
            self.project_ok = _button("project_create_ok", "Create", variant="primary")
        with make(gr.Row, visible=False, elem_classes=["train-tools-ask"]) as self.version_ask:
            self.version_name = _name("version_name", "Version name", _FIRST_VERSION)
            self.version_ok = _button("version_create_ok", "Create", variant="primary")
        with make(gr.Accordion, label="Manage", open=False, visible=False, elem_id="train_tools_manage") as self.manage:
            with make(gr.Row, elem_classes=["train-tools-ask"]):
                self.project_new_name = _name("project_new_name", "New project name")
                self.project_rename = _button("project_rename", "Rename Project")
                self.project_delete = _button("project_delete", "Delete Project", variant="stop")
            with make(gr.Row, visible=False, elem_classes=["train-tools-ask"]) as self.manage_version:
                self.version_new_name = _name("version_new_name", "New version name")
                self.version_rename = _button("version_rename", "Rename Version")
                self.version_duplicate = _button("version_duplicate", "Duplicate Version")
                self.version_delete = _button("version_delete", "Delete Version", variant="stop")
        page.add_filler(
            self._fill,
            *(self.project, self.project_create, self.version, self.version_part, self.project_ask, self.version_ask),
            *(self.hint, self.manage, self.manage_version),
            *(self.project_name, self.version_name, self.project_new_name, self.version_new_name),
        )

    def bind(self) -> None:
        """After every panel is there: a selection fills them all."""
        self._on(self.project.input, self._select_project, self.project)
        self._on(self.version.input, self._select_version, self.version)
        for refresh in (self.project_refresh, self.version_refresh, self.refresh):
            self._on(refresh.click, self.page.refresh)
        self.page.on(self.show_last.click, self._show_last, [], self.page.everything(), keeps_message=True)
        for ask, row, name in (
            (self.project_create, self.project_ask, "project"),
            (self.version_create, self.version_ask, "version"),
        ):
            self.page.on(ask.click, _revealing(row), [], [row])
            on(ask.click, None, js=_focus(f"train_tools_{name}_name"))
        for trigger in (self.project_ok.click, self.project_name.submit):
            self._on_press(self.project_ok, trigger, self._create_project, self.project_name)
            on(trigger, None, js=_focus("train_tools_version_name"))  # what comes next
        for trigger in (self.version_ok.click, self.version_name.submit):
            self._on_press(self.version_ok, trigger, self._create_version, self.version_name)
        for trigger in (self.project_rename.click, self.project_new_name.submit):
            self._on_press(self.project_rename, trigger, self._rename_project, self.project_new_name)
        for trigger in (self.version_rename.click, self.version_new_name.submit):
            self._on_press(self.version_rename, trigger, self._rename_version, self.version_new_name)
        copy = self.version_duplicate
        self._on_press(copy, copy.click, self._duplicate_version, self.version_new_name)
        for delete, handler in (
            (self.project_delete, self._delete_project),
            (self.version_delete, self._delete_version),
        ):
            self._on_press(delete, delete.click, handler)

    def _on(self, trigger: Callable[..., None], handler: Callable[[Values], Updates], *inputs: Component) -> None:
        self.page.on(trigger, handler, inputs, self.page.everything())

    def _on_press(
        self, button: Component, trigger: Callable[..., None], handler: Callable[[Values], Updates], *inputs: Component
    ) -> None:
        self.page.on_press(button, handler, inputs, self.page.everything(), trigger=trigger)

    # --- what is shown ---

    def _fill(self, selection: Selection) -> Updates:
        projects = self.page.app.projects.list()
        versions = _versions(projects, selection.project)
        project_labels = _project_labels(projects)
        has_project, has_version = bool(selection.project), bool(selection.version)
        return {
            self.project_create: gr.update(interactive=True),
            self.project: gr.update(choices=list(project_labels), value=label_of(project_labels, selection.project)),
            self.version: gr.update(choices=list(versions), value=label_of(versions, selection.version)),
            self.version_part: gr.update(visible=has_project),
            self.hint: gr.update(value=_hint_html(selection), visible=not has_version),
            self.project_ask: gr.update(visible=False),
            self.version_ask: gr.update(visible=has_project and not has_version),
            self.manage: gr.update(visible=has_project),
            self.manage_version: gr.update(visible=has_version),
            self.project_name: "",
            self.version_name: "" if has_version else _FIRST_VERSION,
            self.project_new_name: "",
            self.version_new_name: "",
        }

    # --- choosing ---

    def _show_last(self, values: Values) -> Updates:
        return self.page.fill(self.page.app.projects.selection(), values)

    def _select_project(self, values: Values) -> Updates:
        projects = self.page.app.projects.list()
        chosen = _project_labels(projects).get(values[self.project] or "")
        if chosen is None:
            raise WorkspaceError(
                f"There is no project {values[self.project]}.", "Press Refresh to see those there are."
            )
        return self.page.fill(self.page.app.projects.select(chosen, ""))

    def _select_version(self, values: Values) -> Updates:
        project = self.page.selection(values).project
        chosen = _version_labels(self.page.app.projects.versions(project)).get(values[self.version] or "")
        if chosen is None:
            raise WorkspaceError(
                f"There is no version {values[self.version]}.", "Press Refresh to see those there are."
            )
        return self.page.fill(self.page.app.projects.select(project, chosen))

    # --- making and changing ---

    def _create_project(self, values: Values) -> Updates:
        return self.page.fill(self.page.app.projects.create(values[self.project_name]))

    def _create_version(self, values: Values) -> Updates:
        project = self.page.selection(values).project
        return self.page.fill(self.page.app.projects.create_version(project, values[self.version_name]))

    def _rename_project(self, values: Values) -> Updates:
        project = self.page.selection(values).project
        return self.page.fill(self.page.app.projects.rename(project, values[self.project_new_name]), values)

    def _rename_version(self, values: Values) -> Updates:
        shown, name = self.page.selection(values), values[self.version_new_name]
        return self.page.fill(self.page.app.projects.rename_version(shown.project, shown.version, name), values)

    def _duplicate_version(self, values: Values) -> Updates:
        shown, name = self.page.selection(values), values[self.version_new_name]
        return self.page.fill(self.page.app.projects.duplicate_version(shown.project, shown.version, name))

    def _delete_project(self, values: Values) -> Updates:
        return self._deleted(self.page.app.projects.delete(self.page.selection(values).project))

    def _delete_version(self, values: Values) -> Updates:
        shown = self.page.selection(values)
        return self._deleted(self.page.app.projects.delete_version(shown.project, shown.version))

    def _deleted(self, undo: Undo) -> Updates:
        updates = self.page.fill(self.page.app.projects.selection())
        return {**updates, self.page.message: self.page.undo_html(undo)}


def _project_labels(projects: list[ProjectEntry]) -> dict[str, str]:
    return labels((project.name, project.id) for project in projects)


def _versions(projects: list[ProjectEntry], project: str) -> dict[str, str]:
    """Label -> id of the versions of a project."""
    return _version_labels(next((entry.versions for entry in projects if entry.id == project), []))


def _version_labels(versions: list[VersionEntry]) -> dict[str, str]:
    return labels((version.name, version.id) for version in versions)


def _revealing(row: Component) -> Callable[[Values], Updates]:
    def reveal(_: Values) -> Updates:
        return {row: gr.update(visible=True)}

    return reveal


def _focus(elem_id: str) -> str:
    """Script that puts the cursor into a text field as soon as it is revealed, within two seconds."""
    return f"""() => {{
        const focus = (tries) => {{
            const field = document.querySelector("#{elem_id} textarea, #{elem_id} input");
            if (field?.getClientRects().length) field.focus();
            else if (tries) setTimeout(focus, 100, tries - 1);
        }};
        setTimeout(focus, 50, 20);
    }}"""


def _hint_html(selection: Selection) -> str:
    """What to do first, until there is a version."""
    words = (
        "Name a version: v1 will do. Versions of a project have pictures and settings of their own."
        if selection.project
        else "Press Create Project to begin: one project for each character, style or thing."
    )
    return f'<p class="train-tools-line">{words}</p>'


def _choice(name: str, label: str) -> Component:
    return make(
        gr.Dropdown,
        choices=[],
        value=None,
        label=label,
        interactive=True,
        elem_id=f"train_tools_{name}_choice",
        min_width=160,
        scale=3,
    )


def _button(name: str, text: str, variant: str = "secondary", *, interactive: bool = True) -> Component:
    return make(
        gr.Button,
        value=text,
        variant=variant,
        interactive=interactive,
        elem_id=f"train_tools_{name}",
        elem_classes=["train-tools-head-button"],
        min_width=120,
        scale=0,
    )


def _name(name: str, label: str, text: str = "") -> Component:
    return make(
        gr.Textbox, value=text, label=label, max_lines=1, interactive=True, elem_id=f"train_tools_{name}", scale=3
    )
