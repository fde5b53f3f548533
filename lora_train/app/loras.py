"""The LoRAs of a training: listed with their previews, published into the host's folder, taken back, deleted."""

from __future__ import annotations

import re
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from lora_train import publish
from lora_train.app.planning import lora_family
from lora_train.app.proofs import Proofs
from lora_train.app.snapshot import LoraEntry, Undo
from lora_train.app.triggers import trigger_of
from lora_train.app.watching import Watch
from lora_train.core.assets import resolve_base_model
from lora_train.core.cards import CardFacts, card_values
from lora_train.core.errors import DatasetError, JobError, ModelError, TrainToolsError, WorkspaceError
from lora_train.core.families import FAMILY_LABELS
from lora_train.core.host import Host
from lora_train.core.jobs import JobFolder, JobStatus
from lora_train.core.original import finished_train
from lora_train.core.progress import StopAskedForError, tell
from lora_train.core.recommendation import Best, best_of
from lora_train.core.records import write_json
from lora_train.core.specs import TrainSpec
from lora_train.core.tensorfiles import read_tensor_file
from lora_train.core.workspace import Workspace
from lora_train.launch.leftovers import remove_leftovers

_PUBLISHABLE = ("finished", "stopped")

_PREVIEW = re.compile(r"(.+)-(?:grid|p\d+-w-?\d+(?:\.\d+)?(?:e[+-]\d+)?)\.png", re.DOTALL)
"""`<stem>-grid.png`, `<stem>-p1-w0.6.png`; weights as `:g` writes them."""


