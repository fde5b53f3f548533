"""What takes longer than a click."""

from __future__ import annotations

from lora_train.app.tasks import TaskEntry
from lora_train.ui import view


def task_states() -> dict[str, str]:
    running = TaskEntry("1", "Apply", 512, 2000, can_stop=True, has_ended=False, is_left=False)
    asked = TaskEntry("2", "", 0, 0, can_stop=False, has_ended=False, is_left=False)
    done = TaskEntry("3", "Apply", 2000, 2000, can_stop=False, has_ended=True, is_left=True)
    failed = TaskEntry("4", "", 0, 0, False, True, True, "It was stopped, as asked for.", "Refresh the page.")
    return {
        "no task": view.tasks_html([]),
        "tasks": view.tasks_html([running, asked]),
        "tasks that nobody waits for": view.tasks_html([done, failed]),
    }
