"""`lora-train dataset`: pictures taken in, made into the trained set, checked and listed."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from lora_train.commands.arguments import (
    add_command,
    add_group,
    add_settings,
    add_version,
    app_of,
    selection_of,
    values_of,
)
from lora_train.commands.console import Result, tell, watch_job
from lora_train.core.caption_settings import CaptionSettings
from lora_train.core.dataset_settings import DatasetSettings
from lora_train.core.errors import ConfigError

if TYPE_CHECKING:
    from lora_train.app import App
    from lora_train.app.snapshot import CaptioningSnapshot, DatasetSnapshot
    from lora_train.core.health import Finding, Unit

_MOST_SHOWN = 24
"""Pictures, groups or tags of one finding; the others are counted. `--json` has all of them."""
_LEVELS = {"error": "Must be mended", "warning": "Worth a look", "info": "Good to know"}


def add_commands(commands: Any) -> None:
    """Put the commands of this file among the others."""
    dataset = add_group(commands, "dataset", "the pictures of a project: take in, update, check, list")

    add = add_command(dataset, "add", _add, "take in pictures and captions; the project is made if there is none")
    add_version(add)
    add.add_argument("paths", nargs="+", metavar="PATH", help="pictures, caption files, folders, zip archives")

    update = add_command(dataset, "update", _update, "make the trained set from what was taken in (Update Dataset)")
    add_version(update)
    update.add_argument("--trigger-word", metavar="WORD", help="saved with the version; called so without a caption")
    add_settings(update, [], (DatasetSettings, CaptionSettings))

    check = add_command(dataset, "check", _check, "tell what is good and bad about the trained set")
    add_version(check)

    list_ = add_command(dataset, "list", _list, "list projects and versions, or the pictures of one")
    add_version(list_, required=False)


def _add(options: argparse.Namespace) -> Result:
    paths = [Path(path) for path in options.paths]
    missing = [f"{path} does not exist" for path in paths if not path.exists()]
    if missing:
        raise ConfigError(missing)
    app = app_of(options)
    selection = app.projects.open(options.name, options.version)
    ids = selection.project, selection.version
    before = app.datasets.originals(*ids)
    files = [(path.resolve().name if path.is_dir() else path.name, path) for path in paths]
    problems = app.datasets.add(*ids, files)
    kept = [name for name, stamp in app.datasets.originals(*ids).items() if before.get(name) != stamp]
    for problem in problems:
        tell(problem)
    tell(_counted(len(kept), "file is kept.", "files are kept.") if kept else "Nothing new is kept.")
    if kept and not options.json:
        print("\n".join(kept))
    return {
        "project": selection.project,
        "version": selection.version,
        "kept": kept,
        "left_out": problems,
        "exit_code": int(bool(problems) and not kept),
    }


def _update(options: argparse.Namespace) -> Result:
    app = app_of(options)
    ids = selection_of(app, options)
    app.settings.change(*ids, values_of(options))
    if options.trigger_word is not None:
        app.settings.save(*ids, train={"trigger_word": options.trigger_word})
    choices = app.captioning.choices(*ids)
    if app.datasets.needs_captions(*ids):
        if choices.must_ask:
            tell("Pictures without a caption are called by the trigger word, or the project's name.")
            tell(captioners_text(choices))
        elif choices.uses:
            tell(f"Captions are written by: {', '.join(choices.uses)}")
    result = watch_job(app, app.datasets.start_update(*ids))
    snapshot = app.datasets.snapshot(*ids)
    if result["exit_code"] == 0 and not options.json:
        print(_counts_text(snapshot))
        for folder in snapshot.folders:
            print(folder)
    return {**result, **_counts(snapshot), "folders": snapshot.folders}


def captioners_text(choices: CaptioningSnapshot) -> str:
    """What could write captions, how large it is, and how it is chosen."""
    lines = [
        f"  {entry.label}, {'which is here' if entry.is_present else f'{entry.download_mb} MB'}: {entry.good_for}"
        for entry in choices.captioners
    ]
    how = "Choose with: lora-train caption --name PROJECT --with wd14 --download (or blip; or none, for no captions)"
    return "\n".join(["What could write captions:", *lines, how])


# --- the health check ---


def _check(options: argparse.Namespace) -> Result:
    app = app_of(options)
    ids = selection_of(app, options)
    report = app.health.report(*ids)
    if report.missing_facts:
        looked = watch_job(app, app.health.start(*ids))
        if looked["exit_code"]:
            return looked
        report = app.health.report(*ids)
    if not options.json:
        training = sum(not picture.is_regularisation for picture in report.pictures)
        print(_counted(training, "training picture.", "training pictures."))
        if all(finding.level == "info" for finding in report.findings):
            print("Nothing is wrong with the pictures and captions.")
        for finding in report.findings:
            print("\n".join(finding_lines(finding)))
    return msgspec.to_builtins(report)


def finding_lines(finding: Finding) -> Iterator[str]:
    """A finding in words: the level and what it is, then what it is about, then what to do."""
    measured = [_measure(finding.number, finding.unit)] if finding.number is not None else []
    measured += [f"limit {_measure(finding.limit, finding.unit)}"] if finding.limit is not None else []
    yield f"{_LEVELS[finding.level]}: {finding.title}" + (f" ({', '.join(measured)})" if measured else "")
    yield from (f"    {sentence}" for sentence in finding.sentences)
    pictures: list[str] = []
    for shown in finding.pictures:
        told = [_measure(shown.number, finding.unit)] if shown.number is not None else []
        told += [f"loses {100 * shown.lost_share:.0f} %"] if shown.lost_share is not None else []
        pictures.append(shown.file + (f"  {', '.join(told)}" if told else ""))
    yield from _shortened(pictures)
    yield from _shortened([" = ".join(group.files) for group in finding.groups])
    if finding.counts:
        counts = [f"{count.name} {count.count}" for count in finding.counts]
        more = len(counts) - _MOST_SHOWN
        yield f"    {', '.join(counts[:_MOST_SHOWN])}" + (f", and {more} others" if more > 0 else "")
    if finding.remedy:
        yield f"    -> {finding.remedy}"


def _shortened(lines: Sequence[str]) -> Iterator[str]:
    yield from (f"    {line}" for line in lines[:_MOST_SHOWN])
    if len(lines) > _MOST_SHOWN:
        yield f"    and {len(lines) - _MOST_SHOWN} others"


def _measure(number: float, unit: Unit) -> str:
    text = f"{number:.2f}".rstrip("0").rstrip(".")
    return (
        f"sharpness {text}" if unit == "sharpness" else f"{text}{unit}" if unit == ":1" else f"{text} {unit}".rstrip()
    )


# --- what there is ---


def _list(options: argparse.Namespace) -> Result:
    app = app_of(options)
    if options.name is None:
        return _list_projects(app, options)
    snapshot = app.datasets.snapshot(*selection_of(app, options))
    for problem in snapshot.problems:
        tell(problem)
    if not options.json:
        for picture in snapshot.pictures:
            size = f"{picture.width_px} x {picture.height_px}"
            notes = "  (waits for `dataset update`)" if picture.is_waiting else ""
            notes += "  (regularisation)" if picture.is_regularisation else ""
            print(f"{picture.file}  {size}  {picture.caption}{notes}")
    return {**_counts(snapshot), "pictures": msgspec.to_builtins(snapshot.pictures), "problems": snapshot.problems}


def _list_projects(app: App, options: argparse.Namespace) -> Result:
    told: list[Result] = []
    for project in app.projects.list():
        versions: list[Result] = []
        for version in project.versions:
            snapshot = app.datasets.snapshot(project.id, version.id)
            versions.append({"name": version.name, "id": version.id, **_counts(snapshot)})
            if not options.json:
                print(f"{project.name}  {version.name}  {_counts_text(snapshot)}")
        told.append({"name": project.name, "id": project.id, "versions": versions})
    if not told:
        tell("There is no project yet. Make one with: lora-train dataset add --name PROJECT PATH")
    return {"projects": told}


def _counts(snapshot: DatasetSnapshot) -> dict[str, int]:
    trained = [picture for picture in snapshot.pictures if not picture.is_waiting]
    regularisation = sum(picture.is_regularisation for picture in trained)
    return {
        "trained": len(trained) - regularisation,
        "regularisation": regularisation,
        "waiting": len(snapshot.pictures) - len(trained),
    }


def _counts_text(snapshot: DatasetSnapshot) -> str:
    counts = _counts(snapshot)
    parts = [_counted(counts["trained"], "training picture", "training pictures")]
    parts += [f"{counts['regularisation']} for regularisation"] if counts["regularisation"] else []
    parts += [f"{counts['waiting']} waiting for `dataset update`"] if counts["waiting"] else []
    return ", ".join(parts)


def _counted(count: int, one: str, more: str) -> str:
    return f"{count} {one if count == 1 else more}"
