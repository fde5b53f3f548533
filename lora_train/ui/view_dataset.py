"""The dataset, the sum of the training that it would make, and the base model, as HTML."""

from __future__ import annotations

from lora_train.app.snapshot import (
    BaseModelSnapshot,
    DatasetSnapshot,
    Forecast,
    PictureEntry,
    Selection,
    Snapshot,
)
from lora_train.core.jobs import JobStatus
from lora_train.ui.html import (
    apart,
    attributes_text,
    badge,
    counted,
    error_panel,
    page_of,
    pager,
    paragraph,
    picture_url,
    post_button,
    progress_bar,
    rounded_time,
    sentences,
    value,
    values,
    words,
)
from lora_train.ui.view_memory import fit_html

_PREDICTIONS = {"epsilon": "epsilon prediction", "v_prediction": "v prediction"}


GALLERY_LENGTH = 100
"""Pictures that are shown at once."""


def dataset_html(snapshot: Snapshot, token: str, page: str = "") -> str:
    """The pictures of the version with their captions, what is wrong with them, and a running *Update Dataset*.

    `page`, from 1, is that of the gallery.
    """
    selection, dataset = snapshot.selection, snapshot.dataset
    if not selection.version:
        return paragraph(words("Create a project and a version first."), "train-tools-quiet")
    update = _update(dataset.update, selection) if dataset.update else ""
    problems = sentences(snapshot.notes) + sentences(dataset.problems, "train-tools-warning")
    if not dataset.pictures:
        empty = words("Drop 10-20 pictures on Upload Dataset, then press Update Dataset.")
        return f'{update}{problems}<div class="train-tools-empty">{empty}</div>'
    count = len(dataset.pictures)
    number = page_of(page, count, GALLERY_LENGTH)
    shown = dataset.pictures[(number - 1) * GALLERY_LENGTH : number * GALLERY_LENGTH]
    figures = "".join(_figure(picture, selection, token) for picture in shown)
    turns = pager("gallery", number, count, GALLERY_LENGTH, ("Previous pictures", "Next pictures"))
    gallery = f'<div class="train-tools-gallery">{figures}</div>{turns}'
    return f"{_counts(dataset)}{update}{problems}{gallery}{_folders(dataset)}"


def _counts(dataset: DatasetSnapshot) -> str:
    waiting = sum(picture.is_waiting for picture in dataset.pictures)
    regularisation = sum(picture.is_regularisation for picture in dataset.pictures)
    trained = len(dataset.pictures) - waiting - regularisation
    parts = [counted(trained, "picture", "pictures")]
    if regularisation:
        parts.append(counted(regularisation, "regularisation picture", "regularisation pictures"))
    if waiting:
        parts.append(f"{value(waiting)} {words('waiting for Update Dataset')}")
    return paragraph(apart(parts), "train-tools-counts")


def _figure(picture: PictureEntry, selection: Selection, token: str) -> str:
    kept_apart = f"{picture.is_waiting:d}{picture.is_regularisation:d}"  # folders of their own: names may be the same
    badges = badge("waiting", "notice") if picture.is_waiting else ""
    badges += badge("regularisation") if picture.is_regularisation else ""
    size = value(f"{picture.width_px} × {picture.height_px}")
    key = attributes_text({"data-key": f"figure {kept_apart} {picture.file}"})
    caption = value(picture.caption) if picture.caption else words("no caption")
    tone = "" if picture.caption else " train-tools-quiet"
    return (
        f'<figure class="train-tools-picture"{key}>'
        f"{picture_button(picture, selection, token, f'picture {kept_apart} {picture.file}')}"
        f'<figcaption><span class="train-tools-facts">{size}{badges}</span>'
        f'<span class="train-tools-caption{tone}">{caption}</span></figcaption></figure>'
    )


def picture_button(picture: PictureEntry, selection: Selection, token: str, key: str) -> str:
    """A thumbnail that opens the picture editor. `key` tells it from all others of the same live part."""
    query = {
        "project": selection.project,
        "version": selection.version,
        "file": picture.file,
        "waiting": "1" if picture.is_waiting else "0",
        "stamp": picture.stamp,
    }
    address = picture_url(query, token)
    opener = attributes_text(
        {
            "data-open": picture.file,
            "data-key": key,
            "data-waiting": query["waiting"],
            "data-caption": picture.caption,
            "data-picture": f"{address}&size=full",
            "title": picture.caption,
        }
    )
    image = attributes_text({"src": f"{address}&size=thumb", "alt": picture.file})
    return (
        f'<button type="button" class="train-tools-thumbnail train-tools-value"{opener}>'
        f'<img loading="lazy" decoding="async" width="160" height="160"{image}></button>'
    )


def _folders(dataset: DatasetSnapshot) -> str:
    if not dataset.folders:
        return ""
    return (
        f'<details class="train-tools-details" data-key="folders"><summary>{words("Folders")}</summary>'
        f"{values(dataset.folders)}</details>"
    )


