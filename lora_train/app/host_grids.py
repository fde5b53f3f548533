"""Grids that the host draws: a thread of this process asks its txt2img for one batch after the other.

Its folder tells the same as a worker's. Between two batches the host may draw for a person.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_train.app.paces import remember_grid_pace
from lora_train.core.assets import resolve_base_model
from lora_train.core.errors import JobError, ModelError
from lora_train.core.events import EventWriter, Phase
from lora_train.core.grid_settings import GridSettings
from lora_train.core.grids import DRAWING_PREVIEWS, Cell, cells, picture_count
from lora_train.core.host import Host, HostPicture
from lora_train.core.infotext import lora_tag
from lora_train.core.jobs import JobFolder, JobStatus, RequestedEnd
from lora_train.core.specs import GridSpec
from lora_train.core.workspace import Workspace
from lora_train.launch.job_thread import start_job_thread

if TYPE_CHECKING:
    from lora_train.data.grid_work import GridWork

_RETRY_S = 1.0
_POLL_S = 0.2
WAITING = "waiting for the WebUI"
"""The phase before it draws."""


def host_problems(host: Host, grid: GridSettings, base_model: str) -> Iterator[str]:
    """What stands in the way of the host's drawing; `base_model` is a path as in the settings, or empty."""
    known = host.samplers()
    if not known:
        yield "Drawn by: there is no WebUI that could draw; choose worker."
        return
    for sampler in grid.samplers:
        if sampler not in known:
            yield f"Sampling method: {sampler} is none of the WebUI's samplers."
    if base_model and not is_listed(host, base_model):
        yield f"Drawn by: the WebUI does not list {base_model} among its checkpoints; choose worker."


def is_listed(host: Host, base_model: str) -> bool:
    """Whether the host has this checkpoint in its list."""
    wanted = resolve_base_model(base_model).resolve()
    return any(Path(choice.path).resolve() == wanted for choice in host.base_models())


def draw_when_free(host: Host, picture: HostPicture, end_if_asked: Callable[[], None]) -> list[Any]:
    """As `Host.draw`, but waits for the end of a training that has the card."""
    while True:
        end_if_asked()
        try:
            return host.draw(picture)
        except JobError:
            time.sleep(_RETRY_S)


class HostGrids:
    def __init__(self, workspace: Workspace, host: Host) -> None:
        self._workspace = workspace
        self._host = host
        self._drawing = threading.Lock()
        """One job after the other."""

    def start(self, job: JobFolder, spec: GridSpec) -> threading.Thread:
        """Draw what is missing of the job's pictures and grids."""

        def work(events: EventWriter) -> dict[str, object]:
            def end_if_asked() -> None:
                if (request := job.requested()) is not None:
                    raise RequestedEnd(request)

            events.write(Phase(name=WAITING))
            while not self._drawing.acquire(timeout=_POLL_S):
                end_if_asked()
            try:
                result = _draw(self._host, spec, job, events, end_if_asked)
            finally:
                self._drawing.release()
            remember_grid_pace(self._workspace.root, spec, JobStatus(state="finished", result=result))
            return result

        return start_job_thread(job, work)


def _draw(
    host: Host, spec: GridSpec, job: JobFolder, events: EventWriter, end_if_asked: Callable[[], None]
) -> dict[str, object]:
    """Raises ModelError where nothing at all can be drawn, RequestedEnd between two batches."""
    from lora_train.data.grid_work import GridWork

    if problems := [*host_problems(host, spec.grid, spec.settings.base_model)]:
        raise ModelError("\n".join(problems), "Generate new ones with other settings.")
    work = GridWork(spec, job, events)
    for path, own in groupby(cells(spec), key=lambda cell: cell.path):
        of_lora = list(own)
        work.begin_lora(of_lora)
        lora = (job.path / path).resolve()
        if not lora.is_file():
            work.note(ModelError(f"{lora} does not exist.", "It was moved or deleted since."))
            continue
        for cell in of_lora:
            for numbers in _batches(work.missing(cell), spec.grid.batch_size):
                events.write(Phase(DRAWING_PREVIEWS, work.done, picture_count(spec)))
                work.done += len(numbers)
                _draw_batch(host, work, cell, numbers, lora, end_if_asked)
        work.end_lora(of_lora[0].lora)
    return work.end()


def _draw_batch(
    host: Host, work: GridWork, cell: Cell, numbers: Sequence[int], lora: Path, end_if_asked: Callable[[], None]
) -> None:
    from lora_train.data.grid_work import Drawn

    grid, settings = work.spec.grid, work.spec.settings
    picture = HostPicture(
        prompt=f"{lora_tag(cell.lora, cell.weight)} {work.prompt}",
        negative_prompt=grid.negative_prompt,
        width_px=grid.width_px,
        height_px=grid.height_px,
        sampler=cell.sampler,
        steps=cell.steps,
        cfg_scale=cell.cfg,
        seed=cell.seed + numbers[0],
        base_model=str(resolve_base_model(settings.base_model)),
        clip_skip=settings.clip_skip,
        loras=(str(lora),),
        count=len(numbers),
    )
    began = time.monotonic()
    try:
        pictures = draw_when_free(host, picture, end_if_asked)
    except ModelError as error:
        work.note(error)
        return
    texts = [str(drawn.info.get("parameters", "")) for drawn in pictures]
    work.keep(cell, map(Drawn, numbers, pictures, texts))
    work.took(time.monotonic() - began)


def _batches(numbers: Sequence[int], size: int) -> Iterator[list[int]]:
    """At most so many in a row: hosts draw a batch with seeds that follow each other."""
    batch: list[int] = []
    for number in numbers:
        if batch and (len(batch) == size or number != batch[-1] + 1):
            yield batch
            batch = []
        batch.append(number)
    if batch:
        yield batch
