"""Routes of the doctor, who looks at the installation."""

from __future__ import annotations

from lora_train.api.route import Route, nothing
from lora_train.api.shapes import FileAnswer, Nothing, TextFile
from lora_train.app import App
from lora_train.app.doctor import DoctorSnapshot


def _report(app: App, _: Nothing) -> FileAnswer:
    return TextFile("train-tools-installation.txt", app.doctor.report(), "text/plain")


DOCTOR_ROUTES = [
    Route(
        "POST", "doctor", "Look at the installation, in the background.", Nothing, Nothing,
        lambda app, _: nothing(app.doctor.begin()),
    ),
    Route(
        "GET", "doctor", "What was found last about the installation.", Nothing, DoctorSnapshot,
        lambda app, _: app.doctor.snapshot(),
    ),
    Route("GET", "doctor/report", "The same as a text without anything private.", Nothing, FileAnswer, _report),
]  # fmt: skip