class Loras:
    def __init__(self, workspace: Workspace, host: Host, watch: Watch, proofs: Proofs) -> None:
        self._workspace = workspace
        self._host = host
        self._watch = watch
        self._proofs = proofs
        self._publishing = threading.Lock()
        self.revision = 0
        """Grows whenever files in the host's folder were added or removed."""

    def entries(self, job: JobFolder, status: JobStatus) -> list[LoraEntry]:
        """The LoRAs that are there, newest first."""
        record = publish.read_record(job.path)
        previews = _all_previews(job)
        best = best_of(job, status.saved)
        copies = {file: copy for file, copy in record.loras.items() if Path(copy.path).is_file()}
        proving = self._proofs.states(job, copies)
        found: list[LoraEntry] = []
        for file in reversed(status.saved):
            path = job.path / file
            told = path.stat()
            copy = copies.get(file)
            name = "" if copy is None else Path(copy.path).stem
            found.append(
                LoraEntry(
                    file=file,
                    stem=path.stem,
                    size_bytes=told.st_size,
                    step=status.step_of_file.get(file, 0),
                    epoch=status.epoch_of_file.get(file, 0),
                    made=told.st_mtime,
                    previews=previews.get(path.stem, []),
                    published=name,
                    proving=proving.get(file),
                    prompt=prompt_of(path, name or path.stem, best.weight if file == best.file else 1.0),
                    is_recommended=file == best.file,
                    problem="" if copy is None else copy.problem,
                )
            )
        return found

    def family_label(self, job: JobFolder, entries: Sequence[LoraEntry]) -> str:
        """Of base models that the newest one of a training goes with; empty where its file does not tell."""
        with suppress(TrainToolsError, OSError):
            return FAMILY_LABELS.get(lora_family(job.path / entries[0].file), "") if entries else ""
        return ""

    def publish(self, job: str, file: str) -> str:
        """Copy a LoRA into the host's folder, and return the name that it has in prompts.

        Raises WorkspaceError for a file that is none of the training's, TrainToolsError where nothing can be published.
        """
        folder, lora = self._find(job, file)
        target = self._host.lora_dir()
        if target is None:
            raise TrainToolsError(
                "There is no LoRA folder to publish to.",
                "Start the page with --lora-dir, or download the file and put it into models/Lora.",
            )
        return Path(self._publish(folder, lora, target, self._host.lora_root()).path).stem

    def publish_recommended(self, job: str) -> str:
        """`publish` for the LoRA that was chosen or is recommended, or else the last one.

        Raises as `publish`; WorkspaceError where there is no LoRA.
        """
        folder = JobFolder(self._workspace.find_job(job))
        self._subject(folder)
        return self.publish(job, self.recommended_file(folder))

    def recommended_file(self, job: JobFolder) -> str:
        """The LoRA that was chosen or is recommended, or else the last one. Raises WorkspaceError without any."""
        saved = [file for file in self._watch.status(job).saved if (job.path / file).is_file()]
        if not saved:
            raise WorkspaceError(f"There is no LoRA in {job.path}.", "Let the training save one first.")
        return best_of(job, saved).file or saved[-1]

    def publish_result(self, job: JobFolder) -> Path | None:
        """Copy the best LoRA of an ended training (see `recommended_file`) to where its person wants it; None where
        that is nowhere.
        """
        spec = job.read_spec()
        status = self._watch.status(job)
        if not isinstance(spec, TrainSpec) or not spec.publish_to or not status.saved:
            return None
        if status.state not in _PUBLISHABLE or status.error:
            return None
        root = self._host.lora_root()
        target = Path(spec.publish_to)
        is_below_root = root is not None and target.is_relative_to(root)
        lora = job.path / self.recommended_file(job)
        return Path(self._publish(job, lora, target, root if is_below_root else None).path)

    def publish_to(
        self, job: JobFolder, folder: Path, *, file: str = "", is_private: bool = False
    ) -> publish.Published:
        """Copy a LoRA of a training, by default the best one, into any folder, marked for private use where wanted.

        Raises as `publish`.
        """
        self._subject(job)
        file = file or self.recommended_file(job)
        if file not in self._watch.status(job).saved:
            raise WorkspaceError(f"There is no LoRA {file!r} in {job.path}.")
        if is_private:
            self._mark(job, is_private=True)
        return self._publish(job, job.path / file, folder, None)

    def is_private(self, job: JobFolder) -> bool:
        """Whether copies of the training's LoRAs are marked for private use."""
        marked = publish.read_record(job.path).private_use
        if marked is not None or finished_train(job.path) is not None:
            return bool(marked)
        spec = self._watch.spec(job)
        return isinstance(spec, TrainSpec) and spec.settings.private_use

    def set_private(self, job: str, is_private: bool) -> None:
        """Mark the LoRAs of a training for private use, or take the mark off, also of copies that are published.

        The files in the training's folder are left as they are. Tells its progress; where it is stopped, the training
        counts as it did before. Raises JobError for what is no training, TrainToolsError where a copy can't be written.
        """
        folder = JobFolder(self._workspace.find_job(job))
        self._subject(folder)
        before = self.is_private(folder)
        self._mark(folder, is_private=is_private)
        root = self._host.lora_root()
        copies = publish.read_record(folder.path).loras
        for number, (file, published) in enumerate(copies.items(), 1):
            target = Path(published.path)
            if (folder.path / file).is_file() and publish.is_in_place(published):
                is_below_root = root is not None and target.is_relative_to(root)
                self._publish(folder, folder.path / file, target.parent, root if is_below_root else None)
            try:
                tell(number, len(copies))
            except StopAskedForError:
                if number < len(copies):
                    self._mark(folder, is_private=before)
                    raise JobError(
                        f"Stopped: {number} of {len(copies)} copies are changed.", "Press it again for the others."
                    ) from None

    def unpublish(self, job: str, file: str) -> Undo:
        """Move the copy, its card and its thumbnail out of the host's folder, as far as they were written by us.

        Raises WorkspaceError where there is no such copy, or another file stands under its name.
        """
        folder, lora = self._find(job, file)
        published = publish.read_record(folder.path).loras.get(file)
        if published is None or not Path(published.path).is_file():
            raise WorkspaceError(f"{lora.name} is not published.")
        if not publish.is_in_place(published):
            raise WorkspaceError(
                f"{published.path} is not the file that was published: it was there before, or was changed since.",
                "It is left as it is; delete it by hand if you want to.",
            )
        own = [path for path in map(Path, published.files) if path.exists()]
        what = f"{Path(published.path).stem} in the LoRA folder"
        entry = self._workspace.trash.put(what, own)
        self._changed()
        return Undo(what, entry)

    def delete(self, job: str, file: str) -> Undo:
        """Move a LoRA and its previews to the trash; a published copy stays.

        Raises WorkspaceError for a file that is none of the training's.
        """
        folder, lora = self._find(job, file)
        return Undo(lora.stem, self._workspace.trash.put(lora.stem, [lora, *previews_of(folder, lora.stem)]))

    def told_of_changes(self) -> None:
        """Something came back from the trash: it may have been a published copy."""
        self._changed()

    def _publish(self, job: JobFolder, lora: Path, folder: Path, root: Path | None) -> publish.Published:
        status = self._watch.status(job)
        best = best_of(job, status.saved)
        if lora.name != best.file:
            best = Best("")
        is_private = self.is_private(job)
        remove_leftovers(folder, is_ours=False)
        with self._publishing:
            record = publish.read_record(job.path)
            done = publish.publish(
                lora,
                folder,
                root=root,
                card=card_values(self._card_facts(job, lora, best, is_private=is_private)),
                thumbnail=_thumbnail(job, lora, best.sample),
                is_private=is_private,
                before=record.loras.get(lora.name),
            )
            record.loras[lora.name] = done
            write_json(job.path / "published.json", record)
        self._changed()
        if self._host.lora_root() is not None:  # where there is a page that shows it
            self._proofs.on_published(job, lora.name, done)
        return done

    def _mark(self, job: JobFolder, *, is_private: bool) -> None:
        with self._publishing:
            record = publish.read_record(job.path)
            record.private_use = is_private
            write_json(job.path / "published.json", record)

    def _card_facts(self, job: JobFolder, lora: Path, best: Best, *, is_private: bool) -> CardFacts:
        status = self._watch.status(job)
        metadata = read_tensor_file(lora).metadata
        family = "unknown"
        with suppress(ModelError):
            family = lora_family(lora)
        trigger = metadata.get("modelspec.trigger_phrase", "")
        base_model = metadata.get("ss_sd_model_name", "")
        if finished_train(job.path) is None and isinstance(spec := self._watch.spec(job), TrainSpec):
            trigger = spec.settings.trigger_word or trigger
            base_model = resolve_base_model(spec.settings.base_model).name
        return CardFacts(
            about=f"{self._subject(job)}, {status.step_of_file.get(lora.name, status.step)} steps",
            base_model=base_model,
            rank=metadata.get("ss_network_dim", ""),
            family=family,
            trigger=trigger,
            metadata=metadata,
            weight=best.weight,
            reason=best.reason,
            is_private=is_private,
        )

    def _find(self, job: str, file: str) -> tuple[JobFolder, Path]:
        folder = JobFolder(self._workspace.find_job(job))
        self._subject(folder)
        if file not in self._watch.status(folder).saved:
            raise WorkspaceError(f"There is no LoRA {file!r} in {folder.path}.")
        return folder, folder.path / file

    def _subject(self, job: JobFolder) -> str:
        """Project and version of a training. Raises JobError for what is none."""
        if finished_train(job.path) is not None:
            version_dir = job.path.parents[1]
            return f"{version_dir.parents[1].name} {version_dir.name}"
        spec = self._watch.spec(job)
        if not isinstance(spec, TrainSpec):
            raise JobError(f"{job.path.name} is no training.")
        return f"{spec.concept} {spec.version}"

    def _changed(self) -> None:
        self.revision += 1
        self._host.refresh_loras()


