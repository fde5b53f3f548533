"""Trainings as data and as one page: curves as CSV and JSON, and a report that opens by itself."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lora_train.app.loras import previews_of
from lora_train.app.watching import Watch
from lora_train.core.curve_table import curve_csv, curve_json, curve_rows
from lora_train.core.errors import JobError, TrainToolsError
from lora_train.core.files import write_text
from lora_train.core.jobs import JobFolder
from lora_train.core.original import finished_train
from lora_train.core.specs import GridSpec, TrainSpec
from lora_train.core.workspace import Workspace
from lora_train.report import HTML_START as HTML_START

if TYPE_CHECKING:
    from lora_train.report.facts import ReportFacts
    from lora_train.report.page import ReportPicture


class Reports:
    def __init__(self, workspace: Workspace, watch: Watch) -> None:
        self._workspace = workspace
        self._watch = watch

    def curve_csv(self, job: str) -> str:
        """Step, epoch, loss, learning rate, seconds, validation and base loss of every step.

        Raises WorkspaceError or JobError for what is no training of ours.
        """
        return curve_csv(curve_rows(self._train(job).events_path))

    def curve_json(self, job: str) -> str:
        """As `curve_csv`."""
        folder = self._train(job)
        return curve_json(folder.path.name, curve_rows(folder.events_path))

    def html(self, job: str) -> str:
        """The report of a training. Raises as `curve_csv`."""
        return self.html_of(self._train(job))

    def name(self, job: str) -> str:
        """What its files are called. Raises as `curve_csv`."""
        return self._train(job).path.name

    # --- for the command line, of a folder anywhere ---

    def write_curves(self, folder: JobFolder, out: Path) -> int:
        """Write the curves to a .csv or .json file; how many rows. Raises JobError for other endings or jobs."""
        _require_train(folder)
        if out.suffix.lower() not in (".csv", ".json"):
            raise JobError(f"{out} ends with neither .csv nor .json.", "Give a file that does.")
        rows = curve_rows(folder.events_path)
        is_csv = out.suffix.lower() == ".csv"
        write_text(out, curve_csv(rows) if is_csv else curve_json(folder.path.name, rows))
        return len(rows)

    def html_of(self, folder: JobFolder) -> str:
        """The report of a training's folder. Raises JobError for what is no training of ours."""
        from lora_train.report.facts import read_facts  # numpy and Pillow
        from lora_train.report.page import report_html

        _require_train(folder)
        facts = read_facts(folder.path)
        return report_html(facts, self._pictures(folder, facts))

    # --- details ---

    def _train(self, job: str) -> JobFolder:
        folder = JobFolder(self._workspace.find_job(job))
        _require_train(folder)
        return folder

    def _pictures(self, folder: JobFolder, facts: ReportFacts) -> list[ReportPicture]:
        """Grids of this training's LoRAs: those drawn on the previews panel, then its own previews, the best first."""
        from lora_train.report.page import ReportPicture

        found = [] if facts.is_private else [ReportPicture(path, path.stem) for path in self._grids(folder)]
        order = sorted(facts.loras, key=lambda lora: (lora.file != facts.best, -lora.step))
        for lora in order:
            stem = lora.file.removesuffix(".safetensors")
            samples = previews_of(folder, stem)
            # Grids have prompts written on them.
            grids = [path for path in samples if path.stem.endswith("-grid") and not facts.is_private]
            found += [ReportPicture(path, f"{stem}, step {lora.step}") for path in grids or samples[:1]]
        return found

    def _grids(self, folder: JobFolder) -> list[Path]:
        """Newest first; none for a training outside the workspace."""
        parts = folder.path.parts
        root = self._workspace.root.resolve()
        if folder.path.parents[5:6] != (root,):
            return []
        version = self._workspace.find_version(parts[-5], parts[-3])
        grids: list[Path] = []
        for job in reversed(version.info().grid_jobs):
            try:
                drawn = JobFolder(self._workspace.find_job(job))
                spec = self._watch.spec(drawn)
            except (TrainToolsError, OSError):  # it was deleted, or is damaged
                continue
            if not isinstance(spec, GridSpec):
                continue
            loras = [(drawn.path / lora).resolve() for lora in spec.loras]
            if any(lora.parent == folder.path for lora in loras):
                grids += sorted(drawn.path.glob("*-grid.png"))
        return grids


def _require_train(folder: JobFolder) -> None:
    if finished_train(folder.path) is not None:
        raise JobError(
            f"{folder.path.name} was trained by the original extension, which kept the LoRAs alone: there is nothing "
            "to report."
        )
    if not isinstance(folder.read_spec(), TrainSpec):
        raise JobError(f"{folder.path.name} is no training.")
