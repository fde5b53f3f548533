"""`lora-train` with workers that say that they have begun, and then wait until they are asked to end, or killed.

What the server answers is measured with it, and nothing of what jobs compute. The same file is such a worker.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

from lora_train.core.events import EventWriter, Paused, Saved, Started, Stopped
from lora_train.core.jobs import JobFolder
from lora_train.core.specs import TrainSpec

_LOOK_S = 0.02


def main() -> int:
    if "lora_train.worker" in sys.argv:
        wait(JobFolder(Path(sys.argv[-1])))
        return 0
    from lora_train.__main__ import main as lora_train
    from lora_train.launch import launcher

    class Waiting(launcher.Worker):
        def __init__(self, command: list[str], **options: Any) -> None:
            super().__init__([command[0], __file__, *command[1:]], **options)

    launcher.Worker = Waiting
    return lora_train()


def wait(job: JobFolder) -> None:
    """Be the job's worker as long as whoever started it is there."""
    events = EventWriter(job.events_path)
    events.write(Started(pid=os.getpid(), total_steps=1000, epochs=1, device="none", step=0))
    starter = os.getppid()
    while (request := job.requested()) is None and os.getppid() == starter:
        time.sleep(_LOOK_S)
    if request == "stop" and isinstance(spec := job.read_spec(), TrainSpec):
        from full_workspace import write_lora

        file = f"{spec.name}.safetensors"
        write_lora(job.path / file, 1, spec.concept)
        events.write(Saved(file, 1, 1))
    events.write(Paused(step=0) if request == "pause" else Stopped(step=0))
    events.close()


if __name__ == "__main__":
    sys.exit(main())
