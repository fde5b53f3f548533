"""What a grid job has in its folder, whoever draws: pictures that are kept and told, sheets, the result."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from lora_train.core.errors import TrainToolsError
from lora_train.core.events import EventWriter, Note, Phase, Sampled
from lora_train.core.grids import ALL_GRIDS_FILE, DRAWING_PREVIEWS, Cell, Table, cells, grid_file, picture_count
from lora_train.core.jobs import JobFolder
from lora_train.core.samplers import sampler_calls
from lora_train.core.specs import GridSpec
from lora_train.data.grid_sheet import make_sheet
from lora_train.data.prompts import without_tags
from lora_train.data.sheets import parameters_in, save_png


class Drawn(NamedTuple):
    """A picture of a cell: which one of its files, and the parameters that its PNG tells."""

    number: int
    picture: Image.Image
    parameters: str


class GridWork:
    """How far a grid job is. A picture that is there is drawn: a job that was stopped goes on where it was."""

    def __init__(self, spec: GridSpec, job: JobFolder, events: EventWriter) -> None:
        self.spec, self.job, self.events = spec, job, events
        self.prompt = without_tags(spec.grid.prompt).strip()
        self.errors: list[TrainToolsError] = []
        """Why something was not drawn."""
        self.done = 0
        """Places for pictures that lie behind."""
        self._told = {event.path for event in job.events() if isinstance(event, Sampled)}
        self._drawn_of: dict[str, int] = {}
        """By stem: pictures drawn this time."""
        self._calls = 0
        self._seconds = 0.0

    def begin_lora(self, own: list[Cell]) -> None:
        """Go on with the cells of one LoRA."""
        self.done = own[0].index * len(own[0].files)

    def missing(self, cell: Cell) -> list[int]:
        """The numbers of the cell's pictures that are not there yet; the others are told."""
        numbers: list[int] = []
        for number, name in enumerate(cell.files):
            if (self.job.path / name).is_file():
                self._tell(name, cell.weight)
                self.done += 1
            else:
                numbers.append(number)
        return numbers

    def keep(self, cell: Cell, pictures: Iterable[Drawn]) -> None:
        """Write pictures of a cell, and tell them."""
        for drawn in pictures:
            name = cell.files[drawn.number]
            save_png(drawn.picture, self.job.path / name, drawn.parameters)
            self._tell(name, cell.weight)
            self._drawn_of[cell.lora] = self._drawn_of.get(cell.lora, 0) + 1
            self._calls += sampler_calls(cell.sampler, cell.steps)

    def took(self, seconds: float) -> None:
        """Count the time of pictures that were kept."""
        self._seconds += seconds

    def note(self, error: TrainToolsError) -> None:
        """Tell what is not drawn; the others are."""
        self.errors.append(error)
        self.events.write(Note("warning", error.message))

    def end_lora(self, stem: str) -> None:
        """Write the grid of a LoRA whose pictures are drawn, where it has new ones."""
        self._write_sheet(grid_file(stem), stem, is_new=stem in self._drawn_of)

    def end(self) -> dict[str, object]:
        """Write the grid over all LoRAs, and give the job's result. Raises the first error where nothing is there."""
        if self.errors and self._first_picture("") is None:
            raise self.errors[0]
        if len(self.spec.loras) > 1:
            self._write_sheet(ALL_GRIDS_FILE, "", is_new=bool(self._drawn_of))
        self.events.write(Phase(DRAWING_PREVIEWS, picture_count(self.spec), picture_count(self.spec)))
        grid = self.spec.grid
        return {
            "pictures": sum(self._drawn_of.values()),
            "seconds": self._seconds,
            "s_per_picture_step": self._seconds / self._calls if self._calls else None,
            "width_px": grid.width_px,
            "height_px": grid.height_px,
            "steps": list(grid.steps),
            "model_id": self.spec.settings.base_model,
            "failed": len(self.errors),
        }

    def _write_sheet(self, name: str, stem: str, *, is_new: bool) -> None:
        """The grid of one LoRA, or without a stem of all, with the parameters of its first picture."""
        path, first = self.job.path / name, self._first_picture(stem)
        if first is None:
            return
        if is_new or not path.is_file():
            grid, table = self.spec.grid, Table(self.spec, stem)
            sheet = make_sheet(
                stem,
                table.labels,
                lambda indices: [self.job.path / file for file in table.cell(indices).files],
                picture_px=(grid.width_px, grid.height_px),
                pictures=grid.batch_count * grid.batch_size,
                note=lambda message: self.events.write(Note("info", message)),
            )
            save_png(sheet, path, parameters_in(first))
        self._tell(name, None)

    def _first_picture(self, stem: str) -> Path | None:
        """Of those that are there of a LoRA, or without a stem of any."""
        files = (file for cell in cells(self.spec) if not stem or cell.lora == stem for file in cell.files)
        return next((path for file in files if (path := self.job.path / file).is_file()), None)

    def _tell(self, name: str, weight: float | None) -> None:
        if name not in self._told:
            self._told.add(name)
            prompt = self.prompt if weight is not None else ""
            self.events.write(Sampled(path=name, step=0, prompt=prompt, weight=weight))
