"""The last event of a job that failed, in the words of the person who reads it."""

from __future__ import annotations

import traceback

from lora_train.core.errors import TrainToolsError
from lora_train.core.events import Failed


def failure_of(error: Exception) -> Failed:
    """To be called where the error was caught: the traceback goes into the log of the job."""
    trace = traceback.format_exc()
    kind = type(error).__name__
    if isinstance(error, TrainToolsError):
        return Failed(error=kind, message=error.message, hint=error.hint, traceback=trace)
    if isinstance(error, OSError):
        message = f"{error.strerror or error}: {error.filename or ''}".rstrip(": ")
        hint = "Check that the folder can be written and that the disk has room."
        return Failed(error="OSError", message=message, hint=hint, traceback=trace)
    return Failed(
        error=kind,
        message=f"Unexpected: {error}",
        hint="This is a fault of ours; worker.log in the job's folder has the details.",
        traceback=trace,
    )