def previews_of(job: JobFolder, stem: str) -> list[Path]:
    """The previews of one LoRA: the first prompt's picture with the strongest LoRA weight, the grid, the others."""
    return [job.path / file for file in _all_previews(job).get(stem, [])]


def _all_previews(job: JobFolder) -> dict[str, list[str]]:
    """Stem of each LoRA of a training -> its previews as in `previews_of`, relative to the training's folder."""
    found: dict[str, list[str]] = {}
    names = [path.name for path in job.samples_dir.iterdir()] if job.samples_dir.is_dir() else []
    for name in names:
        if (match := _PREVIEW.fullmatch(name)) is not None:
            found.setdefault(match[1], []).append(f"{job.samples_dir.name}/{name}")
    for previews in found.values():
        previews.sort(key=_preview_order)
        if previews[-1].endswith("-grid.png"):
            previews.insert(1, previews.pop())
    return found


def _thumbnail(job: JobFolder, lora: Path, sample: str) -> bytes | None:
    """For a card: from the judge's best picture, or else the first prompt's preview with the strongest weight."""
    from lora_train.data.thumbnails import card_thumbnail

    previews = (path for path in previews_of(job, lora.stem) if "-p1-w" in path.name)
    for path in (*([job.path / sample] if sample else []), *previews):
        with suppress(DatasetError, OSError):  # damaged, or just deleted: the next one
            return card_thumbnail(path)
    return None


def prompt_of(lora: Path, name: str, weight: float = 1.0) -> str:
    """What makes a picture with a LoRA: its tag, and its trigger words."""
    trigger = trigger_of(lora)
    return f"<lora:{name}:{weight:g}>" + (f" {trigger}" if trigger else "")


def _preview_order(file: str) -> tuple[bool, bool, float, str]:
    """The first prompt before others, strong LoRA weights before weak ones, the grid last."""
    if file.endswith("-grid.png"):
        return True, False, 0.0, file
    weight = float(file.rpartition("-w")[2].removesuffix(".png"))  # `<stem>-p1-w0.6.png`
    return False, "-p1-w" not in file, -weight, file