def _update(update: JobStatus, selection: Selection) -> str:
    """What *Update Dataset* does or did; nothing where it ended well and has nothing to say."""
    if update.state in ("waiting", "running"):
        stop = post_button(
            "Stop",
            "dataset/update/stop",
            {"project": selection.project, "version": selection.version},
            done="The update stops; the pictures stay as they were.",
        )
        done = value(f"{update.phase_done} / {update.phase_total}") if update.phase_total else ""
        bar = progress_bar(update.phase_done, update.phase_total)
        headline = paragraph(f"{words('Updating the dataset')} {done}")
        return f'<div class="train-tools-box">{headline}{bar}<div class="train-tools-actions">{stop}</div></div>'
    if update.state == "failed":
        return error_panel("The update failed; the pictures are as they were before.", update.message, update.hint)
    if update.state == "stopped":
        return paragraph(words("The update was stopped; the pictures are as they were before."), "train-tools-quiet")
    return sentences(update.notes)


def sum_html(forecast: Forecast) -> str:
    """`18 pictures × 9 repeats × 10 epochs ÷ batch 1 = 1620 steps`, or every reason why it can't begin."""
    if forecast.problems:
        return f"{paragraph(words('Training cannot begin yet:'))}{sentences(forecast.problems, 'train-tools-warning')}"
    if not forecast.total_steps:
        return paragraph(words("The number of steps appears here when there are pictures."), "train-tools-quiet")
    divided = f"{value('÷')} {words('batch')} {value(forecast.batch_size)}"
    if forecast.accumulation > 1:
        divided += f" {value('÷')} {words('accumulation')} {value(forecast.accumulation)}"
    equals = value("=" if forecast.is_exact else "→")
    total = f'<span class="train-tools-total">{counted(forecast.total_steps, "step", "steps")}</span>'
    epochs = counted(forecast.epochs, "epoch", "epochs")
    line = f"{_views(forecast)} {value('×')} {epochs} {divided} {equals} {total}{_expected_time(forecast)}"
    notes = [_aim(forecast)] if forecast.aimed_steps else []
    if forecast.held_out:
        held = counted(forecast.held_out, "picture is held out", "pictures are held out")
        notes.append(f"{held} {words('to measure the training.')}")
    if not forecast.is_exact:
        notes.append(words("Partial batches count as steps: pictures of several sizes never share a batch."))
    told = sentences(forecast.warnings, "train-tools-warning") + sentences(forecast.overridden, "train-tools-quiet")
    quiet = "".join(paragraph(note, "train-tools-quiet") for note in notes)
    return paragraph(line, "train-tools-sum") + quiet + fit_html(forecast.fit) + told


def _aim(forecast: Forecast) -> str:
    """What the automatic repeats are for."""
    aimed = counted(forecast.aimed_steps, "step", "steps")
    if forecast.is_over_aim:
        advice = words("Choose fewer epochs or a larger batch.")
        return f"{words('Shown once each, the pictures already make more than is aimed at:')} {aimed}. {advice}"
    return f"{words('The repeats are chosen for')} {aimed}."


def _views(forecast: Forecast) -> str:
    """How many picture views an epoch has, and where they come from."""
    pictures = counted(forecast.pictures, "picture", "pictures")
    if forecast.repeats is None:
        views = counted(forecast.views_per_epoch, "picture view", "picture views")
        return f"{views} {value('(')}{pictures}{value(', ')}{words('repeats differ between folders')}{value(')')}"
    product = f"{pictures} {value('×')} {counted(forecast.repeats, 'repeat', 'repeats')}"
    if not forecast.regularisation_pictures:
        return product
    views = f"{value(forecast.views_per_epoch - forecast.pictures * forecast.repeats)} {words('views of')}"
    added = counted(forecast.regularisation_pictures, "regularisation picture", "regularisation pictures")
    return f"{value('(')}{product} {value('+')} {views} {added}{value(')')}"


def _expected_time(forecast: Forecast) -> str:
    if forecast.seconds is None:
        return f"{value('; ')}{words('the time will be known after the first training on this machine')}"
    number, unit = rounded_time(forecast.seconds)
    return f"{value(', ')}{words('about')} {value(number)} {words(unit)} {words('on this machine')}"


def model_html(base_model: BaseModelSnapshot) -> str:
    """What the chosen base model was detected to be; the reason where it can't be trained on. Empty without one."""
    if base_model.problem:
        return error_panel("This base model cannot be trained on:", base_model.problem)
    if not base_model.name and not base_model.family:
        return ""
    chips = [value(base_model.family)] if base_model.family else []
    chips.append(words(_PREDICTIONS.get(base_model.prediction, "prediction type unknown")))
    if base_model.resolution_px:
        chips.append(f"{words('trains at')} {value(f'{base_model.resolution_px} px')}")
    if not base_model.clip_skip_matters:
        chips.append(words("clip skip has no effect"))
    listed = "".join(f'<li class="train-tools-chip">{chip}</li>' for chip in chips)
    return f'<div class="train-tools-detected">{words("Detected:")}<ul class="train-tools-chips">{listed}</ul></div>'
