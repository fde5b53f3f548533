"""Trainings, what they saved, the queue, and messages."""

from __future__ import annotations

import msgspec

from lora_train.app.snapshot import QueueEntry, Undo, Validation
from lora_train.ui import view, view_progress
from ui_states.makers import JOB, make_snapshot, make_train


def train_states() -> dict[str, str]:
    trains = {
        "running": make_train("running", 0),
        "running without length": make_train("running", 0, phase="", step=0, total_steps=0, loss=None),
        **{
            phase: make_train("running", 0, phase=phase, phase_done=2, phase_total=6) for phase in view_progress._PHASES
        },
        "silent": make_train("running", 0, silent_s=45.0),
        "with notes": make_train("running", 0, notes=["2 pictures are smaller than 512 px."]),
        "waiting": make_train("waiting", 2),
        "starting": make_train("waiting", 0),
        "never started": make_train("waiting"),
        "finished": make_train("finished"),
        "stopped": make_train("stopped"),
        "paused": make_train("paused"),
        "failed": make_train("failed", message="The card ran out of memory.", hint="Switch on gradient checkpointing."),
    }
    validated = make_train("finished", validation_loss=0.15, base_validation_loss=0.3)
    turned = [Validation(400 * index, loss, 0.3) for index, loss in enumerate((0.3, 0.2, 0.22, 0.25))]
    unsaved = make_train("finished")
    unsaved.summary = unsaved.summary.replace("rank 16", "continues Dog-v2")
    unsaved.loras = unsaved.loras[:1]
    many = make_train("finished")
    many.loras = [msgspec.structs.replace(many.loras[0], file=f"Cat-v1-{n:06}.safetensors") for n in range(120)]
    nothing_saved = msgspec.structs.replace(make_train("running", 0), loras=[])
    shown = {
        name: view.progress_html(make_snapshot(train, log_tail="step 1"), 0.9, "T") for name, train in trains.items()
    }
    results = {f"results {name}": view.results_html(make_snapshot(train), "T") for name, train in trains.items()}
    return {
        "no train": view.progress_html(make_snapshot(curve=[]), 0.9),
        "foreign": view.progress_html(make_snapshot(curve=[], foreign="The card is busy with Dog v2."), 0.9),
        "over-trained": view.progress_html(make_snapshot(validated, validations=turned), 0.9),
        "no curve": view.progress_html(make_snapshot(make_train("running", 0), curve=[]), 0.9),
        **shown,
        "no results": view.results_html(make_snapshot(), "T"),
        "results of one LoRA": view.results_html(make_snapshot(unsaved), "T"),
        "results without LoRA": view.results_html(make_snapshot(nothing_saved), "T"),
        **results,
        "results on pages": view.results_html(make_snapshot(many), "T", page="2"),
    }


def queue_and_message_states() -> dict[str, str]:
    queue = [
        QueueEntry(JOB, "Cat v1: Cat-v1", "train", "running"),
        QueueEntry("b", "Dog v2: Dog-v2", "train", "waiting"),
        QueueEntry("c", "Dog v2: previews of Dog-v2", "preview", "waiting"),
    ]
    return {
        "no queue": view.queue_html(make_snapshot()),
        "queue": view.queue_html(make_snapshot(queue=queue)),
        "queue of previews": view.queue_html(make_snapshot(queue=[QueueEntry("c", "Dog", "preview", "running")])),
        "queue of regularisation": view.queue_html(
            make_snapshot(queue=[QueueEntry("d", "Dog v2: animal", "regularisation", "running")])
        ),
        "no message": view.message_html(""),
        "message": view.message_html("Saved."),
        "error": view.message_html("There is no project Cat.", "Press Refresh.", "error"),
        "undo": view.message_html("", undo=Undo("the project Cat", "2024/Cat")),
    }
