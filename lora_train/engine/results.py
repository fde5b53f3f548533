"""What a training gives: LoRA files, and the previews that are drawn with them."""

from __future__ import annotations

from pathlib import Path

from lora_train.core.errors import ModelError
from lora_train.core.events import Note, Phase, Sampled, Saved
from lora_train.core.lora_files import is_whole
from lora_train.engine import devices
from lora_train.engine.course import Course
from lora_train.engine.metadata import build_metadata
from lora_train.engine.network_file import checked, named_parts, save_lora
from lora_train.engine.previews import PreviewTexts, draw_previews, grid_path, save_previews
from lora_train.engine.sample import draw_settings

_NO_ROOM_FOR_PREVIEWS = (
    "The previews of this save need more memory than is left beside the training. They can be drawn when it has ended."
)


def save_lora_and_previews(course: Course, stem: str, *, draws: bool = True) -> None:
    """Save the network as it is now, and draw with it where previews are wanted and not there yet."""
    if not course.run.is_first:
        return
    texts = course.run.preview_texts
    with course.resting():
        _save_lora(course, stem)
        if draws and texts is not None and not grid_path(course.job.samples_dir, stem).exists():
            _save_previews(course, stem, texts)


def _save_lora(course: Course, stem: str) -> None:
    """Have the network as it is now written, and told of when the file is whole."""
    run, report, path = course.run, course.report, course.job.path / f"{stem}.safetensors"
    saved = Saved(path=path.name, step=course.clock.step, epoch=course.clock.epoch)
    if _is_there(course, path):  # told again: a worker may have died between writing the file and telling of it
        course.writer.write(lambda: report.events.write(saved))
        return
    snapshot = run.snapshots.take(named_parts(run.network))

    def write() -> None:
        tensors = checked(snapshot.tensors(), devices.DTYPES[run.settings.save_precision])
        run.checkpoint_hashes.fill(run.facts)
        metadata = build_metadata(run.settings, run.facts, output_name=stem, step=saved.step, epoch=saved.epoch)
        save_lora(path, tensors, metadata)
        report.events.write(saved)

    course.writer.write(write)


def _is_there(course: Course, path: Path) -> bool:
    """Whether a LoRA was saved before; a damaged one goes to the trash and is saved again."""
    if not path.exists():
        return False
    try:
        if is_whole(path):
            return True
    except OSError:  # another program has locked it; nothing is known against it
        return True
    except ModelError:
        pass
    course.report.events.write(Note("warning", f"{path.name} was damaged: it is saved again."))
    course.trash(path)
    return path.exists()


def _save_previews(course: Course, stem: str, texts: PreviewTexts) -> None:
    run, events = course.run, course.report.events
    draw_with = draw_settings(run.settings, run.model, run.resolution_px)

    def progress(done: int, total: int) -> None:  # not `phase`: a request waits until the save is whole
        events.write(Phase(name="drawing previews", done=done, total=total))

    try:
        rows = course.with_room(lambda: draw_previews(run.model, run.network, texts, run.settings, draw_with, progress))
    except Exception as error:
        if not devices.is_out_of_memory(error):
            raise
        rows = None  # outside of this block nothing holds what was allocated
    course.writer.wait()  # pictures are told of after their LoRA

    def told(path: Path, prompt: str, weight: float | None) -> None:
        place = path.relative_to(course.job.path).as_posix()
        events.write(Sampled(path=place, step=course.clock.step, prompt=prompt, weight=weight))

    run.model.drop_vae()
    if rows is None:
        events.write(Note("warning", _NO_ROOM_FOR_PREVIEWS))
    else:
        save_previews(course.job.samples_dir, stem, rows, run.settings, draw_with, told)
    events.write(Phase(name="training"))
    devices.free_cached_memory(run.device)
