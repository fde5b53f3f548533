"""Routes of tasks: calls that are answered before they are done, as `Prefer: respond-async` asks for."""

from __future__ import annotations

from lora_train.api.route import Route, nothing
from lora_train.api.shapes import Nothing, TaskBody
from lora_train.app import App
from lora_train.app.tasks import TaskEntry


def _close(app: App, body: TaskBody) -> Nothing:
    app.tasks.take(body.task)
    return Nothing()


TASK_ROUTES = [
    Route(
        "GET", "tasks", "Calls and presses that go on, or whose outcome nobody has asked for yet.",
        Nothing, list[TaskEntry],
        lambda app, _: app.tasks.entries(),
    ),
    Route(
        "POST", "tasks/stop", "Stop one that can be stopped; it tells what was done until then.", TaskBody, Nothing,
        lambda app, body: nothing(app.tasks.stop(body.task)),
    ),
    Route("POST", "tasks/close", "Forget the outcome of one that has ended.", TaskBody, Nothing, _close),
]  # fmt: skip
