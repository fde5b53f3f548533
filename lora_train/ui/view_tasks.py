"""What takes longer than a click, as HTML: how far it is, and what went wrong where the page that asked is gone."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from lora_train.app.tasks import TaskEntry
from lora_train.ui.html import paragraph, post_button, progress_bar, sentence, value, words


def tasks_html(tasks: Sequence[TaskEntry]) -> str:
    """A box at the foot of the page; nothing where nothing goes on."""
    told = "".join(map(_task, tasks))
    hidden = "" if any(task.is_left or not task.has_ended for task in tasks) else " hidden"
    return f'<div class="train-tools-message train-tools-tasks"{hidden}><div>{told}</div></div>' if told else ""


def _task(task: TaskEntry) -> str:
    name = words(task.what) if task.what else words("Working")
    if task.has_ended:
        outcome = "".join(paragraph(sentence(line)) for line in f"{task.message}\n{task.hint}".splitlines() if line)
        close = post_button("Close", "tasks/close", {"task": task.id})
        told = outcome or paragraph(f"{name} {words('is done.')}")
        hidden = "" if task.is_left else " hidden"  # the page that began it takes it in a moment
        return f'<div data-ended="{escape(task.id)}"{hidden}>{told}<div class="train-tools-actions">{close}</div></div>'
    done = value(f"{task.done} / {task.total}") if task.total else ""
    stop = post_button("Stop", "tasks/stop", {"task": task.id}) if task.can_stop else ""
    actions = f'<div class="train-tools-actions">{stop}</div>' if stop else ""
    return f"<div>{paragraph(f'{name} {done}')}{progress_bar(task.done, task.total)}{actions}</div>"
