"""Every difference between gradio 3.41, 4.40 and 6 that the page meets; the rest of `ui` is written once.

What a version knows is read from its signatures: gradio 3 swallows unknown options without a word, gradio 4 and 6
refuse them, and Forge wraps the events of its components so that their own signatures say nothing.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import gradio as gr

Component = Any
"""A gradio component or layout; the three versions have no base class in common that the types of all agree on."""
Updates = dict[Component, Any]
"""What a handler answers: new values, or `gr.update(...)`, by component."""
Block = TypeVar("Block")


def make(kind: Callable[..., Block], **options: Any) -> Block:
    """A component or layout with those of the options that this gradio has.

    It stays out of the host's `ui-config.json`, which would freeze its first default for ever.
    """
    known = _known_options(kind)
    block = kind(**{name: value for name, value in options.items() if name in known})
    block.do_not_save_to_config = True  # pyright: ignore[reportAttributeAccessIssue]  (the host's word)
    return block


def make_fixed_choice(choices: list[str], **options: Any) -> Component:
    """A dropdown whose choices stay the same."""
    choice: Component = make(gr.Dropdown, choices=choices, **options)
    choice.has_fixed_choices = True
    return choice


def may_get_choices(component: Component) -> bool:
    """Its server checks what is chosen, so it has to know of other choices."""
    return isinstance(component, gr.Dropdown) and not getattr(component, "has_fixed_choices", False)


@cache
def _known_options(kind: type) -> frozenset[str]:
    return frozenset(name for base in kind.__mro__ for name in inspect.signature(base.__init__).parameters)


def on(
    trigger: Callable[..., Any],
    handler: Callable[..., Any] | None,
    inputs: Collection[Component] | None = None,
    outputs: Collection[Component] | None = None,
    *,
    js: str | None = None,
    keeps_latest: bool = False,
) -> list[Any]:
    """Bind a quick handler to an event such as `button.click`; returns what others may be bound to that come after it.

    It runs past gradio's queue, which may be full of pictures. Events that come while one is answered are dropped;
    with `keeps_latest` the last of them is answered too.
    """
    wanted = {
        "queue": False,
        "show_progress": "hidden",
        "js": js,
        "_js": js,
        "trigger_mode": "always_last" if keeps_latest else "once",
        **_closed_to_clients(),
    }
    options = {name: value for name, value in wanted.items() if name in _event_options()}
    events = [trigger(handler, inputs, outputs, **options)]
    if keeps_latest and "trigger_mode" not in options:  # gradio 3: what was dropped meanwhile is seen by asking again
        events.append(events[0].then(handler, inputs, outputs, **options))
    return events


def triggers_of_a_hand(component: Component) -> list[Callable[..., Any]]:
    """Events that a person causes, and never a value that we set.

    `input` alone is not enough: in a text of gradio 6 it misses what is pasted and deleted.
    """
    return [getattr(component, name) for name in ("input", "blur") if hasattr(component, name)]


def _closed_to_clients() -> dict[str, Any]:
    """Our own routes are the API; the page's handlers are for the page alone."""
    return {"api_visibility": "private"} if "api_visibility" in _event_options() else {"api_name": False}


@cache
def _event_options() -> frozenset[str]:
    """Options of every event; read from the one event that no host wraps."""
    return frozenset(inspect.signature(gr.Blocks.load).parameters)


def make_upload(label: str, elem_id: str) -> Component:
    """A place to drop files on, which gives its handler what was uploaded and nothing else."""
    upload: Component = make(gr.File, label=label, file_count="multiple", elem_id=elem_id)
    preprocess = upload.preprocess

    def preprocess_uploads(given: Any) -> Any:
        if isinstance(given, (list, dict)):  # gradio 3; later ones have looked at the paths by now
            given = [file for file in ([given] if isinstance(given, dict) else given) if was_uploaded(file)]
        return preprocess(given)

    def was_uploaded(file: Any) -> bool:
        """gradio 3 takes any file of the server that a caller names."""
        kept_in = Path(upload.DEFAULT_TEMP_DIR).resolve()
        return not file.get("is_file") or Path(str(file.get("name"))).resolve().is_relative_to(kept_in)

    upload.preprocess = preprocess_uploads
    return upload


def uploaded_name(file: Any) -> str:
    """The file name of an upload as the person had it; gradio 3 keeps it beside the name of its own copy."""
    path = str(getattr(file, "orig_name", "") or uploaded_path(file))
    return path.replace("\\", "/").rpartition("/")[2]


def uploaded_path(file: Any) -> str:
    """Where gradio keeps an uploaded file."""
    return str(getattr(file, "name", file))
