"""Every error a person can act on.

    TrainToolsError      what happened, which file or value, the limit, what to do
      ConfigError        one or more settings are out of range (all of them at once)
      DatasetError       no usable picture, an unreadable folder
      ModelError         not a checkpoint, an unsupported family, missing tensors
      WorkspaceError     a bad name, something that exists already or does not exist
      JobError           a job could not start, died, or cannot be resumed
      DeviceMemoryError  the device is too small; names the settings that would help

Exceptions of this tree are shown as they are, without a traceback. Anything else is our own mistake.
"""

from __future__ import annotations

MOST_SHOWN = 100
"""Letters of a value."""
MOST_OF_REASON = 300
"""Letters of what a library says about a file, which may quote all of it."""


def shown(text: object, most: int = MOST_SHOWN) -> str:
    """What somebody else wrote, as far as a sentence can show it: that many letters, and none that UTF-8 doesn't have
    (halves of surrogate pairs).
    """
    told = str(text)
    cut = told if len(told) <= most else f"{told[:most]}…"
    return cut.encode("utf-8", "replace").decode("utf-8")


class TrainToolsError(Exception):
    """An error a person can act on. `hint` says what to do, where the message does not already."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class ConfigError(TrainToolsError):
    """One or more settings are wrong; `problems` has one sentence for each, with its range."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class DatasetError(TrainToolsError):
    """The pictures or captions can't be used."""


class ModelError(TrainToolsError):
    """A checkpoint, VAE or LoRA file can't be used."""


class WorkspaceError(TrainToolsError):
    """A project, version or train name or folder can't be used."""


class JobError(TrainToolsError):
    """A job could not start, died, or can't go on."""


class DeviceMemoryError(TrainToolsError):
    """The device ran out of memory; the hint names the settings that would help."""
