"""Captions that a captioner writes: picture after picture, whatever goes wrong with one of them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from lora_train.core.errors import DeviceMemoryError, ModelError, TrainToolsError
from lora_train.core.events import EventWriter, Note, Phase
from lora_train.core.jobs import JobFolder, RequestedEnd
from lora_train.data.captioner import Captioner


def generate(pictures: Sequence[Path], captioner: Captioner, job: JobFolder, events: EventWriter) -> dict[Path, str]:
    """The captions, on one line each. A picture is missing where there is none; a note then says why.

    Where the captioner itself can't be used, or gives nothing more, one note does for all that are left. Raises
    RequestedEnd, between two pictures, when the person asked to stop.
    """
    captions: dict[Path, str] = {}
    done = _tell(0, len(pictures), job, events) if pictures else 0  # loading a model takes its time
    while done < len(pictures):
        stream = captioner.captions(pictures[done:])  # a stream that has raised gives nothing more
        try:
            for caption in islice(stream, len(pictures) - done):
                if text := " ".join(caption.replace("\x00", "").split()):
                    captions[pictures[done]] = text
                done = _tell(done + 1, len(pictures), job, events)
            if done < len(pictures):
                raise ModelError("The captioner ended before the last picture.")
        except RequestedEnd:
            raise
        except (ModelError, DeviceMemoryError) as error:
            left = len(pictures) - done
            events.write(Note("warning", f"{error.message} So {left} pictures have no caption written for them."))
            break
        except Exception as error:  # whatever a model stumbles over in one picture costs no other one its caption
            reason = error.message if isinstance(error, TrainToolsError) else f"{type(error).__name__}: {error}."
            events.write(Note("warning", f"{pictures[done].name} has no caption written for it. {reason}"))
            done = _tell(done + 1, len(pictures), job, events)
    return captions


def _tell(done: int, total: int, job: JobFolder, events: EventWriter) -> int:
    events.write(Phase(name="writing captions", done=done, total=total))
    if (request := job.requested()) is not None:
        raise RequestedEnd(request)
    return done
